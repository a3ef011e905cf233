"""What a request says: its job, its body, its headers. Every part of it bounded.

row = job_of(server, caller, request)
"""

import re
from collections.abc import AsyncIterator
from sqlite3 import Row

from starlette.requests import Request

from insitu.remote.server.files import JOB_ID
from insitu.remote.server.keys import Caller
from insitu.remote.server.refusal import Refusal, no_job, too_large
from insitu.remote.server.state import Server

ONCE = re.compile(r"[\x21-\x7e]{1,200}")


class ClientGoneError(Refusal):
    """The client went before its request was whole; nobody reads this."""

    def __init__(self) -> None:
        super().__init__(400, "the request broke off.", "The connection was closed.", "Try again.")


def job_of(server: Server, caller: Caller, request: Request, any_user: bool = False) -> Row:
    """The job that a path names.

    Raises:
        Refusal: there is none, or it is another user's; the two are told alike.
    """
    id = request.path_params["id"]
    row = server.store.job(id) if JOB_ID.fullmatch(id) else None
    allowed = row is not None and (
        row["user"] == caller.name or (any_user and "admin" in caller.scopes)
    )
    if row is None or not allowed:
        raise no_job(id)
    return row


def once_of(request: Request) -> str | None:
    """The idempotency key of a request.

    Raises:
        Refusal: it is none.
    """
    said = request.headers.get("idempotency-key")
    if said is not None and not ONCE.fullmatch(said):
        raise Refusal(
            400,
            "the header Idempotency-Key is not one.",
            "It is 1 to 200 visible ASCII characters.",
            "Send a new random one for each job, such as a UUID.",
        )
    return said


def whole_number(text: str | None, what: str, otherwise: int) -> int:
    """A number in a header or a query.

    Raises:
        Refusal: it is none.
    """
    if text is None or not text.strip():
        return otherwise
    if not re.fullmatch(r"\d{1,15}", text.strip()):
        raise Refusal(
            400,
            f"{what} is not a number.",
            f"It says {text[:40]!r}.",
            "Send the number of the last event that was received, or leave it out.",
        )
    return int(text)


def check_length(request: Request, most: int, what: str = "a request") -> None:
    """Refuse a body by what it says of itself, before any of it is read.

    Raises:
        Refusal: it is too large.
    """
    said = said_length(request)
    if said is not None and said > most:
        raise too_large(most, what)


def said_length(request: Request) -> int | None:
    """How long the body of a request is to be; None where it does not say."""
    said = request.headers.get("content-length", "")
    return int(said) if said.isdecimal() and len(said) < 100 else None


async def body_of(request: Request) -> AsyncIterator[bytes]:
    """A body as it comes.

    Raises:
        ClientGoneError: the client has closed the connection.
    """
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return
