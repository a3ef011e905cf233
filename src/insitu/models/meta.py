"""A model whose weights are still to come: its modules are there, on `meta`, and take no memory.

    model = LanguageModel("demo", dispatch=False)
    with model.scan("Hello"):                   # shapes, without the weights
        width = model.transformer.h[0].output.shape[-1]
    model.dispatch()                            # the weights; a trace would bring them too

The loaded model takes the empty one's place: transformers makes its own modules while it loads
(quantised ones, ones with accelerate's hooks), so nothing is copied from one to the other. What has
been wrapped already is led to the modules of the same names. A part of a pipeline is filled where
it stands instead: a pass may be in the midst of it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError
from insitu.models.loading import Checkpoint

_LEARNED = ("_kind", "_positions", "_about")
"""What a wrapper has found out about its module, and finds out anew."""
STORES = ("_parameters", "_buffers")
"""Where a module holds its tensors."""


def empty(checkpoint: Checkpoint) -> nn.Module:
    """The modules of a checkpoint on `meta`, made from its config alone."""
    kind, config = checkpoint.kind, checkpoint.config
    settings = {name: checkpoint.settings[name] for name in ("attn_implementation", "dtype")
                if checkpoint.settings.get(name) not in (None, "auto")}  # fmt: skip
    make = getattr(kind, "_from_config", None)
    if make is None:  # an Auto class
        make = kind.from_config
        settings["trust_remote_code"] = checkpoint.settings.get("trust_remote_code")
    with torch.device("meta"):
        module: nn.Module = make(config, **settings).eval()
    return module


def fill(name: str, empty: nn.Module, loaded: nn.Module) -> None:
    """Give modules on `meta` the tensors of loaded ones, all or none; they stay what they are.

    Args:
        name: what is filled, for the error.
        empty: whether a weight takes a gradient is taken from here.
        loaded: modules of the same names; of no use afterwards.

    Raises:
        UsageError: they are not of the same names.
    """
    theirs = dict(loaded.named_modules(remove_duplicate=False))
    ours = dict(empty.named_modules(remove_duplicate=False))
    if differing := sorted(_held(theirs) ^ _held(ours)):
        raise UsageError(
            f"the weights of {name} do not belong to its modules.",
            f"they were made from its config, and {differing[0]} is not on both sides: the "
            "component was changed before its weights were read, or its files are of another.",
            "open the pipeline without dispatch=False, or change it after model.dispatch().",
        )
    for path, module in ours.items():
        other = theirs[path].__dict__
        for store in STORES:
            before: dict[str, Any] = module.__dict__[store]
            for key, tensor in other[store].items():
                if isinstance(tensor, nn.Parameter) and tensor.is_floating_point():
                    tensor.requires_grad_(dict.__getitem__(before, key).requires_grad)
            before.update(other[store])  # who is just looking one up finds it there
            module.__dict__[store] = dict(other[store])
        for key, value in other.items():
            if key not in STORES and any(isinstance(one, Tensor) for one in tree_leaves(value)):
                module.__dict__[key] = value


def _held(modules: dict[str, nn.Module]) -> set[str]:
    """The paths of all tensors, and of the modules that have none."""
    return {
        f"{path}.{key}".strip(".")
        for path, module in modules.items()
        for key in ("", *(key for key, value in _tensors(module) if value is not None))
    }


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    for store in STORES:
        yield from module.__dict__[store].items()


def lead_to(root: Any, module: nn.Module) -> None:
    """Let a wrapper stand for another module of the same names, and all it has wrapped too.

    Its edits, further names, views and attached modules stay.
    """
    own = root.__dict__
    own["_module"] = own["_whole"] = module
    own["_orders"].clear()
    own["_seen"].clear()
    own["_batched"].clear()
    own["_sizes"] = None
    for name in _LEARNED:
        own.pop(name, None)
    _lead_children(root, module)


def _lead_children(node: WrappedModule, whole: nn.Module) -> None:
    for key, child in tuple(node._children.items()):
        module = node._submodule(child._name)
        if module is None:
            del node._children[key]
            node.__dict__.pop(str(key), None)
            continue
        place = (node._module, node._module._modules, child._name)
        child.__dict__.update(_module=module, _whole=whole, _place=place)
        _lead_children(child, whole)
