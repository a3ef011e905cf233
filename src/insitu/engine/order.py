"""The order in which a model calls its modules, learned from the first pass.

    observation.order.single[module]    # where it stands among all events of a pass

The first pass of each kind (trace, generate) is observed in full: every module is armed, which
costs about 2 µs a module, once. Later passes arm only what the block asks for, and still an order
error is known at once, an error can say "never ran", and a module called from outside its own tree
has its caller armed with it. A pass that is stopped on its way tells no order; one that asks for
the same modules again is not observed in vain, until one of these fails or runs to its end.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from insitu.engine.values import describe

OUTPUT, INPUT = 0, 1
"""The two sides of a module where a pass can stand."""


@dataclass
class Called:
    """What one module did in the observed pass."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    callers: set[nn.Module] = field(default_factory=set)
    output: str = ""


@dataclass
class Order:
    """Modules in the order of their first call, with the positions of their calls."""

    called: dict[nn.Module, Called] = field(default_factory=dict)
    single: dict[nn.Module, tuple[int, int]] = field(default_factory=dict)
    """Where each module that one pass calls exactly once ends and starts (index: OUTPUT, INPUT)."""
    callers: dict[nn.Module, tuple[nn.Module, ...]] = field(default_factory=dict)
    """For modules called from outside their own tree, or held by several: who may call them."""
    complete: bool = False
    checkpoints: bool = False
    """Whether a pass came to activation checkpointing."""

    def close(self, root: nn.Module) -> None:
        """The observed pass has ended: what was seen is all there is."""
        self.complete = True
        self.single = {
            module: (seen.ends[0], seen.starts[0])
            for module, seen in self.called.items()
            if len(seen.starts) == len(seen.ends) == 1
        }
        around, shared = _around(root)
        self.callers = {module: tuple(around[module]) for module in shared}
        for module, seen in self.called.items():
            if outside := seen.callers - around.get(module, set()):
                self.callers[module] = (*self.callers.get(module, ()), *outside)

    def calls(self, module: nn.Module) -> int | None:
        """How often one pass calls `module`; None when that is not known."""
        if not self.complete:
            return None
        seen = self.called.get(module)
        return 0 if seen is None else len(seen.starts) or None

    def note(self, module: nn.Module) -> None:
        """A later pass has called this module: if the observed one did not, it may run or not."""
        if module not in self.called and isinstance(module, nn.Module):
            self.called[module] = Called()


class Observation:
    """What a pass that is stopped at every module sees."""

    def __init__(self, root: Any, kind: str) -> None:
        self.order = Order()
        self._root: nn.Module = root._module
        root._seen[kind] = self.order.called
        self._clock = itertools.count()
        self._stack: list[nn.Module] = []

    def finish(self) -> None:
        """The pass ran to its end: the order is complete."""
        if not self.order.complete:
            self.order.close(self._root)

    def has_entered(self, module: nn.Module) -> bool:
        """Whether the pass has called a module."""
        return module in self.order.called

    def has_left(self, module: nn.Module) -> bool:
        """Whether a call of a module has returned in this pass, and none is under way."""
        seen = self.order.called.get(module)
        return seen is not None and bool(seen.ends) and module not in self._stack

    def enter(self, module: nn.Module) -> None:
        """A module is called; operations are not observed, their forward tells their order."""
        if not isinstance(module, nn.Module):
            return
        if module is self._root and module in self.order.called:
            self.finish()  # one call of the root is one pass
        if self.order.complete:
            return
        seen = self.order.called.get(module)
        if seen is None:
            seen = self.order.called[module] = Called()
        seen.callers.update(self._stack)
        seen.starts.append(next(self._clock))
        self._stack.append(module)

    def leave(self, module: nn.Module, output: Any) -> None:
        """A module has returned."""
        if self.order.complete or not isinstance(module, nn.Module):
            return
        while self._stack and self._stack.pop() is not module:
            pass  # modules left by an exception their caller caught
        seen = self.order.called[module]
        seen.ends.append(next(self._clock))
        seen.output = seen.output or describe(output)


def is_known(run: Any) -> bool:
    """Whether a pass of this kind that was stopped had come to all that this one asks for first."""
    seen = run.root._seen.get(run.kind)
    if not seen or run.watch is not None:
        return False
    asked = {run.want_output, run.want_input} - {None}
    if run.lanes is not None:
        asked.update(run.lanes.outputs, run.lanes.inputs)
    return bool(asked) and asked <= seen.keys()


def _around(root: nn.Module) -> tuple[dict[nn.Module, set[nn.Module]], set[nn.Module]]:
    """Every module with those it is part of, at any depth; and those held by several."""
    around: dict[nn.Module, set[nn.Module]] = {root: set()}
    holders: dict[nn.Module, nn.Module] = {}
    shared: set[nn.Module] = set()
    pending = [root]
    while pending:
        module = pending.pop()
        for child in module._modules.values():
            if child is not None:
                if holders.setdefault(child, module) is not module:
                    shared.add(child)
                known = around.setdefault(child, set())
                more = around[module] | {module}
                if not more <= known:
                    known |= more
                    pending.append(child)
    return around, shared
