"""What is done to a server while the soak runs: processes killed, slow readers, garbage, strangers.

faults = Faults(place, doomed, seed=0)
faults.one()                            # one fault, chosen at random
faults.close()
"""

import json
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import requests
from soak_server import USERS, Place

READERS = 12
RESTART_S = 20.0
"""A server may work so long before it is killed."""


class Faults:
    """Does one after another, and counts them."""

    def __init__(self, place: Place, doomed: Callable[[str], None], seed: int) -> None:
        self.place = place
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        """What a server did that it must not."""
        self._random = random.Random(seed)
        self._doomed = doomed
        self._readers: list[socket.socket] = []
        self._restarted = -RESTART_S
        self._acts: dict[str, tuple[Callable[[], None], int]] = {
            "job processes killed": (self._kill_job, 5),
            "model processes killed": (self._kill_model, 2),
            "servers killed": (self._restart, 1),
            "servers held for a second": (self._freeze, 1),
            "slow readers": (self._read_slowly, 3),
            "half a request": (self._half_a_request, 2),
            "garbage sent": (self._garbage, 3),
            "strangers": (self._strangers, 2),
            "clients killed": (self._kill_client, 5),
        }

    def one(self) -> None:
        """Do one."""
        is_soon = time.monotonic() - self._restarted < RESTART_S
        names = [it for it in self._acts if not (is_soon and it == "servers killed")]
        name = self._random.choices(names, [self._acts[it][1] for it in names])[0]
        self._acts[name][0]()
        self.done[name] += 1

    def every(self) -> None:
        """Do each once."""
        for name, (act, _) in self._acts.items():
            act()
            self.done[name] += 1
            time.sleep(1)

    def close(self) -> None:
        """Leave the server alone."""
        for it in self._readers:
            it.close()
        self._readers.clear()

    # killing ---------------------------------------------------------------------------------

    def _kill_job(self) -> None:
        pids = self.place.job_processes()
        if pids:
            self.place.kill(self._random.choice(pids), "job")

    def _kill_model(self) -> None:
        model = self.place.model_process()
        if model is not None:
            self.place.kill(model, "model")

    def _restart(self) -> None:
        self.place.restart()
        self._restarted = time.monotonic()

    def _freeze(self) -> None:
        self.place.freeze(self._random.uniform(0.3, 1.5))

    def _kill_client(self) -> None:
        self._doomed(self._random.choice(USERS))

    # bad clients -----------------------------------------------------------------------------

    def _connected(self, text: str) -> None:
        while len(self._readers) >= READERS:
            self._readers.pop(self._random.randrange(READERS)).close()
        found = socket.socket()
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.settimeout(5)
        try:
            found.connect(("127.0.0.1", self.place.port))
            found.sendall(text.encode())
        except OSError:  # it is down
            found.close()
            return
        self._readers.append(found)

    def _read_slowly(self) -> None:
        """The events or the result of an old job are asked for, and never read."""
        rows = self.place.rows(
            "SELECT id, user FROM jobs WHERE result_bytes > 100000 OR id IN "
            "(SELECT job FROM events WHERE number = 200) ORDER BY created DESC LIMIT 20"
        )
        for id, user in rows[:1] and [self._random.choice(rows)]:
            if user in USERS:
                for what in ("events", "result"):
                    self._connected(f"GET /v1/jobs/{id}/{what} HTTP/1.1\r\n{self._head(user)}\r\n")

    def _half_a_request(self) -> None:
        head = f"POST /v1/jobs HTTP/1.1\r\n{self._head(self._random.choice(USERS))}"
        self._connected(head + self._random.choice(["", "Content-Length: 100000\r\n\r\nINSITU"]))

    def _head(self, user: str) -> str:
        key = self.place.keys[user]
        return f"Host: localhost\r\nX-Protocol: 1\r\nAuthorization: Bearer {key}\r\n"

    def _garbage(self) -> None:
        user = self._random.choice(USERS)
        for _ in range(20):
            size = self._random.choice((0, 7, 300, 70_000))
            body = self._random.choice((b"", b"INSITU\x01")) + self._random.randbytes(size)
            self._refused("POST", "/v1/jobs", self.place.keys[user], (400, 429), body)

    def _strangers(self) -> None:
        """No key, a wrong one, and one user who asks for the other's jobs."""
        mine, other = self._random.sample(USERS, 2)
        rows = self.place.rows(
            f"SELECT id FROM jobs WHERE user = '{other}' ORDER BY created DESC LIMIT 5"
        )
        for (id,) in rows:
            for method, path in (
                ("GET", f"/v1/jobs/{id}"), ("GET", f"/v1/jobs/{id}/events"),
                ("GET", f"/v1/jobs/{id}/result"), ("DELETE", f"/v1/jobs/{id}"),
                ("GET", f"/v1/jobs/{id}/local/0"), ("POST", f"/v1/jobs/{id}/local/0"),
            ):  # fmt: skip
                self._refused(method, path, "x" * 43, (401,))
                self._refused(method, path, self.place.keys[mine], (404,))

    def _refused(
        self, method: str, path: str, key: str, statuses: tuple[int, ...], body: bytes | None = None
    ) -> None:
        """It has to be, with three lines; a server that is down answers nothing."""
        headers = {"X-Protocol": "1", "Authorization": f"Bearer {key}"}
        try:
            answer = requests.request(
                method, self.place.url + path, data=body, headers=headers, timeout=30
            )
        except requests.RequestException:
            return
        if answer.status_code == 503:
            return
        if answer.status_code not in statuses or not _is_three_lines(answer.content):
            self.wrong.append(f"{method} {path}: {answer.status_code} {answer.text[:200]}")


def _is_three_lines(body: bytes) -> bool:
    try:
        said: Any = json.loads(body)
    except ValueError:
        return False
    return isinstance(said, dict) and said.keys() == {"what", "why", "next"}


class Nursery:
    """Forks clients that are killed in the middle of what they do.

    It is forked itself before there are threads, and has all that a client needs.
    """

    def __init__(self, act: Callable[[str, str, int], None]) -> None:
        """Begin; `act(url, key, n)` is what a client does until it is killed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _nurse(theirs, act)
        theirs.close()
        self._ours = ours

    def send(self, url: str, key: str, n: int, for_s: float) -> None:
        """Another client, which lives so long."""
        self._ours.send(json.dumps([url, key, n, for_s]).encode())

    def close(self) -> None:
        """No more; wait until all are gone."""
        self._ours.close()
        os.waitpid(self.pid, 0)


def _nurse(theirs: socket.socket, act: Callable[[str, str, int], None]) -> None:
    """Runs in the fork, to its end."""
    try:
        while said := theirs.recv(4096):
            url, key, n, for_s = json.loads(said)
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                act(url, key, n)
                os._exit(0)
            time.sleep(for_s)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    finally:
        os._exit(0)
