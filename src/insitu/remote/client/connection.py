"""A server, as the client talks to it: one session that stays open, and bounds on every answer.

server = Connection("http://127.0.0.1:8000")
server = Connection.of(True)            # the one that CONFIG.API.HOST names
server.json("GET", "/v1/models")

A server is not trusted: redirects are not followed, cookies not kept, answers not unpacked by the
HTTP library and never longer than was said, and nothing that comes is ever unpickled.
"""

import os
import socket
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from http.cookiejar import DefaultCookiePolicy
from typing import Any, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection

from insitu.errors import (
    InsituWarning,
    ServerError,
    ServerRefusedError,
    ServerUnreachableError,
    UsageError,
)
from insitu.remote.client import keys, refusals, words
from insitu.remote.loopback import is_loopback
from insitu.remote.protocol import VERSION
from insitu.settings import CONFIG, KEY_VARIABLE

CONNECT_S = 5.0
READ_S = 30.0
"""How long a server may be silent in the middle of an answer."""
ANSWER_BYTES = 8 * 2**20
"""Of an answer that is JSON."""
PIECE_BYTES = 2**20
BUFFER_BYTES = 2**21
"""Of a connection within this machine."""

Body = bytes | Sequence[bytes | memoryview]
"""All of it, or in pieces."""

_BROKEN = (
    requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError,
)  # fmt: skip
_KEPT = 8
_SEND, _RECEIVE = socket.SO_SNDBUF, socket.SO_RCVBUF
_connections: "OrderedDict[tuple[str, str | None, int], Connection]" = OrderedDict()
_connections_lock = threading.Lock()


class _Bearer(requests.auth.AuthBase):
    """The key; given as `auth`, so that a .netrc does not come in its place."""

    def __init__(self, key: str | None) -> None:
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


