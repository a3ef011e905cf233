"""What is known of one job from its events: its phases, its progress, and the end of its log.

record = JobRecord("a1")
record.hear(event)                      # from any thread
record.state()                          # for a view: phases, queue, progress
record.since(0, most=5_000)             # the last lines
"""

import math
import re
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from insitu.events import ENDS, PHASES, Job, JobEvent
from insitu.twins.job import LINES_SHOWN, job_html

LINES_KEPT = 50_000
LINE_MAX = 4_000
"""Characters of a line; the rest is cut off, and said to be."""
_PROGRESS_MAX = 3
_PHASES_MAX = 30
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class Line(NamedTuple):
    """A line of a log."""

    time: float
    text: str
    tags: tuple[str, ...]


class JobRecord:
    """One job, as its events tell it; lines are numbered from 0, and the last ones are kept."""

    def __init__(self, job: str, title: str = "", expected: Sequence[str] = PHASES) -> None:
        self.job = job
        self.title = title or job
        self.heard = 0
        """Lines so far; those before the kept ones are forgotten."""
        self._expected = tuple(expected)
        self._lock = threading.Lock()
        self._lines: deque[Line] = deque(maxlen=LINES_KEPT)
        self._phases: list[tuple[str, float, str]] = []
        self._queue: tuple[float, float | None] | None = None
        self._progress: dict[str, tuple[float, float | None, str]] = {}

    def hear(self, event: JobEvent) -> None:
        """Take in what the job says."""
        if not math.isfinite(event.time):
            event = replace(event, time=time.time())
        when = round(event.time, 3)  # once, so that differences are those of what is shown
        with self._lock:
            if event.kind == "log":
                self._add(event.text, event.tags, when)
            elif event.kind == "status":
                self._begin(event, when)
            elif event.kind == "queue":
                done, of = _known(event.done), _known(event.of)
                self._queue = None if done is None else (done, of)
            elif (done := _known(event.done)) is not None:
                self._progress.pop(event.text, None)
                self._progress[event.text] = (done, _known(event.of), event.unit)
                while len(self._progress) > _PROGRESS_MAX:
                    del self._progress[next(iter(self._progress))]

    def _begin(self, event: JobEvent, when: float) -> None:
        phase = event.phase.upper()
        tags = ("status", *(("error",) if phase in ENDS[1:] else ()), *event.tags)
        self._add(f"{phase}: {event.text}" if event.text else phase, tags, when)
        if self._phases and self._phases[-1][0] == phase:
            return  # said again
        self._phases.append((phase, when, event.text.partition("\n")[0][:LINE_MAX]))
        del self._phases[:-_PHASES_MAX]
        if phase != "QUEUED":
            self._queue = None

    def _add(self, text: str, tags: tuple[str, ...], when: float) -> None:
        if "\n" in text or "\r" in text or "\x1b" in text or len(text) > LINE_MAX:
            parts = [_plain(part) for part in text.rstrip("\n").split("\n")]
        else:
            parts = [text]
        for part in parts:
            self._lines.append(Line(when, part, tags))
        self.heard += len(parts)

    @property
    def phase(self) -> str:
        """The phase it is in; empty before the first."""
        return self._phases[-1][0] if self._phases else ""

    @property
    def is_over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.phase in ENDS

    @property
    def forgotten(self) -> int:
        """The number of the first line that is kept."""
        return self.heard - len(self._lines)

    def since(self, number: int, most: int) -> tuple[int, list[Line]]:
        """The lines from a number on, the last `most` of them, and the number of the first."""
        with self._lock:
            wanted = min(self.heard - number, most, len(self._lines))
            lines = list(islice(reversed(self._lines), max(wanted, 0)))
            return self.heard - len(lines), lines[::-1]

    def state(self) -> dict[str, Any]:
        """All but the lines, for a view."""
        with self._lock:
            return {
                "job": self.job,
                "title": self.title,
                "phases": [list(phase) for phase in self._phases],
                "expected": list(self._expected),
                "over": self.is_over,
                "queue": None if self._queue is None else list(self._queue),
                "progress": [[text, *amounts] for text, amounts in self._progress.items()],
                "now": round(time.time(), 3),
            }


def html_of(job: Job) -> str:
    """What a job has said so far, as HTML: its phases, how far it is, the end of its log.

    job             # in a notebook, where it is a cell's last line
    """
    record = JobRecord(job.id, job.title)
    job.listen(record.hear)()  # told what was said, and no more
    return job_html(record.state(), record.since(0, LINES_SHOWN)[1], record.heard)


def packed(first: int, lines: Sequence[Line]) -> dict[str, Any]:
    """Lines for the wire: columns, with tags for the lines that have any."""
    return {
        "first": first,
        "times": [round(line.time, 3) for line in lines],
        "texts": [line.text for line in lines],
        "tags": {str(n): list(line.tags) for n, line in enumerate(lines) if line.tags},
    }


def _known(number: float | None) -> float | None:
    """A number that is one: a view cannot be told NaN or an infinity."""
    return number if number is not None and math.isfinite(number) else None


def _plain(text: str) -> str:
    """A line as a terminal would leave it: colours gone, what was written over gone."""
    text = _COLOURS.sub("", text).rstrip("\r").rpartition("\r")[2]
    return text if len(text) <= LINE_MAX else f"{text[:LINE_MAX]}… ({len(text) - LINE_MAX} more)"
