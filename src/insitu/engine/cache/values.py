"""The parts of a value a module took or returned, and what stands for parts that are not there.

    mapped((hidden, None, DynamicCache()), leaf)    # (leaf(hidden), None, leaf(DynamicCache()))

A container is rebuilt as what it was (tuples, named tuples, dicts, transformers' outputs,
dataclasses), so that a cached value reads like the one the model passed on.
"""

import copy
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from insitu.engine.batch import like_sequence
from insitu.engine.values import describe

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""What a value may hold beside tensors and is kept as it is: none of these can change."""


@dataclasses.dataclass(frozen=True)
class NotKept:
    """Stands for an object that no cache keeps, such as the key-value cache of transformers.

    Such an object goes on changing after it was seen, and may hold any amount of memory.
    """

    kind: str

    def __repr__(self) -> str:
        return f"<{self.kind}, not kept>"


@dataclasses.dataclass(frozen=True)
class Changed:
    """Stands for a tensor that was changed in place after it was recorded."""

    def __repr__(self) -> str:
        return "<changed in place>"


CHANGED = Changed()


class Source(Protocol):
    """The files that tensors are read from."""

    def read(self, ref: "Ref") -> Tensor:
        """Give the tensor a reference stands for."""


class Ref:
    """A tensor in a file, read when it is looked at."""

    __slots__ = ("dtype", "held", "name", "shape", "shard", "source")

    def __init__(
        self, source: Source, shard: int, name: str, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> None:
        self.source = source
        self.shard = shard
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self.held: Tensor | None = None
        """The tensor itself, until its file is written."""

    @property
    def nbytes(self) -> int:
        """The tensor's size."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Give the tensor itself."""
        return self.source.read(self)


class Fields(OrderedDict[Any, Any]):
    """Named parts, read as `value.logits`, `value["logits"]` or `value[0]`.

    What a model's output object or a named tuple becomes when it comes back from a file.
    """

    _kind = "dict"
    """The class it was."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self:
            raise AttributeError(f"no part {name!r}; there are {', '.join(map(str, self))}")
        return self[name]

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, (int, slice)) and key not in list(self):
            return tuple(self.values())[key]
        return super().__getitem__(key)


def mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """The same structure, with `leaf` of every part that is neither plain nor a container."""
    if isinstance(value, Tensor):
        return leaf(value)
    if isinstance(value, PLAIN):
        return value
    if type(value) is tuple:
        return tuple([mapped(part, leaf) for part in value])
    if type(value) is list:
        return [mapped(part, leaf) for part in value]
    if isinstance(value, (tuple, list)):
        return like_sequence(value, [mapped(part, leaf) for part in value])
    if isinstance(value, Mapping):
        return _mapping(value, {key: mapped(part, leaf) for key, part in value.items()})
    if _has_parts(value):
        return _with_fields(value, leaf)
    return leaf(value)


def leaves(value: Any) -> Iterator[Any]:
    """The tensors of a value, and all else in it that is neither plain nor a container."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from leaves(part)
    elif isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for part in value:
            yield from leaves(part)
    elif _has_parts(value):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name, None))
    elif not isinstance(value, PLAIN):
        yield value


def stored(leaf: Any) -> bool:
    """Whether a leaf is a tensor, in memory or in a file."""
    return isinstance(leaf, (Tensor, Ref))


def identity(leaf: Any) -> Any:
    """Equal for two tensors that are the same numbers in the same memory, while both live."""
    if not isinstance(leaf, Tensor):
        return id(leaf.source), leaf.shard, leaf.name
    try:
        storage = leaf.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse tensors have none
        return id(leaf)
    return storage, leaf.storage_offset(), leaf.shape, leaf.stride(), leaf.dtype


def size_bytes(value: Any, seen: set[Any]) -> int:
    """Bytes of the tensors in a value that are not in `seen`, which is added to."""
    total = 0
    for leaf in leaves(value):
        if stored(leaf) and (key := identity(leaf)) not in seen:
            seen.add(key)
            total += leaf.nbytes
    return total


def read(value: Any) -> Any:
    """A value with what lies in files read in."""
    if not any(isinstance(leaf, Ref) for leaf in leaves(value)):
        return value
    return mapped(value, lambda leaf: leaf.read() if isinstance(leaf, Ref) else leaf)


def kind(value: Any) -> str:
    """A value's kind in a few characters, without looking at a number or reading a file."""
    if isinstance(value, (Changed, NotKept)):
        return repr(value)
    if isinstance(value, Ref):
        value = torch.empty(value.shape, dtype=value.dtype, device="meta")
    elif isinstance(value, (tuple, list)):
        inner = ", ".join(map(kind, value[:4])) + (", …" if len(value) > 4 else "")
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    elif isinstance(value, Mapping):
        name = value._kind if isinstance(value, Fields) else type(value).__name__
        return f"{name}({', '.join(map(str, list(value)[:4]))}{', …' if len(value) > 4 else ''})"
    return "None" if value is None else describe(value)


def _mapping(value: Mapping[Any, Any], parts: dict[Any, Any]) -> Any:
    if type(value) is dict:
        return parts
    try:
        rebuilt: Any = copy.copy(value)
        for key, part in parts.items():
            rebuilt[key] = part
    except Exception:  # a class of the user's that cannot be copied, or refuses the parts
        return Fields(parts)
    return rebuilt


def _has_parts(value: Any) -> bool:
    """Whether a value is a dataclass that holds a tensor somewhere."""
    return (
        dataclasses.is_dataclass(value)
        and not isinstance(value, (type, NotKept, Changed))
        and any(stored(leaf) for f in dataclasses.fields(value) for leaf in _field(value, f.name))
    )


def _field(value: Any, name: str) -> Iterator[Any]:
    return leaves(getattr(value, name, None))


def _with_fields(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A dataclass rebuilt; its `__init__` is not run again."""
    try:
        rebuilt = copy.copy(value)
    except Exception:  # a class of the user's that cannot be copied
        return leaf(value)
    for field in dataclasses.fields(value):
        if hasattr(value, field.name):
            part = mapped(getattr(value, field.name), leaf)
            object.__setattr__(rebuilt, field.name, part)
    return rebuilt
