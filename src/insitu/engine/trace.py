"""`with model.trace(x) as tracer:` the block runs where it stands.

with model.trace("The Eiffel Tower is in") as tracer:
    h = model.transformer.h[2].output
    logits = model.lm_head.output
print(h.shape, logits.shape)
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, Unpack

from torch import nn

from insitu.engine import backward_call, first_row, misses, said, steps
from insitu.engine.beside import Watcher
from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.options import Options as CacheOptions
from insitu.engine.cache.start import start as start_cache
from insitu.engine.capture.per_code import facts, known
from insitu.engine.capture.usage import enters_later, is_called_at_once, returns_to
from insitu.engine.edits import edited
from insitu.engine.interleave import Pass
from insitu.engine.invoke import Barrier, Bodies, Invoke
from insitu.engine.lane import Lane
from insitu.engine.running import active
from insitu.engine.save import mount
from insitu.engine.tracebacks import prune
from insitu.errors import InsituWarning, PassClosedError


class Stop(BaseException):
    """Raised by `tracer.stop()` to leave its block; `with` swallows it."""

    def __init__(self, run: Pass) -> None:
        self.run = run


class Tracer:
    """One trace: its pass begins when the block asks for something, and ends with the block."""

    __slots__ = (
        "__weakref__", "_backwards", "_bodies", "_call", "_kind", "_root", "_run", "_stepping",
        "_untold", "check", "quiet", "watch",
    )  # fmt: skip

    def __init__(self, root: Any, call: Any, kind: str, stepping: bool) -> None:
        self._root = root
        self._call = call
        self._kind = kind
        self._stepping = stepping
        self._run: Pass | None = None
        self._bodies: Bodies | None = None
        self._untold = True
        self._backwards = False
        self.watch: Watcher | None = None
        self.check: Callable[[Tracer, FrameType], None] | None = None
        self.quiet = False

    def alone(self) -> Any:
        """Run without a block and give what the call returns."""
        self.check = None
        with self:
            return self.result

    def again(self, kind: str, call: Any) -> "Tracer":
        """The same trace, of another call or kind; each kind learns the order of modules anew."""
        self._untold = False
        return Tracer(self._root, call, kind, self._stepping)

    def give_call(self) -> Any:
        """The call this trace would make, for someone who makes it otherwise."""
        self._untold = False
        return self._call

    def __del__(self) -> None:
        run: Pass | None = getattr(self, "_run", None)  # `__init__` itself may be interrupted
        if run is not None:
            if not run.closed:  # interrupted where no `try` of ours has begun
                self._leave(True, again=True)
        elif getattr(self, "_untold", False):
            warnings.warn(
                f"a {self._kind} of {type(self.module).__name__} was made and never entered; "
                "it runs as `with model.trace(...):`, or at once where its result is used.",
                InsituWarning,
                stacklevel=2,
            )

    def __enter__(self) -> "Tracer":
        return self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> "Tracer":
        """Begin, for the block of the `with` that a frame is just entering."""
        mount()
        if self.check is not None:
            self._untold = False  # it has been entered, whatever comes of it
            self.check(self, frame)
        self._run = run = Pass(self._root, self._call, self._kind, self._stepping)
        run.entered = frame.f_code, frame.f_lasti
        run.block_key = id(frame.f_code) + frame.f_lasti
        self._backwards = backward_call.mount(frame, run)
        run.outer = active.get()
        run.watch = self.watch
        if self._root._onlookers is not None:
            self._root._onlookers.join(run)
        if self._root._edits or self._call.pending:
            self._bodies = edited(run)
        first_row.look(frame, run)
        active.set(run)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        failed = True
        try:
            run = self._own()
            if error is None or (isinstance(error, steps.RestDone) and error.run is run):
                run.finish()
                failed = False
                return error is not None
            prune(traceback)
            backward_call.note_unmounted(error)
            first_row.note(error, run)
            failed = not (isinstance(error, Stop) and error.run is run)
            return not failed
        except Stop as stopped:
            if stopped.run is not run:
                raise
            failed = False
            return False
        except BaseException as raised:
            prune(raised.__traceback__)
            raise
        finally:
            try:
                self._leave(failed)
            except KeyboardInterrupt:
                self._leave(failed, again=True)
                raise

    def _leave(self, failed: bool, again: bool = False) -> None:
        run, bodies = self._own(), self._bodies
        try:
            if active.get() is run:
                active.set(None if run.outer is None else run.around())
            if self._backwards or again:
                backward_call.unmount(run, failed)
            if bodies is not None and not again:
                bodies.write_back()
        finally:
            try:
                run.close(failed)
            except KeyboardInterrupt:  # nothing of the pass may stay
                run.close(failed)
                raise
            finally:
                if bodies is not None:
                    bodies.close()

    @property
    def module(self) -> nn.Module:
        """The torch module that is traced."""
        module: nn.Module = self._root._module
        return module

    @property
    def modules(self) -> list[nn.Module]:
        """That module, and those that the user attached to it."""
        beside = self._root._names.attached.values()
        return [self.module, *(module for names in beside for module in names.values())]

    @property
    def result(self) -> Any:
        """What the traced call returned: `tracer.result` or `tracer.result()`.

        Runs the pass to its end.
        """
        value = self._running().run_out()
        return (lambda: value) if is_called_at_once(sys._getframe(1)) else value

    @property
    def iter(self) -> steps.Steps:
        """The steps of a generation: `for step in tracer.iter[:]`."""
        return steps.Steps(self._running())

    def all(self) -> steps.Walk:
        """Every step: `for step in tracer.all()`, the same as `tracer.iter[:]`.

        As a statement of its own, the rest of the block runs in every step.
        """
        return steps.all_steps(self._running(), sys._getframe(1))

    def next(self) -> int:
        """Go to the beginning of the next step and return its number.

        Raises:
            StepError: the run has ended.
        """
        return steps.advance(self._running())

    def cache(self, modules: Any = None, **options: Unpack[CacheOptions]) -> ActivationCache:
        """Keep what modules return, after all interventions, from here on.

            with model.trace("Hello") as tracer:
                cache = tracer.cache(["transformer.h.*"])
            cache["transformer.h.0"].output             # [batch, pos, d_model]

        Args:
            modules: wrapped modules, paths or globs; every module when left out.
            **options: `include_inputs`, `include_output`, `dtype`, `device`, `steps`, `detach`,
                `clone`, `budget` (bytes) and `spill` (a folder), as `insitu.ActivationCache` tells.
        """
        return start_cache(self._running(), modules, **options)

    def stream(self) -> Iterator[Any]:
        """Each new token as it is generated, one per row: `for token in tracer.stream():`."""
        return steps.stream(self._running())

    def stop(self) -> None:
        """End the pass and the block here; no later module runs."""
        run = self._own()
        if run.closed:
            raise misses.pass_is_over(run)
        raise Stop(run)

    def invoke(self, *args: Any, **kwargs: Any) -> Invoke:
        """One prompt of several in this pass, with a body that sees its rows.

            with model.trace() as tracer:
                with tracer.invoke("The Eiffel Tower is in"):
                    h = model.transformer.h[2].output
                with tracer.invoke("The Colosseum is in"):
                    model.transformer.h[2].output[:, -1] = h[:, -1]

        Without an input its body sees the rows of all.
        """
        return Invoke(self._captured(), args, kwargs)

    def barrier(self, count: int) -> Barrier:
        """A place where `count` invokes wait for each other: call it in each of them."""
        return Barrier(self._captured().lanes, count)

    def log(self, *values: Any, tags: Iterable[str] | str = ()) -> None:
        """Print values, now; from a block that runs on a server they come to this terminal.

        The log of a job can be filtered by their tags: `tags="train"`, `tags=("loss", "warning")`.
        """
        if not self.quiet:
            said.say(values, tags)

    def _running(self) -> Any:
        """This trace's pass, or the lane of the captured body that asks."""
        run, here = self._own(), active.get()
        return here if isinstance(here, Lane) and here.run is run else run

    def _captured(self) -> Bodies:
        self._bodies = self._bodies or Bodies(self._own())
        return self._bodies

    def _own(self) -> Pass:
        if self._run is None:
            raise PassClosedError(
                "this tracer has not been entered.",
                "a trace runs as the block of a `with` statement.",
                "write `with model.trace(...) as tracer:` and use tracer inside.",
            )
        return self._run


def is_entered(frame: FrameType) -> bool:
    """Whether the tracer being made in `frame` is entered, or handed on; else it runs at once."""
    found = known.get(id(frame.f_code))
    entered = None if found is None else found.entered.get(frame.f_lasti)
    if entered is None:
        entered = facts(frame.f_code).entered[frame.f_lasti] = _is_entered(frame)
    return entered


def _is_entered(frame: FrameType) -> bool:
    use, _, name = returns_to(frame).partition(":")
    if use == "stored":
        return enters_later(frame, name)
    if use == "attribute":
        return hasattr(Tracer, name)
    return use not in ("computed", "discarded", "shown")
