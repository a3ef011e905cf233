"""Module paths, and patterns that name several: `*` is one name, `**` any number of them.

    chosen(root, [model.lm_head, "transformer.h.*.mlp"])    # {"model.lm_head": node, …}

A cache's keys are paths with `model.` before them; they are found with and without it.
"""

import functools
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from insitu.engine import paths
from insitu.engine.opaque import is_opaque
from insitu.engine.stopping import Stopping
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UnknownModuleError, UsageError

_WILD = re.compile(r"(\*\*\.|\*\*|\*|\?|\[[^\]]*\])")
_AS_REGEX = {"**.": r"(?:[^.]+\.)*", "**": r".*", "*": r"[^.]+", "?": r"[^.]"}


def is_pattern(text: str) -> bool:
    """Whether a text names several modules rather than one."""
    return _WILD.search(text) is not None


def key(path: str) -> str:
    """A module's key in a cache; the root's path is empty."""
    return f"model.{path}" if path else "model"


def resolved(text: str, keys: Collection[str]) -> str | None:
    """The key that a text names, written with `model.` or without; None when there is none."""
    return next((form for form in (text, key(text)) if form in keys), None)


def matching(pattern: str, keys: Iterable[str]) -> list[str]:
    """The keys a pattern names, in their order: with `model.` if so written, or else without."""
    fits, keys = _compiled(pattern).fullmatch, list(keys)
    full = [one for one in keys if fits(one)] if pattern.startswith("model.") else []
    return full or [one for one in keys if fits(one.removeprefix("model").removeprefix("."))]


def chosen(root: WrappedModule, wanted: Any = None) -> dict[str, WrappedModule]:
    """The modules to cache by key, in the order of the tree; all that can run when none is named.

    Args:
        root: the wrapped model.
        wanted: a wrapped module, a module, a path or pattern, or a list of those.

    Raises:
        UnknownModuleError: a path or pattern names nothing in this model.
    """
    nodes: dict[str, WrappedModule] = {}
    if wanted is None:
        _add_all(nodes, root, "model")
        return nodes
    tree = {key(path): module for path, module in walk(root._module)}
    for one in _flat(wanted):
        nodes.update(_named(root, one, tree))
    place = {one: index for index, one in enumerate(tree)}
    return dict(sorted(nodes.items(), key=lambda item: place.get(item[0], len(place))))


def walk(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """A module and all below it with their paths; one that stands in two places comes twice."""
    yield path, module
    if is_opaque(module):
        return
    for name, child in module._modules.items():
        if child is not None:
            yield from walk(child, f"{path}.{name}" if path else name)


def runs(module: nn.Module) -> bool:
    """Whether a module has a forward; a list of modules has none."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    if type(module).forward is not nn.Module.forward:
        return True
    own = module.__dict__.get("forward")
    while isinstance(own, Stopping):
        own = own.__wrapped__
    return getattr(own, "__func__", own) not in (None, nn.Module.forward)


def _add_all(nodes: dict[str, WrappedModule], node: WrappedModule, path: str) -> None:
    """Add a module and all below it; 1 µs each, since a cache of all modules begins with this."""
    module, known = node._module, node._children
    if runs(module):
        nodes[path] = node
    if is_opaque(module):
        return
    for name, child in module._modules.items():
        if child is None:
            continue
        found = known.get(name)
        if found is None or found._module is not child:
            found = node._child(name)
        if found is not None:
            _add_all(nodes, found, f"{path}.{name}")


def _flat(wanted: Any) -> Iterator[Any]:
    if isinstance(wanted, (str, WrappedModule, nn.Module)):
        yield wanted
    elif isinstance(wanted, Iterable):
        for part in wanted:
            yield from _flat(part)
    else:
        raise UsageError(
            f"modules={wanted!r} names no modules.",
            f"{type(wanted).__name__} is neither a module nor a path or pattern of paths.",
            'write modules=[model.transformer.h[0], "transformer.h.*.mlp"].',
        )


def _named(root: WrappedModule, one: Any, tree: dict[str, nn.Module]) -> dict[str, WrappedModule]:
    """The modules that one word of a user's names; a list of modules stands for its parts."""
    if isinstance(one, str) and is_pattern(one):
        found = matching(one, tree)
        if not found:
            raise _matches_nothing(root, one, list(tree))
        return {each: _node(root, each) for each in found if runs(tree[each])}
    if isinstance(one, str):
        return _with_parts(_at(root, one, tree))
    if isinstance(one, WrappedModule) and one._root is root:
        return _with_parts(one)
    module = one._module if isinstance(one, WrappedModule) else one
    places = [each for each, there in tree.items() if there is module]
    if not places:
        raise UnknownModuleError(
            f"{type(module).__name__} was to be cached, but is no part of this model.",
            f"it was not found among the modules of {type(root._module).__name__}.",
            "name modules of the model that is traced: modules=[model.transformer.h[0]].",
        )
    return {key: node for each in places for key, node in _with_parts(_node(root, each)).items()}


def _at(root: WrappedModule, text: str, tree: dict[str, nn.Module]) -> WrappedModule:
    found = resolved(text, tree)
    if found is not None:
        return _node(root, found)
    bare = text.removeprefix("model.")
    is_ours = bare.partition(".")[0] in root._extras
    return root._at_path(bare if is_ours or root._child("model") is None else text)


def _node(root: WrappedModule, found: str) -> WrappedModule:
    return root if found == "model" else root._at_path(found.removeprefix("model."))


def _with_parts(node: WrappedModule) -> dict[str, WrappedModule]:
    if runs(node._module):
        return {"model" if node._parent is None else key(node._path): node}
    return {found: each for part in node for found, each in _with_parts(part).items()}


def _matches_nothing(root: WrappedModule, pattern: str, keys: list[str]) -> UnknownModuleError:
    bare = pattern.removeprefix("model.").lstrip("*.")
    shapes = dict.fromkeys(folded(one).removeprefix("model.") for one in keys)
    close = [f"**.{bare}"] if matching(f"**.{bare}", keys) else paths.nearest(pattern, shapes)
    return UnknownModuleError(
        f"{pattern!r} matches no module.",
        f"it was compared with {len(keys)} paths of {type(root._module).__name__}; "
        "* stands for one name, ** for any number of them.",
        f"did you mean {close[0]!r}?" if close else "print(model) shows every module.",
    )


def folded(path: str) -> str:
    """A path with every number in it as `*`: a pattern for it and its siblings."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile("".join(map(_as_regex, _WILD.split(pattern))))


def _as_regex(part: str) -> str:
    if part.startswith("[") and _WILD.fullmatch(part):
        return part.replace("[!", "[^")
    return _AS_REGEX.get(part) or re.escape(part)