class Answer:
    """What a server answers, read piece by piece as it comes; use it in a `with`."""

    def __init__(self, response: requests.Response, url: str) -> None:
        self.status = response.status_code
        self.url = url
        self._response = response

    def header(self, name: str) -> str:
        """One header, or nothing."""
        return str(self._response.headers.get(name, ""))

    @property
    def length(self) -> int | None:
        """How long it says it is."""
        told = self.header("Content-Length")
        return int(told) if told.isascii() and told.isdigit() and len(told) < 20 else None

    def read(self, most: int) -> bytes:
        """What has come, at most so many bytes; nothing at the end.

        Raises:
            ServerUnreachableError: the connection broke, or nothing came for too long.
        """
        try:
            return bytes(self._response.raw.read1(most, decode_content=False) or b"")
        except _BROKEN as error:
            raise unreachable(self.url, error) from _shown(error)

    def body(self, most: int, within_s: float = READ_S) -> bytes:
        """All of it.

        Raises:
            ServerError: it is longer than `most`.
            ServerUnreachableError: it does not come.
        """
        if (self.length or 0) > most:
            raise words.strange(f"an answer of {self.length:,} bytes, where {most:,} are too many")
        pieces, count, until = [], 0, time.monotonic() + within_s
        while piece := self.read(PIECE_BYTES):
            count += len(piece)
            if count > most:
                raise words.strange(f"an answer of more than {most:,} bytes")
            if time.monotonic() > until:
                raise unreachable(self.url, TimeoutError(f"no whole answer in {within_s:g} s"))
            pieces.append(piece)
        if self.length is not None and count < self.length:
            raise unreachable(self.url, ConnectionError("the answer broke off"))
        return b"".join(pieces)

    def close(self) -> None:
        """Done with it; a connection that was read to its end is kept."""
        self._response.close()

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Connection:
    """A server.

        with Connection("https://models.example.org", key="…") as server:
            server.json("GET", "/v1/whoami")

    Args:
        url: where it is, `http://` or `https://`.
        key: what it knows its user by.

    Raises:
        UsageError: the address is none, or the key cannot be sent.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url, is_near = _address(url)
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise UsageError(
                "the key holds a character that no key has.",
                "it is sent as one word of plain ASCII.",
                f"copy it again, into CONFIG.set_default_api_key() or {KEY_VARIABLE}.",
            )
        self.key = key
        self._session = _session(key, is_near)
        self._is_closed = False
        self._asking: requests.PreparedRequest | None = None
        """A request with what all of them have."""
        self._info: dict[str, Any] | None = None
        if key and self.url.startswith("http:") and not is_near:
            warnings.warn(
                f"the key for {self.url} is sent unencrypted. Next: use https://, or a tunnel.",
                InsituWarning,
                stacklevel=2,
            )

    @staticmethod
    def of(remote: "bool | str | Connection") -> "Connection":
        """The server that `remote=` means, with its key, where this process has it; kept.

        Raises:
            UsageError: `remote=True` and no server is set, or no address.
        """
        if isinstance(remote, Connection):
            return remote
        if remote is True:
            remote = _host()
        if not isinstance(remote, str):
            raise UsageError(
                f"remote= was given {type(remote).__name__}.",
                "it is True for the server in CONFIG.API.HOST, or the address of one.",
                'write remote=True, or remote="http://127.0.0.1:8000".',
            )
        key = keys.key_for(remote)
        named = remote.rstrip("/"), key, os.getpid()  # a fork shares no sockets
        with _connections_lock:
            if named not in _connections:
                _connections[named] = Connection(remote, key)
            _connections.move_to_end(named)
            while len(_connections) > _KEPT:
                _connections.popitem(last=False)
            return _connections[named]

    def open(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        read_s: float = READ_S,
    ) -> Answer:
        """Ask, and give the answer to be read.

        Raises:
            ServerUnreachableError: nothing answers, or not in time.
            ServerRefusedError: the server says no.
        """
        try:
            response = self._sent(method, path, body, headers or {}, read_s)
        except _BROKEN as error:
            raise unreachable(self.url, error) from _shown(error)
        answer = Answer(response, self.url)
        if 200 <= answer.status < 300 and not answer.header("Content-Encoding"):
            return answer
        with answer:
            refusal: ServerError = refusals.of(answer)
        if isinstance(refusal, ServerRefusedError) and refusal.status == 401 and not self.key:
            refusal = keys.explained(refusal, self.url)
        raise refusal

    def _sent(
        self,
        method: str,
        path: str,
        body: Body | None,
        headers: Mapping[str, str],
        read_s: float,
    ) -> requests.Response:
        """Ask; the session's own `request` does twice as much, 0.15 ms, that is not wanted here.

        There are no redirects, cookies or hooks. Proxies and certificates are as the environment
        has them now.
        """
        if self._asking is None:
            self._asking = self._session.prepare_request(requests.Request("GET", self.url + "/"))
        request = self._asking.copy()
        request.method, request.url = method, f"{request.url}"[:-1] + path
        request.headers.update(headers)
        if self._is_closed:  # a job is followed to its end, and nothing is kept
            request.headers["Connection"] = "close"
        if body is not None:
            size = len(body) if isinstance(body, bytes) else sum(map(len, body))
            request.body, request.headers["Content-Length"] = cast(bytes, body), str(size)
        settings = self._session.merge_environment_settings(request.url, {}, True, None, None)
        adapter = self._session.get_adapter(request.url)
        return adapter.send(request, timeout=(CONNECT_S, read_s), **settings)

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        most: int = ANSWER_BYTES,
        read_s: float = READ_S,
    ) -> bytes:
        """Ask, and give the whole answer."""
        with self.open(method, path, body=body, headers=headers, read_s=read_s) as answer:
            return answer.body(most)

    def json(self, method: str, path: str) -> dict[str, Any]:
        """Ask for a JSON object."""
        return words.parsed(self.ask(method, path), f"an answer to {path}")

    def rows(self, path: str, name: str) -> list[dict[str, Any]]:
        """Ask for a list of JSON objects, bare or as the member `name` of one."""
        data = self.ask("GET", path)
        told = words.parsed(b'{"%s":%s}' % (name.encode(), data), f"an answer to {path}")
        rows = told[name]
        rows = rows.get(name) if isinstance(rows, dict) else rows
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise words.strange(f"an answer to {path} that is no list of objects")
        return rows

    def info(self) -> dict[str, Any]:
        """What the server says of itself, asked once."""
        if self._info is None:
            self._info = self.json("GET", "/v1/info")
        return self._info

    def close(self) -> None:
        """Close what is kept open; what is asked later is asked on connections of its own.

        The session alone drops its pools: an error that speaks of one would keep its connections.
        """
        self._is_closed = True
        for adapter in self._session.adapters.values():
            assert isinstance(adapter, HTTPAdapter)
            for manager in (adapter.poolmanager, *adapter.proxy_manager.values()):
                for key in manager.pools.keys():  # noqa: SIM118 - it cannot be iterated
                    if (pool := manager.pools.get(key)) is not None:
                        pool.close()
        self._session.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Connection({self.url!r})"


def unreachable(url: str, error: BaseException) -> ServerUnreachableError:
    """The error about a server that does not answer."""
    told = words.one_line(_innermost(error), 300)
    secure = isinstance(error, requests.exceptions.SSLError)
    return ServerUnreachableError(
        f"the server at {url} does not answer.",
        f"{type(error).__name__}: {told}." if told else f"{type(error).__name__}.",
        "its certificate is not one this machine trusts; set REQUESTS_CA_BUNDLE to one that is."
        if secure
        else "is it running (`insitu serve demo` starts one), and is its address right "
        "(CONFIG.API.HOST, or remote=URL)?",
    )


def _shown(error: BaseException) -> BaseException | None:
    """The HTTP libraries' own errors, four deep, are for those who debug this package."""
    return error if CONFIG.APP.DEBUG else None


