"""Live views that follow the passes of a model, beside whoever watches one of them.

    look_at(model, view)        # view.follow(run) is asked of each pass that begins
    look_away(model, view)

A model that nobody looks at pays one attribute test a pass. A pass that is followed hands its
values over a little slower, as a watched one does, and whatever a view gets wrong stays with it.
"""

from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakSet

from insitu.engine.arming import Node
from insitu.engine.beside import Watcher


class Onlooker(Protocol):
    """Who follows every pass of a model for as long as it lives."""

    def follow(self, run: Any) -> Watcher | None:
        """A pass is about to begin; who watches it, if anyone is to."""

    def moved(self, run: Any) -> None:
        """A pass held open stands somewhere else."""


class Onlookers:
    """Everyone who looks at one model; none of them is kept alive."""

    def __init__(self) -> None:
        self.all: WeakSet[Any] = WeakSet()

    def join(self, run: Any) -> None:
        """A pass is about to begin: let them watch it too."""
        watchers: list[Watcher] = [] if run.watch is None else [run.watch]
        for onlooker in tuple(self.all):
            watcher = _safely(onlooker.follow, run)
            if watcher is not None:
                watchers.append(watcher)
        if watchers:
            run.watch = Together(watchers)

    def moved(self, run: Any) -> None:
        """A pass held open stands somewhere else."""
        for onlooker in tuple(self.all):
            _safely(onlooker.moved, run)


class Together:
    """Several watchers of one pass; what one of them raises does not reach the pass."""

    __slots__ = ("watchers",)

    def __init__(self, watchers: list[Watcher]) -> None:
        self.watchers = watchers

    def arrived(self, node: Node, kind: int, value: Any, line: int, step: int) -> None:
        """The block is about to be given the value of a site."""
        for watcher in self.watchers:
            _safely(watcher.arrived, node, kind, value, line, step)

    def skipped(self, node: Node, value: Any, line: int, step: int) -> None:
        """A module's call has been replaced by a value."""
        for watcher in self.watchers:
            _safely(watcher.skipped, node, value, line, step)

    def leaving(self, value: Any) -> None:
        """The block goes on to another site and leaves this value behind."""
        for watcher in self.watchers:
            _safely(watcher.leaving, value)


def look_at(root: Any, onlooker: Onlooker) -> None:
    """Follow every pass of a wrapper from now on, and of those with the same modules."""
    there = root._onlookers or Onlookers()
    there.all.add(onlooker)
    for wrapper in root._family:
        wrapper.__dict__["_onlookers"] = there


def look_away(root: Any, onlooker: Onlooker) -> None:
    """Follow no more passes; safe to call twice."""
    there: Onlookers | None = root._onlookers
    if there is None:
        return
    there.all.discard(onlooker)
    if not there.all:
        for wrapper in root._family:
            wrapper.__dict__["_onlookers"] = None


def _safely(tell: Callable[..., Any], *told: Any) -> Any:
    try:
        return tell(*told)
    except Exception:  # a view is a guest here
        return None
