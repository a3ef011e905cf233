"""Who a pass has to do with besides its block: those who watch it, and captured bodies."""

from collections.abc import Mapping
from typing import Any, Protocol

from insitu.engine.arming import Node


class Watcher(Protocol):
    """Who wants to know what a block does, for the run card."""

    def arrived(self, node: Node, kind: int, value: Any, line: int, step: int) -> None:
        """The block is about to be given the value of a site."""

    def skipped(self, node: Node, value: Any, line: int, step: int) -> None:
        """A module's call has been replaced by a value."""

    def leaving(self, value: Any) -> None:
        """The block goes on to another site and leaves this value behind."""


class Beside(Protocol):
    """Captured bodies that take their turns before the block in place."""

    @property
    def outputs(self) -> Mapping[Any, Any]:
        """Who waits for what modules return."""

    @property
    def inputs(self) -> Mapping[Any, Any]:
        """Who waits for what modules are called with."""

    @property
    def skips(self) -> Mapping[Any, Any]:
        """The modules whose next call is skipped in some rows."""

    def at_output(self, key: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """A module has returned."""

    def at_input(self, key: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A module is called."""

    def skips_all_rows(self, key: Any) -> bool:
        """Whether a module's next call need not be computed at all."""

    def skipped(self, key: Any, output: Any) -> Any:
        """What a module returns when rows of its call are skipped."""

    def new_step(self) -> None:
        """The model begins another step."""

    def end_steps(self) -> None:
        """No step follows."""

    def end(self) -> None:
        """The traced call has returned."""

    def close(self) -> None:
        """The pass is over."""
