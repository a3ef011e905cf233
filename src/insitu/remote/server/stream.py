"""A job's events as they come, as server-sent events; any of them again after `Last-Event-ID`.

Rows are read from the store as the reader takes them: one that is slow holds a few hundred rows of
memory and no more, and one that takes nothing for a minute is let go. The values of a `local()`
part follow its event as they are, where the reader takes that: a request less, and no base64.
"""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from sqlite3 import Row
from typing import Any

from starlette.types import Receive, Scope, Send

from insitu.remote.protocol import EVENTS_TYPE, Local
from insitu.remote.server.desk import Desk
from insitu.remote.server.jobs import INLINE_BYTES
from insitu.remote.server.refusal import StoreTrouble

HEARTBEAT_S = 15.0
SEND_S = 60.0
"""A reader that takes nothing for so long is gone."""
LOOK_S = 1.0
"""A reader's key is looked at so often, while there is something to send."""
ROWS = 256
PART_BYTES = 2**20
"""Of values that follow their event, sent at once."""
HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
    (b"x-content-type-options", b"nosniff"),
]


class ReaderGone(ConnectionError):
    """A reader has taken nothing for too long."""


class ReaderUnwelcome(ConnectionError):
    """A reader's key opens nothing any more."""


@dataclass(frozen=True)
class Reader:
    """Who follows a job, and how."""

    user: str
    accept: str = ""
    """The media types that they take."""
    is_welcome: Callable[[], bool] = lambda: True
    """Whether their key still opens anything."""


class Events:
    """The answer to `GET /v1/jobs/{id}/events`."""

    def __init__(
        self, desk: Desk, job: str, after: int, open_streams: set["Events"], reader: Reader
    ) -> None:
        self.desk = desk
        self.job = job
        self.after = after
        self.reader = reader
        self.user = reader.user
        self.follows = EVENTS_TYPE in reader.accept
        """Whether the reader takes values behind their event."""
        self._looked = time.monotonic()
        self.open_streams = open_streams
        self.closing = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the job's end, the reader's, or the server's."""
        self.open_streams.add(self)
        gone = asyncio.create_task(_gone(receive))
        closing = asyncio.create_task(self.closing.wait())
        try:
            kind = EVENTS_TYPE if self.follows else "text/event-stream; charset=utf-8"
            headers = [(b"content-type", kind.encode()), *HEADERS]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._follow(send, gone, closing)
            if not gone.done():
                await sent(send, b"", more=False)
        except (ReaderGone, ReaderUnwelcome, StoreTrouble):
            return  # the connection is closed with the stream unfinished: the client comes again
        finally:
            gone.cancel()
            closing.cancel()
            self.open_streams.discard(self)

    async def _follow(self, send: Send, *over: asyncio.Task[Any]) -> None:
        await sent(send, b": insitu\n\n")
        while not any(it.done() for it in over):
            live = self.desk.live.get(self.job)
            news = None if live is None else live.news.next()
            self._look()
            rows = self.desk.store.events(self.job, self.after, ROWS)
            if rows:
                self.after = rows[-1]["number"]
                await self._send_rows(send, rows)
                if rows[-1]["kind"] == "end":
                    return
            elif news is None:
                return  # everything was sent before
            else:
                waiting = asyncio.create_task(news.wait())
                done, _ = await asyncio.wait(
                    [waiting, *over], timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED
                )
                waiting.cancel()
                if not done:
                    await sent(send, b": %d\n\n" % time.time())

    def _look(self) -> None:
        """See now and then whether the reader's key was revoked or has expired.

        Raises:
            ReaderUnwelcome: it was.
        """
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            self._looked = now
            if not self.reader.is_welcome():
                raise ReaderUnwelcome

    async def _send_rows(self, send: Send, rows: Sequence[Row]) -> None:
        text = ""
        for number, kind, data in rows:
            waiting = None
            if kind == "local":
                data, waiting = self._with_values(data)
            elif kind == "end":
                data = await asyncio.to_thread(self._with_result, data)
            text += f"id: {number}\nevent: {kind}\ndata: {data}\n\n"
            if waiting is not None:
                await sent(send, text.encode())
                await self._send_values(send, waiting.payload)
                text = ""
        if text:
            await sent(send, text.encode())

    async def _send_values(self, send: Send, payload: bytes | bytearray) -> None:
        values = memoryview(payload)
        for start in range(0, len(values), PART_BYTES):
            part = values[start : start + PART_BYTES]
            self.desk.counts.bytes_out += len(part)
            await sent(send, part)

    def _with_values(self, text: str) -> tuple[str, Local | None]:
        """A `local` event that is still waited for, with its values or what is to follow it."""
        data = json.loads(text)
        job = self.desk.live.get(self.job)
        waiting = None if job is None else job.waiting
        if waiting is None or waiting.number != data["number"]:
            data["answered"], waiting = True, None
        elif self.follows:
            data["follows"] = True
        elif len(waiting.payload) <= INLINE_BYTES:
            data["payload"] = base64.b64encode(waiting.payload).decode()
        return json.dumps(data, separators=(",", ":")), waiting if self.follows else None

    def _with_result(self, text: str) -> str:
        """An `end` event with the result where it is small and is still kept."""
        data = json.loads(text)
        if data["result"] is not None and data["result"]["bytes"] <= INLINE_BYTES:
            try:
                result = self.desk.folder.result(self.job).read_bytes()
            except FileNotFoundError:
                return text
            data["payload"] = base64.b64encode(result).decode()
            self.desk.counts.bytes_out += len(result)
        return json.dumps(data, separators=(",", ":"))


async def sent(send: Send, body: bytes | memoryview, more: bool = True) -> None:
    """Send a part of a body.

    Raises:
        ReaderGone: nothing of what is under way has been taken for a minute.
    """
    try:
        async with asyncio.timeout(SEND_S):
            await send({"type": "http.response.body", "body": body, "more_body": more})
    except TimeoutError:
        raise ReaderGone from None


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
