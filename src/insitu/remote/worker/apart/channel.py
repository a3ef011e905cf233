"""Messages between a job and the device process: a JSON list each, and tensors beside it.

    channel = Channel(fd, mine, theirs)
    channel.begin(); channel.send(["call", 3, …])
    channel.receive()                           # ["result", …]; None when the other side is gone

One packet is one message. What is too long for a packet lies in the shared memory, and the packet
says where. The two sides take turns, so that there is never more than one message under way.
"""

import json
import os
from typing import Any

from insitu.remote.worker.apart.shared import Segment, SegmentError

PACKET = 48 * 1024
TEXT_MOST = 4 * 2**20
"""Of one message without its tensors."""


class ChannelError(ValueError):
    """A message that is none of those expected; in words that follow 'it sent'."""


class NoMemoryError(ChannelError):
    """What it sent may be right, and does not fit."""

    def __init__(self) -> None:
        super().__init__("more than there is memory for, where the model computes")


def refusal_of(error: Exception) -> ChannelError:
    """Whatever was raised by a message, as a word to the job that sent it."""
    if isinstance(error, ChannelError):
        return error
    of_allocator = isinstance(error, RuntimeError) and "memory" in str(error)
    if isinstance(error, MemoryError) or of_allocator:
        return NoMemoryError()
    return ChannelError(f"what cannot be taken ({type(error).__name__})")


class Channel:
    """One end; `read` and `write` alone, which a jailed process may call."""

    def __init__(self, fd: int, mine: Segment, theirs: Segment) -> None:
        self.fd = fd
        self.mine = mine
        self.theirs = theirs

    def close(self) -> None:
        """Let go of this end; the memory goes with the last that refers to it."""
        os.close(self.fd)

    def begin(self) -> None:
        """Before the tensors of a message are put into `mine`."""
        self.mine.begin()

    def send(self, message: list[Any]) -> None:
        """Send a message whose tensors lie in `mine`.

        Raises:
            OSError: the other side is gone.
        """
        text = json.dumps(message, separators=(",", ":"), check_circular=False).encode()
        if len(text) > PACKET:
            if len(text) > TEXT_MOST:
                raise ChannelError(f"a message of {len(text):,} bytes")
            text = b"@%d,%d" % (self.mine.put_bytes(text), len(text))
        os.write(self.fd, text)

    def receive(self) -> list[Any] | None:
        """Wait for a message; None when the other side is gone.

        Raises:
            ChannelError: bytes that are no message.
        """
        try:
            text = os.read(self.fd, PACKET + 1)
        except ConnectionResetError:
            return None
        if not text:
            return None
        if text[:1] == b"@":
            text = self._far(text)
        return _read(text)

    def _far(self, text: bytes) -> bytes:
        at, _, length = text[1:].partition(b",")
        if not (at.isdigit() and length.isdigit() and len(text) < 64):
            raise ChannelError("bytes that are no message")
        if int(length) > TEXT_MOST:
            raise ChannelError(f"a message of {int(length):,} bytes")
        try:
            return self.theirs.take_bytes(int(at), int(length))
        except SegmentError as error:
            raise ChannelError(str(error)) from error


def _read(text: bytes) -> list[Any]:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ChannelError("bytes that are no message") from error
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise ChannelError("a message without a kind")
    return message
