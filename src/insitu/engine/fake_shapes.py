"""Operations that run, and whose fake kernel refuses tensors they take; pure.

    made = instead_of(torch.ops.aten._grouped_mm.default)
    made(rows, experts, offs)       # [row, d_out], empty, where torch wants bfloat16 of fakes

torch 2.13 computes grouped products (the experts of Mixtral and its like) in every dtype, and gives
their shape, in `_meta_grouped_mm_common`, for bfloat16 alone.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def instead_of(operation: Callable[..., Any]) -> Callable[..., Tensor] | None:
    """What gives an operation's shape on fake tensors, where torch's own kernel would not."""
    return _OWN.get(operation)


def _grouped_mm(
    one: Tensor,
    other: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """[row, d] or [group, row, d] times [d, column] or [group, d, column].

    Rows of a group are a range of `one`'s where that has two dimensions; where `other` has two as
    well, the groups divide what is summed over; where it alone has, they divide its columns.
    """
    if one.shape[-1] != other.shape[-2]:
        raise RuntimeError(
            f"a grouped product needs one inner size, and got {one.shape[-1]} and {other.shape[-2]}"
        )
    shape = [one.shape[-2], other.shape[-1]]
    if one.dim() == other.dim():
        groups = one.shape[0] if one.dim() == 3 else (0 if offs is None else offs.shape[0])
        shape = [groups, *shape]
    return one.new_empty(shape, dtype=out_dtype or one.dtype)


def _is_all_true(tensor: Tensor) -> Tensor:
    """What torch's own checks ask (`torch._check_tensor_all`); without values they hold."""
    return torch.tensor(True)


_OWN: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten._grouped_mm.default: _grouped_mm,
    torch.ops.aten._is_all_true.default: _is_all_true,
}
