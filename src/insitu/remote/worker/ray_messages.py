"""What a server, its link to Ray and the replicas say to each other: JSON heads and plain bytes.

    data = packed(*written(Log("loss 0.31")))
    read(*unpacked(data))                                     # Log("loss 0.31")

Ray's own way to send a Python object is pickle. Through it go `bytes` alone, so that nothing that a
job made is ever unpickled, in the server or in a replica.
"""

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from insitu.remote.protocol import (
    Ended,
    Fault,
    Limits,
    Local,
    Log,
    ModelState,
    Progress,
    Status,
    Token,
    Told,
)
from insitu.remote.worker.specs import ModelSpec

_LENGTHS = struct.Struct("<II")
_STREAM_BYTES = 2**22
_NAMES: dict[type, str] = {
    Status: "status", Log: "log", Progress: "progress", Token: "token", Local: "local",
    Ended: "ended",
}  # fmt: skip
_KINDS = {name: kind for kind, name in _NAMES.items()}

Head = dict[str, Any]
Body = bytes | bytearray | memoryview


def written(it: Told | Ended) -> tuple[Head, Body]:
    """What a job said, as a head and a body."""
    head = {"said": _NAMES[type(it)], **asdict(it)}
    return head, head.pop("payload", b"")


def read(head: Mapping[str, Any], body: Body = b"") -> Told | Ended:
    """What `written` wrote."""
    fields = {name: _tuples(value) for name, value in head.items() if name != "said"}
    kind = _KINDS[head["said"]]
    if kind is Local:
        return Local(**fields, payload=body if isinstance(body, bytes) else bytearray(body))
    if kind is Ended and fields["fault"] is not None:
        fields["fault"] = Fault(**{n: _tuples(it) for n, it in fields["fault"].items()})
    said: Told | Ended = kind(**fields)
    return said


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def limits_of(head: Mapping[str, Any]) -> Limits:
    """Limits that `asdict` took apart."""
    return Limits(**head)


def spec_head(spec: ModelSpec) -> Head:
    """A model's spec as JSON."""
    return {**vars(spec), "settings": dict(spec.settings)}


def spec_from(head: Mapping[str, Any]) -> ModelSpec:
    """The spec that `spec_head` wrote."""
    return ModelSpec(**{**head, "known_as": tuple(head["known_as"])})


def state_from(head: Mapping[str, Any]) -> ModelState:
    """A model's state that `asdict` took apart."""
    return ModelState(**{**head, "known_as": tuple(head["known_as"])})


def packed(head: Mapping[str, Any], body: Body = b"") -> bytes:
    """One message in one piece."""
    return b"".join((_begin(head, body), body))


def unpacked(data: bytes) -> tuple[Head, memoryview]:
    """The message that `packed` made."""
    size, _ = _LENGTHS.unpack_from(data)
    end = _LENGTHS.size + size
    return json.loads(data[_LENGTHS.size : end]), memoryview(data)[end:]


def _begin(head: Mapping[str, Any], body: Body) -> bytes:
    text = json.dumps(head, separators=(",", ":")).encode()
    return _LENGTHS.pack(len(text), len(body)) + text


class Line:
    """Messages over a socket, between a server and its link."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> "Line":
        """A line over one end of a socket pair."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=_STREAM_BYTES))

    def send(self, head: Mapping[str, Any], body: Body = b"") -> None:
        """Queue a message; one to a side that is gone is dropped, as `heard` will say."""
        if not self._writer.is_closing():
            self._writer.write(_begin(head, body))
            if body:
                self._writer.write(body)

    async def drained(self) -> None:
        """Wait until the other side has taken most of what was sent.

        Raises:
            ConnectionError: it is gone.
        """
        await self._writer.drain()

    async def heard(self) -> tuple[Head, bytes] | None:
        """The next message; None when the other side is gone."""
        try:
            sizes = _LENGTHS.unpack(await self._reader.readexactly(_LENGTHS.size))
            head, body = [await self._reader.readexactly(size) for size in sizes]
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        return json.loads(head), body

    def close(self) -> None:
        """Say no more."""
        self._writer.close()
