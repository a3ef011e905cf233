"""How a watcher tells that a block wrote what stood at a site, without keeping a copy of it.

before = Before(value)             # when the block is given it
before.was_changed(value)          # when the block goes on: edited in place, or replaced
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch

Leaf = tuple[Any, ...]
"""Where a tensor is in nested tuples, lists and dicts: the keys that lead to it."""


class Before:
    """The tensors of a value, and what tells later whether they were written."""

    __slots__ = ("tensors", "versions")

    def __init__(self, value: Any) -> None:
        self.tensors = dict(leaves(value))
        self.versions = {leaf: _version(tensor) for leaf, tensor in self.tensors.items()}

    def edited(self, leaf: Leaf, tensor: torch.Tensor) -> bool:
        """Whether the tensor that was there was written in place."""
        version = self.versions[leaf]
        if isinstance(version, torch.Tensor):
            both_nan = (tensor != tensor) & (version != version)
            return not bool(((tensor == version) | both_nan).all())
        return tensor._version != version

    def was_changed(self, value: Any) -> bool:
        """Whether a value is another one now, or was written in place."""
        now = dict(leaves(value))
        return now.keys() != self.tensors.keys() or any(
            tensor is not self.tensors[leaf] or self.edited(leaf, tensor)
            for leaf, tensor in now.items()
        )

    def was_changed_in_place(self) -> bool:
        """Whether any of the tensors that were there was written."""
        return any(self.edited(leaf, tensor) for leaf, tensor in self.tensors.items())


def leaves(value: Any, above: Leaf = ()) -> Iterator[tuple[Leaf, torch.Tensor]]:
    """The tensors in nested tuples, lists and dicts, with the keys that lead to each."""
    if isinstance(value, torch.Tensor):
        yield above, value
    elif isinstance(value, (tuple, list)):
        for index, part in enumerate(value):
            yield from leaves(part, (*above, index))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from leaves(part, (*above, key))


def _version(tensor: torch.Tensor) -> int | torch.Tensor:
    """What tells later whether the tensor was written; inference tensors count no versions."""
    return tensor.detach().clone() if tensor.is_inference() else tensor._version
