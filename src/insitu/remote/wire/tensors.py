"""Tensors as bytes, and back: what safetensors has a name for, and what it has none for.

A dtype that the older versions of safetensors do not know (complex, most kinds of fp8) goes as
bytes, `U8` with one axis more, and its own name stands in `__metadata__`. So any reader of
safetensors reads the whole.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from insitu.remote.wire.bounds import Inflated, refusal
from insitu.remote.wire.pieces import ALIGNED_BYTES, SMALL_BYTES

CODES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "U16": torch.uint16, "I32": torch.int32, "U32": torch.uint32, "I64": torch.int64,
    "U64": torch.uint64, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32,
    "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
DTYPES = {
    str(one).removeprefix("torch."): one
    for one in vars(torch).values()
    if isinstance(one, torch.dtype)
}
"""Every dtype of torch by its name."""
BY_BYTES = {
    str(one).removeprefix("torch."): one
    for one in DTYPES.values()
    if str(one).startswith(("torch.float8_", "torch.complex", "torch.float4_"))
    and one not in CODES.values()
}
"""Those that go as bytes."""

_CODE_OF = {dtype: code for code, dtype in CODES.items()}
_AXES = 64
_LARGEST = 2**62


@dataclass(frozen=True)
class Plan:
    """How one tensor lies in a container."""

    name: str
    code: str
    shape: list[int]
    """As safetensors has it."""
    size_bytes: int
    own: str = ""
    """The dtype, where safetensors has no name for it."""


def can_go(dtype: torch.dtype) -> bool:
    """Whether tensors of a dtype can be sent."""
    return dtype in _CODE_OF or dtype in BY_BYTES.values()


def described(tensors: Mapping[str, Tensor]) -> list[Plan]:
    """How tensors will lie, in their order."""
    return [_plan(name, tensor) for name, tensor in tensors.items()]


def _plan(name: str, tensor: Tensor) -> Plan:
    shape = list(tensor.shape)
    size_bytes = tensor.numel() * tensor.dtype.itemsize
    if tensor.dtype in _CODE_OF:
        return Plan(name, _CODE_OF[tensor.dtype], shape, size_bytes)
    own = str(tensor.dtype).removeprefix("torch.")
    return Plan(name, "U8", [*shape, tensor.dtype.itemsize], size_bytes, own)


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes in memory, copied only where it is not on the CPU or not contiguous."""
    plain = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous().reshape(-1)
    if not plain.numel():
        return memoryview(b"")
    return plain.view(torch.uint8).numpy().data


def planned(listed: Any) -> list[Plan]:
    """How tensors lie, from the header of safetensors: side by side from 0 on, without a gap.

    Raises:
        WireError: anything else.
    """
    if not isinstance(listed, dict):
        raise refusal("its list of tensors is no JSON object")
    own = listed.pop("__metadata__", {})
    if not isinstance(own, dict) or not all(isinstance(kind, str) for kind in own.values()):
        raise refusal("the metadata of its tensors is no JSON object of texts")
    found, end = [], 0
    for start, plan in sorted(
        (_checked(name, facts, own.get(name, "")) for name, facts in listed.items()),
        key=lambda one: (one[0], one[1].size_bytes),
    ):
        if start != end:
            raise refusal(f"tensor {plan.name[:80]!r} does not begin where the one before ends")
        end = start + plan.size_bytes
        found.append(plan)
    return found


def _checked(name: str, facts: Any, own: str) -> tuple[int, Plan]:
    try:
        code, shape, (start, end) = facts["dtype"], facts["shape"], facts["data_offsets"]
        axes_are_right = (
            isinstance(shape, list)
            and len(shape) <= _AXES
            and all(type(axis) is int and 0 <= axis < _LARGEST for axis in shape)
            and math.prod(axis or 1 for axis in shape) < _LARGEST
        )
        if not axes_are_right or type(start) is not int or type(end) is not int or start < 0:
            raise ValueError
        if own and (code != "U8" or not shape or BY_BYTES[own].itemsize != shape[-1]):
            raise ValueError
        if end - start != math.prod(shape) * CODES[code].itemsize:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise refusal(f"the place, shape or dtype of tensor {name[:80]!r} is wrong") from None
    return start, Plan(name, code, shape, end - start, own)


def made(plan: Plan, reader: Inflated) -> Tensor:
    """A tensor, its bytes where they are or read straight into its memory."""
    shape = plan.shape[:-1] if plan.own else plan.shape
    dtype = BY_BYTES[plan.own] if plan.own else CODES[plan.code]
    try:
        return _memory(plan.size_bytes, reader).view(dtype).reshape(shape)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise refusal(f"tensor {plan.name[:80]!r} cannot be made ({_first(error)})") from None


def _memory(size_bytes: int, reader: Inflated) -> Tensor:
    if size_bytes > SMALL_BYTES and (found := reader.in_place(size_bytes)) is not None:
        memory = torch.frombuffer(found, dtype=torch.uint8)
        return memory if memory.data_ptr() % ALIGNED_BYTES == 0 else memory.clone()
    memory = torch.empty(size_bytes, dtype=torch.uint8)
    if size_bytes:
        reader.into(memory.numpy().data, "tensors")
    return memory


def _first(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
