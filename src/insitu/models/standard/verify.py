"""Whether a model is as its family is described: classes, places and widths of this very model.

    verified(model, "transformer", model._module.transformer, FAMILIES["gpt2"])

Nothing runs, and weights may be on `meta`, quantised or adapted. What is compared is what the views
rest on: that each place is there, in every layer; that the classes are those described; and that
the widths of the projections are heads times their width.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from insitu.errors import UnknownModuleError
from insitu.models.standard.dims import Dims, width_in, width_out
from insitu.models.standard.families import BLOCKS, BY_HEAD, Family
from insitu.models.standard.standing import Standing, module_at

_TOLD_MAX = 3


def verified(root: Any, prefix: str, base: nn.Module, family: Family) -> Standing:
    """The description of a model, checked.

    Args:
        root: the wrapped model.
        prefix: the path of the base model in it.
        base: the base model.
        family: what its configuration says it is.

    Raises:
        UnknownModuleError: the model is not as described.
    """
    wrong = list(_wrong_places(base, family))
    dims = None
    if not wrong:
        dims = _dims(base, family)
        wrong = [
            problem
            for layer in _layers(base, family)
            for problem in _wrong_widths(layer, family, dims)
        ]
    if wrong or dims is None:
        raise UnknownModuleError(
            f"the standard names of this {type(root._module).__name__} cannot be given.",
            f"it says that it is of the family {family.name}, and is not as those are: "
            f"{'; '.join(dict.fromkeys(wrong[:_TOLD_MAX]))}.",
            "use its real names, as print(model) shows them, or give further ones by rename=.",
        )
    return Standing(family, dims, dict(_places(root._module, prefix, base, family)))


def _layers(base: nn.Module, family: Family) -> Iterator[nn.Module]:
    for path in dict.fromkeys((family.layers, *family.stacks.values())):
        yield from module_at(base, path) or ()


def _wrong_places(base: nn.Module, family: Family) -> Iterator[str]:
    if module_at(base, family.embed) is None:
        yield f"it has no {family.embed}"
    parts = [
        family.attention, family.attn_out, family.mlp_out, (family.mid or "").rpartition(".")[0],
        *(family.mlp if isinstance(family.mlp, tuple) else (family.mlp,)),
    ]  # fmt: skip
    for layer in _layers(base, family):
        if not _is_called(layer, family.layer_class):
            yield f"its layers are {type(layer).__name__}, not {family.layer_class}"
            return
        for part in parts:
            if part and module_at(layer, part) is None:
                yield f"a {family.layer_class} has no {part}"
        for attention in _attentions(layer, family):
            if not _is_called(attention, family.attention_class):
                yield f"its attention is {type(attention).__name__}, not {family.attention_class}"
                return


def _is_called(module: nn.Module, name: str) -> bool:
    """Whether a module is of a class of that name, or of one made from it."""
    return any(kind.__name__ == name for kind in type(module).__mro__)


def _attentions(layer: nn.Module, family: Family) -> Iterator[nn.Module]:
    for path in (family.attention, family.cross_attention):
        found = module_at(layer, path) if path is not None else None
        if found is not None:
            yield found


def _wrong_widths(layer: nn.Module, family: Family, dims: Dims) -> Iterator[str]:
    maps = family.projections
    if maps is None:
        return
    queries, keys = dims.n_heads * dims.d_head, dims.n_kv_heads * dims.d_head
    for attention in _attentions(layer, family):
        if maps.layout in (BLOCKS, BY_HEAD):
            wanted = {maps.q: queries + 2 * keys}
        else:
            wanted = {maps.q: queries, maps.k: keys, maps.v: keys}
        for path, width in (*wanted.items(), (maps.out, dims.d_model)):
            projection = module_at(attention, path)
            if projection is None:
                yield f"a {family.attention_class} has no {path}"
            elif width_out(projection) != width:
                yield f"{path} gives {width_out(projection)} numbers, not {width}"
        out = module_at(attention, maps.out)
        if out is not None and width_in(out) != queries:
            yield f"{maps.out} takes {width_in(out)} numbers, not {queries}"


def _dims(base: nn.Module, family: Family) -> Dims:
    config: Any = base.config
    layers = module_at(base, family.layers)
    d_model = int(config.hidden_size)
    vocabulary = module_at(base, family.embed).num_embeddings
    if family.projections is None or family.attention is None:
        return Dims(len(layers), 0, 0, d_model, 0, vocabulary)
    heads = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or heads)
    out = module_at(module_at(layers[0], family.attention), family.projections.out)
    d_head = width_in(out) // heads if out is not None else d_model // heads
    return Dims(len(layers), heads, keys, d_model, d_head, vocabulary)


def _places(
    root: nn.Module, prefix: str, base: nn.Module, family: Family
) -> Iterator[tuple[str, str]]:
    """The path of each standard name at the root, where the model has the module."""
    inside = {"layers": family.layers, "embed": family.embed, **family.stacks}
    if family.final_norm is not None:
        inside["final_norm"] = family.final_norm
    for name, path in inside.items():
        if module_at(base, path) is not None:
            yield name, ".".join(filter(None, (prefix, path)))
    around = prefix
    while True:  # the head is beside the base, or the base is a part of what the head is beside
        if module_at(root, ".".join(filter(None, (around, family.unembed)))) is not None:
            yield "unembed", ".".join(filter(None, (around, family.unembed)))
            return
        if not around:
            return
        around = around.rpartition(".")[0]
