"""The value where a pass stands: its tensors, numbers and a picture of one, and an edit of it.

found = parts(run.value)                 # [Part("[0]", tensor), …]
about, buffer = look(found[0].tensor)    # statistics, and the picture as a float32 buffer
edited(found[0].tensor, "value * 2")     # a new value, from the user's own names
replaced(run.value, 0, new)              # the whole value with that tensor in its place
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from insitu.engine.cache.values import leaves, mapped
from insitu.engine.values import describe
from insitu.widgets import main_thread, numbers, tensors
from insitu.widgets.cache_inspector import extremes

PIXELS = 128
"""Across the picture."""
TOLD = 2000
"""Tokens of a text that is told."""
SHOWN = 5
"""Likeliest tokens told."""
FIRST = "argument 0"
_EDIT = "<edit in the stepper>"


@dataclass(frozen=True)
class Part:
    """A tensor in a value, and how it is reached from there."""

    name: str
    tensor: Tensor


def parts(value: Any) -> list[Part]:
    """The tensors of a value, in the order in which `replaced` counts them."""
    return [Part(name, leaf) for name, leaf in _named(value, "") if isinstance(leaf, Tensor)]


def parts_of_call(call: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Part]:
    """The tensors among the arguments of a call."""
    args, kwargs = call
    by_position = [part for n, it in enumerate(args) for part in _named(it, f"argument {n}")]
    by_name = [part for name, it in kwargs.items() for part in _named(it, name)]
    return [Part(n, leaf) for n, leaf in (*by_position, *by_name) if isinstance(leaf, Tensor)]


def _named(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _named(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for index, part in enumerate(value):
            yield from _named(part, f"{name}[{index}]")
    else:
        for index, leaf in enumerate(leaves(value)):
            yield f"{name}.{index}", leaf


def look(tensor: Tensor, at: list[int] | None = None) -> tuple[dict[str, Any], bytes]:
    """What is shown of a tensor: kind, numbers, and its last two dimensions as a picture.

    Args:
        tensor: any.
        at: the place on each dimension before the last two; the first everywhere without it.
    """
    values, note = numbers.plain(tensor)
    flat = values.reshape(1, -1) if values.dim() < 2 else values
    leading = list(flat.shape[:-2])
    chosen = [
        max(min(int(place), size - 1), 0) for size, place in zip(leading, at or [], strict=False)
    ]
    chosen += [0] * (len(leading) - len(chosen))
    for size, place in zip(leading, chosen, strict=True):
        flat = flat[place] if size else flat.reshape(0, *flat.shape[2:])
    small = extremes(flat, PIXELS)
    about = {
        "shape": list(tensor.shape), "kind": describe(tensor), "device": str(tensor.device),
        "numbers": tensors.statistics(tensor), "note": note, "leading": leading, "at": chosen,
        "part": list(flat.shape), "picture": list(small.shape),
    }  # fmt: skip
    return about, numbers.buffer(small)


class Words:
    """What a model's tokenizer makes of a value; it does not keep the model alive."""

    def __init__(self, root: Any) -> None:
        config = getattr(root._module, "config", None)
        config = getattr(config, "get_text_config", lambda: config)()
        self._count = getattr(config, "vocab_size", None)
        self._tokenizer = getattr(root, "tokenizer", None)

    def likeliest(self, tensor: Tensor) -> list[list[Any]]:
        """The likeliest next tokens of a tensor that holds logits, and nothing of others."""
        is_logits = tensor.dim() in (2, 3) and tensor.is_floating_point() and tensor.numel() > 0
        if self._tokenizer is None or not is_logits or tensor.shape[-1] != self._count:
            return []
        chances = tensor[0].reshape(-1, tensor.shape[-1])[-1].detach().float().softmax(-1)
        if bool(chances.isnan().any()):
            return []
        top = chances.topk(min(SHOWN, chances.numel()))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [[str(self._tokenizer.decode([token])), chance] for token, chance in pairs]

    def text(self, tensor: Tensor) -> str:
        """The first row of token ids, as text."""
        if self._tokenizer is None or tensor.dim() != 2 or tensor.dtype is not torch.int64:
            return ""
        return str(self._tokenizer.decode(tensor[0, -TOLD:]))


def edited(value: Tensor, text: str) -> Any:
    """What an expression makes of a value, or a statement that changes `value`.

    It sees the variables of the notebook, `value` and `torch`.
    """
    given = {**main_thread.names_of_the_user(), "torch": torch, "value": value}
    try:
        code = compile(text.strip(), _EDIT, "eval")
    except SyntaxError:
        code = compile(ast.parse(text.strip(), _EDIT), _EDIT, "exec")
        exec(code, given)
        return given["value"]
    return eval(code, given)


def replaced(value: Any, number: int, new: Any) -> Any:
    """A value with one of its tensors, counted as `parts` does, in another's place."""
    if isinstance(value, Tensor):
        return new
    seen = -1

    def leaf(part: Any) -> Any:
        nonlocal seen
        seen += isinstance(part, Tensor)
        return new if isinstance(part, Tensor) and seen == number else part

    return mapped(value, leaf)


def write(site: Any, side: str, value: Any) -> None:
    """Write a value to a site, so that a later failure is told to come from here."""
    exec(compile(f"site.{side} = value", _EDIT, "exec"), {"site": site, "value": value})
