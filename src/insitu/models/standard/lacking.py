"""Why a model has nothing that a standard name could stand for, and what to do instead."""

from typing import Any

from torch import nn

from insitu.errors import UnknownModuleError
from insitu.models.standard.families import KNOWN
from insitu.models.standard.offer import AT_ATTENTION, AT_LAYER, AT_MLP, AT_ROOT
from insitu.models.standard.standing import Standing, module_at, standing

_INSTEAD = {
    "resid_mid": "read resid_pre or resid_post, or what the parts add: attn_out, mlp_out",
    "attention": "use its mixer: {path}.mixer",
    "attn_out": "read what the mixer adds: {path}.mixer.output",
    "mlp": "use its mixer: {path}.mixer",
    "mlp_out": "read what the mixer adds: {path}.mixer.output",
    "final_norm": "read what the last layer gives: model.layers[-1].resid_post",
    "unembed": "wrap the model with its head, such as AutoModelForCausalLM gives",
    "cross_attention": "ask a layer of a decoder that reads an encoder",
    "router": "only layers with a mixture of experts have one",
}


def explain(node: Any, name: str) -> None:
    """Raise if a name belongs to such a place of a model, and this one has nothing for it.

    Raises:
        UnknownModuleError: with the architecture's reason.
    """
    known = standing(node)
    if name not in _belonging(node, known):
        return
    told = known.family.lacks.get(name)
    if told is None:
        told = f"{type(node._module).__name__} has nothing that does this"
    kind = type(node._root._module).__name__
    instead = _INSTEAD.get(name, "print(model) shows what there is").format(path=node._path)
    raise UnknownModuleError(
        f"{node._path} of this {kind} has no {name}.",
        f"{known.family.name}: {told}.",
        f"{instead}.",
    )


def _belonging(node: Any, known: Standing) -> frozenset[str]:
    """The standard names that a wrapped module would have in a family with everything."""
    if node._parent is None:
        return AT_ROOT
    module, family = node._module, known.family
    places = (known.places[name] for name in ("layers", *family.stacks) if name in known.places)
    layers = [layer for place in places for layer in node._root._at_path(place)._module]
    if any(module is layer for layer in layers):
        return AT_LAYER
    for layer in layers:
        for path in (family.attention, family.cross_attention):
            if path is not None and module_at(layer, path) is module:
                return AT_ATTENTION
        if isinstance(family.mlp, str) and module_at(layer, family.mlp) is module:
            return AT_MLP
    return frozenset()


def unknown_family(node: Any, name: str) -> UnknownModuleError:
    """The error for a standard name in a model whose family is not described."""
    root = node._root._module
    kind = getattr(getattr(root, "config", None), "model_type", None) or type(root).__name__
    layers = _longest_list(root)
    further = f'{{"{layers}": "layers"}}' if layers else '{"path.of.the.layers": "layers"}'
    return UnknownModuleError(
        f"{node._path} has no {name}: the family {kind!r} has no standard names yet.",
        f"its layers, embed, final_norm, unembed, attention, mlp and their values are described "
        f"for {', '.join(KNOWN)}.",
        f"use the real names, or give further ones: model.rename({further}), views= for values.",
    )


def _longest_list(root: nn.Module) -> str:
    """The path of the longest list of modules: the layers, most likely."""
    lists = {path: m for path, m in root.named_modules() if isinstance(m, nn.ModuleList) and path}
    return max(lists, key=lambda path: len(lists[path]), default="")
