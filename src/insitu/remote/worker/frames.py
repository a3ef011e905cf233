"""Messages between server, model processes and job processes: a JSON head, then bytes.

    send(fd, "log", {"text": "tensor(5.4688)", "tags": []})
    inbox = Inbox(FROM_JOB)
    for frame in inbox.took(socket.recv_into(inbox.room())):
        frame.kind, frame.head, frame.body

Every frame begins with twelve bytes: a mark, the kind, the length of the head, the length of the
body. What a reader accepts is fixed beforehand, kind by kind; lengths are looked at before a byte
of them is kept. A job process is hostile: what it sends too long, too deep or too odd raises
FrameError, which ends that job and nothing else.
"""

import array
import json
import os
import select
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from insitu.remote.wire.filling import Filling

_PREFIX = struct.Struct("<2sBxII")
_MARK = b"In"
KINDS = ("log", "progress", "token", "local", "ended", "answer")
HEAD_MOST = 256 * 1024
"""Of one head: a fault of 8,000 characters and 30 places takes 160 KB at worst."""
CONTROL_MOST = 64 * 1024
"""Of one message between server and model process."""
PIECE_BYTES = 64 * 1024
"""What is read at once of small messages; a larger body is read to where it stays."""
HEADS_MOST = 256 * 2**20
"""Of all heads of one stream; 10,000 lines and 90,000 tokens of a job of ours take 40 MB."""
_DEPTH_MOST, _TEXTS_MOST, _BRACKETS_MOST, _VALUES_MOST = 8, 1_000, 200, 10_000
_NUMBER_CHARS = 1_000
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

Body = bytes | bytearray | memoryview


class FrameError(ValueError):
    """Bytes that are no frame of those expected."""


@dataclass(frozen=True)
class Frame:
    """One message."""

    kind: str
    head: dict[str, Any]
    body: bytes | bytearray = b""


def packed(kind: str, head: Mapping[str, Any], body_bytes: int = 0) -> bytes:
    """A frame without its body, which follows it."""
    said = json.dumps(head, separators=(",", ":"), ensure_ascii=False)
    text = said.encode("utf-8", "surrogatepass")
    if len(text) > HEAD_MOST:
        raise FrameError(f"the head of a {kind!r} frame has {len(text):,} bytes")
    return _PREFIX.pack(_MARK, KINDS.index(kind), len(text), body_bytes) + text


def send(fd: int, kind: str, head: Mapping[str, Any], *body: Body) -> None:
    """Write a frame and wait until it is written; the parts of its body follow each other."""
    write_all(fd, packed(kind, head, sum(map(len, body))), *body)


def write_all(fd: int, *parts: Body) -> None:
    """`os.writev` until nothing is left; a jailed process may not call `send`."""
    rest = [memoryview(part) for part in parts if len(part)]
    while rest:
        count = os.writev(fd, rest)
        while rest and count >= len(rest[0]):
            count -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][count:]


def receive(fd: int, most: Mapping[str, int]) -> Frame | None:
    """Wait for one frame; None at the end of the stream."""
    prefix = _read_exactly(fd, _PREFIX.size)
    if prefix is None:
        return None
    kind, head_bytes, body_bytes = _checked(prefix, most)
    head, body = _read_exactly(fd, head_bytes), _read_exactly(fd, body_bytes)
    if head is None or body is None:
        return None
    return Frame(kind, _read_head(head), body)


def _read_exactly(fd: int, size: int) -> bytearray | None:
    data = bytearray(size)
    rest = memoryview(data)
    while rest:
        got = os.readv(fd, [rest])
        if not got:
            return None
        rest = rest[got:]
    return data


