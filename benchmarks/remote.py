"""What a block costs on a server of this machine, over the same block here.

    python -m benchmarks.remote                       # everything: some minutes
    python -m benchmarks.remote jobs values --quick   # some of it, fewer rounds
    python -m benchmarks.remote --markdown docs/benchmarks.md

A real `insitu serve demo` with keys; every value that comes back is compared with the one here.
Other programs on the machine slow this down, so the load and the processor time stand beside it.
"""

import argparse
import itertools
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

import requests
import torch
from demo_server import demo_server

import insitu
from benchmarks.remote_blocks import (
    BIG_BYTES,
    LOCAL_BYTES,
    big,
    busy,
    damaged,
    exchanged,
    packed,
    summed,
    traced,
)
from insitu import CONFIG, LanguageModel
from insitu.remote.client.connection import Connection
from insitu.remote.server.keys import Keys

BEGIN, END = "<!-- remote: begin -->", "<!-- remote: end -->"
PAUSE_S = 0.3
"""What a user takes between two blocks at least; a process is made ready meanwhile."""
CLIENTS, JOBS = 50, 20
PARTS, FIRST = 60, 10
"""The `local()` parts of a job, and those that it begins with."""
BUSY_S = 0.2
"""How long a job of the flood runs."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    what: str
    found: str
    bound: str = ""
    is_met: bool | None = None


class Bench:
    """One server, the model here, and how often things are done."""

    def __init__(self, url: str, key: str, data: Path, quick: bool) -> None:
        self.url, self.key, self.data, self.quick = url, key, data, quick
        self.model = LanguageModel("demo")
        self.server = Connection(url, key)
        self.job_s = 0.0  # over the trace here, once that was measured

    def rounds(self, many: int) -> int:
        """So many, or a few."""
        return max(4, many // 8) if self.quick else many

    def users(self, *names: str) -> list[Connection]:
        """A connection for each user, with a key of their own."""
        keys = Keys(self.data / "keys.sqlite")
        try:
            return [Connection(self.url, keys.add(name)) for name in names]
        finally:
            keys.close()


@contextmanager
def served(trust: str, quick: bool) -> Iterator[Bench]:
    """A server of the demo model, warm."""
    with TemporaryDirectory() as folder, demo_server(trust=trust, folder=folder) as (url, key):
        data = next(Path(folder).glob("*/data"))
        bench = Bench(url, key, data, quick)
        for _ in range(5):
            traced(bench.model, bench.server)
            traced(bench.model, None)
        yield bench
        bench.server.close()


def seconds(act: Callable[[], Any]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def quarter(values: list[float]) -> float:
    """The first quartile: what it takes when it is left alone."""
    return sorted(values)[len(values) // 4]


def late(values: list[float]) -> float:
    """The 99th of a hundred."""
    return sorted(values)[len(values) * 99 // 100]


def milliseconds(values: list[float]) -> str:
    """First quartile, median and least."""
    q, median, least = quarter(values), statistics.median(values), min(values)
    return f"{q * 1000:.1f} ms (median {median * 1000:.1f}, least {least * 1000:.1f})"


# What is measured -----------------------------------------------------------------------------


def jobs(bench: Bench, trust: str, most_ms: float) -> Iterator[Figure]:
    """A block there, over the same block here."""
    here, there, one_by_one = [], [], []
    right = traced(bench.model, None)
    before, began = cpu_s(bench), time.thread_time()
    count = bench.rounds(80)
    for _ in range(count):
        here.append(seconds(lambda: traced(bench.model, None)))
        time.sleep(PAUSE_S)
        there.append(seconds(lambda: traced(bench.model, bench.server)))
    client = time.thread_time() - began
    server = cpu_s(bench) - before
    torch.testing.assert_close(traced(bench.model, bench.server), right)
    for _ in range(bench.rounds(40)):
        one_by_one.append(seconds(lambda: traced(bench.model, bench.server)))
    base = quarter(here)
    over = [it - base for it in there]
    bench.job_s = quarter(over)
    is_met = bench.job_s * 1000 <= most_ms
    yield Figure(
        f"a job, trust {trust}, over the trace here",
        milliseconds(over),
        f"≤ {most_ms:g} ms",
        is_met,
    )
    yield Figure(
        f"…one after the other, trust {trust}", milliseconds([it - base for it in one_by_one])
    )
    yield Figure(
        f"…its processor time, trust {trust}: client with the trace here, server and workers",
        f"{client / count * 1000:.1f} ms, {server / count * 1000:.1f} ms",
    )


def jail(jailed_s: float, plain_s: float) -> Iterator[Figure]:
    """What the jail costs a job, the same block in both."""
    more_ms = (jailed_s - plain_s) * 1000
    yield Figure("…over one without", f"{more_ms:.1f} ms", "≤ 100 ms", more_ms <= 100)


def local(bench: Bench) -> Iterator[Figure]:
    """A megabyte down and up again, first and later in a job.

    When a job begins, the server makes the next process ready: 60 ms of a processor, which the
    first ten parts share with it.
    """
    early, late, work_s, base_s = [], [], 0.0, 0.0
    for _ in range(bench.rounds(16)):
        time.sleep(PAUSE_S)
        base_s += work(bench, lambda: exchanged(bench.model, bench.server, 0))
        time.sleep(PAUSE_S)
        came: list[float] = []
        work_s += work(bench, lambda came=came: exchanged(bench.model, bench.server, PARTS, came))
        each = [later - it for it, later in itertools.pairwise(came)]
        early.append(statistics.mean(each[:FIRST]))
        late.append(statistics.mean(each[FIRST:]))
    what = f"a local() part, {LOCAL_BYTES / 2**20:.0f} MB down and up"
    yield Figure(what, milliseconds(late), "≤ 6 ms", quarter(late) <= 0.006)
    yield Figure(f"…of the first {FIRST} of a job", milliseconds(early))
    work_ms = (work_s - base_s) / len(late) / PARTS * 1000
    yield Figure("…its processor time, all processes", f"{work_ms:.1f} ms")


def work(bench: Bench, act: Callable[[], Any]) -> float:
    """The processor time of something, everywhere."""
    before = cpu_s(bench) + time.process_time()
    act()
    time.sleep(PAUSE_S)
    return cpu_s(bench) + time.process_time() - before


def values(bench: Bench) -> Iterator[Figure]:
    """A hundred megabytes down."""
    whole, base_s, loads = [], [], []
    for _ in range(bench.rounds(16)):
        base_s.append(seconds(lambda: summed(bench.model, bench.server)))
        ended = []
        began = time.perf_counter()
        big(bench.model, bench.server, lambda ended=ended: ended.append(time.perf_counter()))
        arrived = time.perf_counter()
        whole.append(arrived - began)
        loads.append(arrived - ended[0])
    size = BIG_BYTES / 1e6
    speed, all_in = size / quarter(loads), size / (quarter(whole) - quarter(base_s))
    what = f"a result of {size:.0f} MB, downloaded, checked and read"
    yield Figure(what, f"{speed:.0f} MB/s", "≥ 200 MB/s", speed >= 200)
    yield Figure("…with what the job takes to write it", f"{all_in:.0f} MB/s")


def clients(bench: Bench) -> Iterator[Figure]:
    """Fifty users with twenty jobs each, at once."""
    number, each = (10, 5) if bench.quick else (CLIENTS, JOBS)
    users = bench.users(*(f"user{n}" for n in range(number)))
    right = traced(bench.model, None)
    took: list[list[float]] = [[] for _ in users]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(each):
            began = time.perf_counter()
            found = traced(bench.model, users[k])
            took[k].append(time.perf_counter() - began)
            if not torch.allclose(found, right, rtol=1e-5, atol=1e-5):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(number)]
    all_s = seconds(lambda: ([it.start() for it in threads], [it.join() for it in threads]))
    every = sorted(it for mine in took for it in mine)
    means = sorted(map(statistics.mean, took))
    ratio = means[-1] / means[0]
    total = number * each
    yield Figure(
        f"{number} users × {each} jobs",
        f"{len(every)} of {total} right, {total / all_s:.1f} a second, p50 "
        f"{every[total // 2] * 1000:.0f} ms, p99 {every[total * 99 // 100] * 1000:.0f} ms",
        "all right",
        len(every) == total and not wrong,
    )
    yield Figure("…slowest user / fastest user", f"{ratio:.2f}", "≤ 2", ratio <= 2)
    for it in users:
        it.close()


def fairness(bench: Bench) -> Iterator[Figure]:
    """One user floods; how long does the other wait? And how soon is a refusal answered?"""
    flood, polite = bench.users("flood", "polite")
    alone = [seconds(lambda: busy(bench.model, polite, BUSY_S)) for _ in range(bench.rounds(16))]
    over, refusals = threading.Event(), []
    body = packed(bench.model, BUSY_S)

    def send_and_send() -> None:
        headers = {"Authorization": f"Bearer {flood.key}", "X-Protocol": "1"}
        with requests.Session() as session:
            while not over.is_set():
                began = time.perf_counter()
                answer = session.post(f"{bench.url}/v1/jobs", data=body, headers=headers)
                if answer.status_code == 429:
                    refusals.append(time.perf_counter() - began)
                    time.sleep(0.01)

    threads = [threading.Thread(target=send_and_send) for _ in range(2)]
    for it in threads:
        it.start()
    time.sleep(1)
    amid = [seconds(lambda: busy(bench.model, polite, BUSY_S)) for _ in range(bench.rounds(32))]
    over.set()
    for it in threads:
        it.join()
    share = statistics.mean(alone)
    waits = statistics.mean(amid) - share
    yield Figure(
        "one user floods: what the other waits, mean, in jobs of its own",
        f"{waits / share:.2f} × {share * 1000:.0f} ms", "< 2", waits < 2 * share,
    )  # fmt: skip
    median_ms, late_ms = (it * 1000 for it in (statistics.median(refusals), late(refusals)))
    yield Figure(
        f"…the flood's refusals ({len(refusals):,})",
        f"99 of 100 within {late_ms:.1f} ms, median {median_ms:.1f} ms, "
        f"longest {max(refusals) * 1000:.0f} ms",
        "≤ 50 ms", late_ms <= 50,
    )  # fmt: skip
    flood.close()
    polite.close()


def fuzz(bench: Bench) -> Iterator[Figure]:
    """Damaged requests: each is answered with a sentence, or becomes a job that ends with one."""
    count = 200 if bench.quick else 2_000
    answers, faults, bad = damaged(bench.model, bench.server, count)
    told = ", ".join(f"{answers[status]:,} × {status}" for status in sorted(answers))
    yield Figure(
        f"{count:,} damaged requests to real workers",
        f"{told}; of those run {faults['COMPLETED']} completed and {faults['ERROR']} told why; "
        f"{bad} without a sentence",
        "0",
        bad == 0,
    )


def cpu_s(bench: Bench) -> float:
    """The processor time of the server and all its workers so far, those that have ended too."""
    ticks = 0
    mine = os.getpid()
    parents = {}
    times = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            said = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(name)] = int(said[1])
        times[int(name)] = sum(map(int, said[11:15]))
    for pid in times:
        at = pid
        while at in parents and parents[at] != mine:
            at = parents[at]
        if at in parents:
            ticks += times[pid]
    return ticks / os.sysconf("SC_CLK_TCK")


THEMES: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "jobs": lambda bench: jobs(bench, "team", 60),
    "local": local,
    "values": values,
    "clients": clients,
    "fairness": fairness,
    "fuzz": fuzz,
}


def measured(names: list[str], quick: bool) -> list[Figure]:
    """Everything, printed as it is found."""
    torch.set_num_threads(1)
    CONFIG.APP.REMOTE_LOGGING = False
    found: list[Figure] = []
    if "jobs" in names:
        with served("self", quick) as bench:
            found += printed(jobs(bench, "self", 30))
            plain_s = bench.job_s
    with served("team", quick) as bench:
        for name in names:
            found += printed(THEMES[name](bench))
            if name == "jobs":
                found += printed(jail(bench.job_s, plain_s))
    return found


def printed(figures: Iterator[Figure]) -> Iterator[Figure]:
    """Print each as it comes."""
    for it in figures:
        met = {True: "met", False: "NOT MET", None: ""}[it.is_met]
        print(f"{met:8} {it.what}: {it.found}{f', {it.bound}' if it.bound else ''}", flush=True)
        yield it


def markdown(figures: list[Figure], load: str) -> str:
    """The table."""
    lines = ["| on loopback, demo model | measured | bound |", "|---|---|---|"]
    for it in figures:
        bound = it.bound + (", not met" if it.is_met is False else "")
        lines.append(f"| {it.what} | {it.found} | {bound} |")
    versions = f"torch {torch.__version__.partition('+')[0]}, Insitu {insitu.__version__}"
    where = f"{os.cpu_count()} processors, load {load} (other programs ran)"
    return "\n".join([*lines, "", f"Measured on {where}: {versions}."])


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote")
    parser.add_argument("themes", nargs="*", metavar="theme", help=", ".join(THEMES))
    parser.add_argument("--quick", action="store_true", help="few rounds")
    parser.add_argument("--markdown", type=Path, help="put the table into this file")
    options = parser.parse_args()
    if unknown := set(options.themes) - set(THEMES):
        parser.error(f"no such theme: {', '.join(sorted(unknown))}; there are {', '.join(THEMES)}")
    before = os.getloadavg()[0]
    found = measured(options.themes or [*THEMES], options.quick)
    load = f"{before:.1f} to {os.getloadavg()[0]:.1f}"
    print(f"load {load}")
    if options.markdown:
        head, begin, rest = options.markdown.read_text().partition(BEGIN)
        _, end, tail = rest.partition(END)
        if not (begin and end):
            raise SystemExit(f"{options.markdown} has no {BEGIN} … {END}, where the table goes.")
        text = f"{head}{BEGIN}\n\n{markdown(found, load)}\n\n{END}{tail}"
        options.markdown.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
