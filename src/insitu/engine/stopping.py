"""What stands in a module's `forward` while a pass can stop there. Abstract; see `arming`.

module.__dict__["forward"] = Stopping((run, module, module.forward))
underneath(module.forward)      # the forward it stands for, below those of all passes
"""

from collections.abc import Callable
from typing import Any

from torch import nn

Forward = Callable[..., Any]


class Stopping(tuple[Any, nn.Module, Forward]):
    """Stands in for a module's forward: `(run, module, forward)`. Abstract.

    A tuple, because making one is what arming a module costs.
    """

    __slots__ = ()

    @property
    def run(self) -> Any:
        """The pass that can stop here."""
        return getattr(self[0], "run", self[0])

    @property
    def __wrapped__(self) -> Forward:
        """What it stands for, so that `inspect.signature` still tells the truth."""
        return self[2]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the module, or one in a file, has the forward alone: no pass runs there."""
        return _itself, (underneath(self),)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called in the forward's place."""
        raise NotImplementedError


class Lease:
    """Whose wrappers these are: of one pass after another, since to make them is what costs."""

    __slots__ = ("run",)

    def __init__(self, run: Any = None) -> None:
        self.run = run if run is not None else OVER


class _Over:
    """Stands for a pass that is over, in a wrapper that is kept or that another's stands upon."""

    cleared = closed = True
    want_output = worker = None


OVER = _Over()


def underneath(forward: Any) -> Any:
    """A forward without what passes have put over it."""
    while isinstance(forward, Stopping):
        forward = forward[2]
    return forward


def _itself(forward: Forward) -> Forward:
    return forward
