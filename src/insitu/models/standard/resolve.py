"""Which family a model is of, and what its parts are called from then on.

    offered(model.layers[3], "resid_mid")       # called when a name is not known

Nothing is looked up before the first standard name is asked for. The description of the family is
then checked against the modules of this very model, and added as further names and views. Names
that the model, or its user, has already are left as they are.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from insitu.engine import names, views
from insitu.errors import InsituError
from insitu.models.standard import lacking
from insitu.models.standard.dims import Dims
from insitu.models.standard.families import Family, family_of
from insitu.models.standard.heads import Gives, Heads
from insitu.models.standard.offer import NAMES
from insitu.models.standard.pattern import Pattern
from insitu.models.standard.residual import Attention, CrossAttention, Ends, Middle, Mlp, Parts
from insitu.models.standard.standing import Standing, module_at
from insitu.models.standard.verify import verified


class Root(views.View):
    """What the whole model has besides modules."""

    @property
    def dims(self) -> Dims:
        """The sizes of the model: `n_layers`, `n_heads`, `n_kv_heads`, `d_model`, …"""
        found: Dims = self._node.__dict__["_standing"].dims
        return found


def offered(node: Any, name: str) -> bool:
    """Whether a name has become known by this.

    Raises:
        UnknownModuleError: this model has nothing that is called so, or is not as described.
    """
    root = node._root
    if "_standing" in root.__dict__:
        lacking.explain(node, name)
        return False
    standing = described(root)
    if standing is None:
        raise lacking.unknown_family(node, name)
    root.__dict__.update(_standing=standing, _names=_named(root, standing))
    if node._child(name) is not None or node._view(name) is not None:
        return True
    lacking.explain(node, name)
    return False


def listed(node: Any) -> list[str]:
    """The standard names that a wrapped module has or could have; nothing is changed."""
    root = node._root
    try:
        standing = described(root)
    except InsituError:
        return []
    if standing is None:
        return []
    return sorted(NAMES.intersection(names.here(node, _named(root, standing))))


def described(root: Any) -> Standing | None:
    """What a wrapped model is, checked; None when its family is not described.

    Raises:
        UnknownModuleError: it is not as its family is described.
    """
    if (known := root.__dict__.get("_standing")) is not None:
        found: Standing = known
        return found
    body = base_of(root._module)
    return None if body is None else verified(root, *body)


def base_of(root: nn.Module) -> tuple[str, nn.Module, Family] | None:
    """The outermost module that a description fits: its path, itself, and the description."""
    for path, module in root.named_modules():
        family = family_of(getattr(module, "config", None))
        if family is not None and module_at(module, family.layers) is not None:
            return path, module, family
    return None


def _named(root: Any, standing: Standing) -> names.Names:
    known: names.Names = root._names
    family = standing.family
    free = {
        ("", name): path
        for name, path in standing.places.items()
        if names.is_free(root, name, known)
    }
    anywhere = dict(known.anywhere)
    for name, real in (
        ("attention", family.attention), ("mlp", family.mlp), ("router", family.router),
        ("cross_attention", family.cross_attention),
    ):  # fmt: skip
        plain = isinstance(real, str) and "." not in real and real != name
        if plain and real not in anywhere.get(name, ()):
            anywhere[name] = (*anywhere.get(name, ()), str(real))
    viewed = dict(known.viewed)
    for kind, view in _views(root, standing):
        if view not in viewed.get(kind, ()):
            viewed[kind] = (*viewed.get(kind, ()), view)
    return replace(known, placed={**free, **known.placed}, anywhere=anywhere, viewed=viewed)


def _views(root: Any, standing: Standing) -> Iterator[tuple[type[nn.Module], type[views.View]]]:
    """The views of each class of modules."""
    family = standing.family
    yield type(root._module), Root
    for place in sorted({standing.places[name] for name in _stacks(standing)}):
        for layer in root._at_path(place)._module:
            for view in _views_of_layer(family):
                yield type(layer), view
            for path in (family.attention, family.cross_attention):
                attention = module_at(layer, path) if path is not None else None
                if attention is not None:
                    has_them = not {"q", "k", "v"} & set(attention._modules)
                    yield type(attention), Heads if has_them else Gives
                    yield type(attention), Pattern


def _stacks(standing: Standing) -> list[str]:
    return [name for name in ("layers", *standing.family.stacks) if name in standing.places]


def _views_of_layer(family: Family) -> Iterator[type[views.View]]:
    yield Ends
    if family.mid is not None:
        yield Middle
    if family.attn_out is not None:
        yield Parts
    if family.attention is not None and "." in family.attention:
        yield Attention
    if family.cross_attention is not None:
        yield CrossAttention
    if isinstance(family.mlp, tuple) or "." in (family.mlp or ""):
        yield Mlp
