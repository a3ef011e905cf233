"""One pass as a tree of modules follows it: what ran, was read, was written, and where it stands.

    run.watch = following = Following(run, rows, changed)
    following.marks()           # {"ran": {0, 1, 2}, "read": {2}, "written": set(), "paused": set()}

Modules are rows: nothing of the pass or the model is kept alive.
"""

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from insitu.engine.arming import Node
from insitu.engine.interleave import Pass
from insitu.engine.order import Order
from insitu.engine.source.operations import Operation
from insitu.engine.written import Before

NAMES = ("ran", "read", "written", "paused")
Rows = Mapping[nn.Module, int]


class Following:
    """Watches a pass (`insitu.engine.beside.Watcher`)."""

    def __init__(self, run: Pass, rows: Rows, changed: Callable[[], None]) -> None:
        self._run = weakref.ref(run)
        self._rows = rows
        self._changed = changed
        self._ran: set[int] = set()
        self._read: set[int] = set()
        self._written: set[int] = set()
        self._not_run: set[int] = set()
        self._standing: tuple[int, Before] | None = None
        self._ended_at: tuple[Order | None, int, bool] | None = None
        self.is_over = False
        run.at_end(self._ended)

    def arrived(self, node: Node, kind: int, value: Any, line: int, step: int) -> None:
        """The block is about to be given the value of a site."""
        row = self._row(node)
        if row is not None:
            self._standing = row, Before(value)
            self._read.add(row)
            self._changed()

    def leaving(self, value: Any) -> None:
        """The block goes on; what it leaves behind may have been written."""
        standing, self._standing = self._standing, None
        if standing is not None and standing[1].was_changed(value):
            self._written.add(standing[0])
        self._changed()

    def skipped(self, node: Node, value: Any, line: int, step: int) -> None:
        """A module's call has been replaced by a value: nothing inside it runs."""
        row = self._row(node)
        if row is not None:
            self._written.add(row)
            inside = (self._rows.get(module) for module in node._module.modules())
            self._not_run.update(row for row in inside if row is not None)
            self._changed()

    def marks(self) -> dict[str, set[int]]:
        """The rows that each mark is on, as far as the pass has come."""
        run = self._run()
        standing: set[int] = set()
        if not self.is_over and run is not None:
            self._ran |= self._rows_run(run.order or _observed(run), run.here, run.step > 0)
            at = _module_at(run)
            row = None if at is None else self._rows.get(at)
            standing = set() if row is None or not run.started else {row}
        elif self._ended_at is not None:
            self._ran |= self._rows_run(*self._ended_at)
            self._ended_at = None
        ran = self._ran - self._not_run | self._read
        marks = (ran, self._read, self._written, standing)
        return dict(zip(NAMES, map(set, marks), strict=True))

    def _ended(self, failed: bool) -> None:
        run = self._run()
        if run is not None:
            if self._standing is not None and self._standing[1].was_changed_in_place():
                self._written.add(self._standing[0])  # stopped where the block stood
            complete = run.ended and not failed
            self._ended_at = run.order or _observed(run), run.here, complete or run.step > 0
        self._standing = None
        self.is_over = True
        self._changed()

    def _row(self, node: Node) -> int | None:
        return self._rows.get(_owner(node._module))

    def _rows_run(self, order: Order | None, here: int, complete: bool) -> set[int]:
        """The modules that were called, by the order learned and how far the pass came."""
        if order is None:
            return set()
        called = list(order.called.items())
        observed = not order.complete  # the pass that learns the order knows what it called
        return {
            row
            for module, seen in called
            if complete or observed or (seen.starts and seen.starts[0] <= here)
            if (row := self._rows.get(module)) is not None
        }


def _observed(run: Pass) -> Order | None:
    return None if run.observation is None else run.observation.order


def _module_at(run: Pass) -> nn.Module | None:
    at = run.at_output if run.at_output is not None else run.at_input
    return None if at is None else _owner(at)


def _owner(key: Any) -> Any:
    """The module whose forward an operation is part of; a module is its own."""
    return key._around if isinstance(key, Operation) else key
