"""Objects that stay in the device process: a key-value cache answers, others can be passed on.

cache = made(7, "DynamicCache", "cache", ask)
cache.get_seq_length()                      # asked there
send_away(own_cache, -1, ask)               # a cache of the block's: from now on it is there
"""

import sys
from collections.abc import Callable
from typing import Any

from insitu.errors import UsageError
from insitu.remote.worker.apart.questions import CACHE_METHODS, CACHE_VALUES

Ask = Callable[..., Any]
_kinds: dict[type, type] = {}
_CONSTANT = ("is_compileable", "is_sliding")
"""What a cache says of itself that does not change; generating asks for it in every step."""


class Afar:
    """An object of the model's that is no data; it can be given back to the model."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"<a {self._name} of the model's process>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise _out_of_reach(self._name, name)


def made(number: int, name: str, kind: str, ask: Ask) -> Any:
    """What stands here for an object there."""
    if kind == "cache":
        library = sys.modules["transformers.cache_utils"]
        cache_class = getattr(library, name, library.Cache)
        found = object.__new__(cache_class)
        send_away(found, number, ask)
        return found
    return Afar(name)


def send_away(cache: Any, number: int, ask: Ask) -> None:
    """Let a cache stand for one that is in the device process."""
    own = {name: value for name, value in vars(cache).items() if name.startswith("_")}
    cache.__dict__.clear()
    cache.__dict__.update(own, _afar=(number, ask))
    cache.__class__ = _kind(type(cache))


def _kind(cache_class: type) -> type:
    found = _kinds.get(cache_class)
    if found is None:
        body: dict[str, Any] = {name: _method(name) for name in CACHE_METHODS}
        body.update({name: _value(name) for name in CACHE_VALUES})
        body.update(__getattr__=_missing, __len__=_length, __repr__=_shown, __iter__=_walk)
        body.update(__getitem__=_walk, __module__=cache_class.__module__)
        found = _kinds[cache_class] = type(cache_class.__name__, (cache_class,), body)
    return found


def _method(name: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        number, ask = self.__dict__["_afar"]
        return ask(number, name, args, kwargs)

    method.__name__ = name
    return method


def _value(name: str) -> property:
    def value(self: Any) -> Any:
        if name in self.__dict__:
            return self.__dict__[name]
        number, ask = self.__dict__["_afar"]
        found = ask(number, name, (), {})
        if name in _CONSTANT:
            self.__dict__[name] = found
        return found

    return property(value)


def _missing(self: Any, name: str) -> Any:
    if name != "layers":
        raise AttributeError(f"a {type(self).__name__} has no {name!r}, or keeps it to itself")
    raise _out_of_reach(type(self).__name__, name)


def _walk(self: Any, *_: Any) -> Any:
    raise _out_of_reach(type(self).__name__, "its layers")


def _length(self: Any) -> int:
    return 1 if self.get_seq_length() else 0


def _shown(self: Any) -> str:
    return f"<a {type(self).__name__} of the model's process>"


def _out_of_reach(kind: str, name: str) -> UsageError:
    return UsageError(
        f"{name} of a {kind} was asked for, which stays with the model.",
        "the model computes in a process of its own on this server; tensors, numbers and texts "
        "cross, and of a key-value cache what generating needs.",
        "read the modules that make it: the keys and values are outputs of their projections.",
    )
