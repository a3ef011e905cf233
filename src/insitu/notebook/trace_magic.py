"""`%%trace`: a cell whose body is the block.

%%trace model "The Eiffel Tower is in the city of"
model.transformer.h[2].output[:, -1] *= 2
logits = model.lm_head.output
"""

import contextlib
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from IPython.core.magic import no_var_expand

from insitu.notebook import card, operands
from insitu.notebook.cell import Body, compiled, ending
from insitu.notebook.forwards import synchronize
from insitu.notebook.request import parse
from insitu.notebook.session import Session
from insitu.settings import CONFIG

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class TraceMagic:
    """The magic of one shell. It hears of each cell first, to know the text the user wrote."""

    def __init__(self, ip: Any) -> None:
        self.ip = ip
        self.raw_cell = ""

    def hear(self, info: Any) -> None:
        """Remember the cell that is about to run."""
        self.raw_cell = info.raw_cell or ""

    @no_var_expand  # type: ignore[untyped-decorator]
    def trace(self, line: str, cell: str) -> None:
        """Run the cell's body inside a pass of a model, and show what it did.

            %%trace MODEL PROMPT [--generate N] [--time] [--quiet]

        MODEL and PROMPT are Python expressions. The body is the block of
        `with model.trace(PROMPT) as tracer:`, run in place: its names stay in the notebook.

          --generate N   generate N tokens, with the body inside every step
          --time         compare the run's time with the bare forward's
          --quiet        show no run card
        """
        __tracebackhide__ = True
        try:
            request = parse(line)
            found = operands.of(self.ip.user_ns, request, cell)
            body = compiled(self.ip, self._whole(line, cell), cell)
            session = Session(found, request)
            run_s = self._run(session, body)
        except BaseException as error:
            _show_users_lines(error, self.ip)
            if isinstance(error, SyntaxError):  # of which IPython shows every frame
                error.__traceback__ = None
            raise
        if not request.quiet:
            card.show(session.card(run_s))

    def _run(self, session: Session, body: Body) -> float:
        """Run the body inside the pass; the time it took."""
        __tracebackhide__ = True
        self.ip.user_ns["tracer"] = session.tracer
        began = time.perf_counter()
        with session.tracer:
            body.run(self.ip)
        synchronize()
        return time.perf_counter() - began

    def _whole(self, line: str, cell: str) -> str:
        """The cell as the user wrote it, or its like when a program calls the magic."""
        if ending(self.raw_cell).endswith("\n" + cell):
            return self.raw_cell
        return f"%%trace {line}\n{cell}"


def register(ip: Any) -> Callable[[], None]:
    """Add `%%trace` to a shell; gives what takes it away again."""
    magic = TraceMagic(ip)
    cell_magics = ip.magics_manager.magics["cell"]
    before = cell_magics.get("trace")
    ip.events.register("pre_run_cell", magic.hear)
    ip.register_magic_function(magic.trace, "cell", "trace")

    def unregister() -> None:
        ip.events.unregister("pre_run_cell", magic.hear)
        del cell_magics["trace"]
        if before is not None:
            cell_magics["trace"] = before

    return unregister


def _show_users_lines(error: BaseException, ip: Any) -> None:
    """Let IPython show the traceback from the user's first line on.

    IPython asks an exception for `_render_traceback_` first. Without it, four frames of IPython's
    and ours come before the user's. It answers once: an error raised again shows as usual.
    """
    if CONFIG.APP.DEBUG:
        return
    traceback = _below(error.__traceback__)

    def render() -> Any:
        del error._render_traceback_  # type: ignore[attr-defined]
        return ip.InteractiveTB.structured_traceback(type(error), error, traceback, tb_offset=0)

    with contextlib.suppress(AttributeError):
        error._render_traceback_ = render  # type: ignore[attr-defined]


def _below(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins with the first frame not of this package."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        traceback = traceback.tb_next
    return traceback
