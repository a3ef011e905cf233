"""A server of the demo model that is to be hurt: started, killed, started again, looked at.

place = Place(folder); place.start(); place.kill(); place.start()
place.held()                              # {"processes": 4, "files of the server": 21, …}

python tools/soak_server.py PORT FOLDER   # the server itself: `insitu serve` with short limits
"""

import math
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import requests

from insitu.remote.protocol import Limits
from insitu.remote.server import options, serve
from insitu.remote.server.keys import Keys

LIMITS = Limits(wall_s=8.0, local_s=5.0, local_total_s=10.0, memory_bytes=2**30)
USERS = ("ada", "grace")
WATCH_S = 0.05
START_S = 120.0


class Place:
    """One server after another, on the same port and folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.temporary = folder / "tmp"
        for it in (self.data, self.temporary):
            it.mkdir(parents=True)
        keys = Keys(self.data / "keys.sqlite")
        self.keys = {name: keys.add(name) for name in USERS}
        keys.close()
        self.keys["watch"] = secrets.token_urlsafe(32)
        with socket.create_server(("127.0.0.1", 0)) as found:
            self.port = found.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.begun: list[float] = []
        """When each server answered first."""
        self.away: list[tuple[float, float]] = []
        """When none was there, or it was held: no stall of its own."""
        self.hurt: list[tuple[float, str]] = []
        """What was killed, and when; jobs may be lost then."""

    # its process ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it, and wait until it takes jobs."""
        command = [sys.executable, __file__, str(self.port), str(self.data)]
        with (self.folder / "server.log").open("ab") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=out,
                env={**os.environ, "TMPDIR": str(self.temporary),
                     "INSITU_SERVER_KEY": self.keys["watch"]},
            )  # fmt: skip
        until = time.monotonic() + START_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not come up; see {self.folder}/server.log")
            time.sleep(0.05)
        self.begun.append(time.time())

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/readyz", timeout=2).ok
        except requests.RequestException:
            return False

    def restart(self) -> None:
        """Kill it as power cuts do, and start it again."""
        assert self.process is not None
        began = time.time()
        self.hurt.append((began, "server"))
        self.away.append((began, math.inf))
        self.process.kill()
        self.process.wait()
        self.start()
        self.away[-1] = began, time.time()

    def freeze(self, time_s: float) -> None:
        """Hold it for a moment, as a machine does that swaps."""
        assert self.process is not None
        began = time.time()
        self.process.send_signal(signal.SIGSTOP)
        time.sleep(time_s)
        self.process.send_signal(signal.SIGCONT)
        self.away.append((began, time.time()))

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def model_process(self) -> int | None:
        """The process that has the weights."""
        return next(iter(children(self.process.pid)), None) if self.process else None

    def job_processes(self) -> list[int]:
        """Those that run a job or wait for one."""
        model = self.model_process()
        return [] if model is None else children(model)

    def kill(self, pid: int, what: str) -> None:
        """Kill one of its processes."""
        self.hurt.append((time.time(), what))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            self.hurt.pop()

    def excuses(self, began: float, ended: float) -> bool:
        """Whether something was killed under a job that lived then."""
        return any(began - 1 <= at <= ended + 1 for at, _ in self.hurt)

    # what it holds -------------------------------------------------------------------------------

    def everything(self) -> list[int]:
        """Every process of every server there was."""
        return [pid for pid in processes() if self._is_its(pid)]

    def _is_its(self, pid: int) -> bool:
        try:
            here = os.readlink(f"/proc/{pid}/cwd").startswith(str(self.data))
            said = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return here or (str(self.data).encode() in said and b"soak_server" in said)

    def held(self) -> dict[str, int]:
        """Processes, open files, threads, shared memory and files, to be compared."""
        assert self.process is not None
        pid, model = self.process.pid, self.model_process()
        names = {it.name for it in Path("/dev/shm").iterdir() if it.stat().st_uid == os.getuid()}
        return {
            "processes": len(self.everything()),
            "open files of the server": files(pid),
            "threads of the server": len(os.listdir(f"/proc/{pid}/task")),
            "open files of the model's process": 0 if model is None else files(model),
            "shared memory": len({it for it in names if not it.startswith("sem.mp-")}),
            "temporary files": sum(1 for _ in self.temporary.rglob("*")),
            "requests kept": sum(1 for _ in (self.data / "requests").iterdir()),
            "open files of the clients": files(os.getpid()),
            "threads of the clients": threading.active_count(),
        }

    def memory_mb(self) -> float:
        """Of the server's own process."""
        assert self.process is not None
        return memory_mb(self.process.pid)

    def rows(self, text: str) -> list[Any]:
        """What is in its database; while it runs too."""
        found = sqlite3.connect(f"file:{self.data}/jobs.sqlite?mode=ro", uri=True, timeout=10)
        try:
            return found.execute(text).fetchall()
        finally:
            found.close()


