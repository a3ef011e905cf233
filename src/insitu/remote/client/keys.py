"""Whose key it is: the key of this process goes to the server that it is for, and to no other.

key_for("http://127.0.0.1:8765")            # the key, or None
explained(error, "https://other.org")       # a server wanted one and was not sent it

It is for the server in CONFIG.API.HOST; while none is set there, for servers on this machine. A
`remote=URL` in a program from elsewhere would else send it to whomever that program names.
"""

from urllib.parse import urlsplit

from insitu.errors import ServerRefusedError
from insitu.remote.client import words
from insitu.remote.loopback import is_loopback
from insitu.settings import CONFIG

_PORTS = {"http": 80, "https": 443}


def key_for(url: str) -> str | None:
    """The key that a server is sent, if any."""
    key, home, there = CONFIG.api_key, CONFIG.API.HOST, _place(url)
    if key is None or there is None:
        return None
    is_its = is_loopback(there[1]) if not home else _place(home) == there
    return key if is_its else None


def explained(error: ServerRefusedError, url: str) -> ServerRefusedError:
    """A refusal for want of a key, where there is one that is not for this server."""
    if CONFIG.api_key is None or key_for(url) is not None:
        return error
    home = CONFIG.API.HOST
    only = (
        f"the key of this process is for {words.one_line(home, 200)} alone, where CONFIG.API.HOST "
        "points."
        if home
        else "no server is set in CONFIG.API.HOST, and the key of this process leaves this machine "
        "for the one set there alone."
    )
    told = ServerRefusedError(
        error.what,
        only,
        f'if the key is for this server, set CONFIG.API.HOST = "{url}"; if it has another, '
        "CONFIG.set_default_api_key(…) too.",
    )
    told.status = error.status
    return told


def _place(url: str) -> tuple[str, str, int | None, str] | None:
    """What tells servers apart: scheme, host, port and path; loopback has many names."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except (ValueError, AttributeError):
        return None
    if not host:
        return None
    port = _PORTS.get(parts.scheme) if port is None else port
    return parts.scheme, "localhost" if is_loopback(host) else host, port, parts.path.rstrip("/")
