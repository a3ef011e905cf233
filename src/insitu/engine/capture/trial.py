"""A body's names for a trial run: whatever it does to them, its caller never sees.

    names = apart(Names(frame, body))
    body.run(names)                     # results.append(h) appends to a copy, print() is silent

Lists, dicts and sets are copied with all that is in them, so that appending twice does not happen.
A tensor is another one of the same memory, which fake tensors do not write to: an operation in
place would otherwise tie the caller's tensor to the graph of the trial. What a body does to other
objects it does to them themselves, and does again in the real run.
"""

import copy
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

from torch import Tensor

from insitu.engine.capture.scope import Names

_DICTS = (dict, OrderedDict, defaultdict, Counter)
_ROWS = (list, deque)
_SHOWING = ("print", "display", "pprint")


def apart(names: Names) -> Names:
    """Put copies in place of what the body could change, in these very names."""
    copies: dict[int, Any] = {}
    held = names.given()
    for name, value in held.items():
        if (copied := _copy(value, copies)) is not value:
            names[name] = copied
    for name in names.wanted.intersection(_SHOWING):
        if callable(held.get(name, _silent)):
            names[name] = _silent
    return names


def _silent(*values: Any, **settings: Any) -> None:
    """Show nothing: the real run will."""


def _copy(value: Any, copies: dict[int, Any]) -> Any:
    """The value itself, or a copy if it can be changed; of one value always the same."""
    kind = type(value)
    if id(value) in copies:
        return copies[id(value)]
    made: Any
    if kind is Tensor:
        made = _beside(value)
    elif kind is tuple:
        parts = [_copy(part, copies) for part in value]
        made = value if all(map(_is, parts, value)) else tuple(parts)
    elif kind in (*_DICTS, *_ROWS, set):
        copies[id(value)] = made = copy.copy(value)  # before its parts: it may hold itself
        if kind is not set:
            for key, part in list(made.items() if kind in _DICTS else enumerate(made)):
                made[key] = _copy(part, copies)
    else:
        return value
    copies[id(value)] = made
    return made


def _is(one: Any, other: Any) -> bool:
    return one is other


def _beside(tensor: Tensor) -> Tensor:
    """A tensor of the same memory that knows nothing of the first one's graph."""
    if not tensor.requires_grad:
        return tensor.data
    beside = tensor.data.requires_grad_()
    return beside if tensor.is_leaf else beside.clone()  # a leaf could not be edited in place
