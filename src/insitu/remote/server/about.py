"""What a server tells of itself."""

import platform
from dataclasses import asdict
from functools import cache
from importlib.metadata import distributions, version

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from insitu.remote.protocol import VERSION
from insitu.remote.server import metrics
from insitu.remote.server.refusal import Refusal, json_response
from insitu.remote.server.state import Server


async def info(server: Server, request: Request) -> Response:
    """`GET /v1/info`."""
    server.door.caller(request, "read")
    return json_response(
        {
            "protocol": VERSION,
            "insitu": version("insitu"),
            "trust": server.trust,
            "limits": asdict(server.desk.limits),
            "python": platform.python_version(),
            "waiting": len(server.desk.line),
        }
    )


async def models(server: Server, request: Request) -> Response:
    """`GET /v1/models`."""
    server.door.caller(request, "read")
    return json_response([asdict(it) for it in server.models()])


async def env(server: Server, request: Request) -> Response:
    """`GET /v1/env`: package and version, for `insitu.compare()`."""
    server.door.caller(request, "read")
    return json_response(_installed())


@cache
def _installed() -> dict[str, str]:
    found = {it.metadata["Name"]: it.version for it in distributions() if it.metadata["Name"]}
    return dict(sorted(found.items()))


async def whoami(server: Server, request: Request) -> Response:
    """`GET /v1/whoami`."""
    caller = server.door.caller(request, "read")
    return json_response(
        {"name": caller.name, "scopes": list(caller.scopes), "expires": caller.expires}
    )


async def livez(server: Server, request: Request) -> Response:
    """`GET /livez`: the process answers."""
    return json_response({"live": True})


async def readyz(server: Server, request: Request) -> Response:
    """`GET /readyz`: the models it was started with are loaded."""
    why = server.ready()
    if why:
        raise Refusal(503, "the server is not ready.", why, "Ask again in a second.")
    return json_response({"ready": True})


async def show_metrics(server: Server, request: Request) -> Response:
    """`GET /metrics`."""
    server.door.caller(request, "read")
    return PlainTextResponse(
        metrics.text(server.desk, len(server.streams)), headers={"Content-Type": metrics.MEDIA_TYPE}
    )
