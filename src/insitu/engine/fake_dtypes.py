"""Operations whose tensors must be of one dtype, which fake tensors alone do not check.

    check(torch.ops.aten.mm.default, (torch.rand(3, 4), torch.rand(4, 5).double()))
    # RuntimeError: mm needs its tensors to be of one dtype, and got float32 and float64

torch checks these where it computes, and nothing is computed on fake tensors (torch 2.13).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_PLACES: dict[Any, tuple[int, ...]] = {
    _aten.mm.default: (0, 1),
    _aten.mv.default: (0, 1),
    _aten.addmm.default: (0, 1, 2),
    _aten.addmv.default: (0, 1, 2),
    _aten.linear.default: (0, 1, 2),
    _aten.matmul.default: (0, 1),
    _aten.convolution.default: (0, 1, 2),
    _aten.index_put.default: (0, 2),
    _aten.index_put_.default: (0, 2),
}
"""By the operation: which of its arguments have to agree."""


def check(operation: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Raise what torch would raise for tensors of different dtypes."""
    places = _PLACES.get(operation)
    if places is None:
        return
    given = [args[place] for place in places if place < len(args)]
    dtypes = dict.fromkeys(value.dtype for value in given if isinstance(value, Tensor))
    if len(dtypes) > 1:
        names = " and ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        name = getattr(operation, "__name__", "").partition(".")[0]
        raise RuntimeError(f"{name} needs its tensors to be of one dtype, and got {names}")
