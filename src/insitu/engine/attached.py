"""Attached modules: the user's own beside the model's, with sites like any other's.

    model.transformer.h[3].sae = SAE()         # or model.attach("sae", SAE(), at="transformer.h.3")
    model.transformer.h[3].sae.encoder         # wrapped, like every module
    del model.transformer.h[3].sae

The wrapper alone knows of them: the user's torch modules, their parameters and their state dict
stay as they are.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from insitu.errors import InputTypeError

Attached = Mapping[str, Mapping[str, nn.Module]]
"""Modules by the path of the one they are beneath, and by their name there."""


def attached(node: Any) -> Mapping[str, nn.Module]:
    """What the user attached to a wrapped module."""
    beneath: Attached = node._root._names.attached
    return beneath.get(key(node), {}) if beneath else {}


def is_attached(node: Any) -> bool:
    """Whether a wrapped module is one that stands beside the model's, or a part of one."""
    while node._parent is not None:
        if node._name in node._parent._extras:
            return True
        node = node._parent
    return False


def key(node: Any) -> str:
    """A wrapped module's path, by which the wrapper keeps what was added to it."""
    return "" if node._parent is None else str(node._path)


def with_attached(before: Attached, node: Any, name: str, module: Any) -> Attached:
    """What is attached when this module is too.

    Raises:
        InputTypeError: it is no module.
    """
    if not isinstance(module, nn.Module):
        raise InputTypeError(
            f"a torch.nn.Module can be attached, not {type(module).__name__}.",
            "an attached module has sites of its own, which are met when it is called.",
            "attach the module itself; a function can be called in the block as it is.",
        )
    at = key(node)
    return {**before, at: {**before.get(at, {}), name: module}}


def without(before: Attached, node: Any, name: str) -> Attached:
    """What is attached when this one is taken away."""
    at = key(node)
    return {**before, at: {n: module for n, module in before[at].items() if n != name}}
