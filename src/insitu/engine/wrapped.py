"""A module as a block sees it: its sites, and its submodules by their own names.

block = model.transformer.h[3]
block.output            # what it returned
block.input             # its first argument
block.mlp.c_fc          # a submodule, wrapped when first named
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from insitu.engine import (
    attributes,
    blame,
    copying,
    hot,
    met,
    names,
    paths,
    reading,
    replaced,
    views,
)
from insitu.engine.attached import attached
from insitu.engine.opening import opened
from insitu.engine.repeated import stands_often
from insitu.engine.running import find
from insitu.engine.source.operations import Source, source_of
from insitu.engine.steps import next_call
from insitu.errors import UnknownModuleError

_SITES = ("output", "input", "inputs")
_COMPILED = "_orig_mod"
"""What torch's wrapper calls the module it has compiled."""


class WrappedModule:
    """One module of a wrapped model. Naming it runs nothing; its sites exist while a pass runs."""

    _module: nn.Module
    _parent: "WrappedModule | None"
    _name: str
    _root: Any
    _whole: nn.Module
    """The module of the root: wrappers of one model meet in its passes."""
    _place: tuple[nn.Module | None, dict[str, Any], str]
    """The module around this one, the dict it stands in there, and its key."""
    _children: dict[Any, "WrappedModule"]
    _extras: dict[str, nn.Module]
    """Modules beside the model's: ours, such as `generator`, and those the user attached."""
    _names: names.Names
    """Further names of modules, and views; the root alone has them, those of the whole tree."""
    _more_names: names.MoreNames | None = None
    """Of a root: names that it has when they are asked for."""

    _repeated: "type[WrappedModule]"
    """Of a root: what wraps a module that stands several times in a list, and those below it."""

    def __init__(self, module: nn.Module, parent: "WrappedModule | None", name: str) -> None:
        set_ = self.__dict__.__setitem__
        set_("_module", module)
        set_("_parent", parent)
        set_("_name", name)
        set_("_root", self if parent is None else parent._root)
        set_("_whole", module if parent is None else parent._whole)
        set_(
            "_place",
            (None, {"": module}, "")
            if parent is None
            else (parent._module, parent._module._modules, name),
        )
        set_("_children", {})
        set_("_extras", {})

    def __reduce__(self) -> tuple[Any, ...]:
        return copying.parts(self, WrappedModule)

    # Sites -----------------------------------------------------------------------------------

    output = reading.output

    @property
    def input(self) -> Any:
        """The module's first argument, given by position or by keyword; written like `output`."""
        args, kwargs = self._given()
        return args[0] if args else next(iter(kwargs.values()), None)

    @property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """All arguments: `(args, kwargs)`; written like `output`."""
        return self._given()

    def _given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        run = find(self)
        if run.told is not None and (called := met.told(run, self._module)) is not None:
            return called[1], called[2]
        try:
            call: tuple[tuple[Any, ...], dict[str, Any]] = run.read_inputs(self, 3)
        except AttributeError as error:
            self.__dict__["_raised"] = error
            raise
        return call

    def skip(self, value: Any) -> None:
        """Replace the module's next call: it computes nothing and returns `value`.

        with model.trace(x):
            model.h[1].skip(model.h[0].output)
        """
        find(self).skip(self, value)

    def next(self) -> "WrappedModule":
        """Go to the module's next call, in a generation to the next step: `m.next().output`."""
        found: WrappedModule = next_call(self, find(self))
        return found

    @property
    def source(self) -> Source:
        """The operations inside the module's forward; printing them shows its text.

            print(model.transformer.h[0].attn.source)
            with model.trace(x):
                out = model.transformer.h[0].attn.source.attention_interface_0.output

        Raises:
            SourceError: the forward has no text that could be shown.
        """
        return source_of(self)

    # The tree --------------------------------------------------------------------------------

    def tree(self) -> Any:
        """The modules below as a widget: search, sizes, shapes, and what the last run did.

        model.tree()                # in a notebook; elsewhere print(model)
        """
        return opened("tree", self)

    @property
    def _path(self) -> str:
        parent = self._parent
        if parent is None:
            return "model"
        return self._name if parent._parent is None else f"{parent._path}.{self._name}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        module = self.__dict__["_module"]
        if name in _SITES and "_raised" in self.__dict__:
            raise self.__dict__.pop("_raised")  # Python asks here after the model raised one
        if (found := self._child(name)) is not None:
            self.__dict__[name] = found
            return found
        if (
            name.endswith("_")
            and hasattr(type(self), name[:-1])
            and (found := self._child(name[:-1]))
        ):
            return found
        if (view := self._view(name)) is not None:
            return views.read(view, self, name)
        try:
            return attributes.seen(self, getattr(module, name))
        except AttributeError:
            pass
        if self._learns(name):
            return getattr(self, name)
        raise self._unknown(name) from None

    @hot.set_in_c
    def __setattr__(self, name: str, value: Any) -> None:
        if name == "output":
            reading.write(self, value)
        elif name == "input":
            self._write_input(value)
        elif name == "inputs":
            run = find(self)
            reading.require_to_come(run, self, name)
            args, kwargs = blame.written(run, value, run.read_inputs(self), self, "inputs")
            run.write_inputs(self, tuple(args), dict(kwargs))
        else:
            self._set_other(name, value)

    def _write_input(self, value: Any) -> None:
        run = find(self)
        reading.require_to_come(run, self, "input")
        args, kwargs = run.read_inputs(self)
        first = next(iter(kwargs), "input")
        old = args[0] if args else kwargs.get(first)
        value = blame.written(run, value, old, self, "input")
        if args:
            run.write_inputs(self, (value, *args[1:]), kwargs)
        else:
            run.write_inputs(self, (), {**kwargs, first: value})

    def _set_other(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            if (view := self._view(name)) is not None:
                views.write(view, self, name, value)
                return
            further = self._parent is not None and self._learns(name)
            if further and (view := self._view(name)) is not None:
                views.write(view, self, name, value)
                return
            if isinstance(value, nn.Module):
                names.attach(self, name, value)
                return
        close = paths.nearest(name, _SITES, 0.7)
        if name in self.__dict__ or (self._parent is None and not close):
            object.__setattr__(self, name, value)  # a model may carry what its user hangs on it
            return
        raise UnknownModuleError(
            f"{self._path} has nothing called {name!r} that can be written.",
            "output, input and inputs can be written; a wrapped module takes no other attributes.",
            f"did you mean {self._path}.{close[0]}?" if close else "write to output or inputs.",
        )

    def __delattr__(self, name: str) -> None:
        if not names.detach(self, name):
            object.__delattr__(self, name)

    def _child(self, name: str) -> "WrappedModule | None":
        module = self._submodule(name)
        if module is None:
            other: WrappedModule | None = names.found(self, name)
            return self._compiled._child(name) if other is None and self._compiled else other
        found = self._children.get(name)
        if found is None or found._module is not module:
            if found is not None:
                replaced.let_go(self)
            often = type(self) is self._root._repeated or stands_often(self, module)
            kind = self._root._repeated if often else WrappedModule
            found = self._children[name] = kind(module, self, name)
            found._extras.update(attached(found))
        return found

    @property
    def _compiled(self) -> "WrappedModule | None":
        """What `torch.compile(module)` wrapped, where this is that wrapper."""
        return self._child(_COMPILED) if _COMPILED in self._module._modules else None

    def _view(self, name: str) -> type[views.View] | None:
        viewed = self._root._names.viewed
        return views.providing(viewed, self._module, name) if viewed else None

    def _learns(self, name: str) -> bool:
        """Whether a name that is not known has become so, because it was asked for."""
        more: names.MoreNames | None = self._root._more_names
        return more is not None and more.offered(self, name)

    def _could_be(self) -> list[str]:
        """Names here that are known as soon as one of them is asked for."""
        more: names.MoreNames | None = self._root._more_names
        return [] if more is None else more.listed(self)

    def _unknown(self, name: str) -> UnknownModuleError:
        return paths.unknown(self._module, self._path, name, names.here(self))

    def _submodule(self, name: str) -> nn.Module | None:
        modules = self._module._modules  # TorchScript's has no get(), and no iter()
        module: nn.Module | None = modules[name] if name in modules else None  # noqa: SIM401
        return self._extras.get(name) if module is None else module

    def _refresh(self) -> None:
        """Look this module up again, from the root down."""
        replaced.look_up(self)

    def __getitem__(self, key: Any) -> Any:
        found = self._children.get(key) if type(key) is int else None
        if found is not None:
            return found
        if isinstance(self._module, attributes.PARAMETERS):
            return self._module[key]
        if isinstance(key, slice):
            return [self[i] for i in range(*key.indices(len(self)))]
        if isinstance(key, int) and self._compiled:
            return self._compiled[key]
        if isinstance(key, int):
            names = self._module._modules
            if not -len(names) <= key < len(names):
                raise IndexError(f"{self._path} has {len(names)} modules; there is no [{key}].")
            name = str(key % len(names))
            found = self._child(name if name in names else list(names.keys())[key])
            if found is not None:
                self._children[key] = found
            return found
        return self._at_path(str(key))

    def _at_path(self, path: str) -> "WrappedModule":
        node = self
        for name in path.split("."):
            found = node._child(name)
            if found is None and node._learns(name):
                found = node._child(name)
            if found is None:
                raise node._unknown(name)
            node = found
        return node

    def _nodes(self) -> Iterator["WrappedModule"]:
        """This module and every one below it, wrapped."""
        yield self
        for name in (*self._module._modules.keys(), *self._extras):
            if (found := self._child(name)) is not None:
                yield from found._nodes()

    def _paths_of(self, modules: Iterable[Any]) -> list[str]:
        """The paths of modules of this tree, or of operations in it, as error texts show them."""
        paths: dict[Any, str] = {}
        for node in self._nodes():
            paths.setdefault(node._module, node._path)
        return [
            paths.get(it, type(it).__name__) if isinstance(it, nn.Module) else it._path
            for it in modules
        ]

    def _path_of(self, module: Any) -> str:
        return self._paths_of((module,))[0]

    def __len__(self) -> int:
        if isinstance(self._module, attributes.PARAMETERS):
            return len(self._module)
        return len((self._compiled or self)._module._modules)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, item: Any) -> bool:
        return attributes.holds(self, item)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._module, attributes.PARAMETERS):
            yield from self._module
        node = self._compiled or self
        for name in tuple(node._module._modules.keys()):
            if (found := node._child(name)) is not None:
                yield found

    def __call__(self, *args: Any, hook: bool = False, **kwargs: Any) -> Any:
        """Call the module itself, with no site met: `model.lm_head(model.ln_f(h))`.

        Args:
            *args, **kwargs: what its forward takes.
            hook: let its sites and those below be met by whoever waits for them, and be read here
                afterwards: `model.h[3].sae(h, hook=True)`.
        """
        return met.call(find(self), self, args, kwargs) if hook else self._module(*args, **kwargs)

    def __repr__(self) -> str:
        return repr(self._module) + names.told(self) + self._more_lines()

    def _more_lines(self) -> str:
        """Further lines of its repr, each begun by a line end."""
        return ""

    def __dir__(self) -> list[str]:
        own = [name for name in dir(type(self)) if not name.startswith("_")]
        further = (*names.here(self), *self._could_be())
        return [*dict.fromkeys((*self._module._modules.keys(), *self._extras, *further)), *own]
