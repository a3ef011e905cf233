"""One function's operations in one pass: what its rewritten code calls, and where it stops.

    site = Site(run, chain, plan.operations, module)
    namespace["forward"] = site.over(namespace["forward"])

A site's rewritten function runs in the coroutine of its own pass alone: another thread that calls
the module meanwhile gets the forward as it is.
"""

from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodWrapperType
from typing import Any, cast

from torch import nn

from insitu.engine.compiled import out_of_graphs
from insitu.engine.modes import swap
from insitu.engine.order import OUTPUT
from insitu.engine.source.chain import Chain, follow
from insitu.engine.source.kept import code_of
from insitu.engine.source.names import CALL, Named
from insitu.engine.source.rewrite import (
    ON_CALL,
    ON_VALUE,
    WANTED,
    WITHOUT_US,
    instance,
    without_us,
)  # fmt: skip
from insitu.engine.stopping import Forward, Stopping
from insitu.engine.switch import getcurrent
from insitu.errors import SourceError

_ATOMS = frozenset((BuiltinFunctionType, MethodDescriptorType, MethodWrapperType))
"""Callables in which a pass cannot stop, so that nobody can ask for them while they run."""


class _Over:
    """What a site is left with when its pass has ended."""

    worker = None
    cleared = True
    trail = ()


_over = _Over()


class Site:
    """The operations of one function in one pass, and the helpers that its rewritten code calls."""

    __slots__ = (
        "armed", "both", "called_instead", "chain", "entered", "inner", "made", "module", "plain",
        "run", "seen", "stands_in", "way",
    )  # fmt: skip

    def __init__(
        self, run: Any, chain: Chain, operations: Sequence[Named], module: nn.Module | None
    ) -> None:
        self.run = run
        self.chain = chain
        self.module = module
        self.armed: list[Any] = [None] * len(operations)
        self.both: list[Any] = [None] * len(operations)
        """Those armed at their input too."""
        self.plain = [it.kind == CALL and it.is_leaf for it in operations]
        self.inner: dict[int, Site] = {}
        self.seen = [0] * len(operations)
        """One more than the requests the block had made when an operation ran last; else 0."""
        self.entered = False
        self.stands_in = False
        """It runs whatever function was to be called, and not for its own alone."""
        self.called_instead = ""
        self.made: tuple[FunctionType, FunctionType] | None = None
        self.way: Forward | None = None
        """What runs in place of the forward: the rewritten function in its decorators."""

    # What the rewritten code calls -----------------------------------------------------------

    def call(self, index: int, callee: Any) -> Any:
        """What to call in a callee's place: itself, or something that stops around it."""
        if self.plain[index] and type(callee) in _ATOMS:
            self.seen[index] = len(self.run.trail) + 1
            return callee
        return Called((self, index, callee))

    def value(self, index: int, value: Any) -> Any:
        """What to assign in a value's place."""
        if self.armed[index] is None:
            self.seen[index] = len(self.run.trail) + 1
            return value
        return Called((self, index, _itself))(value)

    def wanted(self, index: int) -> bool:
        """Whether an operation has been asked for."""
        return self.armed[index] is not None

    # Its function ----------------------------------------------------------------------------

    def function(self, of: FunctionType) -> FunctionType:
        """A function like this one that stops at its operations."""
        if self.made is None or self.made[0] is not of:
            helpers: dict[str, Callable[..., Any]] = {
                ON_CALL: self.call, ON_VALUE: self.value,
                WANTED: self.wanted, WITHOUT_US: without_us,
            }  # fmt: skip
            self.made = of, instance(of, code_of(of), helpers)
        return self.made[1]

    def over(self, forward: Forward) -> Forward:
        """The wrappers around a forward, with the rewritten one at their end."""
        if isinstance(forward, Stopping):
            return cast(Forward, type(forward)((forward[0], forward[1], self.over(forward[2]))))
        assert self.module is not None
        if self.way is None:
            chain = Chain(forward, self.chain.function, None)
            self.way = chain.with_(self.function(self.chain.function))
        return cast(Forward, Rewritten((self, self.module, forward)))

    def under_way(self, forward: Forward) -> Forward:
        """The same for a call that has got as far as its input, if need be."""
        below = forward
        while isinstance(below, Stopping):
            if below[0] is self:
                return forward
            below = below[2]
        return forward if self.chain.slot != "forward" else self.over(forward)

    def instead_of(self, callee: Any) -> Any:
        """For a callee that is the function shown, one that stops at its operations."""
        if self.stands_in:
            self.entered = True
            return self.function(self.chain.function)
        try:
            chain = follow(callee, "")
        except SourceError:
            chain = None
        if chain is None or chain.function.__code__ is not self.chain.function.__code__:
            self.called_instead = getattr(callee, "__qualname__", type(callee).__name__)
            return callee
        self.entered = True
        return chain.with_(self.function(chain.function))

    @property
    def cleared(self) -> bool:
        """Whether its pass is over."""
        return bool(self.run.cleared)

    def close(self) -> None:
        """Its pass is over: let go of it."""
        self.run = _over
        self.made = None
        self.way = None


class Rewritten(Stopping):
    """Stands at the end of a module's wrappers: `(site, module, forward)`."""

    __slots__ = ()

    @out_of_graphs
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the rewritten forward in its own pass, the one it stands for elsewhere."""
        site, _, forward = self
        if getcurrent() is not site.run.worker:
            return forward(*args, **kwargs)
        site.entered = True
        return site.way(*args, **kwargs)


class Called(tuple[Site, int, Any]):
    """Stands in for a callee, for one call: `(site, index, callee)`."""

    __slots__ = ()

    @out_of_graphs
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it, and stop at either side if that is wanted."""
        site, index, callee = self
        run = site.run
        if getcurrent() is not run.worker:
            return callee(*args, **kwargs)
        if site.both[index] is not None:
            return self._both_sides(site.both[index], args, kwargs)
        if index in site.inner:
            callee = site.inner[index].instead_of(callee)
        output = callee(*args, **kwargs)
        site.seen[index] = len(run.trail) + 1
        operation = site.armed[index]
        if operation is None or (run.want_output is not operation and run.lanes is None):
            return output
        if run.lanes is not None or run.taps is not None:
            return run.leave(operation, args, kwargs, output)
        # As arming.AtOutput, for the same reason.
        run.want_output = run.at_input = None
        run.at_output = operation
        run.args = args
        run.kwargs = kwargs
        run.value = output
        run.model_modes = swap(run.block_modes)
        run.to_block()
        return run.value

    def _both_sides(self, operation: Any, args: Any, kwargs: Any) -> Any:
        site, index, callee = self
        run = site.run
        args, kwargs = run.enter(operation, args, kwargs)
        if run.is_skipped(operation):
            output = run.take_skip(operation)
        else:
            if index in site.inner:
                callee = site.inner[index].instead_of(callee)
            output = callee(*args, **kwargs)
        site.seen[index] = len(run.trail) + 1
        halts = run.halts is not None and run.halts(operation, OUTPUT)
        if run.want_any and run.want_output is not operation and not halts:
            return output  # on its way from module to module, a pass does not stop at operations
        return run.leave(operation, args, kwargs, output)


def _itself(value: Any) -> Any:
    return value
