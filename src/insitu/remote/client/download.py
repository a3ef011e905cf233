"""The result of a job: fetched with a bar, taken up again where it broke off, checked, unpacked.

header, tensors = fetch(connection, "5f…", Result(size_bytes=514_000, sha256="9a…"))

What arrives goes straight into `wire.container.unpack`: the compressed bytes are never kept.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from torch import Tensor

from insitu.errors import ServerError, ServerUnreachableError, WireError
from insitu.remote.client import words
from insitu.remote.client.connection import Answer, Connection
from insitu.remote.client.patience import Patience
from insitu.remote.protocol import Limits
from insitu.remote.wire import container

MOST_BYTES = Limits().result_bytes
"""Of a result, packed and unpacked; more is not taken from any server."""
INLINE_BYTES = 65_536
"""A result that is not larger comes with the last event."""
_SHOWN_EVERY_S = 0.1

Container = tuple[dict[str, Any], dict[str, Tensor]]
Told = Callable[[int, int], None]
"""How many bytes have come, of how many."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a server says of a result: its size, its sum, and itself if it is small."""

    size_bytes: int
    sha256: str
    payload: bytes | None = None


def fetch(
    connection: Connection, job: str, result: Result, told: Told | None = None, *, bar: bool = True
) -> Container:
    """The header and the tensors of a result, with a bar while they come.

    Raises:
        ServerError: it is larger than may be, or not what was announced.
        ServerUnreachableError: it does not come.
    """
    if result.payload is not None:
        return _unpacked(_Checked(io.BytesIO(result.payload), result), job)
    with (
        _Bar(result.size_bytes, is_shown=bar) as show,
        Download(connection, job, result) as arriving,
    ):

        def tell(done: int) -> None:
            show(done)
            if told is not None:
                told(done, result.size_bytes)

        arriving.told = tell
        return _unpacked(_Checked(cast(BinaryIO, arriving), result), job)


def _unpacked(source: "_Checked", job: str) -> Container:
    try:
        found = container.unpack(cast(BinaryIO, source), most=MOST_BYTES)
    except WireError as error:
        raise ServerError(
            f"the result of job {job} cannot be read.",
            error.why,
            "run the block again; if that fails too, insitu.compare() shows both versions.",
        ) from error
    source.drain()
    return found


class _Checked:
    """Hands bytes on, and adds them up.

    Raises:
        ServerError: at the end, they are not the ones that were announced.
    """

    def __init__(self, source: BinaryIO, result: Result) -> None:
        self._source = source
        self._result = result
        self._sum = hashlib.sha256()
        self._count = 0

    def read(self, most: int = -1) -> bytes:
        piece = self._source.read(most if most >= 0 else self._result.size_bytes + 1)
        self._sum.update(piece)
        self._count += len(piece)
        return piece

    def drain(self) -> None:
        """Read what the unpacking left, and look at the sum."""
        while self.read(2**20):
            pass
        if self._count != self._result.size_bytes or self._sum.hexdigest() != self._result.sha256:
            raise ServerError(
                "the result that arrived is not the one that was announced.",
                f"it has {self._count:,} bytes of {self._result.size_bytes:,}, or another sha256.",
                "run the block again; what stands between here and the server may change answers.",
            )


class Download:
    """A result as a file to be read once, over as many connections as it takes."""

    def __init__(self, connection: Connection, job: str, result: Result) -> None:
        self.told: Callable[[int], None] | None = None
        self._connection = connection
        self._path = f"/v1/jobs/{job}/result"
        self._result = result
        self._at = 0
        self._answer: Answer | None = None
        self._patience = Patience()

    def read(self, most: int = -1) -> bytes:
        """The next bytes, so many if there are."""
        left = self._result.size_bytes - self._at
        wanted = left if most < 0 or most > left else most
        pieces = []
        while wanted:
            piece = self._piece(wanted)
            wanted -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, most: int) -> bytes:
        """Some of the next bytes, whatever happens to the connection."""
        while True:
            try:
                if self._answer is None:
                    self._answer = self._opened()
                piece = self._answer.read(most)
                if not piece:
                    raise self._broken_off()
            except ServerUnreachableError as error:
                self.close()
                self._patience.wait(error)
                continue
            self._at += len(piece)
            self._patience.heard()
            if self.told is not None:
                self.told(self._at)
            return piece

    def _opened(self) -> Answer:
        headers = {}
        if self._at:
            headers = {"Range": f"bytes={self._at}-", "If-Range": f'"{self._result.sha256}"'}
        answer = self._connection.open("GET", self._path, headers=headers)
        try:
            self._check(answer)
        except BaseException:
            answer.close()
            raise
        return answer

    def _check(self, answer: Answer) -> None:
        """Is this the announced result, from the place on that was asked for?"""
        begin = self._at if answer.status == 206 else 0
        told = answer.header("Content-Range").replace(" ", "")
        if begin and not told.startswith(f"bytes{begin}-"):
            raise words.strange("another part of the result than was asked for")
        if answer.length is not None and begin + answer.length != self._result.size_bytes:
            raise words.strange(
                f"a result of {begin + answer.length:,} bytes after it had announced "
                f"{self._result.size_bytes:,}"
            )
        skipped = begin
        while skipped < self._at:  # a server that knows no ranges begins anew
            piece = answer.read(min(2**20, self._at - skipped))
            if not piece:
                raise self._broken_off()
            skipped += len(piece)

    def _broken_off(self) -> ServerUnreachableError:
        return ServerUnreachableError(
            f"the server at {self._connection.url} broke off the result.",
            f"{self._at:,} of {self._result.size_bytes:,} bytes have come.",
            "ask for the result again; the job's id is in its status lines: insitu.job(id).",
        )

    def close(self) -> None:
        """Let go of the connection."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def __enter__(self) -> "Download":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Bar:
    """The bar beside a download; gives what moves it."""

    def __init__(self, total: int, *, is_shown: bool) -> None:
        from tqdm.auto import tqdm

        kind: Any = type("Bar", (tqdm,), {"monitor_interval": 0})  # else it leaves a thread behind
        self._bar = kind(
            desc="Downloading result", total=total, unit="B", unit_scale=True,
            mininterval=_SHOWN_EVERY_S, disable=not is_shown,
        )  # fmt: skip

    def __enter__(self) -> Callable[[int], None]:
        return lambda done: self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
