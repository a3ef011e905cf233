"""What a server tells of a job: server-sent events, numbered, read on after every lost connection.

for said in Events(connection, id, lost=print):
    print(said.number, said.kind, said.told)        # the last one is of kind "end"
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from insitu.errors import (
    JobLostError,
    ServerError,
    ServerRefusedError,
    ServerUnreachableError,
)
from insitu.remote.client import words
from insitu.remote.client.connection import Connection
from insitu.remote.client.patience import Patience
from insitu.remote.protocol import EVENTS_TYPE, Limits
from insitu.remote.wire.filling import Filling

EVENT_BYTES = 2**20
"""Of one event; the largest that is meant to be is a payload of 64 KB."""
SILENCE_S = 45.0
"""Three heartbeats: then the connection is taken for dead."""
_PIECE_BYTES = 64 * 2**10
_VALUES_BYTES = 2**20
_NUMBER_MAX = 2**53
_PASSING = (429, 500, 502, 503, 504)
"""Answers of a server that starts, stops or is behind a proxy: they are waited out."""


@dataclass(frozen=True, slots=True)
class Said:
    """One event."""

    number: int
    kind: str
    told: dict[str, Any]
    values: bytearray | None = None
    """The container that followed it."""


class Parser:
    """Takes bytes as they come, gives events; counts every line, heartbeats too."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._looked = 0
        self._fields: dict[bytes, bytes] = {}
        self._size = 0
        self._followed: tuple[Said, Filling] | None = None
        """An event whose values come behind it."""

    @property
    def wants_bytes(self) -> int:
        """How much is worth reading at once."""
        return _PIECE_BYTES if self._followed is None else _VALUES_BYTES

    def feed(self, data: bytes) -> Iterator[Said]:
        """The events that are complete with this.

        Raises:
            ServerError: it is no event, or one without an end.
        """
        rest: bytes | memoryview = data
        while True:
            if self._followed is not None:
                said, values = self._followed
                rest = values.take(memoryview(rest))
                if not values.is_full:
                    return
                self._followed = None
                yield replace(said, values=values.data)
            yield from self._lines(rest)
            if self._followed is None:
                return
            rest, self._rest, self._looked = bytes(self._rest), bytearray(), 0

    def _lines(self, data: bytes | memoryview) -> Iterator[Said]:
        """The events of lines, up to one that values follow."""
        self._rest += data
        begin = 0
        while (end := self._rest.find(b"\n", max(begin, self._looked))) >= 0:
            line = bytes(self._rest[begin:end]).removesuffix(b"\r")
            begin = end + 1
            if said := self._line(line):
                if said.kind == "local" and said.told.get("follows") is True:
                    size = words.whole(said.told, "bytes", most=Limits().local_bytes)
                    self._followed = said, Filling(size)
                    break
                yield said
        del self._rest[:begin]
        self._looked = len(self._rest)
        if self._followed is None and self._size + len(self._rest) > EVENT_BYTES:
            raise words.strange(f"an event of more than {EVENT_BYTES:,} bytes")

    def _line(self, line: bytes) -> Said | None:
        if not line:
            fields, self._fields, self._size = self._fields, {}, 0
            return _event(fields) if b"data" in fields else None
        name, _, value = line.partition(b":")
        if name not in (b"id", b"event", b"data"):  # a heartbeat, or what came later than this
            return None
        self._size += len(line)
        if self._size > EVENT_BYTES:
            raise words.strange(f"an event of more than {EVENT_BYTES:,} bytes")
        value = value.removeprefix(b" ")
        before = self._fields.get(name) if name == b"data" else None
        self._fields[name] = value if before is None else before + b"\n" + value
        return None


def _event(fields: dict[bytes, bytes]) -> Said:
    number = fields.get(b"id", b"")
    if not (number.isdigit() and len(number) < 17 and 0 < int(number) <= _NUMBER_MAX):
        raise words.strange("an event without a number")
    kind = words.one_line(fields.get(b"event", b"").decode("utf-8", "replace"), 40)
    return Said(int(number), kind, words.parsed(fields[b"data"], "an event"))


class Events:
    """The events of one job, each once, in order, to its `end`.

    Args:
        connection: the server.
        job: the job's id.
        lost: told once when the connection is lost, before it is tried again.
        values: whether those of `local()` parts are wanted along with their events.
    """

    def __init__(
        self,
        connection: Connection,
        job: str,
        lost: Callable[[str], None],
        *,
        values: bool = False,
    ) -> None:
        self.last = 0
        self._connection = connection
        self._job = job
        self._lost = lost
        self._is_lost = False
        self._patience = Patience()
        self._accept = f"{EVENTS_TYPE}, text/event-stream" if values else "text/event-stream"

    def __iter__(self) -> Iterator[Said]:
        """Each event as it comes.

        Raises:
            JobLostError: the server knows no such job.
            ServerError: it cannot be understood, or has been away for too long.
        """
        self._patience.heard()
        while True:
            pause_s = 0.0
            try:
                for said in self._once():
                    self.last = said.number
                    yield said
                    if said.kind == "end":
                        return
                trouble: ServerError = self._broken_off()
            except ServerUnreachableError as error:
                trouble = error
            except ServerRefusedError as error:
                trouble, pause_s = self._refused(error), getattr(error, "retry_after", 0.0)
            if not self._is_lost:
                self._is_lost = True
                self._lost("connection lost, reconnecting")
            self._patience.wait(self._given_up(trouble), pause_s)

    def _once(self) -> Iterator[Said]:
        """The new events of one connection."""
        headers = {"Accept": self._accept, "Last-Event-ID": str(self.last)}
        path = f"/v1/jobs/{self._job}/events"
        parser = Parser()
        with self._connection.open("GET", path, headers=headers, read_s=SILENCE_S) as answer:
            while piece := answer.read(parser.wants_bytes):
                self._patience.heard(progress=False)
                for said in parser.feed(piece):
                    if said.number > self.last:  # else it was said before
                        self._is_lost = False
                        self._patience.heard()
                        yield said

    def _broken_off(self) -> ServerUnreachableError:
        return ServerUnreachableError(
            f"the server at {self._connection.url} broke off what it told of job {self._job}.",
            "the connection was closed before the job's end.",
            "look at the server's own log.",
        )

    def _refused(self, error: ServerRefusedError) -> ServerRefusedError:
        if error.status == 404:
            raise JobLostError(
                f"the server at {self._connection.url} knows no job {self._job}.",
                "it has been removed, belongs to another key, or was sent to another server.",
                "insitu.jobs() lists what it has of yours.",
            ) from error
        if error.status not in _PASSING:
            raise error
        return error

    def _given_up(self, error: ServerError) -> ServerError:
        return ServerUnreachableError(
            error.what,
            error.why,
            f"the job may well be running on: insitu.job({self._job!r}) takes it up again.",
        )
