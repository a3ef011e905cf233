"""A model whose weights are still to come: its modules are there, on `meta`, and take no memory.

    model = LanguageModel("demo", dispatch=False)
    with model.scan("Hello"):                   # shapes, without the weights
        width = model.transformer.h[0].output.shape[-1]
    model.dispatch()                            # the weights; a trace would bring them too

The loaded model takes the empty one's place: transformers makes its own modules while it loads
(quantised ones, ones with accelerate's hooks), so nothing is copied from one to the other. What has
been wrapped already is led to the modules of the same names.
"""

from typing import Any

import torch
from torch import nn

from insitu.engine.wrapped import WrappedModule
from insitu.models.loading import Checkpoint

_LEARNED = ("_kind", "_positions", "_about")
"""What a wrapper has found out about its module, and finds out anew."""


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


def lead_to(root: Any, module: nn.Module) -> None:
    """Let a wrapper stand for another module of the same names, and all it has wrapped too.

    Its edits, further names, views and attached modules stay.
    """
    own = root.__dict__
    own["_module"] = own["_whole"] = module
    own["_orders"].clear()
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
