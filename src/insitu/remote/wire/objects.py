"""Objects as rows of named parts, and back: rebuilt where their class is known already.

    {"fields": [["loss", …], ["hits", …]], "class": "mylab.results:Score", "kind": "dataclass"}

A class is known when its module has been imported here; nothing is imported for it, and neither its
`__init__` nor any other method of it is called. Where it is not known, `Fields` take its place:
its parts are read as `value.loss`, `value["loss"]` and `value[0]`.
"""

import enum
import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from types import MemberDescriptorType
from typing import Any

from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.values import Fields
from insitu.remote.wire import caches
from insitu.remote.wire.bounds import refusal

_OUTPUTS = ("transformers", "diffusers")
"""Packages whose output objects are rebuilt."""


def is_one(value: Any) -> bool:
    """Whether a value is an object that has rows."""
    return _kind(value) is not None


def _kind(value: Any) -> str | None:
    if isinstance(value, type):
        return None
    if isinstance(value, enum.Enum):
        return "flag" if isinstance(value, enum.Flag) else "enum"
    if isinstance(value, ActivationCache):
        return "activations"
    if type(value) is Fields:
        return "fields"
    if isinstance(value, tuple):
        if type(value).__module__ == "torch.return_types":
            return "returned"
        return "namedtuple" if isinstance(getattr(value, "_fields", None), tuple) else None
    if is_output(type(value)):
        return "output"
    if type(value).__module__.startswith("transformers.") and isinstance(value, Mapping):
        return "batch"
    if caches.is_cache(value):
        return "cache"
    return "dataclass" if is_dataclass(value) else None


def is_output(kind: type) -> bool:
    """Whether a class is an output object of a model's."""
    return (
        kind.__module__.partition(".")[0] in _OUTPUTS
        and issubclass(kind, dict)
        and is_dataclass(kind)
    )


def node(encoder: Any, said: str, value: Any) -> dict[str, Any]:
    """The row of an object."""
    kind, named = _kind(value), f"{type(value).__module__}:{type(value).__qualname__}"
    if kind in ("enum", "flag"):
        node = {"enum": value.name, "value": encoder.part(said, value.value), "class": named}
        return {**node, **_sent_class(encoder, said, value)}
    if kind == "activations":
        return caches.activations_node(encoder, said, value)
    if kind == "cache":
        found = caches.node(encoder, said, value)
        if found is None:
            raise encoder.refuse(said, value)
        return found
    if kind == "returned":
        names = [name for name in dir(value) if not name.startswith(("_", "n_"))]
        by_place = {
            i: n for n in names for i, part in enumerate(value) if getattr(value, n) is part
        }
        parts = [[by_place.get(i, str(i)), encoder.part(said, p)] for i, p in enumerate(value)]
    elif kind == "namedtuple":
        parts = fields(encoder, said, dict(zip(value._fields, value, strict=True)))
    elif kind == "fields":
        parts, named = fields(encoder, said, value), f":{value._kind}"
    elif kind in ("output", "batch"):
        parts = fields(encoder, said, dict(value))
    else:
        parts = fields(encoder, said, {f.name: getattr(value, f.name) for f in fields_of(value)
                                       if hasattr(value, f.name)})  # fmt: skip
    sent = _sent_class(encoder, said, value) if kind in ("dataclass", "namedtuple") else {}
    return {"fields": parts, "class": named, "kind": kind, **sent}


def _sent_class(encoder: Any, said: str, value: Any) -> dict[str, Any]:
    """The class of a value, where it goes along as source."""
    if encoder.code is None:
        return {}
    return {"of": encoder.code.take(encoder, f"{said}.__class__", type(value))}


def fields(encoder: Any, said: str, values: Mapping[Any, Any]) -> list[Any]:
    """Named parts, as pairs."""
    if not all(isinstance(name, str) for name in values):
        raise encoder.refuse(said, values)
    return [[name, encoder.part(f"{said}.{name}", value)] for name, value in values.items()]


def read_fields(decoder: Any, told: Any) -> dict[str, Any]:
    """Named parts, from pairs."""
    found = {}
    for name, value in told:
        if not isinstance(name, str):
            raise refusal("a part in it has a name that is no text")
        found[name] = decoder.part(value)
    return found


