"""A result as a file: its length, its digest as ETag, and any range of it.

Range: bytes=1048576-        # what is missing, after a connection broke
"""

import asyncio
import os
import re
from dataclasses import dataclass
from pathlib import Path

from starlette.types import Receive, Scope, Send

from insitu.remote.protocol import MEDIA_TYPE
from insitu.remote.server.desk import Counts
from insitu.remote.server.refusal import Refusal
from insitu.remote.server.stream import ReaderGone, sent

CHUNK = 2**20
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True)
class Span:
    """Which bytes are asked for."""

    first: int
    size: int
    partial: bool


def span_of(header: str | None, size: int) -> Span:
    """What a Range header asks for; all of it where it is none, or several.

    Raises:
        Refusal: it begins after the end.
    """
    found = RANGE.fullmatch(header.strip()) if header else None
    if found is None or not any(found.groups()):
        return Span(0, size, partial=False)
    first, last = found.groups()
    if not first:  # the last N bytes
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
    if start >= end:
        raise Refusal(
            416,
            f"the result has {size:,} bytes; none are where the range begins.",
            f"The range asked for is {header}.",
            "Ask for a range inside the result, or for all of it.",
            {"Content-Range": f"bytes */{size}"},
        )
    return Span(start, end - start, partial=True)


class Download:
    """The answer to `GET /v1/jobs/{id}/result`."""

    def __init__(self, file: Path, sha256: str, counts: Counts, headers: dict[str, str]) -> None:
        self.file = file
        self.tag = f'"{sha256}"'
        self.counts = counts
        self.size = file.stat().st_size
        fresh = headers.get("if-range", self.tag) == self.tag
        self.span = span_of(headers.get("range") if fresh else None, self.size)
        self.known = self.tag in headers.get("if-none-match", "")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it in parts, each as soon as the one before has been taken."""
        start = {
            "type": "http.response.start",
            "status": self._status(),
            "headers": self._headers(),
        }
        if self.known or scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        descriptor = await asyncio.to_thread(os.open, self.file, os.O_RDONLY)
        try:
            await send(start)
            await self._body(descriptor, send)
        except ReaderGone:
            return
        finally:
            os.close(descriptor)

    async def _body(self, descriptor: int, send: Send) -> None:
        if not self.span.size:
            await sent(send, b"", more=False)
        at, end = self.span.first, self.span.first + self.span.size
        while at < end:
            size = min(CHUNK, end - at)
            part = await asyncio.to_thread(os.pread, descriptor, size, at)
            if not part:
                return  # somebody has cut the file: the client sees that bytes are missing
            at += len(part)
            self.counts.bytes_out += len(part)
            await sent(send, part, more=at < end)

    def _status(self) -> int:
        return 304 if self.known else 206 if self.span.partial else 200

    def _headers(self) -> list[tuple[bytes, bytes]]:
        found = {
            "content-type": MEDIA_TYPE,
            "etag": self.tag,
            "accept-ranges": "bytes",
            "cache-control": "private, no-store",
            "x-content-type-options": "nosniff",
        }
        if not self.known:
            found["content-length"] = str(self.span.size)
        if self.span.partial:
            last = self.span.first + self.span.size - 1
            found["content-range"] = f"bytes {self.span.first}-{last}/{self.size}"
        return [(name.encode(), value.encode()) for name, value in found.items()]