class Watch(threading.Thread):
    """Asks a server what its model does, again and again: how long it takes, when it loads."""

    def __init__(self, place: Place) -> None:
        super().__init__(name="soak-watch", daemon=True)
        self.place = place
        self.over = threading.Event()
        self.waits: list[tuple[float, float]] = []
        """When an answer was asked for that took more than 0.1 s, and how long it took."""
        self.loading: list[list[float]] = []
        """From when to when a model was not ready."""

    def run(self) -> None:
        """Until `over`."""
        headers = {"Authorization": f"Bearer {self.place.keys['watch']}", "X-Protocol": "1"}
        with requests.Session() as session:
            while not self.over.wait(WATCH_S):
                began = time.time()
                try:
                    answer = session.get(f"{self.place.url}/v1/models", headers=headers, timeout=60)
                    ready = answer.json()[0]["state"] == "ready"
                except (requests.RequestException, ValueError, LookupError):
                    ready = False
                took = time.time() - began
                if took > 0.1:
                    self.waits.append((began, took))
                self._note(ready, began)

    def _note(self, ready: bool, now: float) -> None:
        is_open = self.loading and len(self.loading[-1]) == 1
        if not ready and not is_open:
            self.loading.append([now])
        elif ready and is_open:
            self.loading[-1].append(now)

    def stall_s(self) -> float:
        """The longest answer of a server that was there."""
        away = self.place.away
        own = [
            took for at, took in self.waits
            if not any(begin - 1 < at + took and at < end + 1 for begin, end in away)
        ]  # fmt: skip
        return max(own, default=0.1)

    def loaded_after(self, at: float) -> float:
        """When the model was ready again that was killed at a time, be it while it was loaded."""
        for begin, *end in self.loading:
            until = end[0] if end else time.time()
            if begin < at + 3 and until > at:
                return until
        return at

    def loads_s(self) -> list[float]:
        """How long a model was not ready each time, sorted: the kills amid it, and servers away."""
        return sorted(it[1] - it[0] for it in self.loading if len(it) == 2) or [0.0]


def children(parent: int) -> list[int]:
    """The processes that one has started."""
    return [pid for pid in processes() if _parent(pid) == parent]


def processes() -> list[int]:
    """All there are."""
    return [int(it) for it in os.listdir("/proc") if it.isdigit()]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended meanwhile
        return 0


def files(pid: int) -> int:
    """How many it has open."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def memory_mb(pid: int) -> float:
    """What is its own, and not shared."""
    with open(f"/proc/{pid}/status") as status:
        line = next(it for it in status if it.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def main() -> int:
    """Serve."""
    port, folder = sys.argv[1:]
    words = ["serve", "demo", "--trust", "team", "--port", port, "--data", folder, "--threads", "1"]
    return serve.run(options.parsed(words), limits=LIMITS)


if __name__ == "__main__":
    sys.exit(main())
