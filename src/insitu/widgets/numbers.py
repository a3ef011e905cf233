"""Tensors on their way to a view: plain float32 buffers, whatever they were.

    values, note = numbers.plain(tensor)       # float32 on the CPU; what was done to them, in words
    values, note = numbers.real(tensor)        # the same, but float64 where that tells more
    numbers.buffer(values)                     # bytes, little end first

bfloat16 and integers are widened, booleans become 0 and 1, of a complex number the size is shown.
NaN and infinities stay as they are: the view draws them as what they are.
"""

import sys
from dataclasses import replace
from typing import Any

import torch

from insitu.errors import InputTypeError
from insitu.methods.result import Result

_WIDE = (torch.float64, torch.int64)


def plain(given: Any) -> tuple[torch.Tensor, str]:
    """A float32 tensor on the CPU, and what was changed to make it one."""
    values, note = real(given)
    return values.to(torch.float32), note


def real(given: Any) -> tuple[torch.Tensor, str]:
    """A tensor on the CPU, float64 of what float32 cannot hold, and what was changed.

    Raises:
        InputTypeError: it has a shape and no numbers.
    """
    tensor = torch.as_tensor(given).detach()
    if tensor.is_meta:
        raise InputTypeError(
            "this tensor has no numbers to show.",
            f"it is on the device meta, of shape {list(tensor.shape)}.",
            "show it from a run, not from a scan.",
        )
    note = ""
    if tensor.is_complex():
        tensor, note = tensor.abs(), "sizes of complex numbers"
    elif tensor.dtype is torch.bool:
        note = "0 for False, 1 for True"
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return tensor.to("cpu", torch.float64 if tensor.dtype in _WIDE else torch.float32), note


def shown(result: Result) -> Result:
    """A result of real numbers: of complex ones the sizes, of booleans 0 and 1."""
    if result.values.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return result
    return replace(result, values=plain(result.values)[0])


def buffer(values: torch.Tensor) -> bytes:
    """The numbers of a float32 tensor, row after row, little end first."""
    array = values.contiguous().numpy()
    return bytes((array if sys.byteorder == "little" else array.byteswap()).tobytes())
