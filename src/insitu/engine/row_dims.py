"""In which dimension of a call's arguments its rows are, where that is not the first.

RowDims(1).of((0,), torch.rand(6, 2, 4))                 # 1: time, batch, feature
RowDims(0, {"hx": 1}, ("input", "hx")).of((1, 0), h0)    # 1: the second argument is hx
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class RowDims:
    """Says it of every tensor that a call is given; one with fewer dimensions has them in its last.

    Args:
        usual: the dimension, unless its argument is named.
        named: the dimensions of arguments, by their names.
        positions: the names of arguments that are given by position.
    """

    usual: int = 0
    named: Mapping[str, int] = field(default_factory=dict)
    positions: tuple[str, ...] = ()

    def of(self, path: tuple[Any, ...], tensor: torch.Tensor) -> int:
        """The dimension of one tensor, by where it stands: an argument, and what is within it."""
        dim = self.usual
        if self.named and path:
            first = path[0]
            known = isinstance(first, int) and first < len(self.positions)
            dim = self.named.get(self.positions[first] if known else first, dim)
        return min(dim, max(tensor.dim() - 1, 0)) if dim else 0


FIRST = RowDims()
"""The rows are in the first dimension of all."""
