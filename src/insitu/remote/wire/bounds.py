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
from insitu.remote.wire.pieces import NOTHING, PACKED, PLAIN, PREFIX

DEPTH = 400
"""How deep the JSON of a container may be nested."""
PARTS = 1_000_000
"""How many values the JSON of a container may have."""
PIECES = 100_000
"""How many pieces a container may have."""
WINDOW_BYTES = 8 * 2**20
"""How far back a zstd frame may reach, which is the memory that inflating takes."""

_CHUNK_BYTES = 2**18
_NOTHING_MOST = 4096
_CUT = "it ends in the middle of a piece"
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
    """What the pieces of a container hold, one behind the other, and counted."""

    def __init__(self, source: "memoryview | BinaryIO", most: int) -> None:
        self._source = _Memory(source) if isinstance(source, memoryview) else _File(source)
        self._unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES)
        self._plain = 0
        """What is left of a piece that stands as it is."""
        self._packed: Any = None
        """The reader of a piece that is compressed …"""
        self._inside: Any = None
        """… and what it reads from."""
        self._ahead = b""
        """A byte of it that has been looked at."""
        self._pieces = 0
        self._left = self.most = most

    def exactly(self, count: int, what: str) -> bytearray:
        """The next bytes.

        Raises:
            WireError: there are fewer, or more than may be read at all.
        """
        self.reserve(count, what)
        found = bytearray()
        while len(found) < count:  # as they come: a count alone takes no memory
            piece = memoryview(bytearray(min(_CHUNK_BYTES, count - len(found))))
            self.into(piece, what)
            found += piece
        return found

    def into(self, target: memoryview, what: str) -> None:
        """Fill a buffer; `reserve` has checked that it may be filled."""
        self._left -= len(target)
        filled = 0
        while filled < len(target):
            count = self._some(target[filled:])
            if not count:
                raise refusal(f"it ends in the middle of its {what}")
            filled += count

    def in_place(self, count: int) -> memoryview | None:
        """The next bytes where they are, if they are in memory, plain and may be written to."""
        if self._source.is_kept or not self._begins_plain() or count > self._plain:
            return None
        found = self._source.read(count)
        if len(found) < count:
            raise refusal(_CUT)
        self._plain -= count
        self._left -= count
        return memoryview(found)

    def reserve(self, count: int, what: str) -> None:
        """Refuse a number of bytes that is more than may be read."""
        if count > self._left:
            raise refusal(f"its {what} would take it over the {self.most:,} bytes that are allowed")

    def ended(self) -> None:
        """Refuse anything that follows."""
        if self._some(memoryview(bytearray(1))):
            raise refusal("it goes on behind its end")

    def _some(self, target: memoryview) -> int:
        """Put what comes next at the start of a buffer: how much that is, and 0 at the end."""
        if self._ahead:
            target[:1], self._ahead = self._ahead, b""
            return 1
        while not self._plain:
            if self._packed is not None and (count := self._unpacked(target)):
                return count
            if self._packed is None and not self._next_piece():
                return 0
        count = self._source.readinto(target[: self._plain])
        if not count:
            raise refusal(_CUT)
        self._plain -= count
        return count

    def _begins_plain(self) -> bool:
        """Whether what comes next is plain; what is compressed is asked for a byte of it."""
        one = bytearray(1)
        while not self._plain and not self._ahead:
            if self._packed is not None and self._unpacked(memoryview(one)):
                self._ahead = bytes(one)
            elif self._packed is None and not self._next_piece():
                return False
        return not self._ahead

    def _unpacked(self, target: memoryview) -> int:
        """More of the piece that is compressed; 0 at its end, which ends it."""
        with _told():
            count = int(self._packed.readinto(target[:_CHUNK_BYTES]))
        if not count:
            if self._inside.is_cut:
                raise refusal(_CUT)
            self._packed = None
        return count

    def _next_piece(self) -> bool:
        """Begin the next piece; False where there is none."""
        prefix = self._source.read(PREFIX.size)
        if not prefix:
            return False
        self._pieces += 1
        if len(prefix) < PREFIX.size:
            raise refusal(_CUT)
        if self._pieces > PIECES:
            raise refusal(f"it has more than {PIECES:,} pieces")
        kind, length = PREFIX.unpack(prefix)
        if kind == PLAIN:
            self._plain = length
        elif kind == PACKED:
            self._inside = self._source.part(length)
            self._packed = self._unpacker.stream_reader(
                self._inside, _CHUNK_BYTES, read_across_frames=True, closefd=False
            )
        elif kind == NOTHING and length <= _NOTHING_MOST:
            if len(self._source.read(length)) < length:
                raise refusal(_CUT)
        else:
            raise refusal(f"a piece of it is of kind {kind} and has {length:,} bytes")
        return True


class _Memory:
    """Bytes in memory, read from their start without a copy of all of them."""

    def __init__(self, data: memoryview, size: int | None = None) -> None:
        self._data = data
        self.is_kept = data.readonly
        """Whether its bytes are not to be given away."""
        self.is_cut = size is not None and len(data) < size

    def read(self, count: int) -> memoryview:
        found, self._data = self._data[:count], self._data[count:]
        return found

    def readinto(self, target: memoryview) -> int:
        found = self.read(len(target))
        target[: len(found)] = found
        return len(found)

    def part(self, size: int) -> "_Memory":
        """The next bytes, to be read by themselves."""
        return _Memory(self.read(size), size)


class _File:
    """A file that is read once, or so many bytes of one."""

    is_kept = True

    def __init__(self, file: Any, size: int | None = None) -> None:
        self._file = file
        self._left = size

    @property
    def is_cut(self) -> bool:
        return bool(self._left)

    def read(self, count: int) -> bytes:
        pieces, left = [], count if self._left is None else min(count, self._left)
        while left and (piece := self._file.read(left)):
            pieces.append(piece)
            left -= len(piece)
        found = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._left is not None:
            self._left -= len(found)
        return found

    def readinto(self, target: memoryview) -> int:
        found = self.read(min(len(target), _CHUNK_BYTES))
        target[: len(found)] = found
        return len(found)

    def part(self, size: int) -> "_File":
        return _File(self._file, size)


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
