"""What a server says, made fit to be shown, and taken only in the shape that was agreed on.

clean("ok\\x1b[2J")                        # "ok[2J": a terminal does not obey it
whole({"of": 3}, "of", most=10)          # 3
whole({"of": 10**9}, "of", most=10)      # ServerError: … that is not in its protocol
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from insitu.errors import ServerError

LINE_CHARS = 4_000
"""Of one line of a log; `Limits.line_chars` is the same."""

_HIDDEN = dict.fromkeys(
    (
        *(n for n in range(0x20) if chr(n) not in "\n\t"),
        *range(0x7F, 0xA0),
        0x061C, 0x200E, 0x200F, 0x2028, 0x2029,
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
    )
)  # fmt: skip
"""Control characters, and those that turn the direction of writing."""

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def clean(text: Any, most: int = LINE_CHARS) -> str:
    """Text without anything that a terminal would obey, cut at a length."""
    words = (text if isinstance(text, str) else str(text))[: most + 1].translate(_HIDDEN)
    words = words.encode("utf-8", "replace").decode()  # half a surrogate cannot be printed
    return words if len(words) <= most else words[: most - 1] + "…"


def one_line(text: Any, most: int = LINE_CHARS) -> str:
    """The same, as one line."""
    return " ".join(clean(text, most).split())


def is_id(text: Any) -> bool:
    """Whether something can be the id of a job: it becomes part of a path."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def parsed(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object from a server."""
    try:
        told = json.loads(data.decode(), parse_constant=_refused)
    except (ValueError, RecursionError):
        raise strange(f"{where} that is no JSON") from None
    if not isinstance(told, dict):
        raise strange(f"{where} that is no JSON object")
    return told


def _refused(name: str) -> None:
    raise ValueError(name)


def text(told: Mapping[str, Any], name: str, most: int = LINE_CHARS) -> str:
    """A member that is text, or is not there."""
    value = told.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise strange(f"{name} as {type(value).__name__}, not as text")
    return clean(value, most)


def whole(told: Mapping[str, Any], name: str, *, most: int) -> int:
    """A member that is a whole number from 0 to `most`."""
    value = told.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise strange(f"{name} as {clean(repr(value), 40)}, not as a number from 0 to {most:,}")
    return value


def number(told: Mapping[str, Any], name: str) -> float | None:
    """A member that is a finite number, or is not there."""
    value = told.get(name)
    if value is None:
        return None
    try:
        if not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except (TypeError, OverflowError):
        pass
    raise strange(f"{name} as {clean(repr(value), 40)}, not as a number")


def several(told: Mapping[str, Any], name: str, most: int) -> list[Any]:
    """A member that is a list, or is not there."""
    value = told.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > most:
        raise strange(f"{name} that is no list of {most:,} at most")
    return value


def strange(sent: str) -> ServerError:
    """The error about a server that does not keep to the protocol."""
    return ServerError(
        f"the server sent {sent}.",
        "that is not in its protocol: it is broken, of another version, or no Insitu server.",
        "look at the address and at the server's own log; insitu.compare() shows both versions.",
    )
