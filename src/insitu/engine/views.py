"""Views: named values that a class adds to every module of a type, read and written through.

    class Heads(insitu.View):
        @property
        def heads(self):                      # [batch, pos, head, d_head]
            return self.c_proj.input.unflatten(-1, (self.num_heads, self.head_dim))

        @heads.setter
        def heads(self, value):
            self.c_proj.input = value.flatten(-2)

    model = LanguageModel("gpt2", views={GPT2Attention: Heads})
    with model.trace(prompt):
        model.transformer.h[0].attn.heads[:, :, 3] = 0

A view is a plain property. Inside the class, `self` stands for the wrapped module: its submodules,
sites and attributes are read and written there as in a block, in an invoke of its own rows. A
value that is a torch view of a site's tensor (`unflatten`, a slice, `transpose`) can be edited in
place without a setter. Methods and constants of the class are reached in the same way.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from sys import _getframe
from types import FrameType
from typing import Any

import torch
from torch import nn

from insitu.engine.running import active
from insitu.errors import UsageError, WriteError


class View:
    """Derive from it to give modules of one type further named values.

    class Heads(insitu.View):
        @property
        def heads(self):
            return self.c_proj.input.unflatten(-1, (self.num_heads, self.head_dim))
    """

    _node: Any

    def __init__(self, node: Any) -> None:
        self.__dict__["_node"] = node

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in names(type(self)):
            # Python asks here after a property of the class raised an AttributeError of its own.
            raise AttributeError(f"the view {type(self).__name__}.{name} could not be read")
        return getattr(self._node, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in names(type(self)):
            object.__setattr__(self, name, value)
        else:
            setattr(self._node, name, value)


ViewsOf = Mapping[type[nn.Module], tuple[type[View], ...]]
"""The views of each type of module."""


def names(kind: type[View]) -> frozenset[str]:
    """What a view class adds to a module: the public names it defines, its bases' too."""
    defined = (vars(base) for base in kind.__mro__ if base not in (View, object))
    return frozenset(name for own in defined for name in own if not name.startswith("_"))


def wanted(given: Mapping[Any, Any]) -> Iterator[tuple[type[nn.Module], type[View]]]:
    """What `{GPT2Attention: Heads}` or `{GPT2Attention: [Heads, Queries]}` asks for, one by one.

    Raises:
        UsageError: a key is not a class of modules, or a value not a class derived from `View`.
    """
    if not isinstance(given, Mapping):
        raise _not_views(type(given).__name__)
    for kind, classes in given.items():
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise _not_views(f"{kind!r}, which is not a class of modules")
        for it in classes if isinstance(classes, (list, tuple)) else (classes,):
            if not (isinstance(it, type) and issubclass(it, View)) or it is View:
                raise _not_views(f"{it!r}, which is not a class derived from insitu.View")
            yield kind, it


def those_for(views: ViewsOf, module: nn.Module) -> Iterable[type[View]]:
    """The views of a module, those for its own class before those for a base."""
    for kind in type(module).__mro__ if views else ():
        yield from views.get(kind, ())


def providing(views: ViewsOf, module: nn.Module, name: str) -> type[View] | None:
    """The view class that gives a module a name."""
    return next((kind for kind in those_for(views, module) if name in names(kind)), None)


def read(kind: type[View], node: Any, name: str) -> Any:
    """The value of a view at a wrapped module."""
    defined = next(vars(base)[name] for base in kind.__mro__ if name in vars(base))
    bind = getattr(type(defined), "__get__", None)
    if bind is None:
        return defined
    with _at_the_line_of(_getframe(2)):
        return bind(defined, kind(node), kind)


def write(kind: type[View], node: Any, name: str, value: Any) -> None:
    """Replace the value of a view, by its setter; without one it can be edited in place alone."""
    defined = next(vars(base)[name] for base in kind.__mro__ if name in vars(base))
    setter = getattr(defined, "fset", None)
    if setter is not None:
        with _at_the_line_of(_getframe(3)):
            setter(kind(node), value)
    elif not _is_same_memory(value, read(kind, node, name)):  # it is after `view += 1`
        raise WriteError(
            f"{node._path}.{name} cannot be replaced: its view has no setter.",
            f"{kind.__name__}.{name} says how it is read, not how a new value is put back.",
            f"edit it in place ({node._path}.{name}[:] = value), or define @{name}.setter.",
        )


@contextmanager
def _at_the_line_of(frame: FrameType) -> Iterator[None]:
    """Let what is read inside count as read where the view was named: errors tell that line."""
    run = active.get()
    before = 0 if run is None else len(run.trail)
    try:
        yield
    finally:
        if run is not None:
            trail = run.trail
            for at in range(min(before, len(trail)), len(trail)):
                trail[at] = (*trail[at][:2], frame.f_code, frame.f_lasti)


def _is_same_memory(one: Any, other: Any) -> bool:
    return (
        isinstance(one, torch.Tensor)
        and isinstance(other, torch.Tensor)
        and one.untyped_storage()._cdata == other.untyped_storage()._cdata
        and one.storage_offset() == other.storage_offset()
        and (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
    )


def _not_views(what: str) -> UsageError:
    return UsageError(
        f"views= was given {what}.",
        "it says which view classes belong to which class of modules.",
        "write views={GPT2Attention: Heads}, with class Heads(insitu.View).",
    )
