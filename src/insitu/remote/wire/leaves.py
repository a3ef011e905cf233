"""Values without parts that could be shared: they stand in JSON where they are used.

leaf(float("nan"))      # {"float": "nan"}
leaf(3)                 # 3
"""

import base64
import math
import re
from typing import Any

import torch

from insitu.remote.wire.bounds import refusal
from insitu.remote.wire.tensors import DTYPES

NO_LEAF: Any = object()
"""What `leaf` gives for a value that has a row of its own."""

_PLAIN_INT = 2**63
_LAYOUTS = {
    str(one).removeprefix("torch."): one
    for one in vars(torch).values()
    if isinstance(one, (torch.layout, torch.memory_format))
}
_DEVICE = re.compile(r"[a-z]+(:\d{1,4})?")


def leaf(value: Any) -> Any:
    """A value as JSON, or NO_LEAF."""
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if -_PLAIN_INT <= value < _PLAIN_INT else {"int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if kind is complex:
        return {"complex": [leaf(value.real), leaf(value.imag)]}
    if kind is bytes:
        return {"bytes": base64.b64encode(value).decode("ascii")}
    return _rare(value, kind)


def _rare(value: Any, kind: type) -> Any:
    if value is Ellipsis:
        return {"name": "..."}
    if value is NotImplemented:
        return {"name": "NotImplemented"}
    if kind is range:
        return {"range": [leaf(value.start), leaf(value.stop), leaf(value.step)]}
    if kind is slice:
        parts = [leaf(part) for part in (value.start, value.stop, value.step)]
        return NO_LEAF if NO_LEAF in parts else {"slice": parts}
    if kind is torch.Size:
        return {"size": list(value)}
    if kind is torch.dtype:
        return {"dtype": str(value).removeprefix("torch.")}
    if kind is torch.device:
        return {"device": str(value)}
    if isinstance(value, (torch.layout, torch.memory_format)):
        return {"layout": str(value).removeprefix("torch.")}
    return NO_LEAF


def read_leaf(told: Any) -> Any:
    """The value of a leaf."""
    if not isinstance(told, dict):
        if isinstance(told, list):
            raise refusal("a value in it is a bare JSON array")
        return told
    if len(told) != 1:
        raise refusal(f"it has a value of a kind that is not known ({', '.join(told)[:80]})")
    ((tag, content),) = told.items()
    read = _READERS.get(tag)
    if read is None:
        raise refusal(f"it has a value of a kind that is not known ({tag[:80]})")
    return read(content)


def _float(text: Any) -> float:
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}[text]


def _number(told: Any) -> float:
    found = read_leaf(told)
    if type(found) not in (int, float):
        raise refusal("a part of a complex number in it is no number")
    return float(found)


def _complex(parts: Any) -> complex:
    real, imaginary = parts
    return complex(_number(real), _number(imaginary))


def _size(axes: Any) -> torch.Size:
    if not isinstance(axes, list) or not all(type(axis) is int for axis in axes):
        raise refusal("the axes of a torch.Size in it are no integers")
    return torch.Size(axes)


def _device(text: Any) -> torch.device:
    if not isinstance(text, str) or not _DEVICE.fullmatch(text):
        raise refusal("a device in it has no name that one could have")
    return torch.device(text)


_READERS: dict[str, Any] = {
    "int": lambda text: int(text, 16),
    "float": _float,
    "complex": _complex,
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "name": lambda name: {"...": Ellipsis, "NotImplemented": NotImplemented}[name],
    "range": lambda parts: range(*map(read_leaf, parts)),
    "slice": lambda parts: slice(*map(read_leaf, parts)),
    "size": _size,
    "dtype": DTYPES.__getitem__,
    "device": _device,
    "layout": _LAYOUTS.__getitem__,
}
