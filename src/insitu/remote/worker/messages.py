"""What a job process says, checked field by field, and the frames that say it.

    frame = Frame("log", {"text": "loss 0.31", "tags": ["train"]})
    told(frame, Limits())                                     # Log("loss 0.31", ("train",))

Checked are types, lengths and counts. Text loses what cannot be written as UTF-8.
"""

import math
from typing import Any

from insitu.remote.protocol import Ended, Fault, Limits, Local, Log, Progress, Token, Told
from insitu.remote.worker.frames import Frame, FrameError

TAGS_MOST, TAG_CHARS_MOST, TEXT_CHARS_MOST = 16, 100, 200
ROWS_MOST = 4096
FAULT_CHARS_MOST, PLACES_MOST, NAME_CHARS_MOST = 8_000, 30, 300
_INT_MOST = 2**63


def from_job(limits: Limits) -> dict[str, int]:
    """The frames that a job process may send, with how long their bodies may be."""
    return {"log": 0, "progress": 0, "token": 0, "local": limits.local_bytes, "ended": 0}


def to_job(limits: Limits) -> dict[str, int]:
    """The frames that a job process may be sent."""
    return {"answer": limits.local_bytes}


def shortened(text: str, most: int) -> str:
    """At most so many characters, and how many more there were."""
    if len(text) <= most:
        return text
    end = f" … ({len(text) - most:,} characters more)"
    return text[:most] + end


def told(frame: Frame, limits: Limits) -> Told | Ended:
    """The frame as a dataclass of the protocol.

    Raises:
        FrameError: a field is missing, too many, or not what it should be.
    """
    fields = _FIELDS[frame.kind]
    if frame.head.keys() != fields:
        raise FrameError(f"a {frame.kind!r} message with other fields than {sorted(fields)}")
    said: Told | Ended = _READERS[frame.kind](frame, limits)
    return said


def _log(frame: Frame, limits: Limits) -> Log:
    tags = _list(frame.head["tags"], TAGS_MOST, "tags")
    most = limits.line_chars + 60  # `shortened` says what it left out
    return Log(
        _text(frame.head["text"], most, "text"),
        tuple(_text(tag, TAG_CHARS_MOST, "a tag") for tag in tags),
    )


def _progress(frame: Frame, limits: Limits) -> Progress:
    head = frame.head
    of = None if head["of"] is None else _number(head["of"], "of")
    return Progress(
        _text(head["text"], TEXT_CHARS_MOST, "text"),
        _number(head["done"], "done"),
        of,
        _text(head["unit"], TAG_CHARS_MOST, "unit"),
    )


def _token(frame: Frame, limits: Limits) -> Token:
    ids = _list(frame.head["ids"], ROWS_MOST, "ids")
    return Token(_count(frame.head["step"], "step"), tuple(_count(i, "an id") for i in ids))


def _local(frame: Frame, limits: Limits) -> Local:
    head = frame.head
    return Local(_count(head["number"], "number"), _count(head["index"], "index"), frame.body)


def _ended(frame: Frame, limits: Limits) -> Ended:
    phase, said = frame.head["phase"], frame.head["fault"]
    if phase == "COMPLETED" and said is None:
        return Ended("COMPLETED")
    if phase != "ERROR" or not isinstance(said, dict) or said.keys() != {"kind", "text", "place"}:
        raise FrameError("an 'ended' message that is neither a success nor a fault")
    place = tuple(_place(it) for it in _list(said["place"], PLACES_MOST, "place"))
    kind = _text(said["kind"], NAME_CHARS_MOST, "kind")
    return Ended("ERROR", Fault(kind, _text(said["text"], FAULT_CHARS_MOST + 60, "text"), place))


def _place(said: Any) -> tuple[str, int, str]:
    file, line, function = _list(said, 3, "a place", least=3)
    most = NAME_CHARS_MOST
    return _text(file, most, "a file"), _count(line, "a line"), _text(function, most, "a function")


_FIELDS = {
    "log": {"text", "tags"},
    "progress": {"text", "done", "of", "unit"},
    "token": {"step", "ids"},
    "local": {"number", "index"},
    "ended": {"phase", "fault"},
}
_READERS: dict[str, Any] = {
    "log": _log, "progress": _progress, "token": _token, "local": _local, "ended": _ended,
}  # fmt: skip


def ended_head(ended: Ended) -> dict[str, Any]:
    """The head of the frame that ends a job, shortened to what `told` accepts."""
    fault = ended.fault
    if fault is None:
        return {"phase": ended.phase, "fault": None}
    most = NAME_CHARS_MOST
    place = [[f[-most:], line, name[:most]] for f, line, name in fault.place[-PLACES_MOST:]]
    text = shortened(fault.text, FAULT_CHARS_MOST)
    return {
        "phase": ended.phase,
        "fault": {"kind": fault.kind[:most], "text": text, "place": place},
    }


def _text(value: Any, most: int, what: str) -> str:
    if not isinstance(value, str) or len(value) > most:
        raise FrameError(f"a message whose {what} is no text of at most {most:,} characters")
    return value.encode("utf-8", "replace").decode()  # a lone surrogate cannot be kept anywhere


def _list(value: Any, most: int, what: str, *, least: int = 0) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise FrameError(f"a message whose {what} is no list of at most {most:,}")
    return value


def _count(value: Any, what: str) -> int:
    if type(value) is not int or not -1 <= value < _INT_MOST:
        raise FrameError(f"a message whose {what} is no whole number")
    return value


def _number(value: Any, what: str) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e300 or not math.isfinite(value):
        raise FrameError(f"a message whose {what} is no finite number")
    return float(value)
