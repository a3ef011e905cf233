"""Values as JSON lists, with their tensors beside: one grammar for both directions.

    told(("a", tensor, None), side)     # ["(", "a", ["t", 5, "float32", [1, 8], 0, []], null]
    read(message, side)

What a side does with tensors, and with objects that are no data, is its own: `Side`. A list begins
with its tag; numbers, texts and None stand for themselves; everything else is a leaf of `wire`.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from insitu.remote.wire import objects
from insitu.remote.wire.leaves import NO_LEAF, leaf, read_leaf
from insitu.remote.worker.apart.channel import ChannelError, refusal_of

_PLAIN = (bool, str, type(None))
_PLAIN_INT = 2**63


class Side(Protocol):
    """How one process tells and reads what is no plain data."""

    def tensor(self, value: torch.Tensor) -> list[Any]:
        """A tensor as a list that begins with a tag of its own."""

    def thing(self, value: Any) -> list[Any]:
        """An object that is no data, likewise."""

    def special(self, told: list[Any]) -> Any:
        """What `tensor` or `thing` of the other side has told."""


def told(value: Any, side: Side) -> Any:
    """A value as JSON."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, torch.Tensor):
        return side.tensor(value)
    if kind is tuple:
        return ["(", *[told(part, side) for part in value]]
    if kind is list:
        return ["[", *[told(part, side) for part in value]]
    if kind is dict:
        return _pairs("{", value, side)
    if kind is int and -_PLAIN_INT <= value < _PLAIN_INT:
        return value
    if objects.is_output(kind):
        return ["m", _named(kind), *_pairs("", dict(value), side)[1:]]
    names = getattr(value, "_fields", None)
    if isinstance(value, tuple) and isinstance(names, tuple):
        return ["m", _named(kind), *_pairs("", dict(zip(names, value, strict=True)), side)[1:]]
    found = leaf(value)
    return side.thing(value) if found is NO_LEAF else found


def _pairs(tag: str, value: dict[Any, Any], side: Side) -> list[Any]:
    if not all(type(key) in (str, int) for key in value):
        return side.thing(value)
    return [tag, *[[key, told(part, side)] for key, part in value.items()]]


def _named(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def read(message: Any, side: Side) -> Any:
    """The value that was told.

    Raises:
        ChannelError: it is none.
    """
    try:
        return _read(message, side)
    except RecursionError:
        raise ChannelError("a value that is nested too deeply") from None
    except (MemoryError, RuntimeError, ChannelError) as error:
        raise refusal_of(error) from error
    except Exception as error:
        raise ChannelError(f"a value that is none ({type(error).__name__})") from error


def _read(message: Any, side: Side) -> Any:
    if not isinstance(message, list):
        return read_leaf(message) if isinstance(message, dict) else message
    tag = message[0]
    if tag == "(":
        return tuple([_read(part, side) for part in message[1:]])
    if tag == "[":
        return [_read(part, side) for part in message[1:]]
    if tag == "{":
        return {_key(key): _read(part, side) for key, part in message[1:]}
    if tag == "m":
        return _object(message[1], {str(k): _read(part, side) for k, part in message[2:]})
    return side.special(message)


def _key(key: Any) -> Any:
    if type(key) not in (str, int):
        raise ChannelError("a dict whose keys are neither texts nor numbers")
    return key


def _object(named: Any, parts: dict[str, Any]) -> Any:
    """An output of a model's, or a named tuple, of a class that is known here."""
    kind = objects.known_class(named)
    if kind is not None and objects.is_output(kind):
        if (made := objects.output(kind, parts)) is not None:
            return made
    elif (
        kind is not None
        and issubclass(kind, tuple)
        and getattr(kind, "_fields", None) == tuple(parts)
    ):
        return tuple.__new__(kind, parts.values())
    raise ChannelError(f"an object of a class that is not known ({str(named)[:80]})")


def replaced(value: Any, other: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A value with other tensors in it; lists and dicts stay the same objects."""
    if isinstance(value, torch.Tensor):
        return other(value)
    if type(value) is tuple:
        return tuple([replaced(part, other) for part in value])
    if type(value) is list:
        value[:] = [replaced(part, other) for part in value]
    elif isinstance(value, dict):
        for key, part in value.items():
            if (new := replaced(part, other)) is not part:
                value[key] = new
    return value


def is_unchanging(value: Any) -> bool:
    """Whether a value that is the same object has the same parts."""
    if type(value) is tuple:
        return all(map(is_unchanging, value))
    return not isinstance(value, (list, dict))