def known_class(named: Any) -> type | None:
    """The class of a name `module:Qualified.name`, where its module has been imported."""
    module, _, qualified = str(named).partition(":")
    found: Any = sys.modules.get(module)
    for name in qualified.split("."):
        if found is None:
            return None
        found = vars(found).get(name) if hasattr(found, "__dict__") else None
    return found if isinstance(found, type) else None


def _class_of(decoder: Any, told: dict[str, Any]) -> type | None:
    if decoder.code is None or "of" not in told:
        return known_class(told["class"])
    found = decoder.part(told["of"])
    return found if isinstance(found, type) else None


def _read(decoder: Any, told: dict[str, Any]) -> Any:
    named, parts = str(told["class"]), read_fields(decoder, told["fields"])
    known = _class_of(decoder, told)
    rebuild = _REBUILD.get(told["kind"])
    if rebuild is None:
        raise refusal(f"it has an object of a kind that is not known ({str(told['kind'])[:80]})")
    found = None if known is None else rebuild(known, parts)
    return unknown(parts, named) if found is None else found


def unknown(parts: dict[str, Any], named: str) -> Fields:
    """What stands for an object of a class that is not known here."""
    found = Fields(parts)
    found.__dict__["_kind"] = named.partition(":")[2][:200]
    return found


def _dataclass(kind: type, parts: dict[str, Any]) -> Any:
    if not is_dataclass(kind) or hasattr(kind, "__del__") or issubclass(kind, (dict, list, tuple)):
        return None
    if not parts.keys() <= {field.name for field in fields_of(kind)}:
        return None
    try:
        found = object.__new__(kind)
    except TypeError:  # it is made of something else than attributes, or abstract
        return None
    for name, value in parts.items():
        slot = next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)
        if isinstance(slot, MemberDescriptorType):
            slot.__set__(found, value)
        elif hasattr(found, "__dict__"):
            object.__getattribute__(found, "__dict__")[name] = value
        else:
            return None
    return found


def _namedtuple(kind: type, parts: dict[str, Any]) -> Any:
    if not issubclass(kind, tuple) or getattr(kind, "_fields", None) != tuple(parts):
        return None
    return tuple.__new__(kind, parts.values())


def _returned(kind: type, parts: dict[str, Any]) -> Any:
    if kind.__module__ != "torch.return_types" or not issubclass(kind, tuple):
        return None
    return kind(tuple(parts.values()))


def output(kind: type, parts: dict[str, Any]) -> Any:
    """An output object of named parts; None where its class has no such parts."""
    if not is_output(kind) or not parts.keys() <= {field.name for field in fields_of(kind)}:
        return None
    found: Any = OrderedDict.__new__(kind)
    for field in fields_of(kind):
        if field.name in parts:
            OrderedDict.__setitem__(found, field.name, parts[field.name])
        found.__dict__[field.name] = parts.get(field.name)
    return found


def _batch(kind: type, parts: dict[str, Any]) -> Any:
    if not kind.__module__.startswith("transformers.") or not issubclass(kind, Mapping):
        return None
    made: Any = kind
    return made(parts)


def _fields(kind: type, parts: dict[str, Any]) -> Any:
    return None


_REBUILD = {
    "fields": _fields,
    "dataclass": _dataclass,
    "namedtuple": _namedtuple,
    "returned": _returned,
    "output": output,
    "batch": _batch,
}


def _enum(decoder: Any, told: dict[str, Any]) -> Any:
    named, value = str(told["class"]), decoder.part(told["value"])
    kind = _class_of(decoder, told)
    if kind is None or not issubclass(kind, enum.Enum):
        return unknown({"name": told["enum"], "value": value}, named)
    members = kind._member_map_
    if told["enum"] in members:
        return members[told["enum"]]
    if issubclass(kind, enum.Flag) and type(value) is int:
        return kind(value)
    raise refusal(f"{named[:80]} has no member {str(told['enum'])[:80]!r}")


READERS = {"fields": _read, "enum": _enum, **caches.READERS}
