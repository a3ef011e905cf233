"""Sending what a server takes only once, as often as it needs to arrive.

id = request(connection, container)             # POST /v1/jobs, with a key of its own
insistent(connection, path, container)          # the values that a local part gives back
"""

import uuid
from collections.abc import Mapping

import requests

from insitu.errors import ServerRefusedError, ServerUnreachableError
from insitu.remote.client import words
from insitu.remote.client.connection import Body, Connection
from insitu.remote.client.patience import Patience
from insitu.remote.protocol import MEDIA_TYPE, Limits

TRIES_S = 5.0
"""How long it is tried again when the connection breaks."""
ASK_FIRST_BYTES = 2**20
"""Of a request: a larger one is not sent before the server's limit is known."""


def request(connection: Connection, body: bytes) -> str:
    """Send a block; gives the id of its job.

    Raises:
        ServerRefusedError: the server does not take it.
        ServerUnreachableError: it does not answer.
    """
    if len(body) > ASK_FIRST_BYTES:
        _check_size(connection, len(body))
    answer = insistent(connection, "/v1/jobs", body, {"Idempotency-Key": uuid.uuid4().hex})
    id = words.parsed(answer, "an answer to /v1/jobs").get("id")
    if not isinstance(id, str) or not words.is_id(id):
        raise words.strange(f"{words.one_line(repr(id), 80)} as the id of a job")
    return id


def insistent(
    connection: Connection, path: str, body: Body, headers: Mapping[str, str] | None = None
) -> bytes:
    """Post something that the server takes only once, however often it is sent."""
    patience = Patience(TRIES_S)
    headers = {"Content-Type": MEDIA_TYPE, **(headers or {})}
    while True:
        try:
            return connection.ask("POST", path, body=body, headers=headers)
        except ServerUnreachableError as error:
            if _is_nobody_there(error):
                raise
            patience.wait(error)


def values(connection: Connection, path: str, size_bytes: int) -> bytes:
    """Fetch the values for a local part."""
    patience = Patience(TRIES_S)
    while True:
        try:
            data = connection.ask("GET", path, most=Limits().local_bytes)
        except ServerUnreachableError as error:
            patience.wait(error)
            continue
        if len(data) != size_bytes:
            raise words.strange(f"{len(data):,} bytes of values, where it had said {size_bytes:,}")
        return data


def _check_size(connection: Connection, size_bytes: int) -> None:
    limits = connection.info().get("limits")
    most = limits.get("request_bytes") if isinstance(limits, dict) else None
    if isinstance(most, int) and size_bytes > most:
        raise ServerRefusedError(
            f"the request is {size_bytes:,} bytes, and the server takes {most:,}.",
            "what the block names is sent with it: look for large tensors and arrays.",
            "make them inside the block, or send a part of them.",
        )


def _is_nobody_there(error: ServerUnreachableError) -> bool:
    """Whether no connection came about at all: then nothing is gained by waiting."""
    cause = error.__cause__ or error.__context__  # it is the cause while debugging alone
    return isinstance(cause, requests.ConnectTimeout) or (
        isinstance(cause, requests.ConnectionError) and "NewConnectionError" in repr(cause)
    )