def _innermost(error: BaseException) -> str:
    """What is behind requests' and urllib3's own wrapping."""
    for _ in range(8):
        inner = getattr(error, "reason", None) or next(
            (it for it in error.args if isinstance(it, BaseException)), None
        )
        if not isinstance(inner, BaseException):
            break
        error = inner
    return str(error).rpartition("object at 0x")[2].partition(">: ")[2] or str(error).rstrip(".")


def _session(key: str | None, is_near: bool) -> requests.Session:
    session = requests.Session()
    session.auth = _Bearer(key)
    session.trust_env = not is_near  # no proxy stands before this very machine
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers.update({"X-Protocol": str(VERSION), "Accept-Encoding": "identity"})
    adapter = HTTPAdapter(pool_connections=1, pool_maxsize=_KEPT, max_retries=0)
    if is_near:  # a megabyte crosses at once; further away the system finds what fits
        more = [(socket.SOL_SOCKET, name, BUFFER_BYTES) for name in (_SEND, _RECEIVE)]
        options = [*HTTPConnection.default_socket_options, *more]
        adapter.init_poolmanager(1, _KEPT, socket_options=options)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _host() -> str:
    if CONFIG.API.HOST:
        return CONFIG.API.HOST
    raise UsageError(
        "remote=True was given, and no server is set.",
        "CONFIG.API.HOST is None.",
        "start one with `insitu serve demo`, then set "
        'CONFIG.API.HOST = "http://127.0.0.1:8000", or write remote="http://127.0.0.1:8000".',
    )


def _address(url: str) -> tuple[str, bool]:
    """An address without its last slash, and whether it is on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except (ValueError, AttributeError):
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise UsageError(
            f"{words.one_line(url, 80)!r} is not the address of a server.",
            "an address begins with http:// or https:// and names a host.",
            'write it like remote="http://127.0.0.1:8000".',
        )
    if parts.username is not None:
        raise UsageError(
            "the address of a server has a name before its host.",
            "a key in an address ends up in logs.",
            f"leave it out; give the key to CONFIG.set_default_api_key(), or set {KEY_VARIABLE}.",
        )
    return url.rstrip("/"), is_loopback(host)
