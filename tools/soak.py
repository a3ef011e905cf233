"""A server that is hurt without a pause, for half an hour: what comes of its jobs?

    make soak                               # 30 minutes
    python tools/soak.py --minutes 1 --folder /tmp/soak

A real server of the demo model in `team` mode, two users with keys and three threads each, jobs of
many kinds (`soak_jobs.py`), and a fault every few seconds (`soak_faults.py`). Every result is
compared with the same block run here. The report is printed; the exit status is 0 if nothing was
lost, wrong or left behind.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from soak_faults import Faults, Nursery
from soak_jobs import KINDS, is_same
from soak_report import Report
from soak_server import USERS, Place, Watch

from insitu import CONFIG, LanguageModel, errors
from insitu.remote.client.connection import Connection

THREADS = 3
"""Of each user."""
EVERY_S = 4.0
"""About so long after one fault comes the next."""
SETTLE_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """What came of one job."""

    kind: str
    how: str
    """right, cancelled, killed, refused, WRONG or ODD."""
    began: float
    ended: float
    text: str = ""


class Clients:
    """Two users, each with some threads, who send one job after the other."""

    def __init__(self, place: Place, model: Any, seed: int) -> None:
        self.place = place
        self.model = model
        self.outcomes: list[Outcome] = []
        self.over = threading.Event()
        self._seed = seed
        self._oracle = threading.Lock()
        self._known: dict[tuple[str, int], Any] = {}
        self._threads = [
            threading.Thread(target=self._work, args=(user, i), name=f"soak-{user}-{i}")
            for user in USERS for i in range(THREADS)
        ]  # fmt: skip

    def start(self) -> None:
        """Begin to send."""
        for it in self._threads:
            it.start()

    def stop(self) -> None:
        """Send no more, and wait for what was sent."""
        self.over.set()
        for it in self._threads:
            it.join()

    def _work(self, user: str, i: int) -> None:
        chosen = random.Random(f"{self._seed} {user} {i}")
        names = [*KINDS]
        weights = [KINDS[name].weight for name in names]
        with Connection(self.place.url, self.place.keys[user]) as server:
            while not self.over.is_set():
                name = chosen.choices(names, weights)[0]
                outcome = self.one(name, server, chosen.randrange(40))
                self.outcomes.append(outcome)
                if outcome.how in ("WRONG", "ODD"):
                    print(outcome, flush=True)
                if outcome.how == "refused":
                    time.sleep(0.2)

    def one(self, name: str, server: Connection, n: int) -> Outcome:
        """Send one job, and judge what comes of it."""
        kind, began = KINDS[name], time.time()
        right = None if name == "flood" else self._right(name, n)
        try:
            how, text = _judged(name, kind.run(self.model, server, n), right)
        except Exception as error:
            is_meant = type(error) in kind.raises
            how, text = ("right", "") if is_meant else self._judged_error(error, began)
        return Outcome(name, how, began, time.time(), text)

    def _right(self, name: str, n: int) -> Any:
        with self._oracle:
            if (name, n) not in self._known:
                self._known[name, n] = KINDS[name].right(self.model, n)
            return self._known[name, n]

    def _judged_error(self, error: Exception, began: float) -> tuple[str, str]:
        text = f"{type(error).__name__}: {error}"
        now = time.time()
        if isinstance(error, errors.QueueFullError):
            return "refused", ""
        is_down = any(begin - 1 < now and began < end + 1 for begin, end in self.place.away)
        is_hurt = self.place.excuses(began, now)
        was_killed = isinstance(error, errors.JobLostError) or "its process ended" in text
        if was_killed and is_hurt:
            return "killed", ""
        if isinstance(error, (errors.ServerUnreachableError, errors.ServerRefusedError)):
            refused = getattr(error, "status", 503)
            if (is_down or is_hurt) and refused == 503:
                return "refused", ""
        return "ODD", text


def _judged(name: str, got: Any, right: Any) -> tuple[str, str]:
    if name == "flood":
        return ("right", "") if all(got) else ("WRONG", f"{got}")
    if name == "cancelled":
        phase, took = got
        ends = ("CANCELLED", "LOST")  # it may be killed before
        return ("cancelled", f"{took:.3f}") if phase in ends else ("ODD", f"{phase}")
    return ("right", "") if is_same(got, right) else ("WRONG", f"{got!r}, not {right!r}"[:600])


def doomed(url: str, key: str, n: int) -> None:
    """What a client does that is killed amid it."""
    CONFIG.APP.REMOTE_LOGGING = False
    names = ("generate", "local", "trace", "big", "flood", "endless")
    with Connection(url, key) as server:
        for name in random.Random(n).sample(names, len(names)):
            with contextlib.suppress(Exception):
                KINDS[name].run(_models[0], server, n)


_models: list[Any] = []


def quiet(place: Place) -> dict[str, int]:
    """Wait until nothing runs any more; what is held then."""
    ends = "('COMPLETED', 'ERROR', 'CANCELLED', 'TIMEOUT', 'LOST')"
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until:
        (left,) = place.rows(f"SELECT count(*) FROM jobs WHERE phase NOT IN {ends}")[0]
        if left == 0 and len(place.job_processes()) == 2:
            break
        time.sleep(0.2)
    time.sleep(3)
    return place.held()


def soaked(folder: Path, minutes: float, seed: int) -> Report:
    """Run it; gives the report."""
    torch.set_num_threads(1)
    CONFIG.APP.REMOTE_LOGGING = False
    model = LanguageModel("demo")
    model.device  # noqa: B018 - opened before there are threads
    _models.append(model)
    nursery = Nursery(doomed)
    place = Place(folder)
    began = time.time()
    watch = Watch(place)
    try:
        place.start()
        watch.start()
        clients = Clients(place, model, seed)
        before = _warmed(place, clients)
        memory = place.memory_mb()
        faults = _hurt(place, clients, nursery, minutes, seed)
        after = quiet(place)
        watch.over.set()
        watch.join()
        grown = place.memory_mb() - memory
    finally:
        status = place.stop() if place.process is not None else 1
        nursery.close()
    left = [pid for pid in place.everything() if pid != os.getpid()]
    return Report(
        place=place, watch=watch, faults=faults, outcomes=clients.outcomes, before=before,
        after=after, grown_mb=grown, status=status, left=left, took_s=time.time() - began,
    )  # fmt: skip


def _warmed(place: Place, clients: Clients) -> dict[str, int]:
    """One job of each kind, before anything is hurt; then what is held by a server at rest."""
    with Connection(place.url, place.keys[USERS[0]]) as server:
        for name in KINDS:
            clients.outcomes.append(clients.one(name, server, 5))
    odd = [it for it in clients.outcomes if it.how not in ("right", "cancelled")]
    if odd:
        raise SystemExit(f"not even a server that nobody hurts does its work: {odd}")
    return quiet(place)


def _hurt(place: Place, clients: Clients, nursery: Nursery, minutes: float, seed: int) -> Faults:
    chosen = random.Random(seed)

    def doom(user: str) -> None:
        nursery.send(place.url, place.keys[user], chosen.randrange(40), chosen.uniform(0.2, 3.0))

    faults = Faults(place, doom, seed)
    clients.start()
    until = time.monotonic() + 60 * minutes
    told = time.monotonic()
    try:
        faults.every()
        while time.monotonic() < until:
            time.sleep(chosen.uniform(0.25, 1.75) * EVERY_S)
            faults.one()
            if time.monotonic() - told > 60:
                told = time.monotonic()
                counts = Counter(it.how for it in clients.outcomes)
                left_s = max(0.0, until - told)
                print(f"{left_s / 60:.0f} minutes to go: {dict(counts)}", flush=True)
    finally:
        clients.stop()
        faults.close()
    return faults


def main() -> int:
    """Read the command line, run, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the server's data and log stay")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="insitu-soak-") as other:
        folder = options.folder or Path(other) / "soak"
        with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):  # of bars
            report = soaked(folder, options.minutes, options.seed)
        print(report.text())
        return 0 if report.is_good() else 1


if __name__ == "__main__":
    sys.exit(main())
