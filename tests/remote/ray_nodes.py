"""Nodes of a real Ray cluster, all on this machine; started, killed, started again.

with cluster(2) as there: there.nodes[1].kill()
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from insitu.remote.worker.ray_process import _session

START_S = 600
HERE = str(Path(__file__).parent)


def until(condition, time_s=60):
    end = time.monotonic() + time_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Node:
    """`ray start --block`, with all that it starts in one session."""

    def __init__(self, folder, *words):
        self.folder = folder
        self.words = words
        self.start()

    def start(self):
        code = "from ray.scripts.scripts import main; main()"
        command = [sys.executable, "-W", "ignore", "-c", code, "start", "--block", *self.words]
        self.log = self.folder / f"node-{time.monotonic_ns()}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [*command, "--disable-usage-stats", "--num-gpus=0"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment(self.folder),
                start_new_session=True,
            )  # fmt: skip

    def until_up(self):
        """Ray gives a node's parts 15 and 30 s to come up, which a busy machine may not keep to."""
        end = time.monotonic() + START_S
        while "Ray runtime started" not in self.log.read_text():
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            if self.process.poll() is not None:
                self.kill()
                self.start()
            time.sleep(0.2)

    def kill(self):
        """As a power cut does."""
        while left := _session(self.process.pid):
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.poll()
            time.sleep(0.01)
        self.process.wait()


def environment(folder):
    paths = [HERE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(it for it in paths if it), "RAY_TMPDIR": str(folder),
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip


class Cluster:
    """A head, and further nodes, with one replica's room each."""

    def __init__(self, folder):
        self.folder = folder
        self.port, self.client = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.nodes = []

    def head(self):
        words = [
            "--head", f"--port={self.port}", "--num-cpus=1", f"--temp-dir={self.folder}",
            f"--ray-client-server-port={self.client}", "--include-dashboard=false",
        ]  # fmt: skip
        self.nodes.append(Node(self.folder, *words))
        self.nodes[-1].until_up()

    def add(self):
        self.nodes.append(Node(self.folder, f"--address={self.address}", "--num-cpus=1"))
        self.nodes[-1].until_up()

    def end(self):
        for node in self.nodes:
            node.kill()
        self.nodes.clear()


@contextmanager
def cluster(nodes):
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        there = Cluster(Path(folder))
        try:
            there.head()
            for _ in range(nodes - 1):
                there.add()
            yield there
        finally:
            there.end()
