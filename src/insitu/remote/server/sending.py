"""What clients ask of jobs: how they stand, their events, their values, their results."""

import asyncio
import json
from sqlite3 import Row
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from insitu.remote.protocol import MEDIA_TYPE
from insitu.remote.server.asked import job_of, whole_number
from insitu.remote.server.desk import not_waiting
from insitu.remote.server.download import Download
from insitu.remote.server.refusal import Refusal, json_response
from insitu.remote.server.state import Server
from insitu.remote.server.stream import Reader

LISTED = 200


async def list_jobs(server: Server, request: Request) -> Response:
    """`GET /v1/jobs`: the caller's own, newest first; every user's with `?all=1` and admin."""
    caller = server.door.caller(request, "read")
    if request.query_params.get("all") and caller.may("admin"):
        rows = server.store.rows("SELECT * FROM jobs ORDER BY created DESC LIMIT ?", (LISTED,))
    else:
        rows = server.store.rows(
            "SELECT * FROM jobs WHERE user = ? ORDER BY created DESC LIMIT ?",
            (caller.name, LISTED),
        )
    places = server.desk.line.places()
    return json_response([_as_json(row, places) for row in rows])


async def show_job(server: Server, request: Request) -> Response:
    """`GET /v1/jobs/{id}`."""
    row = job_of(server, server.door.caller(request, "read"), request, any_user=True)
    return json_response(_as_json(row, server.desk.line.places()))


def _as_json(row: Row, places: dict[str, int]) -> dict[str, Any]:
    size, sha = row["result_bytes"], row["result_sha"]
    place = places.get(row["id"])
    return {
        **{name: row[name] for name in ("id", "user", "phase", "text", "model")},
        **{name: row[name] for name in ("created", "began", "ended")},
        "queue": None if place is None else {"done": place, "of": len(places)},
        "fault": json.loads(row["fault"]) if row["fault"] else None,
        "result": None if sha is None else {"bytes": size, "sha256": sha},
    }


async def follow_job(server: Server, request: Request) -> ASGIApp:
    """`GET /v1/jobs/{id}/events`."""
    caller = server.door.caller(request, "read")
    row = job_of(server, caller, request)
    said = request.headers.get("last-event-id") or request.query_params.get("after")
    after = whole_number(said, "Last-Event-ID", 0)

    def is_welcome() -> bool:
        try:
            return server.door.caller(request, "read") is not None
        except Refusal:
            return False

    accept = request.headers.get("accept", "")
    return server.follow(row["id"], after, Reader(caller.name, accept, is_welcome))


async def send_result(server: Server, request: Request) -> ASGIApp:
    """`GET /v1/jobs/{id}/result`."""
    row = job_of(server, server.door.caller(request, "read"), request)
    file = server.folder.result(row["id"])
    if row["result_sha"] is None:
        raise _no_result(row, server.over(row["phase"]))
    headers = dict(request.headers.items())
    try:
        return await asyncio.to_thread(
            Download, file, row["result_sha"], server.desk.counts, headers
        )
    except FileNotFoundError:
        raise Refusal(
            410,
            "this result is kept no longer.",
            f"Results are kept for {server.folder.keep_s / 3600:.0f} hours, and of one user "
            f"{server.desk.limits.kept_bytes:,} bytes at most; on a full disk less.",
            "Run the block again.",
        ) from None


async def send_values(server: Server, request: Request) -> Response:
    """`GET /v1/jobs/{id}/local/{number}`."""
    row = job_of(server, server.door.caller(request, "read"), request)
    number = request.path_params["number"]
    job = server.desk.live.get(row["id"])
    if job is None or job.waiting is None or job.waiting.number != number:
        raise not_waiting(number)
    return Response(memoryview(job.waiting.payload), media_type=MEDIA_TYPE)


def _no_result(row: Row, over: bool) -> Refusal:
    return Refusal(
        409,
        f"this job has {'no' if over else 'not yet a'} result: it is {row['phase']}.",
        row["text"] or "Only a job that was completed has one.",
        "Look at its events." if over else "Wait for its event `end`.",
    )
