"""The data of each kind of event, checked: what a server may say of a job, and nothing else.

event("5f…", Said(4, "log", {"text": "step 3"}), Budget())     # JobEvent("5f…", text="step 3")
"""

import base64
import binascii
import time
from dataclasses import dataclass
from typing import Any, get_args

from insitu.events import JobEvent
from insitu.remote.client import words
from insitu.remote.client.download import INLINE_BYTES, MOST_BYTES, Result
from insitu.remote.client.events import Said
from insitu.remote.protocol import ENDS, TEXTS, Fault, Limits, State

LOG_CHARS = 64 * 2**20
"""Of the log of one job; what is said beyond is not kept."""
_PROGRESS_EVERY_S = 0.05
_COUNT = 2**31
_FAULT_CHARS = 20_000
_TAGS = 16


class Budget:
    """How much of a job's log has been kept, and when its progress was last told."""

    def __init__(self) -> None:
        self._left = LOG_CHARS
        self._next = 0.0

    def take(self, text: str) -> str | None:
        """A line of a log: as it is, or nothing when there have been too many."""
        if self._left < 0:
            return None
        self._left -= len(text) + 100
        return text if self._left >= 0 else "… the log is too long: no more of it is shown"

    def is_time(self, now: float) -> bool:
        """Whether progress may be told again."""
        if now < self._next:
            return False
        self._next = now + _PROGRESS_EVERY_S
        return True


@dataclass(frozen=True, slots=True)
class Exchange:
    """A local part that waits."""

    number: int
    index: int
    size_bytes: int
    payload: bytes | bytearray | None
    is_answered: bool


@dataclass(frozen=True, slots=True)
class End:
    """How a job ended."""

    phase: str
    text: str
    fault: Fault | None
    result: Result | None


def event(job: str, said: Said, budget: Budget) -> JobEvent | None:
    """An event for whoever listens; nothing, of a kind that came later than this client."""
    data = said.told
    when = words.number(data, "time")
    when = time.time() if when is None else when
    if said.kind == "status":
        phase = _phase(data)
        text = words.text(data, "text") or TEXTS.get(phase, "")
        return JobEvent(job, "status", text, phase=phase, time=when)
    if said.kind == "log":
        line = budget.take(words.text(data, "text"))
        if line is None:
            return None
        return JobEvent(job, text=line, tags=_tags(data), time=when)
    if said.kind == "queue":
        place, of = words.number(data, "done"), words.number(data, "of")
        return JobEvent(job, "queue", done=place, of=of, time=when)
    if said.kind == "progress":
        return JobEvent(
            job, "progress", words.text(data, "text", 200), done=words.number(data, "done"),
            of=words.number(data, "of"), unit=words.text(data, "unit", 40), time=when,
        )  # fmt: skip
    return None


def token(said: Said) -> tuple[int, tuple[int, ...]]:
    """The step of a generation, and its new tokens."""
    ids = words.several(said.told, "ids", 100_000)
    if not all(isinstance(id, int) and not isinstance(id, bool) for id in ids):
        raise words.strange("tokens that are no numbers")
    return words.whole(said.told, "step", most=_COUNT), tuple(ids)


def local(said: Said) -> Exchange:
    """The local part that waits, with its values if they are few."""
    size_bytes = words.whole(said.told, "bytes", most=Limits().local_bytes)
    return Exchange(
        words.whole(said.told, "number", most=_COUNT),
        words.whole(said.told, "index", most=_COUNT),
        size_bytes,
        _payload(said.told, size_bytes) if said.values is None else said.values,
        said.told.get("answered") is True,
    )


def end(said: Said) -> End:
    """How a job ended."""
    phase = _phase(said.told)
    if phase not in ENDS:
        raise words.strange(f"{phase} as the end of a job")
    fault = _fault(said.told.get("fault"))
    text = TEXTS.get(phase, "") if fault is None else fault.text.partition("\n")[0]
    return End(phase, text or f"the server says {phase}", fault, _result(said.told))


def _phase(told: dict[str, Any]) -> str:
    phase = words.text(told, "phase", 40)
    if phase not in get_args(State):
        raise words.strange(f"{phase!r} as the phase of a job")
    return phase


def _tags(told: dict[str, Any]) -> tuple[str, ...]:
    return tuple(words.one_line(tag, 40) for tag in words.several(told, "tags", 1_000)[:_TAGS])


def _payload(told: dict[str, Any], size_bytes: int) -> bytes | None:
    text = told.get("payload")
    if text is None:
        return None
    try:
        data = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise words.strange("a payload that is no base64") from None
    if len(data) != size_bytes or size_bytes > INLINE_BYTES:
        raise words.strange(f"a payload of {len(data):,} bytes, where it had said {size_bytes:,}")
    return data


def _result(told: dict[str, Any]) -> Result | None:
    result = told.get("result")
    if result is None:
        return None
    if not isinstance(result, dict):
        raise words.strange("a result that is no object")
    size_bytes = words.whole(result, "bytes", most=MOST_BYTES)
    sha256 = words.text(result, "sha256", 100).lower()
    if len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise words.strange("a sha256 that is none")
    return Result(size_bytes, sha256, _payload(told, size_bytes))


def _fault(told: Any) -> Fault | None:
    if told is None:
        return None
    if not isinstance(told, dict):
        raise words.strange("a fault that is no object")
    kind = words.one_line(words.text(told, "kind", 200)) or "an error"
    text = words.text(told, "text", _FAULT_CHARS).strip() or kind
    place = tuple(_frame(frame) for frame in words.several(told, "place", 100))
    return Fault(kind, text, place)


def _frame(told: Any) -> tuple[str, int, str]:
    if not isinstance(told, list) or len(told) != 3 or not isinstance(told[1], int):
        raise words.strange("the place of a fault that is none")
    file, line, function = told
    return words.one_line(file, 1_000), min(max(line, 0), _COUNT), words.one_line(function, 200)
