"""Whether a value fits the place it is written to.

mismatch(torch.zeros(1, 5), torch.zeros(1, 4))   # "shape (1, 5), not (1, 4)"
"""

import re
from dataclasses import dataclass
from typing import Any

import torch

from insitu.errors import WriteError


@dataclass(frozen=True)
class Forced:
    """A value to be written as it is."""

    value: Any


def force(value: Any) -> Forced:
    """Write a value whose shape, dtype or device differs from what the module produced.

        with model.trace(x):
            model.encoder.output = insitu.force(shorter)

    The model goes on with it as it is; an error it causes there is the model's own.
    """
    return Forced(value)


def mismatch(new: Any, old: Any) -> str | None:
    """In what `new` differs from `old`; None when the model can go on with it as well."""
    if isinstance(old, torch.Tensor):
        return _tensor_mismatch(new, old)
    if isinstance(old, (tuple, list)):
        if not isinstance(new, (tuple, list)):
            return f"{describe(new)}, not {describe(old)}"
        if len(new) != len(old):
            return f"{len(new)} parts, not {len(old)}"
        return _first(zip(map(str, range(len(old))), new, old, strict=True))
    if isinstance(old, dict):
        if not isinstance(new, dict):
            return f"{describe(new)}, not {describe(old)}"
        if missing := old.keys() - new.keys():
            return f"no {', '.join(sorted(map(str, missing)))}"
        return _first((str(key), new[key], old[key]) for key in old)
    return None


def fit(value: Any, old: Any, node: Any, site: str) -> Any:
    """The value to go on with, checked against what it replaces.

    Raises:
        WriteError: it differs in structure, shape, dtype or device and was not forced.
    """
    if isinstance(value, Forced):
        value = value.value
    elif problem := mismatch(value, old):
        name = f"{node._path}.{site}"
        raise WriteError(
            f"the value written to {name} does not fit: {problem}.",
            "the model goes on with it, and what follows expects what was there.",
            f"{_remedy(value, old)}, or force it: {name} = insitu.force(value).",
        )
    if value is None and old is not None:
        raise WriteError(
            f"None cannot be written to {node._path}.{site}.",
            "torch reads None from a hook as 'leave it as it is'.",
            "write zeros (torch.zeros_like), or module.skip(value) to replace the call.",
        )
    return value


def _first(parts: Any) -> str | None:
    for name, new, old in parts:
        if problem := mismatch(new, old):
            return f"part {name}: {problem}"
    return None


def _tensor_mismatch(new: Any, old: torch.Tensor) -> str | None:
    if not isinstance(new, torch.Tensor):
        return f"{describe(new)}, not {describe(old)}"
    if new.shape != old.shape:
        return f"shape {tuple(new.shape)}, not {tuple(old.shape)}"
    if new.dtype is not old.dtype:
        return f"dtype {_short(new.dtype)}, not {_short(old.dtype)}"
    if new.device != old.device:
        return f"device {new.device}, not {old.device}"
    return None


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _remedy(new: Any, old: Any) -> str:
    """The expression that would make `new` fit `old`, where there is one."""
    if isinstance(new, torch.Tensor) and isinstance(old, torch.Tensor) and new.shape == old.shape:
        if new.device != old.device:
            return f"write value.to({str(old.device)!r})"
        return f"write value.to({old.dtype})"
    return f"write a value like {describe(old)}"


def same_kind(value: Any, described: str) -> bool:
    """Whether a value has the structure and the dimensions of one described before.

    Sizes and dtypes may have changed since (a cast model, autocast), and what was None may be there
    (`output_attentions=True`).
    """
    new, old = _kinds(describe(value)), _kinds(described)
    return len(new) == len(old) and all(
        one == other or "NoneType" in (one, other) for one, other in zip(new, old, strict=True)
    )


def _kinds(described: str) -> list[str]:
    """The parts of a description, with `n` for each size and no dtypes."""
    plain = re.sub(r"[a-z]+[a-z0-9_]*\[", "[", re.sub(r"(?<![a-z_])\d+", "n", described))
    return re.findall(r"\[[^\[\]]*\]|\w+|…|[()\[\]]", plain)


def describe(value: Any) -> str:
    """A value's kind in a few characters: `float32[1, 8, 96]`, `(float32[1, 8], None)`."""
    if isinstance(value, torch.Tensor):
        shape = ", ".join(map(str, value.shape))
        return f"{str(value.dtype).removeprefix('torch.')}[{shape}]"
    if isinstance(value, (tuple, list)):
        inner = ", ".join(map(describe, value[:4])) + (", …" if len(value) > 4 else "")
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    return type(value).__name__
