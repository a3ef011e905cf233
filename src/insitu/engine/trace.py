"""`with model.trace(x) as tracer:` the block runs where it stands.

with model.trace("The Eiffel Tower is in") as tracer:
    h = model.transformer.h[2].output
    logits = model.lm_head.output
print(h.shape, logits.shape)
"""

import dis
import os
import sys
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from insitu.engine import steps
from insitu.engine.interleave import Pass, Watcher
from insitu.engine.running import active
from insitu.engine.save import mount
from insitu.errors import PassClosedError

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Stop(BaseException):
    """Raised by `tracer.stop()` to leave its block; `with` swallows it."""

    def __init__(self, run: Pass) -> None:
        self.run = run


class Tracer:
    """One trace: its pass begins when the block asks for something, and ends with the block."""

    __slots__ = ("_call", "_kind", "_root", "_run", "_stepping", "watch")

    def __init__(self, root: Any, call: Callable[[Pass], Any], kind: str, stepping: bool) -> None:
        self._root = root
        self._call = call
        self._kind = kind
        self._stepping = stepping
        self._run: Pass | None = None
        self.watch: Watcher | None = None

    def __enter__(self) -> "Tracer":
        mount()
        self._run = run = Pass(self._root, self._call, self._kind, self._stepping)
        run.outer = active.get()
        run.watch = self.watch
        active.set(run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        run = self._running()
        try:
            if error is None:
                run.finish()
                return False
            prune(traceback)
            return isinstance(error, Stop) and error.run is run
        except BaseException as failed:
            prune(failed.__traceback__)
            raise
        finally:
            run.close()
            if active.get() is run:
                active.set(run.around())

    @property
    def result(self) -> Any:
        """What the traced call returned: `tracer.result` or `tracer.result()`.

        Runs the pass to its end.
        """
        value = self._running().run_out()
        return (lambda: value) if _is_being_called(sys._getframe(1)) else value

    @property
    def iter(self) -> steps.Steps:
        """The steps of a generation: `for step in tracer.iter[:]`."""
        return steps.Steps(self._running())

    def all(self) -> Any:
        """Every step: `for step in tracer.all()`, the same as `tracer.iter[:]`."""
        return self.iter[:]

    def next(self) -> int:
        """Go to the beginning of the next step and return its number.

        Raises:
            StepError: the run has ended.
        """
        return steps.advance(self._running())

    def stop(self) -> None:
        """End the pass and the block here; no later module runs."""
        raise Stop(self._running())

    def log(self, *values: Any) -> None:
        """Print values, now; from a block that runs on a server they come to this terminal."""
        print(*values)

    def _running(self) -> Pass:
        if self._run is None:
            raise PassClosedError(
                "this tracer has not been entered.",
                "a trace runs as the block of a `with` statement.",
                "write `with model.trace(...) as tracer:` and use tracer inside.",
            )
        return self._run


def prune(traceback: TracebackType | None) -> None:
    """Take this package's own frames out of a traceback, below the user's."""
    while traceback is not None:
        following = traceback.tb_next
        while following is not None and following.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            following = following.tb_next
        traceback.tb_next = following
        traceback = following


def _is_being_called(frame: FrameType) -> bool:
    """Whether the attribute being read in `frame` is called at once, as in `tracer.result()`."""
    code, at = frame.f_code.co_code, frame.f_lasti
    name = dis.opname[code[at]]
    return name == "LOAD_METHOD" or (
        name == "LOAD_ATTR" and sys.version_info >= (3, 12) and bool(code[at + 1] & 1)
    )
