"""What clients send: jobs, the values of `local()` parts, and that a job is to end."""

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Coroutine
from sqlite3 import Row
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from insitu.errors import InsituError
from insitu.remote.protocol import VERSION
from insitu.remote.server.asked import body_of, check_length, job_of, once_of, said_length
from insitu.remote.server.desk import not_waiting
from insitu.remote.server.files import collected, paced
from insitu.remote.server.jobs import Job
from insitu.remote.server.keys import Caller
from insitu.remote.server.refusal import Refusal, StoreTrouble, json_response
from insitu.remote.server.state import Server
from insitu.remote.wire.header import read_header

log = logging.getLogger("insitu")


async def send_job(server: Server, request: Request) -> Response:
    """`POST /v1/jobs`."""
    caller = server.door.caller(request, "run")
    once = once_of(request)
    most = server.desk.limits.request_bytes
    check_length(request, most)
    if once is not None and (before := server.store.sent_before(caller.name, once)) is not None:
        digest = hashlib.sha256()
        async for part in paced(body_of(request), most):
            digest.update(part)
        return _again(server, before, digest.hexdigest())
    _check_started(server)
    server.desk.admit(caller.name)
    try:
        return await _taken(server, request, caller, once)
    finally:
        server.desk.line.release(caller.name)


async def _taken(server: Server, request: Request, caller: Caller, once: str | None) -> Response:
    desk = server.desk
    id = secrets.token_hex(16)
    file = desk.folder.request(id)
    try:
        sha = await desk.folder.receive(body_of(request), file, desk.limits.request_bytes)
        header = await asyncio.to_thread(_header_of, server, id)
        model = _model_of(server, header)
        keyed = None if once is None else (once, sha)
        job = await desk.accept(caller.name, model, id, keyed)
    except StoreTrouble:
        file.unlink(missing_ok=True)
        before = None if once is None else server.store.sent_before(caller.name, once)
        if before is None:
            raise
        return _again(server, before, sha)  # the same request, twice at once
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    desk.counts.bytes_in += file.stat().st_size if file.exists() else 0
    log.info("job accepted", extra={"job": id, "user": caller.name, "model": model})
    return json_response({"id": job.id, "phase": "RECEIVED"}, 202)


def _again(server: Server, before: Row, sha: str) -> Response:
    """A request that has been sent before is the job it was."""
    if before["body"] != sha:
        raise Refusal(
            409,
            "this Idempotency-Key was sent with another body.",
            "A key stands for one request; the job it made is " + before["job"] + ".",
            "Send a new key with a new request.",
        )
    row = server.store.job(before["job"])
    phase = "RECEIVED" if row is None else row["phase"]
    return json_response({"id": before["job"], "phase": phase}, 202)


def _header_of(server: Server, id: str) -> dict[str, Any]:
    most = server.desk.limits.header_bytes
    try:
        with server.desk.folder.request(id).open("rb") as file:
            return read_header(file, header_most=most)
    except InsituError as error:
        raise Refusal(400, error.what, error.why, error.next) from error


def _model_of(server: Server, header: dict[str, Any]) -> str:
    """The server's own name of the model that a request names."""
    kind, protocol, named = (header.get(name) for name in ("kind", "protocol", "model"))
    if kind != "request" or protocol != VERSION or not isinstance(named, str):
        raise Refusal(
            400,
            "the body is no request of this protocol.",
            f"Its header has kind {_short(kind)}, protocol {_short(protocol)} and model "
            f"{_short(named)}.",
            "Send what insitu of this server's version makes; docs/protocol.md tells it.",
        )
    models = server.models()
    for it in models:
        if named == it.name or named in it.known_as:
            return it.name
    raise Refusal(
        404,
        f"this server has no model {_short(named)}.",
        f"It has {', '.join(it.name for it in models) or 'none'}.",
        "Open the model here by a name the server has; GET /v1/models lists them.",
    )


def _check_started(server: Server) -> None:
    if not server.started:
        raise Refusal(
            503,
            "the server is starting.",
            "Its workers are not there yet.",
            "Try again in some seconds; GET /readyz tells when.",
            {"Retry-After": "2"},
        )


async def take_values(server: Server, request: Request) -> Response:
    """`POST /v1/jobs/{id}/local/{number}`."""
    row = job_of(server, server.door.caller(request, "run"), request)
    number = request.path_params["number"]
    job = server.desk.live.get(row["id"])
    if job is None or job.waiting is None or job.waiting.number != number:
        raise not_waiting(number)
    most = server.desk.limits.local_bytes
    check_length(request, most, "the values of a local() part")
    payload = await _only(job, number, collected(body_of(request), most, said_length(request)))
    await server.desk.answer(job, number, payload)
    return Response(status_code=204)


async def _only(job: Job, number: int, body: Coroutine[Any, Any, bytearray]) -> bytearray:
    """A body, which takes the place of one that still comes for the same part.

    A client whose connection has died sends again before the server has noticed.

    Raises:
        Refusal: another has taken its place, or the job has ended.
    """
    if job.coming is not None:
        job.coming.cancel()
    coming = job.coming = asyncio.create_task(body)
    try:
        return await coming
    except asyncio.CancelledError:
        if job.ended is not None:
            raise not_waiting(number) from None
        if job.coming is coming:
            raise  # this request was cancelled, not its body
        raise Refusal(
            409,
            "the values of this local() part were sent again.",
            "Of values that still come only the last are taken.",
            "Send the values of a part once.",
        ) from None
    finally:
        if job.coming is coming:
            job.coming = None


async def cancel_job(server: Server, request: Request) -> Response:
    """`DELETE /v1/jobs/{id}`. One that has ended stays as it is."""
    row = job_of(server, server.door.caller(request, "run"), request, any_user=True)
    job = server.desk.live.get(row["id"])
    if job is not None and job.ended is None:
        await server.desk.cancel(job)
    row = server.store.job(row["id"]) or row
    return json_response({"id": row["id"], "phase": row["phase"]}, 202)


def _short(it: object) -> str:
    text = repr(it)
    return text if len(text) <= 80 else text[:77] + "…"
