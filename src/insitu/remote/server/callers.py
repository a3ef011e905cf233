"""Who a request comes from, and whether it may ask what it asks.

door = Door(keys, open_to_all=False)
caller = door.caller(request, "run")
"""

import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request

from insitu.remote.loopback import is_loopback
from insitu.remote.protocol import VERSION
from insitu.remote.server.keys import Caller, Keys, digest
from insitu.remote.server.refusal import Refusal

SELF = Caller("self")


@dataclass(frozen=True)
class Door:
    """How callers are known: by keys, by one key of the command line, or all are one and local."""

    keys: Keys | None = None
    given: str = ""
    """The sha256 of the key that `insitu serve --key` was given."""

    @property
    def locked(self) -> bool:
        """Whether a key is asked for."""
        return self.keys is not None or bool(self.given)

    def caller(self, request: Request, scope: str) -> Caller:
        """Who asks.

        Raises:
            Refusal: 401 no or a wrong key, 403 a key not for this, 400 another protocol.
        """
        found = self._known(request) if self.locked else self._local(request)
        if not found.may(scope):
            raise Refusal(
                403,
                f"this key may not do that: it has no scope {scope!r}.",
                f"It was given {', '.join(found.scopes)}.",
                f"Ask who runs the server for a key with --scopes {scope}.",
            )
        _check_version(request, asked_for=self.locked)
        return found

    def _known(self, request: Request) -> Caller:
        said = request.headers.get("authorization", "")
        kind, _, key = said.partition(" ")
        key = key.strip() if kind.lower() == "bearer" else ""
        found = None
        if key and self.given and hmac.compare_digest(digest(key), self.given):
            found = SELF
        elif key and self.keys is not None:
            found = self.keys.who(key)
        if found is None:
            raise Refusal(
                401,
                "the key is not valid." if key else "this server asks for a key.",
                "It was mistyped, has expired, or was revoked."
                if key
                else "The request has no header Authorization: Bearer KEY.",
                'Set INSITU_API_KEY, or call CONFIG.set_default_api_key("…"), with a key of this '
                "server (insitu keys add NAME makes one).",
                {"WWW-Authenticate": "Bearer"},
            )
        return found

    def _local(self, request: Request) -> Caller:
        """A server without keys is for programs on this machine: not for pages in its browser.

        A page elsewhere can make a browser send requests to loopback, by name (DNS rebinding) or
        blindly; both show in headers that a page cannot leave out.
        """
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        foreign = request.headers.get("origin") or (
            request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        )
        blind = request.method not in ("GET", "HEAD") and "x-protocol" not in request.headers
        if not is_loopback(host) or foreign or blind:
            raise Refusal(
                403,
                "this server without keys is for programs on its own machine.",
                "The request carries another host's name, comes from a web page, or has no header "
                "X-Protocol.",
                f"Ask http://127.0.0.1 with X-Protocol: {VERSION}, or start the server with a key.",
            )
        return SELF


def _check_version(request: Request, asked_for: bool) -> None:
    said = request.headers.get("x-protocol")
    if said is None and asked_for and request.url.path.startswith("/v1/"):
        raise Refusal(
            400,
            "the request has no header X-Protocol.",
            f"This server speaks protocol {VERSION}, and is told which one a client speaks.",
            f"Send X-Protocol: {VERSION} with every request.",
        )
    if said not in (None, str(VERSION)):
        raise Refusal(
            400,
            f"this server speaks protocol {VERSION}, not {said[:20]}.",
            "The client belongs to another version of Insitu.",
            "Install the same version of insitu on both sides; /v1/info tells the server's.",
        )
