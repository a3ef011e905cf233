"""Tensors and arrays as rows: their bytes go beside the JSON, what they are stands in it.

{"tensor": "t0", "parameter": true, "grad": true}
{"array": "t1", "dtype": "<f4", "shape": [3]}
"""

import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from insitu.remote.wire.bounds import refusal
from insitu.remote.wire.tensors import can_go

_DTYPE = re.compile(r"[<>|=]?([biufcSUV]\d{1,6}|[mM]8(\[\d{0,6}[A-Za-z]{1,2}\])?)")

PLAIN: set[type] = {Tensor, nn.Parameter, nn.Buffer}
"""Classes of tensors that are no more than their values."""


def tensor_node(encoder: Any, said: str, value: Tensor) -> dict[str, Any]:
    """The row of a tensor."""
    if (
        type(value) not in PLAIN
        or value.layout is not torch.strided
        or value.is_meta
        or value.is_nested
        or not can_go(value.dtype)
    ):
        raise encoder.refuse(said, value)
    node: dict[str, Any] = {"tensor": encoder.add(value.detach())}
    if isinstance(value, nn.Parameter):
        node["parameter"] = True
    if value.requires_grad:
        node["grad"] = True
    return node


def is_array(value: Any) -> bool:
    """Whether a value is numpy's."""
    return isinstance(value, (np.ndarray, np.generic))


def node(encoder: Any, said: str, value: Any) -> dict[str, Any]:
    """The row of an array, or of a number of numpy's."""
    known = type(value) is np.ndarray or isinstance(value, np.generic)
    if not known or not _DTYPE.fullmatch(value.dtype.str) or value.dtype.names:
        raise encoder.refuse(said, value)
    flat = np.ascontiguousarray(value).reshape(-1)
    if flat.dtype.itemsize == 0 or not flat.size:
        memory = torch.empty(0, dtype=torch.uint8)
    else:
        if not flat.flags.writeable:
            flat = flat.copy()
        memory = torch.from_numpy(flat.view(np.uint8))
    tag = "array" if type(value) is np.ndarray else "scalar"
    return {tag: encoder.add(memory), "dtype": value.dtype.str, "shape": list(value.shape)}


def _tensor(decoder: Any, told: dict[str, Any]) -> Tensor:
    found: Tensor = decoder.take(told["tensor"])
    can_learn = found.is_floating_point() or found.is_complex()
    if told.get("grad") and not can_learn:
        raise refusal(f"a tensor of {found.dtype} in it is said to have a gradient")
    if told.get("parameter"):
        return nn.Parameter(found, requires_grad=bool(told.get("grad")))
    return found.requires_grad_() if told.get("grad") else found


def _array(decoder: Any, told: dict[str, Any]) -> Any:
    text, shape = told["dtype"], told["shape"]
    memory: Tensor = decoder.take(told.get("array", told.get("scalar")))
    axes_are_right = isinstance(shape, list) and all(
        type(axis) is int and 0 <= axis < 2**62 for axis in shape
    )
    if not isinstance(text, str) or not _DTYPE.fullmatch(text) or not axes_are_right:
        raise refusal("the dtype or the shape of an array in it is wrong")
    dtype = np.dtype(text)
    if memory.dtype is not torch.uint8 or math.prod(shape) * dtype.itemsize != memory.numel():
        raise refusal("the bytes of an array in it are too many or too few")
    if dtype.itemsize and memory.numel():
        array = memory.reshape(-1).numpy().view(dtype).reshape(shape)
    else:
        array = np.empty(shape, dtype)
    return array if "array" in told else array[()]


READERS = {"tensor": _tensor, "array": _array, "scalar": _array}
