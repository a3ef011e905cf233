"""Tensors on their way to a view: plain float32 buffers, whatever they were.

    values, note = numbers.plain(tensor)       # float32 on the CPU; what was done to them, in words
    numbers.buffer(values)                     # bytes, little end first

bfloat16 and integers are widened, booleans become 0 and 1, of a complex number the size is shown.
NaN and infinities stay as they are: the view draws them as what they are.
"""

import sys
from typing import Any

import torch


def plain(given: Any) -> tuple[torch.Tensor, str]:
    """A float32 tensor on the CPU, and what was changed to make it one."""
    tensor = torch.as_tensor(given).detach()
    note = ""
    if tensor.is_complex():
        tensor, note = tensor.abs(), "sizes of complex numbers"
    elif tensor.dtype is torch.bool:
        note = "0 for False, 1 for True"
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    return tensor.to("cpu", torch.float32), note


def buffer(values: torch.Tensor) -> bytes:
    """The numbers of a float32 tensor, row after row, little end first."""
    array = values.contiguous().numpy()
    return bytes((array if sys.byteorder == "little" else array.byteswap()).tobytes())
