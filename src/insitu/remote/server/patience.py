"""How long the server waits for a connection: sockets, and uvicorn's protocol with bounds.

A header that is drip-fed, a body nobody reads any more, a peer that is gone without a word: none
of them may hold a connection. uvicorn bounds the time between requests only.
"""

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_S = 15.0
"""The header of a request must have come by then."""
HEADER_BYTES = 65_536
LINGER_S = 5.0
"""What a client still sends after it was answered is thrown away for so long."""
IDLE_S = 75
GONE_MS = 60_000
"""A peer that acknowledges nothing for so long is gone."""


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, whose connections notice a peer that is gone.

    Raises:
        OSError: the address is taken, or not one of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named as TCP, or asyncio leaves Nagle's algorithm on: 40 ms for each answer on loopback
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        options = {"TCP_USER_TIMEOUT": GONE_MS, "TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10}
        for name, value in {**options, "TCP_KEEPCNT": 3}.items():  # as far as the system has them
            if hasattr(socket, name):
                found.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        found.bind((host, port))
        found.listen(512)
    except OSError:
        found.close()
        raise
    return found


class Patient(HttpToolsProtocol):
    """uvicorn's, with a bound on headers and on bodies that nobody reads."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.waiting: asyncio.TimerHandle | None = None
        self.header_bytes = 0
        self.in_header = False
        self.in_message = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection begins."""
        super().connection_made(transport)
        self.wait(HEADER_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self.wait(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self.in_header:  # what the first piece held is bounded by the socket's buffer
            self.header_bytes += len(data)
            if self.header_bytes > HEADER_BYTES:
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self.in_header = self.in_message = True
        self.header_bytes = 0
        self.wait(HEADER_S)

    def on_headers_complete(self) -> None:
        """Its header is there."""
        self.in_header = False
        self.wait(None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is whole."""
        self.in_message = False
        self.wait(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """It was answered."""
        super().on_response_complete()
        if self.in_message and not self.in_header:
            self.wait(LINGER_S)

    def wait(self, time_s: float | None) -> None:
        """Close the connection after a time, unless this is called again before."""
        if self.waiting is not None:
            self.waiting.cancel()
        self.waiting = None
        if time_s is not None:
            self.waiting = self.loop.call_later(time_s, self.transport.close)


class Quiet(uvicorn.Server):
    """uvicorn without signal handlers of its own: `serve` has them."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Patient,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=IDLE_S,
                timeout_graceful_shutdown=5,
                backlog=512,
            )
        )

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until `should_exit`."""
        await self._serve(sockets)
