"""Requests and results as files, bounded: bodies that are read, room on the disk, what is old.

folder = Folder(Path("~/.local/share/insitu"), keep_s=86_400)
sha = await folder.receive(stream, folder.request("5f…"), most=64 * 2**20)
"""

import asyncio
import errno
import hashlib
import re
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

from insitu.remote.server import private
from insitu.remote.server.refusal import Refusal, too_large
from insitu.remote.wire.filling import Filling

FREE_BYTES = 256 * 2**20
"""What is left of a disk when jobs are no longer taken."""
FIRST_S = 15.0
"""A body may take this long whatever its size …"""
SLOWEST = 16 * 2**10
"""… and then has to come at this many bytes a second."""
GAP_S = 15.0
BUFFER = 2**20
JOB_ID = re.compile(r"[0-9a-f]{32}")


class Folder:
    """Where the files of jobs are."""

    def __init__(self, path: Path, keep_s: float = 86_400.0, free_bytes: int = FREE_BYTES) -> None:
        self.path = path
        self.keep_s = keep_s
        self.free_bytes = free_bytes
        for part in ("requests", "results"):
            private.folder(path / part)

    def request(self, job: str) -> Path:
        """Where a job's request is."""
        return self.path / "requests" / job

    def result(self, job: str) -> Path:
        """Where a job's result is to be written."""
        return self.path / "results" / job

    def remove_request(self, job: str) -> None:
        """A job that has ended needs it no more."""
        self.request(job).unlink(missing_ok=True)

    def room(self) -> None:
        """Refuse when the disk is nearly full.

        Raises:
            Refusal: it is.
        """
        free = shutil.disk_usage(self.path).free
        if free < self.free_bytes:
            raise _disk_full(f"{free / 2**20:.0f} MB are left of its data folder's disk.")

    def share(self, most: int, held: int) -> int:
        """What one user's results may take: half of what all may, and so much at most.

        Args:
            held: what all results take now.
        """
        free = shutil.disk_usage(self.path).free - self.free_bytes
        return max(0, min(most, (free + held) // 2))

    def remove_result(self, job: str) -> None:
        """It has been kept long enough."""
        self.result(job).unlink(missing_ok=True)

    def old(self, now: float | None = None) -> list[str]:
        """The jobs whose results have been kept long enough."""
        now = time.time() if now is None else now
        files = (self.path / "results").iterdir()
        ours = [it for it in files if JOB_ID.fullmatch(it.name)]
        return [it.name for it in ours if now - it.stat().st_mtime > self.keep_s]

    def remove_strays(self, known: set[str]) -> None:
        """Remove requests that no job waits with: their server died while it read them."""
        for it in (self.path / "requests").iterdir():
            if it.name not in known:
                it.unlink(missing_ok=True)

    async def receive(self, body: AsyncIterator[bytes], file: Path, most: int) -> str:
        """Write a body to a file as it comes; its sha256.

        Raises:
            Refusal: it is too large, too slow, or the disk is full. The file is gone then.
        """
        digest = hashlib.sha256()
        held = bytearray()
        try:
            with private.opened(file) as out:
                async for part in paced(body, most):
                    digest.update(part)
                    held += part
                    if len(held) >= BUFFER:
                        await asyncio.to_thread(out.write, bytes(held))
                        held.clear()
                out.write(held)
        except BaseException as error:
            file.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _not_written(error) from error
            raise
        return digest.hexdigest()


async def paced(body: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes]:
    """A body's parts, while it keeps to its bounds.

    Raises:
        Refusal: 413 as soon as it is too large, 408 when it is too slow.
    """
    began = time.monotonic()
    size = 0
    parts = body.__aiter__()
    while True:
        try:
            async with asyncio.timeout(_left_s(began, size)):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _too_slow(size) from None
        size += len(part)
        if size > most:
            raise too_large(most)
        yield part


async def collected(body: AsyncIterator[bytes], most: int, said: int | None) -> bytearray:
    """A whole body in memory, of which it was said how long it is.

    Raises:
        Refusal: as `paced`.
    """
    began = time.monotonic()
    clock = asyncio.get_running_loop().time
    size = 0
    filling = Filling(most if said is None else said)
    try:
        async with asyncio.timeout(None) as bound:  # one for all parts: each takes 60 µs
            bound.reschedule(clock() + _left_s(began, size))
            async for part in body:
                size += len(part)
                if size > most or filling.take(memoryview(part)):
                    raise too_large(most)
                bound.reschedule(clock() + _left_s(began, size))
    except TimeoutError:
        raise _too_slow(size) from None
    return filling.data if filling.is_full else filling.data[:size]


def _left_s(began: float, size: int) -> float:
    """How long the next part of a body may take to come."""
    left = FIRST_S + size / SLOWEST - (time.monotonic() - began)
    return max(0.0, min(GAP_S, left))


def sha256_of(file: Path) -> tuple[int, str]:
    """A file's size and digest."""
    with file.open("rb") as opened:
        return file.stat().st_size, hashlib.file_digest(opened, "sha256").hexdigest()


def _too_slow(size: int) -> Refusal:
    return Refusal(
        408,
        f"the body came too slowly: {size:,} bytes until now.",
        f"After {FIRST_S:.0f} s a body has to come at {SLOWEST // 1024} KB a second.",
        "Send it again over a better line, or send less.",
    )


def _disk_full(why: str) -> Refusal:
    return Refusal(
        507,
        "the server has no room for another job.",
        why,
        "Try again later, or tell who runs the server.",
        {"Retry-After": "60"},
    )


def _not_written(error: OSError) -> Refusal:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return _disk_full("The disk of its data folder is full.")
    return Refusal(
        503,
        "the server could not keep your request.",
        f"Its data folder says: {error.strerror}.",
        "Tell who runs the server.",
    )
