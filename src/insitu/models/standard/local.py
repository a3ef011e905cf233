"""A stream that a layer holds in a local name: replaced there, as a debugger does it.

    residual = hidden_states                    # in the forward of LlamaDecoderLayer
    hidden_states = self.post_attention_layernorm(hidden_states)        # a site
    hidden_states = residual + self.mlp(hidden_states)                  # needs both

What a block gives to the norm reaches the sum by no module. So when all who write at the norm have
had their turn, the names of the layer's frame that hold the old tensor are made to hold the new.
Changing the old tensor in place would do the same to the model, but also to a block that has read
it and means to keep it.
"""

import ctypes
import sys
import weakref
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import nn

from insitu.engine.reachable import frames, self_of
from insitu.engine.running import find
from insitu.errors import WriteError

_waiting: "weakref.WeakKeyDictionary[Any, dict[nn.Module, _Replacement]]" = (
    weakref.WeakKeyDictionary()
)
"""For each pass, what is replaced when a module is entered."""


def replace(layer: Any, node: Any, old: torch.Tensor, new: torch.Tensor) -> None:
    """Let a layer under way go on with what a module of it will be given, in its own names too.

    Args:
        layer: the wrapped layer.
        node: the wrapped module, at whose input the pass stands.
        old: what it was to be given; in an invoke, its own rows of that.
        new: what stands in for it, for the error alone.

    Raises:
        WriteError: the layer's frame holds no such tensor.
    """
    run = find(layer)
    waiting = _waiting.setdefault(run.arming, {})
    found = waiting.get(node._module)
    if found is None:
        found = waiting[node._module] = _Replacement(layer._module)
        run.arming.tap_input(node, found)
    if found.is_due:
        return
    held = [frame for frame in parked(run) if self_of(frame) is layer._module]
    if not any(_names(frame, old) for frame in held):
        raise WriteError(
            f"the stream inside {layer._path} cannot be replaced by {tuple(new.shape)}.",
            f"{type(layer._module).__name__} was to hold it in a name of its forward beside what "
            f"it gives to {node._path}, and does not: it is compiled, or another version.",
            f"edit it in place: {layer._path}.resid_mid[:] = value.",
        )
    found.old = old


class _Replacement:
    """Told of the arguments a module is entered with, after everyone has had a turn."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self.old: torch.Tensor | None = None

    @property
    def is_due(self) -> bool:
        """Whether the stream has been replaced, and the layer's names not yet."""
        return self.old is not None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Put what the module is given into the names that hold what it was to be given."""
        old, self.old = self.old, None
        if old is None:
            return
        new = args[0] if args else next(iter(kwargs.values()))
        for frame in frames(sys._getframe(1)):
            if self_of(frame) is self._layer:
                assign(frame, dict.fromkeys(_names(frame, old), new))


def parked(run: Any) -> Iterator[FrameType]:
    """The frames of a model that waits for the block, the innermost first."""
    coroutine = run.back if run is not run.arming else run.worker
    return frames(getattr(coroutine, "gr_frame", None))


def assign(frame: FrameType, values: dict[str, Any]) -> None:
    """Give local names of a frame that has not ended other values."""
    if not values:
        return
    frame.f_locals.update(values)
    if sys.version_info < (3, 13):  # from then on f_locals is the frame's own (PEP 667)
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))


def _names(frame: FrameType, tensor: torch.Tensor) -> list[str]:
    """The local names that hold a tensor, or the batch that it is rows of."""
    memory = tensor.untyped_storage()._cdata
    return [
        name
        for name, value in frame.f_locals.items()
        if isinstance(value, torch.Tensor)
        and value.shape[1:] == tensor.shape[1:]
        and value.dtype is tensor.dtype
        and value.untyped_storage()._cdata == memory
    ]
