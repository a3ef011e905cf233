"""What a soak has found, as text: from what clients saw, and from the server's own database."""

import json
import os
import resource
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from soak_faults import Faults
from soak_server import LIMITS, Place, Watch

ENDS = ("COMPLETED", "ERROR", "CANCELLED", "TIMEOUT", "LOST")
SLACK = {"open files of the server": 3, "threads of the server": 8, "temporary files": 0}
"""So many more are no leak: connections that are kept, threads of a pool that has grown."""
NEXT_JOB_S, CANCEL_S = 5.0, 2.0


@dataclass
class Job:
    """A job as the database has it."""

    phase: str
    created: float
    ended: float | None
    times: dict[str, float]
    """When each phase was told, the last time."""
    numbers: list[int]
    last: str
    """The kind of its last event."""


@dataclass
class Report:
    """Everything that was seen."""

    place: Place
    watch: Watch
    faults: Faults
    outcomes: list[Any]
    before: dict[str, int]
    after: dict[str, int]
    grown_mb: float
    status: int
    left: list[int]
    took_s: float

    def __post_init__(self) -> None:
        self.jobs = self._read()
        self.bad = [it for it in self.outcomes if it.how in ("WRONG", "ODD")]

    # what it says --------------------------------------------------------------------------------

    def is_good(self) -> bool:
        """Whether nothing was lost, wrong, or left behind, and nothing took too long."""
        counts = (self.lost(), self.bad, self.faults.wrong, self.leaked(), self.left)
        next_s, cancel_s = self.next_job_s(), self.cancels()[-1]
        return not any(counts) and next_s <= NEXT_JOB_S and cancel_s <= CANCEL_S and not self.status

    def text(self) -> str:
        """The report."""
        seen = Counter(it.how for it in self.outcomes)
        phases = Counter(it.phase for it in self.jobs.values())
        cancels, leaked, loads = self.cancels(), self.leaked(), self.watch.loads_s()
        load = " ".join(f"{it:.1f}" for it in os.getloadavg())
        own = resource.getrusage(resource.RUSAGE_SELF)
        lines = [
            f"Soak of {self.took_s / 60:.1f} minutes, two users, team mode; load {load}, "
            f"{own.ru_utime + own.ru_stime:.0f} s of processor time here.",
            "Faults: " + ", ".join(f"{n} {name}" for name, n in sorted(self.faults.done.items())),
            f"accepted             {len(self.jobs):6,}",
            *(f"  {phase.lower():18} {phases[phase]:6,}" for phase in ENDS),
            f"seen by clients      {len(self.outcomes):6,}",
            *(f"  {how:18} {seen[how]:6,}" for how in sorted(seen)),
            f"lost                 {len(self.lost()):6,}   (not ended, or told in part)",
            f"wrong                {seen['WRONG']:6,}",
            f"odd                  {seen['ODD'] + len(self.faults.wrong):6,}",
            f"leaked               {len(leaked) + len(self.left):6,}",
            f"longest stall        {self.watch.stall_s():6.2f} s of a server that was there",
            f"longest pause        {self.pause_s():6.2f} s without any job's end "
            f"(endless loops may take {LIMITS.wall_s:g} s)",
            f"next job after crash {self.next_job_s():6.2f} s, loading aside "
            f"(at most {NEXT_JOB_S:g})",
            f"loading              {loads[-1]:6.2f} s, median {loads[len(loads) // 2]:.2f}",
            f"cancel               {cancels[-1]:6.2f} s, median {cancels[len(cancels) // 2]:.3f} "
            f"(at most {CANCEL_S:g})",
            f"memory of the server {self.grown_mb:+6.1f} MB",
            f"exit status          {self.status:6}",
        ]
        lines += [f"  leaked: {it}" for it in leaked] + [
            f"  left: process {it}" for it in self.left
        ]
        lines += [f"  lost: {it}" for it in self.lost()[:20]]
        lines += [f"  {it.how}: {it.kind}, at {it.began:.1f}: {it.text}" for it in self.bad[:20]]
        lines += [f"  odd: {it}" for it in self.faults.wrong[:20]]
        return "\n".join(lines)

    # how it is found -----------------------------------------------------------------------------

    def _read(self) -> dict[str, Job]:
        times: dict[str, dict[str, float]] = defaultdict(dict)
        numbers: dict[str, list[int]] = defaultdict(list)
        last: dict[str, str] = {}
        for id, number, kind, data in self.place.rows(
            "SELECT job, number, kind, data FROM events ORDER BY job, number"
        ):
            numbers[id].append(number)
            last[id] = kind
            if kind == "status":
                said = json.loads(data)
                times[id][said["phase"]] = said["time"]
        rows = self.place.rows("SELECT id, phase, created, ended FROM jobs")
        return {
            id: Job(phase, created, ended, times[id], numbers[id], last.get(id, ""))
            for id, phase, created, ended in rows
        }

    def lost(self) -> list[str]:
        """Jobs without an end, without some of their events, or lost though nothing was killed."""
        found = []
        for id, it in self.jobs.items():
            if it.phase not in ENDS or it.ended is None or it.last != "end":
                found.append(f"{id} is {it.phase}, its last event is {it.last!r}")
            elif it.numbers != [*range(1, len(it.numbers) + 1)]:
                found.append(f"{id} lacks events among {it.numbers[:3]}…{it.numbers[-3:]}")
            elif it.phase == "LOST" and not self.place.excuses(it.created, it.ended):
                found.append(f"{id} was told LOST, though nothing was killed")
        return found

    def leaked(self) -> list[str]:
        """What a server at rest holds more than before."""
        return [
            f"{name}: {self.before[name]} before, {self.after[name]} after"
            for name in self.before
            if self.after[name] > self.before[name] + SLACK.get(name, 0)
        ]

    def cancels(self) -> list[float]:
        """From asking to the end, sorted."""
        return sorted(float(it.text) for it in self.outcomes if it.how == "cancelled") or [0.0]

    def next_job_s(self) -> float:
        """The longest time from a crash to the next job that runs, without loading the model."""
        began = sorted(it.times["RUNNING"] for it in self.jobs.values() if "RUNNING" in it.times)
        found = [0.0]
        for at, what in self.place.hurt:
            if what == "server":
                since = next((it for it in self.place.begun if it > at), None)
            else:
                since = self.watch.loaded_after(at) if what == "model" else at
            then = since and next((it for it in began if it > since - 0.1), None)
            if since and then and self._waits(since, then):
                found.append(then - since)
        return max(found)

    def _waits(self, since: float, then: float) -> bool:
        """Whether a job waited that could have run, and nothing else was killed before it did."""
        waiting = any(
            it.created < since and (it.ended or then) >= then for it in self.jobs.values()
        )
        return waiting and not any(since < at < then for at, _ in self.place.hurt)

    def pause_s(self) -> float:
        """The longest time without any job's end, while nothing was killed or held."""
        ends = sorted(it.ended for it in self.jobs.values() if it.ended is not None)
        begun = self.faults and min((at for at, _ in self.place.hurt), default=0.0)
        disturbed = [*self.place.away, *(tuple(it) for it in self.watch.loading if len(it) == 2)]
        return max(
            (
                b - a for a, b in pairwise(ends)
                if a > begun and not any(x < b and a < y for x, y in disturbed)
            ),
            default=0.0,
        )  # fmt: skip
