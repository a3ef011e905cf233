"""A pass held open: a debugger for forward passes, across the cells of a notebook.

run = model.open("The Eiffel Tower is in the city of")
run.until(model.transformer.h[2])      # run up to a site
model.transformer.h[2].output[:] *= 2  # look, edit
run.step()                             # one more module
run.where                              # "transformer.h.3.ln_1.output"
out = run.finish()                     # what the model returned
"""

import atexit
import threading
import warnings
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Unpack

from insitu.engine import misses, opening
from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.options import Options as CacheOptions
from insitu.engine.cache.start import start as start_cache
from insitu.engine.edits import edited
from insitu.engine.interleave import Pass
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.running import opened
from insitu.engine.save import mount
from insitu.engine.source.operations import Operation
from insitu.engine.values import describe
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InsituWarning


class Run:
    """A pass that is parked between two statements and goes on when told to."""

    def __init__(self, root: Any, call: Any, kind: str, stepping: bool) -> None:
        mount()
        for earlier in [
            run for run in opened if run.root is root and run.thread == threading.get_ident()
        ]:
            _close(earlier)
        self._root = root
        self._heard: list[weakref.WeakMethod[Callable[[], None]]] = []
        self._pass = run = Pass(root, call, kind, stepping)
        try:
            edited(run)
            run.arm_every(root._module)
            opened.append(run)
            if root._onlookers is not None:
                root._onlookers.join(run)
            # The pass must not refer to its handle, or a dropped one would never be collected.
            self._dropped = weakref.finalize(self, _close_dropped, run)
            self._dropped.atexit = False
        except BaseException:
            _close(run)
            raise

    def until(self, site: WrappedModule | Operation | str) -> "Run":
        """Run up to a site: a module (its output) or a path such as `"transformer.h.3.input"`.

        An operation inside a forward stands for its output too.

        Raises:
            OutOfOrderError: the pass is already beyond it.
            UnknownModuleError: the path names no module.
        """
        node, kind = self._site(site)
        run = self._going()
        run.unbound = True  # a breakpoint in a generation may lie in a later step
        try:
            if kind == INPUT:
                run.read_inputs(node)
            elif isinstance(node, Operation):
                _ = node.output
            elif run.at_output is not node._module:
                run.read_output(node, node._module)
        finally:
            run.unbound = False
            self._let_go_if_over()
        return self

    def step(self, count: int = 1) -> "Run":
        """Run until the next module has finished, `count` times over."""
        run = self._going()
        try:
            for _ in range(count):
                if run.to_next_module() is None:
                    break
        finally:
            self._let_go_if_over()
        return self

    def move(self, way: Callable[[Pass], None]) -> "Run":
        """Go on in another way, one of those in `stepping`."""
        run = self._going()
        try:
            way(run)
        finally:
            self._let_go_if_over()
        return self

    def view(self) -> Any:
        """The pass as a widget: where it stands, the value there, and buttons to go on.

        run = model.open("The Eiffel Tower is in the city of")
        run.view()
        """
        return opening.opened("run", self)

    def cache(self, modules: Any = None, **options: Unpack[CacheOptions]) -> ActivationCache:
        """Record from here on what modules return: `run.cache()`; its view fills as the pass goes.

        Arguments and options are those of `tracer.cache`.
        """
        return start_cache(self._going(), modules, **options)

    def on_move(self, heard: Callable[[], None]) -> None:
        """Have a method called whenever the pass has moved by this handle; it is held weakly."""
        self._heard.append(weakref.WeakMethod(heard))

    def finish(self) -> Any:
        """Run to the end and return what the model returned."""
        run = self._going()
        try:
            return run.finish()
        finally:
            self._let_go_if_over()

    def close(self) -> None:
        """Leave the pass where it stands; nothing of it remains. Safe to call twice."""
        self._dropped.detach()
        _close(self._pass)
        self._tell()

    @property
    def where(self) -> str:
        """Where the pass stands: `transformer.h.2.output`, `start`, `finished` or `closed`."""
        return standing(self._pass)

    @property
    def value(self) -> Any:
        """What is at the site where the pass stands; None before the first and after the last."""
        run = self._pass
        if run.at_output is not None:
            return run.value
        return (run.args, run.kwargs) if run.at_input is not None else None

    def _going(self) -> Pass:
        if self._pass.closed:
            raise misses.pass_is_over(self._pass)
        if self._pass.thread != threading.get_ident():
            raise misses.other_thread(self._pass)
        return self._pass

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        at_site = self._pass.at_output is not None or self._pass.at_input is not None
        return f"<pass at {self.where}{': ' + describe(self.value) if at_site else ''}>"

    def _site(self, site: WrappedModule | Operation | str) -> tuple[WrappedModule | Operation, int]:
        if isinstance(site, (WrappedModule, Operation)):
            return site, OUTPUT
        path, _, last = site.rpartition(".")
        if last not in ("output", "input", "inputs"):
            path, last = site, "output"
        node = self._root if path in ("", "model") else self._root._at_path(path)
        return node, OUTPUT if last == "output" else INPUT

    def _let_go_if_over(self) -> None:
        if self._pass.ended or self._pass.closed:
            self.close()
        elif self._root._onlookers is not None:
            self._root._onlookers.moved(self._pass)
        else:
            self._tell()

    def _tell(self) -> None:
        for reference in tuple(self._heard):
            if (heard := reference()) is None:
                self._heard.remove(reference)
            else:
                heard()


def standing(run: Pass) -> str:
    """Where a pass stands, in words."""
    if run.ended:
        return "finished"
    if run.closed:
        return "closed"
    step = f" (step {run.step})" if run.step > 0 else ""
    if run.at_output is not None:
        return f"{run.root._path_of(run.at_output)}.output{step}"
    if run.at_input is not None:
        return f"{run.root._path_of(run.at_input)}.input{step}"
    return "start"


def _close(run: Pass) -> None:
    run.close()
    if run in opened:
        opened.remove(run)


def _close_dropped(run: Pass) -> None:
    if not run.closed:
        where = run.root._path_of(run.at_output) if run.at_output is not None else "its start"
        _close(run)
        warnings.warn(
            f"a pass held open at {where} was dropped and has been closed; "
            "keep it (run = model.open(...)) and end it with run.finish() or run.close().",
            InsituWarning,
            stacklevel=2,
        )


@atexit.register
def _close_all() -> None:
    for run in tuple(opened):
        if run.thread == threading.get_ident():
            _close(run)