class Inbox:
    """Puts frames together from a stream; the bytes of a large body are read to where they stay.

        inbox.took(socket.recv_into(inbox.room()))      # or: inbox.feed(piece)

    Args:
        most: the kinds that are expected, each with how many bytes its body may have.
    """

    def __init__(self, most: Mapping[str, int]) -> None:
        self._most = most
        self._piece = memoryview(bytearray(PIECE_BYTES))
        self._data = bytearray()
        self._next: tuple[str, int, int] | None = None
        self._large: tuple[str, dict[str, Any], Filling] | None = None
        """A frame whose body comes in parts."""
        self._heads = 0

    def room(self) -> memoryview:
        """Where the next bytes are to be read to."""
        return self._piece if self._large is None else self._large[2].room()

    def took(self, count: int) -> list[Frame]:
        """So many bytes were read to `room()`; the frames that they complete.

        Raises:
            FrameError: the stream is not one of frames as expected; it cannot be read further.
        """
        if self._large is None:
            return self.feed(self._piece[:count])
        self._large[2].took(count)
        return self._whole()

    def feed(self, piece: Body) -> list[Frame]:
        """Take a piece; give the frames that it completes.

        Raises:
            FrameError: as `took`.
        """
        rest = memoryview(piece)
        frames = []
        if self._large is not None:
            rest = self._large[2].take(rest)
            frames = self._whole()
        self._data += rest
        at = 0
        while (frame := self._take(at)) is not None:
            frames.append(frame)
            at += self._length(frame)
        del self._data[:at]
        self._begin_large()
        return frames

    def _take(self, at: int) -> Frame | None:
        if self._next is None:
            if len(self._data) - at < _PREFIX.size:
                return None
            self._next = _checked(self._data[at : at + _PREFIX.size], self._most)
            self._heads += _PREFIX.size + self._next[1]
            if self._heads > HEADS_MOST:
                raise FrameError(f"messages of more than {HEADS_MOST:,} bytes in all")
        kind, head_bytes, body_bytes = self._next
        start = at + _PREFIX.size
        middle, end = start + head_bytes, start + head_bytes + body_bytes
        if len(self._data) < end:
            return None
        head = _read_head(self._data[start:middle])
        return Frame(kind, head, self._data[middle:end])

    def _length(self, frame: Frame) -> int:
        assert self._next is not None
        _, head_bytes, body_bytes = self._next
        self._next = None
        return _PREFIX.size + head_bytes + body_bytes

    def _begin_large(self) -> None:
        """Give a large body whose head is there memory of its own."""
        if self._next is None or self._large is not None:
            return
        kind, head_bytes, body_bytes = self._next
        start = _PREFIX.size + head_bytes
        if body_bytes > PIECE_BYTES and len(self._data) >= start:
            large = Filling(body_bytes)
            large.take(memoryview(self._data)[start:])
            self._large = kind, _read_head(self._data[_PREFIX.size : start]), large
            self._data = bytearray()

    def _whole(self) -> list[Frame]:
        """The large frame, when it is all there."""
        if self._large is None or not self._large[2].is_full:
            return []
        kind, head, body = self._large
        self._next = self._large = None
        return [Frame(kind, head, body.data)]


def _checked(prefix: bytes | bytearray, most: Mapping[str, int]) -> tuple[str, int, int]:
    mark, number, head_bytes, body_bytes = _PREFIX.unpack(prefix)
    if mark != _MARK or number >= len(KINDS) or KINDS[number] not in most:
        raise FrameError("bytes that are no message of a job")
    kind = KINDS[number]
    if head_bytes > HEAD_MOST:
        raise FrameError(f"a {kind!r} message whose head has {head_bytes:,} bytes")
    if body_bytes > most[kind]:
        raise FrameError(
            f"a {kind!r} message of {body_bytes:,} bytes, where {most[kind]:,} are allowed"
        )
    return kind, head_bytes, body_bytes


def _read_head(text: bytes | bytearray) -> dict[str, Any]:
    _check_shape(text)
    try:
        head = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FrameError("a message whose head is not JSON") from error
    if not isinstance(head, dict):
        raise FrameError("a message whose head is no JSON object")
    return head


def _check_shape(text: bytes | bytearray) -> None:
    """Refuse what no message of ours looks like before it is parsed, by fast means alone.

    256 KB of brackets take `json` 18 ms, and would hold up every other job for so long.

    Raises:
        FrameError: it has too many values, or they are nested too deeply.
    """
    plain = text.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in text else text
    if plain.count(b'"') > 2 * _TEXTS_MOST:
        raise FrameError("a message whose head has too many texts")
    outside = b"".join(plain.split(b'"')[::2])
    brackets = outside.translate(None, _NOT_BRACKETS)
    if len(brackets) > 2 * _BRACKETS_MOST or outside.count(b",") > _VALUES_MOST:
        raise FrameError("a message whose head has too many values")
    if len(outside) > _NUMBER_CHARS and max(map(len, outside.split(b","))) > _NUMBER_CHARS:
        raise FrameError("a message whose head has a value that is too long")
    depth = 0
    for byte in brackets:
        depth += 1 if byte in b"[{" else -1
        if depth > _DEPTH_MOST:
            raise FrameError("a message whose head is nested too deeply")


# Between server and model process: one packet a message, with file descriptors ------------------


def control_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send_control(end: socket.socket, message: Mapping[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message; the files are the receiver's own from then on.

    Raises:
        OSError: the other side is gone, or does not read.
    """
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > CONTROL_MOST:
        raise FrameError(f"a control message of {len(data):,} bytes")
    if fds:
        socket.send_fds(end, [data], list(fds))
    else:
        end.send(data)


def receive_control(end: socket.socket, files: int = 0) -> tuple[dict[str, Any], list[int]] | None:
    """One message and the files that came with it; None when the other side is gone."""
    space = socket.CMSG_SPACE(files * array.array("i").itemsize) if files else 0
    data, extra, _, _ = end.recvmsg(CONTROL_MOST + 1, space, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in extra:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if not data:
        return None
    return json.loads(data), list(fds)


def readable(fd: int, timeout_s: float) -> bool:
    """True when something can be read within that time."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))
