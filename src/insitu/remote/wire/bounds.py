"""Reading what a stranger wrote: every size is checked before memory is taken for it.

    reader = Inflated(file, most=64 * 2**20)
    header = json_value(reader.exactly(count, "header"), "header")

Whatever is wrong with the bytes, a reader hears of it as a `WireError`, and has taken no more
memory than it allowed. Nothing here needs torch.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import zstandard

from insitu.errors import WireError

DEPTH = 400
"""How deep the JSON of a container may be nested."""
PARTS = 1_000_000
"""How many values the JSON of a container may have."""
WINDOW_BYTES = 8 * 2**20
"""How far back a zstd frame may reach, which is the memory that inflating takes."""

_CHUNK_BYTES = 2**18
_STRING = re.compile(r'"(?:[^"\\]+|\\.)*+(?:"|\Z)', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")


def refusal(why: str) -> WireError:
    """The error for bytes that are no container, or one that is too large."""
    return WireError(
        "what came over the wire cannot be read.",
        f"{why}.",
        "send it once more; if that fails too, bring both sides to the same version of Insitu.",
    )


class Inflated:
    """A zstd stream that is inflated piece by piece, and counted."""

    def __init__(self, source: memoryview | BinaryIO, most: int) -> None:
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        self._reader = unpacker.stream_reader(
            source, read_size=_CHUNK_BYTES, read_across_frames=True, closefd=False
        )
        self._left = most
        self.most = most

    def exactly(self, count: int, what: str) -> bytearray:
        """The next bytes.

        Raises:
            WireError: there are fewer, or more than may be read at all.
        """
        self.reserve(count, what)
        self._left -= count
        found = bytearray()
        while len(found) < count:  # as they come: a count alone takes no memory
            piece = self._read(min(_CHUNK_BYTES, count - len(found)))
            if not piece:
                raise refusal(f"it ends in the middle of its {what}")
            found += piece
        return found

    def into(self, target: memoryview, what: str) -> None:
        """Fill a buffer; `reserve` has checked that it may be filled."""
        self._left -= len(target)
        filled = 0
        while filled < len(target):
            with _told():
                count = self._reader.readinto(target[filled : filled + _CHUNK_BYTES])
            if not count:
                raise refusal(f"it ends in the middle of its {what}")
            filled += count

    def reserve(self, count: int, what: str) -> None:
        """Refuse a number of bytes that is more than may be read."""
        if count > self._left:
            raise refusal(f"its {what} would take it over the {self.most:,} bytes that are allowed")

    def ended(self) -> None:
        """Refuse anything that follows."""
        if self._read(1):
            raise refusal("it goes on behind its end")

    def _read(self, count: int) -> bytes:
        with _told():
            return self._reader.read(count)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except zstandard.ZstdError as error:
        raise refusal(f"it is no zstd stream ({error})") from None


def json_value(text: bytes | bytearray, what: str) -> Any:
    """The value that a JSON text has, which is neither deep nor made of very many parts.

    Raises:
        WireError: it is no JSON, or out of bounds.
    """
    try:
        letters = text.decode("utf-8")
        _check_extent(letters, what)
        return json.loads(letters, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, WireError):
            raise
        raise refusal(f"its {what} is no JSON ({_short(error)})") from None


def _check_extent(letters: str, what: str) -> None:
    if letters.count(",") + letters.count("[") + letters.count("{") < DEPTH:
        return
    bare = _STRING.sub('""', letters)
    if bare.count(",") + bare.count("[") + bare.count("{") > PARTS:
        raise refusal(f"its {what} has more than {PARTS:,} values")
    depth = 0
    for bracket in _BRACKET.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH:
            raise refusal(f"its {what} is nested more than {DEPTH} deep")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def json_text(value: Any) -> bytes:
    """A value as JSON; the same text on every Python."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: escaped, it survives
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
