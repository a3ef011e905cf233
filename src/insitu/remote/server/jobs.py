"""A job while it lives: its events are numbered, bounded and written; its readers are woken.

job = Job("5f…", "ada", "demo", store, limits)
job.phase_is("RUNNING"); job.told(Log("tensor(5.4688)"))
"""

import asyncio
import json
import math
import time
from typing import Any

from insitu.remote.protocol import (
    ENDS,
    TEXTS,
    Ended,
    Fault,
    Limits,
    Local,
    Log,
    Progress,
    State,
    Status,
    Token,
    Told,
)
from insitu.remote.server.store import ADD_EVENT, ROW_BYTES, Statement, Store

SPARE = 200
"""Events kept free of a job's bound for its phases, its local parts and its end."""
PLACES = 500
"""In the queue, told of one job."""
FAULT_CHARS = 64_000
FRAMES = 100
GAP = "What came before this is left out: the server's disk did not take it."
ROW_IDS = 4_096
"""Rows of a batch whose tokens are told one by one."""
INLINE_BYTES = 65_536
"""What is sent along inside an event."""


class News:
    """Wakes every reader of a job, once for each change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Something is new."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    def next(self) -> asyncio.Event:
        """Set at the next change after this call."""
        return self._event


class Job:
    """One accepted job of this process. Its rows are in the store; this is what else it has."""

    def __init__(
        self, id: str, user: str, model: str, store: Store, limits: Limits, last: int = 0
    ) -> None:
        self.id = id
        self.user = user
        self.model = model
        self.limits = limits
        self.phase: State = "RECEIVED"
        self.news = News()
        self.last = last
        """The number of its newest event."""
        self.created = time.time()
        self.began: float | None = None
        self.began_at: float | None = None
        """The same, by a clock that does not jump."""
        self.ended: float | None = None
        self.waiting: Local | None = None
        """The local part that it waits for."""
        self.coming: asyncio.Task[bytearray] | None = None
        """The values that are being received for it."""
        self.given_at: float | None = None
        """When it was given to workers, by a clock that does not jump."""
        self.began_here: float | None = None
        """When it was given to workers by this process."""
        self.cancelled = False
        self.cancelled_at: float | None = None
        self.place = (0, 0)
        self._store = store
        self.rows_bytes = 0
        """Of its events until now."""
        self._told = self._lines = self._places = 0
        self._left_out = False
        self._gap = False

    # what is written ---------------------------------------------------------------------------

    def event(self, kind: str, **data: Any) -> Statement:
        """The row of the next event."""
        self.last += 1
        text = json.dumps({"time": round(time.time(), 6), **data}, separators=(",", ":"))
        self.rows_bytes += len(text) + ROW_BYTES
        return ADD_EVENT, (self.id, self.last, kind, text)

    def tell(self, kind: str, **data: Any) -> None:
        """An event, written soon and then pushed."""
        self._store.post(self.event(kind, **data), jobs=(self.id,))

    def phase_row(self, phase: State, text: str = "") -> tuple[Statement, ...]:
        """The rows of a new phase."""
        self.phase = phase
        if phase == "RUNNING" and self.began is None:
            self.began = time.time()
            self.began_at = time.monotonic()
        text = (text or TEXTS.get(phase, ""))[: self.limits.line_chars]
        change = (
            "UPDATE jobs SET phase = ?, began = ?, text = ? WHERE id = ?",
            (phase, self.began, text, self.id),
        )
        return change, self.event("status", phase=phase, text=text)

    def phase_is(self, phase: State, text: str = "") -> None:
        """A phase begins."""
        self._store.post(*self.phase_row(phase, text), jobs=(self.id,))

    def stands_at(self, place: int, of: int) -> None:
        """Its place in the queue, told when it is another one; not that others came behind it."""
        if place != self.place[0] and self._places < PLACES:
            self._places += 1
            self.place = (place, of)
            self.tell("queue", done=place, of=of)

    def end_rows(self, ended: Ended, result: tuple[int, str] | None) -> tuple[Statement, ...]:
        """The last rows: the phase's, and the end's."""
        self.ended = time.time()
        self.waiting = None
        if self.coming is not None:
            self.coming.cancel()
        fault = fault_as_json(ended.fault)
        size, sha = result or (None, None)
        text = "" if ended.fault is None else ended.fault.text.partition("\n")[0]
        rows = self.phase_row(ended.phase, text)
        change = (
            "UPDATE jobs SET ended = ?, fault = ?, result_bytes = ?, result_sha = ?, "
            "rows_bytes = ? WHERE id = ?",
            (self.ended, json.dumps(fault) if fault else None, size, sha, self.rows_bytes, self.id),
        )
        told = None if result is None else {"bytes": size, "sha256": sha}
        return *rows, change, self.event("end", phase=ended.phase, fault=fault, result=told)

    # what its worker tells -----------------------------------------------------------------------

    def told(self, it: Told) -> None:
        """Keep what a worker tells, within the job's bounds."""
        if self.ended is not None:
            return
        if isinstance(it, Status):
            if it.phase not in ENDS and it.phase != self.phase:
                self.phase_is(it.phase, it.text)
            return
        if isinstance(it, Local):
            self.waiting = it
            row = self.event("local", number=it.number, index=it.index, bytes=len(it.payload))
            self._store.post_now(row, jobs=(self.id,))  # the block stands still until it is told
            return
        if self._left_out or self._too_many(it) or self._is_behind():
            return
        self._told += 1
        chars = self.limits.line_chars
        if isinstance(it, Log):
            self._lines += 1
            self.tell("log", text=it.text[:chars], tags=[tag[:100] for tag in it.tags[:10]])
        elif isinstance(it, Progress):
            done, of = _number(it.done), _number(it.of)
            self.tell("progress", text=it.text[:chars], done=done, of=of, unit=it.unit[:100])
        elif isinstance(it, Token):
            self.tell("token", step=it.step, ids=list(it.ids[:ROW_IDS]))

    def _is_behind(self) -> bool:
        """Whether the disk takes nothing, and enough waits for it."""
        if self._store.is_behind:
            self._gap = True
            return True
        if self._gap:
            self._gap = False
            self.tell("log", text=GAP, tags=["insitu"])
        return False

    def _too_many(self, it: Told) -> bool:
        if self._told >= self.limits.events - SPARE:
            self._left_out = True
            bound = f"{self.limits.events:,} events"
        elif self.rows_bytes >= self.limits.told_bytes:
            self._left_out = True
            bound = f"{self.limits.told_bytes:,} bytes"
        elif isinstance(it, Log) and self._lines >= self.limits.log_lines:
            if self._lines > self.limits.log_lines:
                return True
            self._lines += 1
            bound = f"{self.limits.log_lines:,} lines"
        else:
            return False
        text = f"What follows is left out: a job may tell {bound}."
        self.tell("log", text=text, tags=["insitu"])
        return True


def fault_as_json(fault: Fault | None) -> dict[str, Any] | None:
    """A fault as an event tells it, bounded."""
    if fault is None:
        return None
    place = [[file[:1_000], line, name[:200]] for file, line, name in fault.place[-FRAMES:]]
    return {"kind": fault.kind[:200], "text": fault.text[:FAULT_CHARS], "place": place}


def _number(it: float | None) -> float | None:
    return it if it is not None and math.isfinite(it) else None
