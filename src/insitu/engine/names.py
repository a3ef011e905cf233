"""Further names in a wrapped model, beside the model's own.

    model.rename({"transformer.h": "layers", "attn": "attention"})
    model.layers[0].attention.output        # transformer.h.0.attn, and errors call it so

A path (a name with a dot) is one module, and its further name is reached from the root; a bare name
is every module called so. A further name never hides anything: it is refused where something has it
already. Nothing is registered on the user's modules.
"""

import keyword
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from insitu.engine import paths, replaced, views
from insitu.engine.attached import Attached, attached, key, with_attached, without
from insitu.errors import UnknownModuleError, UsageError


@dataclass(frozen=True)
class Names:
    """The further names of one wrapped model."""

    anywhere: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of modules called so, wherever they are: `{"attention": ("attn", "self_attn")}`."""
    placed: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """Of one module: `{("", "layers"): "transformer.h"}`, by the path they are reached from."""
    attached: Attached = field(default_factory=dict)
    viewed: views.ViewsOf = field(default_factory=dict)
    """The view classes of each class of modules."""

    def leads_to(self, node: Any, name: str) -> str | None:
        """The path, from a wrapped module on or (after a `/`) from the root, of a further name."""
        if (path := self.placed.get((key(node), name))) is not None:
            return f"/{path}"
        known = self.anywhere.get(name, ())
        return next((real for real in known if node._submodule(real) is not None), None)


def found(node: Any, name: str) -> Any:
    """The wrapped module that a further name leads to; None without one."""
    path = node._root._names.leads_to(node, name)
    if path is None:
        return None
    return node._root._at_path(path[1:]) if path[0] == "/" else node._child(path)


class MoreNames(Protocol):
    """Further names that a model has only when one of them is asked for."""

    def offered(self, node: Any, name: str) -> bool:
        """Whether a name that was not known has become so, because it was asked for."""

    def listed(self, node: Any) -> list[str]:
        """The names that could be asked for at a module. Nothing changes by this."""


def here(node: Any, names: Names | None = None) -> list[str]:
    """Every further name at a module: renamed and attached modules, and views."""
    known: Names = node._root._names if names is None else names
    path = key(node)
    return [
        *(name for at, name in known.placed if at == path),
        *attached(node),
        *(name for name, all_ in known.anywhere.items() if any(map(node._submodule, all_))),
        *(
            name
            for kind in views.those_for(known.viewed, node._module)
            for name in sorted(views.names(kind))
        ),
    ]


# Renames ------------------------------------------------------------------------------------------


def renamed(root: Any, wanted: Mapping[str, Any]) -> Names:
    """The names after a rename; nothing is changed when it fails.

    Raises:
        UnknownModuleError: no module has the name that is to get another.
        UsageError: the new name is none, or taken.
    """
    if not isinstance(wanted, Mapping):
        raise UsageError(
            f"rename takes names and their further names, not {type(wanted).__name__}.",
            "each module to rename is looked up by the name it has.",
            'write rename={"transformer.h": "layers"}.',
        )
    after: Names = root._names
    for name, given in wanted.items():
        for new in given if isinstance(given, (list, tuple)) else (given,):
            after = _with(root, after, name, new)
    return after


def _with(root: Any, names: Names, name: str, new: str) -> Names:
    around, _, last = str(new).rpartition(".")
    require_name(new, last)
    if "." in name or around:
        target = _placed(root, names, name)
        parent = _placed(root, names, around) if around else root
        place = (key(parent), last)
        if names.placed.get(place) == target._path:
            return names
        require_free(parent, last, names)
        return replace(names, placed={**names.placed, place: target._path})
    found = 0
    for real in (name, *names.anywhere.get(name, ())):  # the name may itself be a further one
        parents = [node for node in root._nodes() if node._submodule(real) is not None]
        found += len(parents)
        known = names.anywhere.get(last, ())
        if not parents or real in known:
            continue
        for parent in parents:
            require_free(parent, last, names)
        names = replace(names, anywhere={**names.anywhere, last: (*known, real)})
    if not found:
        raise _no_such_name(root, name)
    return names


def _placed(root: Any, names: Names, path: str) -> Any:
    """The wrapped module at a path that may use names given in the same rename."""
    before = root._names
    root.__dict__["_names"] = names
    try:
        return root._at_path(path)
    finally:
        root.__dict__["_names"] = before


def _no_such_name(root: Any, name: str) -> UnknownModuleError:
    known = sorted({part for node in root._nodes() for part, _ in node._module._modules.items()})
    close = paths.nearest(name, known)
    return UnknownModuleError(
        f"rename was given {name!r}, and no module is called so.",
        f"the modules of this {type(root._module).__name__} are called "
        f"{', '.join(known[: paths.SHOWN_MAX])}{', …' if len(known) > paths.SHOWN_MAX else ''}.",
        f"did you mean {close[0]!r}?" if close else "print(model) shows every module.",
    )


# Attached modules ---------------------------------------------------------------------------------


def attach(node: Any, name: Any, module: Any) -> Any:
    """Put a module beneath a wrapped one; gives it wrapped.

    Attaching under the same name again replaces it, as running a cell twice does.

    Raises:
        InputTypeError: it is no module.
        UsageError: the name is none, or something of the model's has it.
    """
    before: Names = node._root._names
    require_name(name, str(name))
    if name not in attached(node):
        require_free(node, name, before)
    after = with_attached(before.attached, node, name, module)
    _forget(node, name)
    node._root.__dict__["_names"] = replace(before, attached=after)
    node._extras[name] = module
    return node._child(name)


def detach(node: Any, name: str) -> bool:
    """Take an attached module away; False when there is none of that name."""
    if name not in attached(node):
        return False
    before: Names = node._root._names
    after = without(before.attached, node, name)
    _forget(node, name)
    node._root.__dict__["_names"] = replace(before, attached=after)
    del node._extras[name]
    return True


def _forget(node: Any, name: str) -> None:
    node._children.pop(name, None)
    node.__dict__.pop(name, None)
    if name in node._extras:
        replaced.let_go(node)


# What is free -------------------------------------------------------------------------------------


def require_name(name: Any, last: str) -> None:
    """Refuse what cannot be written after a dot."""
    written = isinstance(name, str) and last.isidentifier() and not keyword.iskeyword(last)
    if written and not last.startswith("_"):
        return
    raise UsageError(
        f"{name!r} cannot be the name of a module.",
        "it is written in code, as in model.layers, where names with _ are the wrapper's own.",
        "give a name of letters and digits, such as 'layers'.",
    )


def require_free(node: Any, name: str, names: Names) -> None:
    """Refuse a further name that something has already."""
    if (owner := _owner(node, names, name)) is not None:
        raise UsageError(
            f"{node._path} has something called {name!r} already: {owner}.",
            "a further name would hide it.",
            "give another name.",
        )


def is_free(node: Any, name: str, names: Names) -> bool:
    """Whether nothing at a module has a name yet."""
    return _owner(node, names, name) is None


def _owner(node: Any, names: Names, name: str) -> str | None:
    """What has a name at a module; None when it is free."""
    module = node._module
    if name in module._modules or name in node._extras:
        return "a module"
    if (path := names.leads_to(node, name)) is not None:
        return f"another name of {path.lstrip('/')}"
    if (view := views.providing(names.viewed, module, name)) is not None:
        return f"a view of {view.__name__}"
    if hasattr(type(node), name):
        return "every wrapped module has it"
    own = (vars(module), module._parameters, module._buffers)
    if any(name in those for those in own) or hasattr(type(module), name):
        return f"an attribute of {type(module).__name__}"
    return f"{vars(node)[name]!r}"[:40] if name in vars(node) else None


# Views --------------------------------------------------------------------------------------------


def with_views(root: Any, wanted: Mapping[Any, Any]) -> Names:
    """The names after views were added; nothing is changed when it fails.

    Raises:
        UsageError: a class of modules that the model has none of, or a name that is taken.
    """
    after: Names = root._names
    nodes = list(root._nodes())
    for kind, view in views.wanted(wanted):
        of_kind = [node for node in nodes if isinstance(node._module, kind)]
        if not of_kind:
            raise UsageError(
                f"views= was given {kind.__name__}, and this model has no such module.",
                f"its modules are of the classes {_classes(nodes)}.",
                "give the class of one of its modules: type(model.layer._module).",
            )
        known = after.viewed.get(kind, ())
        if view in known:
            continue
        for name in sorted(views.names(view)):
            for node in of_kind:
                require_free(node, name, after)
        after = replace(after, viewed={**after.viewed, kind: (*known, view)})
    return after


def _classes(nodes: list[Any]) -> str:
    kinds = list(dict.fromkeys(type(node._module).__name__ for node in nodes))
    return ", ".join(kinds[: paths.SHOWN_MAX]) + (", …" if len(kinds) > paths.SHOWN_MAX else "")


# Printing -----------------------------------------------------------------------------------------


def told(node: Any) -> str:
    """What `print(model)` says below the modules; for a part of a model, its own names alone."""
    known: Names = node._root._names
    own = key(node)
    if node._parent is None:
        renames = [f"{_dotted(at, new)} = {path}" for (at, new), path in known.placed.items()]
        renames += [f"{new} = {' or '.join(r)} (anywhere)" for new, r in known.anywhere.items()]
        kinds = [(f"{kind.__name__}.", its) for kind, its in known.viewed.items()]
    else:
        renames = [
            f"{new} = {path.lstrip('/')}"
            for new in here(node)
            if (path := known.leads_to(node, new)) is not None
        ]
        kinds = [("", tuple(views.those_for(known.viewed, node._module)))]
    added = [
        f"{_dotted('' if at == own else at, name)} = {type(module).__name__}"
        for at, modules in known.attached.items()
        if at == own or node._parent is None
        for name, module in modules.items()
    ]
    values = [f"{of}{name}" for of, its in kinds for it in its for name in sorted(views.names(it))]
    lines = (("Renamed", renames), ("Attached", added), ("Views", values))
    return "".join(f"\n{title}: {', '.join(rows)}" for title, rows in lines if rows)


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
