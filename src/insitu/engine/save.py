"""`.save()` and `save`: what comes back from a block.

    with model.trace(x):
        norms = list().save()
        h = insitu.save(model.layer1.output)

A block that runs in place keeps its names anyway, so saving returns the value unchanged; a block
that runs elsewhere (an edit, a server) sends back what was saved.

`.save` is mounted on tensors and on Python's own containers and numbers, and on nothing else, when
the first trace begins, and stays: a type changed a thousand times loses its attribute cache for
good on Python 3.13, so mounting for each trace would slow the whole process down.
"""

import collections
import contextvars
import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from insitu.engine.running import anything_runs
from insitu.errors import NoTraceError

T = TypeVar("T")

_BUILTINS: tuple[type, ...] = (
    bool, bytearray, bytes, complex, dict, float, frozenset, int, list, range, set, slice, str,
    tuple, type(None),
)  # fmt: skip
_mounted = False
_kept: contextvars.ContextVar[dict[int, Any] | None] = contextvars.ContextVar(
    "insitu_saved", default=None
)
_sessions: contextvars.ContextVar[int] = contextvars.ContextVar("insitu_sessions", default=0)
"""How many sessions the caller is inside of."""


@contextmanager
def keeping() -> Iterator[dict[int, Any]]:
    """What is saved within, by identity: for a block whose values are sent back."""
    mount()
    found: dict[int, Any] = {}
    token = _kept.set(found)
    try:
        yield found
    finally:
        _kept.reset(token)


def begin_session() -> None:
    """Let values be saved from here on, between traces too, as where a session is one request."""
    mount()
    _sessions.set(_sessions.get() + 1)


def end_session() -> None:
    """What `begin_session` began is over."""
    _sessions.set(_sessions.get() - 1)


def save(value: T) -> T:
    """Mark a value to come back from the block, and return it.

        with model.trace(x):
            h = insitu.save(model.layer1.output)

    Raises:
        NoTraceError: no trace is running, and no session.
    """
    kept = _kept.get()
    if kept is not None:
        kept[id(value)] = value
    elif not (anything_runs() or _sessions.get()):
        raise NoTraceError(
            "save() was called outside a trace.",
            "it marks what comes back from a block, and no block is running.",
            "call it inside `with model.trace(...):`; elsewhere a value needs no saving.",
        )
    return value


def _save(self: Any) -> Any:
    """Mark this value to come back from the traced block, and return it."""
    return save(self)


_save.__name__ = _save.__qualname__ = "save"


def mount() -> None:
    """Give tensors, containers and numbers their `.save()`; the second call does nothing."""
    global _mounted
    if _mounted:
        return
    _mounted = True
    torch.Tensor.save = _save  # type: ignore[attr-defined]
    modified = ctypes.pythonapi.PyType_Modified
    modified.argtypes = (ctypes.py_object,)
    modified.restype = None
    # IPython asks UserString for every name that str has.
    collections.UserString.save = _save  # type: ignore[attr-defined]
    for kind in _BUILTINS:
        namespace = gc.get_referents(kind.__dict__)[0]  # the dict behind the read-only view
        namespace["save"] = _save
        modified(kind)
