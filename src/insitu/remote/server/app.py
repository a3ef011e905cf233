"""The routes of protocol v1 over a desk: who may ask what, and what is answered.

app = application(Server(desk, door, trust="self"))      # an ASGI application, for uvicorn
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from insitu.remote.server import about, sending, taking
from insitu.remote.server.refusal import Refusal, StoreTrouble
from insitu.remote.server.state import Server

log = logging.getLogger("insitu")

Endpoint = Callable[[Server, Request], Awaitable[ASGIApp]]


def application(server: Server) -> Starlette:
    """Every route. The server opens its desk when it is started, and closes it after."""

    def route(path: str, method: str, endpoint: Endpoint) -> Route:
        return Route(path, _answering(server, endpoint), methods=[method])

    return Starlette(
        routes=[  # tried in this order, so those that must be quick come first
            route("/v1/jobs/{id}/local/{number:int}", "POST", taking.take_values),
            route("/v1/jobs", "POST", taking.send_job),
            route("/v1/jobs/{id}/events", "GET", sending.follow_job),
            route("/v1/jobs/{id}/result", "GET", sending.send_result),
            route("/v1/jobs", "GET", sending.list_jobs),
            route("/v1/jobs/{id}", "GET", sending.show_job),
            route("/v1/jobs/{id}", "DELETE", taking.cancel_job),
            route("/v1/jobs/{id}/local/{number:int}", "GET", sending.send_values),
            route("/v1/info", "GET", about.info),
            route("/v1/models", "GET", about.models),
            route("/v1/env", "GET", about.env),
            route("/v1/whoami", "GET", about.whoami),
            route("/livez", "GET", about.livez),
            route("/readyz", "GET", about.readyz),
            route("/metrics", "GET", about.show_metrics),
        ],
        exception_handlers={HTTPException: _no_route, Exception: _broken},
        lifespan=_lifespan(server),
    )


def _answering(server: Server, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint whose errors are answers."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(server, request)  # type: ignore[return-value]  # any ASGI app is one
        except Refusal as error:
            refusal = _alone(error)
        except StoreTrouble as error:
            refusal = error.refusal
            log.error("%s %s", error, refusal.why)
        except Exception:
            log.exception("a request failed", extra={"path": request.url.path})
            refusal = _own_fault()
        server.desk.counts.refused[refusal.status] += 1
        return refusal.response()

    return answer


def _alone(error: Refusal) -> Refusal:
    """Without the frames that it came through: they may hold a body of 200 MB."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


async def _no_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    what = "does not take" if status == 405 else "has no"
    return Refusal(
        status,
        f"this server {what} {request.method} {request.url.path[:100]}.",
        "It speaks Insitu's protocol 1.",
        "docs/protocol.md lists every route.",
    ).response()


async def _broken(request: Request, error: Exception) -> Response:
    return _own_fault().response()


def _own_fault() -> Refusal:
    return Refusal(
        500,
        "the server failed at this request.",
        "That is a fault of the server's; its log tells more.",
        "Try again, or tell who runs the server.",
    )


def _lifespan(server: Server) -> Callable[[Starlette], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await server.open()
        try:
            yield
        finally:
            await server.close()

    return lifespan
