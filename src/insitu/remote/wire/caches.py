"""Caches as rows: the key-value cache of transformers, and what `tracer.cache()` gives."""

import sys
from typing import Any

from torch import Tensor

from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.record import INPUTS, OUTPUT, STEP, Call, Record
from insitu.engine.cache.values import Ref, read
from insitu.remote.wire.bounds import refusal

_MODULE = "transformers.cache_utils"
_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")


def is_cache(value: Any) -> bool:
    """Whether a value is a key-value cache of transformers."""
    return any(
        base.__module__ == _MODULE and base.__name__ == "Cache" for base in type(value).__mro__
    )


def node(encoder: Any, said: str, value: Any) -> dict[str, Any] | None:
    """The row of a cache, or None for one that cannot be sent."""
    kind = type(value).__name__
    if kind == "EncoderDecoderCache":
        pair = (value.self_attention_cache, value.cross_attention_cache)
        return {"cache": kind, "layers": [encoder.part(said, one) for one in pair]}
    if kind != "DynamicCache" or not all(type(it).__name__ in _LAYERS for it in value.layers):
        return None
    return {"cache": kind, "layers": [_layer(encoder, said, it) for it in value.layers]}


def _layer(encoder: Any, said: str, layer: Any) -> dict[str, Any]:
    found = {
        "kind": type(layer).__name__,
        "keys": encoder.part(f"{said}.keys", layer.keys),
        "values": encoder.part(f"{said}.values", layer.values),
    }
    if found["kind"] != _LAYERS[0]:
        found["window"] = int(layer.sliding_window)
        found["seen"] = int(layer.cumulative_length)
    return found


def _cache(decoder: Any, told: dict[str, Any]) -> Any:
    module = sys.modules.get(_MODULE)
    if module is None:
        raise refusal("it has a key-value cache of transformers, which is not imported here")
    if told["cache"] == "EncoderDecoderCache":
        pair = decoder.parts(told["layers"])
        if len(pair) != 2 or not all(type(it) is module.DynamicCache for it in pair):
            raise refusal("a cache of an encoder and a decoder in it does not hold two caches")
        return module.EncoderDecoderCache(*pair)
    if told["cache"] != "DynamicCache":
        raise refusal(f"it has a cache of a kind that is not known ({str(told['cache'])[:80]})")
    found = module.DynamicCache()
    for layer in told["layers"]:
        found.layers.append(_layer_read(module, decoder, layer))
    return found


def _layer_read(module: Any, decoder: Any, told: dict[str, Any]) -> Any:
    if told["kind"] not in _LAYERS:
        raise refusal("a cache in it has a layer of a kind that is not known")
    sliding = told["kind"] != _LAYERS[0]
    window = {"sliding_window": int(told["window"])} if sliding else {}
    layer = getattr(module, told["kind"])(**window)
    keys, values = decoder.part(told["keys"]), decoder.part(told["values"])
    if keys is None and values is None:
        return layer
    if not isinstance(keys, Tensor) or not isinstance(values, Tensor):
        raise refusal("the keys and values of a cache in it are no tensors")
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    if sliding:
        layer.cumulative_length = int(told["seen"])
    return layer


# The activation cache -----------------------------------------------------------------------------


def activations_node(encoder: Any, said: str, value: ActivationCache) -> dict[str, Any]:
    """The row of an activation cache."""
    places: dict[int, list[str]] = {}
    for path, record in value.records.items():
        places.setdefault(id(record), []).append(path)
    rows = []
    for paths in places.values():
        calls = [
            _call(encoder, f"{said}[{paths[0]!r}]", it) for it in value.records[paths[0]].current()
        ]
        rows.append({"paths": paths, "calls": calls})
    return {
        "activations": rows,
        "order": list(value.records),
        "sides": sorted(value._sides),
        "model": value._model,
    }


def _call(encoder: Any, said: str, call: Call) -> list[Any]:
    parts = (part.read() if isinstance(part, Ref) else read(part) for part in call[OUTPUT:3])
    return [call[STEP], *(encoder.part(said, part) for part in parts)]


def _activations(decoder: Any, told: dict[str, Any]) -> ActivationCache:
    records: dict[str, Record] = {}
    for row in told["activations"]:
        calls: list[Call] = []
        for step, output, inputs in row["calls"]:
            if type(step) is not int:
                raise refusal("a call in a cache in it has no number for its step")
            calls.append((step, decoder.part(output), decoder.part(inputs), []))
        record = Record(calls, sealed=True)
        records.update(dict.fromkeys(map(str, row["paths"]), record))
    sides = frozenset(side for side in (OUTPUT, INPUTS) if side in told["sides"])
    return ActivationCache({str(p): records[p] for p in told["order"]}, sides, str(told["model"]))


READERS = {"cache": _cache, "activations": _activations}
