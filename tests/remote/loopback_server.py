"""A server on loopback, in a thread of this process or in one of its own."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import requests
import uvloop
from fake_workers import FakeWorkers, events_in

from insitu.remote.protocol import Limits
from insitu.remote.server import patience
from insitu.remote.server.app import application
from insitu.remote.server.callers import Door
from insitu.remote.server.files import Folder
from insitu.remote.server.state import Server

HERE = Path(__file__).parent


class Client:
    """Plain requests to a server."""

    def __init__(self, url, key=None):
        self.url = url
        self.http = requests.Session()
        self.http.trust_env = False
        self.http.headers["X-Protocol"] = "1"
        if key:
            self.http.headers["Authorization"] = f"Bearer {key}"

    def get(self, path, **more):
        return self.http.get(self.url + path, timeout=30, **more)

    def post(self, path, data, **more):
        return self.http.post(self.url + path, data=data, timeout=30, **more)

    def delete(self, path):
        return self.http.delete(self.url + path, timeout=30)

    def send(self, body, **headers):
        """The id of a new job."""
        answer = self.post("/v1/jobs", body, headers=headers)
        assert answer.status_code == 202, answer.text
        return answer.json()["id"]

    def events(self, job, after=0):
        """Every event of a job to its end."""
        answer = self.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": str(after)})
        assert answer.status_code == 200, answer.text
        return events_in(answer.text)

    def phase(self, job):
        return self.get(f"/v1/jobs/{job}").json()["phase"]

    def until(self, job, *phases, time_s=10):
        """Wait until a job is in a phase."""
        end = time.monotonic() + time_s
        while (phase := self.phase(job)) not in phases:
            assert time.monotonic() < end, phase
            time.sleep(0.01)
        return phase

    def close(self):
        self.http.close()


class Running:
    """A server in a thread."""

    def __init__(self, folder, workers=None, limits=None, door=None):
        self.workers = workers or FakeWorkers()
        self.server = Server(folder, self.workers, limits or Limits(), door or Door(), "self")
        self.http = patience.Quiet(application(self.server))
        self.listener = patience.listening("127.0.0.1", 0)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.loop = None
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            self.loop = runner.get_loop()
            runner.run(self.http.serve([self.listener]))

    def start(self):
        self.thread.start()
        end = time.monotonic() + 10
        while not self.server.started:
            assert time.monotonic() < end
            assert self.thread.is_alive()
            time.sleep(0.005)

    def stop(self):
        for stream in [*self.server.streams]:
            self.loop.call_soon_threadsafe(stream.closing.set)
        self.http.should_exit = True
        self.thread.join(15)
        self.listener.close()
        assert not self.thread.is_alive()


@contextmanager
def running(path, workers=None, limits=None, door=None, **folder):
    """A server in a thread of this process: `(server, client)`."""
    server = Running(Folder(path, **folder), workers, limits, door)
    server.start()
    client = Client(server.url)
    try:
        yield server, client
    finally:
        client.close()
        server.stop()


SERVE = """
import sys
sys.path.insert(0, {here!r})
from fake_workers import FakeWorkers
from insitu.remote.server import options, serve
from insitu.errors import InsituError
said = options.parsed(["serve", "demo", *sys.argv[1:]])
try:
    sys.exit(serve.run(said, FakeWorkers(room=2)))
except InsituError as error:
    sys.exit(str(error))
"""


class Process:
    """`insitu serve` with fake workers, in a process of its own."""

    def __init__(self, folder, *words, port=0, before=(), data=None):
        """`before`: what runs it, such as `unshare …`; `data`: its folder, if another."""
        self.folder = folder
        self.log = folder / "stderr.txt"
        folder.mkdir(exist_ok=True)
        said = ["--data", str(data or folder), "--port", str(port), *words]
        code = textwrap.dedent(SERVE).format(here=str(HERE))
        with self.log.open("ab") as err, (folder / "stdout.txt").open("wb") as out:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-c", code, *said], stdout=out, stderr=err,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip

    def ready(self, key=None, time_s=60):
        """A client, once it answers."""
        end = time.monotonic() + time_s
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            said = (self.folder / "stdout.txt").read_text()
            if " at http" in said:
                self.url = said.split(" at ", 1)[1].split()[0]
                client = Client(self.url, key)
                try:
                    if client.get("/readyz").ok:
                        return client
                except requests.ConnectionError:
                    pass
                client.close()
            time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def signal(self, it=signal.SIGTERM):
        self.process.send_signal(it)

    def end(self):
        if self.process.poll() is None:
            self.kill()
