"""Where a model in the device process can stop: a wrapper around every forward, put in for good.

    room = Room(model)                          # every module's `forward` is a Stop from now on
    room.enters, room.exits                     # which of them speak to the job of the moment

Arming is two sets, so that a job which is killed leaves nothing behind in any module. A call that
nobody wants to hear of costs 0.2 µs more.
"""

import itertools
from collections.abc import Callable, Container
from typing import Any, Protocol

import torch
from torch import nn

NOBODY: frozenset[int] = frozenset()


class Abandoned(BaseException):
    """The job has given up the call that runs, or is gone; nothing of the model's catches it."""


class Everyone:
    """Every number: once a job is gone, the next call of any module ends its pass."""

    def __contains__(self, number: object) -> bool:
        return True


class Heard(Protocol):
    """Who is told of the calls: the conversation with a job."""

    def call(self, number: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A module in `enters` is called."""

    def left(self, number: int, args: Any, kwargs: Any, output: Any) -> Any:
        """A module in `exits` has returned."""


class Room:
    """A model, its modules by number, and who listens."""

    def __init__(self, root: nn.Module) -> None:
        named = dict(root.named_modules())
        self.root = root
        self.paths = list(named)
        self.modules = list(named.values())
        self.forwards = [module.forward for module in self.modules]
        self.device = _device(root) or torch.device("cpu")
        self.devices = [_device(module) or self.device for module in self.modules]
        self.enters: Container[int] = NOBODY
        self.exits: Container[int] = NOBODY
        self.gives: Container[int] = NOBODY
        """Whose arguments are told with their values."""
        self.heard: Heard | None = None
        for number, module in enumerate(self.modules):
            module.__dict__["forward"] = Stop((self, number, module.forward))

    def empty(self) -> None:
        """Nobody listens any more."""
        self.enters = self.exits = self.gives = NOBODY
        self.heard = None


class Stop(tuple[Room, int, Callable[..., Any]]):
    """Stands in for a module's forward: `(room, number, forward)`."""

    __slots__ = ()

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """What it stands for, so that `inspect.signature` still tells the truth."""
        return self[2]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward, and tell whoever listens."""
        room, number, forward = self
        if number in room.enters:
            assert room.heard is not None
            return room.heard.call(number, forward, args, kwargs)
        output = forward(*args, **kwargs)
        if number in room.exits:
            assert room.heard is not None
            return room.heard.left(number, args, kwargs, output)
        return output


def _device(module: nn.Module) -> torch.device | None:
    """Where a module expects what it is called with, if its tensors tell."""
    first = next(itertools.chain(module.parameters(), module.buffers()), None)
    return None if first is None else first.device
