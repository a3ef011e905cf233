"""From what a module is called with to the function that computes, and back with another.

    chain = of(module)           # accelerate's wrapper → its hooks → GPT2Attention.forward
    chain.function               # GPT2Attention.forward itself, whose text is shown
    chain.with_(another)         # the same wrappers around another function

Decorators that use `functools.wraps` say what they wrap, and hold it in a closure. accelerate keeps
the forward that it replaces in an attribute of the instance; there the other one has to go in.
"""

import functools
from dataclasses import dataclass
from types import CellType, FunctionType, MethodType
from typing import Any, cast

from torch import nn

from insitu.engine.compiled import COMPILED
from insitu.engine.source.text import called
from insitu.engine.stopping import Forward, Stopping, underneath
from insitu.errors import SourceError

_WRAPPERS_MAX = 32
_WRAPPERS = (FunctionType, MethodType, functools.partial)


@dataclass(frozen=True)
class Chain:
    """A callable, and the function at its end."""

    top: Any
    function: FunctionType
    bound: Any
    """The object whose method it is, if it is one."""
    slot: str = "forward"
    """The attribute of the module's `__dict__` in which `top` stands, or may be put."""

    def with_(self, function: FunctionType) -> Forward:
        """The same wrappers around another function.

        Raises:
            SourceError: one of them hides what it wraps.
        """
        made: Forward = _Replacement(self.function, function).within(self.top)
        if made is self.top:
            raise SourceError(
                f"the operations of {called(self.function)} cannot be reached: "
                f"{called(self.top)} hides the function it wraps.",
                "to stop at an operation, the wrapper is built anew around a rewritten function, "
                "and this one keeps it neither in a closure nor in a functools.partial.",
                "take that decorator away, or read the modules inside.",
            )
        return made


def of(module: nn.Module) -> Chain:
    """The wrappers and the function of a module's forward, without those of running passes.

    Raises:
        SourceError: it ends in no function written in Python.
    """
    name = f"{type(module).__name__}.forward"
    top = underneath(module.forward)
    if getattr(top, "__func__", None) is nn.Module.forward:
        raise SourceError(
            f"{type(module).__name__} has no forward, so it has no operations.",
            "it is a container: its parts are called by the module around it.",
            "ask the modules in it, or the one around it.",
        )
    chain = follow(top, name)
    before = getattr(top, "__wrapped__", None)
    if before is None or _Replacement(chain.function, _anything).within(top) is not top:
        return chain
    for slot, value in module.__dict__.items():
        if slot != "forward" and isinstance(value, (*_WRAPPERS, Stopping)):
            kept = underneath(value)
            if kept == underneath(before):
                return Chain(kept, chain.function, chain.bound, slot)
    return chain


def follow(top: Any, name: str) -> Chain:
    """The function at the end of a callable's wrappers.

    Args:
        top: the callable.
        name: what error texts call it.

    Raises:
        SourceError: there is none written in Python.
    """
    at: Any = top
    bound: Any = None
    for _ in range(_WRAPPERS_MAX):
        if isinstance(at, MethodType):
            at, bound = at.__func__, at.__self__
        elif isinstance(at, (type, nn.Module)):
            break
        elif (inner := getattr(at, COMPILED, None) or getattr(at, "__wrapped__", None)) is not None:
            at = underneath(inner)
        elif isinstance(at, functools.partial):
            at = at.func
        elif isinstance(at, FunctionType):
            return Chain(top, at, bound)
        elif (method := _method_of(at)) is not None:
            at = MethodType(method, at)
        else:
            break
    raise SourceError(
        f"{name} has no operations that can be named.",
        f"{called(at)} is a {_kind(at)}; operations are named from the text of a Python function.",
        "read what goes in and comes out of it: .input, .inputs and .output.",
    )


def _method_of(at: Any) -> FunctionType | None:
    """What runs when an object that is no function is called."""
    method = vars(type(at)).get("__call__")
    return method if isinstance(method, FunctionType) else None


def _kind(at: Any) -> str:
    if isinstance(at, type):
        return "class"
    return "module" if isinstance(at, nn.Module) else f"{type(at).__name__}"


class _Replacement:
    """Builds wrappers anew around another function; what does not lead to it stays the same."""

    def __init__(self, old: FunctionType, new: FunctionType) -> None:
        self._old = old
        self._new = new
        self._seen: set[int] = set()

    def within(self, at: Any) -> Any:
        """A callable with the new function for the old; the same object if it does not hold it."""
        if at is self._old:
            return self._new
        if id(at) in self._seen:
            return at
        self._seen.add(id(at))
        if isinstance(at, MethodType):
            inner = self.within(at.__func__)
            return at if inner is at.__func__ else MethodType(inner, at.__self__)
        if isinstance(at, functools.partial):
            return self._partial(at)
        if (compiled := getattr(at, COMPILED, None)) is not None:
            return self.within(underneath(compiled))
        if isinstance(at, FunctionType):
            return self._closure(at)
        return MethodType(self._new, at) if _method_of(at) is self._old else at

    def _partial(self, at: "functools.partial[Any]") -> Any:
        before: list[Any] = [at.func, *at.args]
        parts = [self._part(part) for part in before]
        keywords = {name: self._part(part) for name, part in at.keywords.items()}
        kept = all(map(_is, parts, before)) and all(
            map(_is, keywords.values(), at.keywords.values())
        )
        if kept:
            return at
        made = functools.partial(parts[0], *parts[1:], **keywords)
        made.__dict__.update(at.__dict__)
        return made

    def _closure(self, at: FunctionType) -> Any:
        before = at.__closure__ or ()
        cells = tuple(map(self._cell, before))
        if all(map(_is, cells, before)):
            return at
        made = FunctionType(at.__code__, at.__globals__, at.__name__, at.__defaults__, cells)
        made.__kwdefaults__ = at.__kwdefaults__
        made.__qualname__ = at.__qualname__
        made.__dict__.update(at.__dict__)
        return made

    def _cell(self, cell: CellType) -> CellType:
        """Another cell if it leads to the function; else the same, with what it may count."""
        try:
            content = cell.cell_contents
        except ValueError:  # not assigned yet
            return cell
        inner = self._part(content)
        return cell if inner is content else CellType(inner)

    def _part(self, part: Any) -> Any:
        return self.within(part) if isinstance(part, _WRAPPERS) else part


def _is(one: Any, other: Any) -> bool:
    return one is other


def _anything_() -> None:
    """Stands for whatever is to be put in, to see whether it can be."""


_anything = cast(FunctionType, _anything_)
