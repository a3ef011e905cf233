"""What a job may ask of a key-value cache, with what, and the asking.

    require("update", (keys, values, 3), {})    # ChannelError for what no cache is asked
    asked(cache, "update", (keys, values, 3), {})

A number is a plain whole one within bounds: a cache makes layers until it has as many as it is
told, so that an infinite one, or a tensor that holds it, would never come back.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from insitu.remote.worker.apart.channel import ChannelError

LAYERS_MOST = 10_000
_COUNT_MOST = 2**31
_REPEATS_MOST = 2**20
Check = Callable[[Any], bool]


def _tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _layer(value: Any) -> bool:
    return type(value) is int and 0 <= value < LAYERS_MOST


def _layer_or_all(value: Any) -> bool:
    return value is None or _layer(value)


def _count(value: Any) -> bool:
    return type(value) is int and abs(value) < _COUNT_MOST


def _length(value: Any) -> bool:
    return _tensor(value) or _count(value)


def _repeats(value: Any) -> bool:
    return type(value) is int and 0 < value < _REPEATS_MOST


def _further(value: Any) -> bool:
    """What a model gives a layer besides: positions, and the like."""
    if isinstance(value, dict):
        return all(type(name) is str and _further(part) for name, part in value.items())
    return value is None or type(value) is bool or _length(value)


_TAKES: dict[str, dict[str, Check]] = {
    "update": {
        "key_states": _tensor, "value_states": _tensor, "layer_idx": _layer,
        "cache_kwargs": _further,
    },
    "get_seq_length": {"layer_idx": _layer},
    "get_mask_sizes": {"query_length": _length, "layer_idx": _layer, "cache_position": _length},
    "get_max_cache_shape": {"layer_idx": _layer},
    "get_query_offset": {"layer_idx": _layer},
    "has_previous_state": {"layer_idx": _layer_or_all, "state_idx": _layer_or_all},
    "reorder_cache": {"beam_idx": _tensor},
    "crop": {"tokens_to_remove": _count, "max_length": _count},
    "batch_repeat_interleave": {"repeats": _repeats},
    "batch_select_indices": {"indices": _tensor},
    "reset": {},
}  # fmt: skip
"""Each method's arguments in their order; names that older releases have stand at the end."""
CACHE_METHODS = frozenset(_TAKES)
CACHE_VALUES = frozenset({
    "is_compileable", "is_sliding", "is_initialized", "max_batch_size", "max_cache_len",
    "is_updated", "self_attention_cache", "cross_attention_cache", "is_croppable",
})  # fmt: skip


def require(name: Any, args: tuple[Any, ...], kwargs: Mapping[Any, Any]) -> None:
    """See that a question is one that a cache is asked.

    Raises:
        ChannelError: it is none.
    """
    takes = _takes(name)
    named = dict(zip(takes, args, strict=False))
    if len(args) > len(takes) or named.keys() & kwargs.keys():
        raise _none(f"{name} with {len(args)} arguments")
    for key, value in (*named.items(), *kwargs.items()):
        check = takes.get(key) if type(key) is str else None
        if check is None and name == "update" and type(key) is str:
            check = _further
        if check is None or not check(value):
            raise _none(f"{name} with {str(key)[:40]}={_shown(value)}")


def _takes(name: Any) -> dict[str, Check]:
    if type(name) is not str or name not in CACHE_METHODS | CACHE_VALUES:
        raise _none(str(name)[:40])
    return _TAKES.get(name, {})


def asked(cache: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What the cache answers."""
    found = getattr(cache, name)
    return found(*args, **kwargs) if name in CACHE_METHODS else found


def _shown(value: Any) -> str:
    plain = isinstance(value, (bool, float, str)) or (type(value) is int and abs(value) < 2**64)
    return repr(value)[:40] if plain else f"a {type(value).__name__}"


def _none(what: str) -> ChannelError:
    return ChannelError(f"a question that a cache is not asked ({what})")
