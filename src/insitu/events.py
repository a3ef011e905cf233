"""What a job says while it waits, runs and ends: one small event for local and remote jobs alike.

JobEvent("a1", "status", phase="RUNNING", text="Your job has started running.")
JobEvent("a1", "queue", done=3, of=9)                  # third of nine that wait
JobEvent("a1", text="loss 0.31", tags=("train",))      # a line of its log
JobEvent("a1", "progress", text="Downloading result", done=2**19, of=2**21, unit="bytes")
"""

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

Kind = Literal["log", "status", "progress", "queue"]

PHASES = ("RECEIVED", "APPROVED", "QUEUED", "RUNNING", "COMPLETED")
"""What a job goes through when all is well; LOADING comes between where a model is not loaded."""
ENDS = ("COMPLETED", "ERROR", "CANCELLED", "TIMEOUT", "LOST")
LEVELS = ("debug", "info", "warning", "error")
"""Tags that say how much a line matters."""

KEPT = 40_000
"""Events that a channel keeps for who listens later."""
_TAGS_MAX = 16
_STATUSES_MAX = 100


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One thing a job says.

        JobEvent("a1", text="step 3", tags=("train", "warning"))

    Args:
        job: its id.
        kind: a line of the `log`, a `status` (a phase begins), `progress`, or a place in the
            `queue`.
        text: the line; of progress, what it is the progress of.
        phase: of a status, one of `PHASES`, `LOADING`, or `ENDS`.
        tags: words to filter by; one of `LEVELS` says how much it matters.
        done, of: how far the progress is; in a queue, the place and the length.
        unit: what they count: `"bytes"`, `"tokens"`, nothing.
        time: in seconds since 1970.
    """

    job: str
    kind: Kind = "log"
    text: str = ""
    phase: str = ""
    tags: tuple[str, ...] = ()
    done: float | None = None
    of: float | None = None
    unit: str = ""
    time: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        """For JSON, without what is empty."""
        told: dict[str, Any] = {"time": round(self.time, 6), "job": self.job, "kind": self.kind}
        for name in ("text", "phase", "unit"):
            if value := getattr(self, name):
                told[name] = value
        if self.tags:
            told["tags"] = list(self.tags)
        for name in ("done", "of"):
            if (number := getattr(self, name)) is not None:
                told[name] = number
        return told

    @staticmethod
    def of_dict(told: Any) -> "JobEvent":
        """An event from elsewhere; what is no event is refused.

        Raises:
            ValueError: a part is missing, or of another kind.
        """
        if not isinstance(told, dict) or not isinstance(told.get("job"), str):
            raise ValueError("an event is a dict that names its job")
        kind = told.get("kind", "log")
        if kind not in get_args(Kind):
            raise ValueError(f"an event is one of {get_args(Kind)}, not {str(kind)[:40]!r}")
        words = {name: told.get(name, "") for name in ("text", "phase", "unit")}
        tags = told.get("tags", [])
        if not all(isinstance(word, str) for word in words.values()):
            raise ValueError("text, phase and unit are strings")
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ValueError("tags are a list of strings")
        numbers: dict[str, Any] = {
            name: _number(told[name]) for name in ("done", "of", "time") if name in told
        }
        return JobEvent(told["job"], kind, tags=tuple(tags[:_TAGS_MAX]), **words, **numbers)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("done, of and time are numbers")
    return value


Heard = Callable[[JobEvent], None]


@runtime_checkable
class Job(Protocol):
    """What a log and a dock show: here a local job and a recording, a remote one like them.

    One that has a method `cancel` gets a button for it. It is called on the thread of a message,
    unless the job says `cancel_on_main_thread = True`.
    """

    @property
    def id(self) -> str:
        """What its events call it."""

    @property
    def title(self) -> str:
        """What people call it."""

    def listen(self, heard: Heard) -> Callable[[], None]:
        """Tell what has been said so far, then each event as it comes; call the result to stop."""


class Channel:
    """Events for whoever listens; who comes late is told what was said before."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._heard: list[Heard] = []
        self._number = itertools.count()
        self._statuses: deque[tuple[int, JobEvent]] = deque(maxlen=_STATUSES_MAX)
        self._others: deque[tuple[int, JobEvent]] = deque(maxlen=KEPT)
        self._forgotten = 0

    def tell(self, event: JobEvent) -> None:
        """Say something, from any thread."""
        with self._lock:
            kept = self._statuses if event.kind == "status" else self._others
            self._forgotten += kept is self._others and len(kept) == KEPT
            kept.append((next(self._number), event))
            for heard in tuple(self._heard):
                heard(event)

    def listen(self, heard: Heard) -> Callable[[], None]:
        """Hear what was said and what comes."""
        with self._lock:
            first = self._others[0][0] if self._forgotten else -1
            for number, event in sorted((*self._statuses, *self._others), key=lambda it: it[0]):
                if number == first:
                    words = f"… {self._forgotten:,} earlier events are not kept"
                    heard(JobEvent(event.job, text=words, tags=("recording",), time=event.time))
                heard(event)
            self._heard.append(heard)

        def stop() -> None:
            with self._lock:
                if heard in self._heard:
                    self._heard.remove(heard)

        return stop
