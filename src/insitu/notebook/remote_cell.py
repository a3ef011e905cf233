"""`%%trace MODEL PROMPT --remote`: the cell's body is the block of a job on a server.

%%trace model "The Eiffel Tower is in the city of" --remote
logits = model.lm_head.output[0, -1].save()

The body is compiled as the block of a `with` that stands on the magic's own line, under the cell's
own name: what goes wrong, here or there, is told at the lines the user sees.
"""

import __future__

import time
from contextlib import suppress
from types import CodeType
from typing import Any

from IPython.display import display

from insitu.engine.capture.bodies import program
from insitu.engine.tracebacks import prune
from insitu.errors import MissingPackageError, UsageError
from insitu.notebook import operands, remote_card
from insitu.notebook.cell import placed, told
from insitu.notebook.magics.edited import indented
from insitu.notebook.magics.widgets import made
from insitu.notebook.noted import note_job
from insitu.notebook.remote_server import server_of
from insitu.notebook.request import SYNTAX, Request
from insitu.remote.client.connection import Connection
from insitu.remote.client.job import RemoteJob
from insitu.remote.client.local_parts import HERE
from insitu.remote.client.tracer import RemoteTracer
from insitu.settings import CONFIG

_TRACER = "__insitu_cell__"
_FUTURES = __future__.annotations.compiler_flag  # of the others, none changes anything any more


def run(ip: Any, request: Request, whole: str, body: str) -> None:
    """Send a cell's body, show its job, and what came back.

    Args:
        ip: the shell.
        request: what the magic's line asks for.
        whole: the cell as the user wrote it.
        body: what follows the magic's line.
    """
    __tracebackhide__ = True
    code = _program(ip, whole, body)
    tracer = CellTracer(ip, request, operands.of(ip.user_ns, request, body))
    began = time.perf_counter()
    ip.user_ns[_TRACER] = tracer
    try:
        exec(code, ip.user_global_ns, ip.user_ns)
    except BaseException as error:
        prune(error.__traceback__)
        note_job(request, tracer.model_name, time.perf_counter() - began, error)
        raise
    finally:
        ip.user_ns.pop(_TRACER, None)
        tracer.settle()
    took_s = time.perf_counter() - began
    if request.background:
        ip.user_ns["job"] = tracer.job
        tracer.watch_apart()
        display(remote_card.sent(tracer.job))
        return
    job = None if request.server == HERE else tracer.job
    if not request.quiet:
        display(remote_card.came_back(job, tracer.came, took_s, body, tracer.vocabulary))
    note_job(request, tracer.model_name, took_s)


class CellTracer(RemoteTracer):
    """The block of a cell; it tells the cell what came back."""

    def __init__(self, ip: Any, request: Request, found: operands.Operands) -> None:
        if found.invokes:
            raise UsageError(
                "--invoke with --remote takes text alone.",
                "other inputs become invokes of their own, which have to stand in the block.",
                "write with tracer.invoke(…): in the cell, for each of them.",
            )
        server = server_of(SYNTAX, request.server, ip.user_ns)
        if server != HERE:
            Connection.of(server)  # an address that is none is told of before anything else
        settings: dict[str, Any] = {"remote": server, "blocking": not request.background}
        if found.tokens is not None:
            settings["max_new_tokens"] = found.tokens
        kind = "trace" if found.tokens is None else "generate"
        super().__init__(found.model, kind, found.args, settings)
        self.came: dict[str, Any] = {}
        config = getattr(found.model._module, "config", None)
        self.vocabulary = getattr(config, "vocab_size", None)
        self.model_name = type(found.model._module).__name__
        self._ip = ip
        self._view: Any = None

    def _take(self, values: dict[str, Any] | None) -> None:
        self.came = dict(values or {})
        super()._take(values)

    def _watch(self, job: RemoteJob) -> None:
        """Show the job in the cell's output while the cell waits for it."""
        if self.watch_apart() is None:
            super()._watch(job)

    def watch_apart(self) -> Any:
        """The log of the job as a view, where there is a page; else None."""
        if getattr(self._ip, "kernel", None) is None or not CONFIG.APP.REMOTE_LOGGING:
            return None
        with suppress(MissingPackageError):
            self._view = made("remote_log:RemoteLog", self.job)
            self.job.shows_bar = False
            self._view.show_now()
        return self._view

    def settle(self) -> None:
        """The run is over: the saved notebook shows the log as it is now."""
        if self._view is not None:
            self._view.show_twins()


def _program(ip: Any, whole: str, body: str) -> CodeType:
    """The `with` around a cell's body, as code under the name and at the lines of the cell.

    Raises:
        UsageError: there is no body.
        SyntaxError: at the cell's own line.
    """
    filename, above, source = placed(ip, whole, body)
    if not ip.compile.ast_parse(source, filename=filename).body:
        raise UsageError(
            "the cell has no body to send.",
            "what stands below the line with %%trace is what runs on the server.",
            "write some: logits = model.lm_head.output[0, -1].save().",
        )
    lines = indented(source).splitlines(keepends=True)
    lines[above - 1] = f"with {_TRACER} as tracer:\n"
    tree = ip.transform_ast(ip.compile.ast_parse("".join(lines), filename=filename))
    try:
        return program(tree, lines, filename, ip.compile.flags & _FUTURES)
    except SyntaxError as error:
        raise told(error) from None
