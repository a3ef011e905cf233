"""The engine's hottest functions, in C where a compiler was there when Insitu was installed.

    @hot.in_c
    def put_in(plain): ...              # `put_in` of `_hot.c`, or this
    @hot.called_in_c
    class AtOutput(Stopping): ...       # with its `__call__` in C

The Python says what they mean, and runs where there is no C: with `INSITU_PURE_PYTHON=1` in the
environment, without a compiler, or with a torch whose modes cannot be asked for from C.
"""

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

from insitu.engine import modes
from insitu.engine.switch import getcurrent

_VERSION = 1  # of what `_hot.c` and this file agree upon

Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])


def _load() -> ModuleType | None:
    if os.environ.get("INSITU_PURE_PYTHON", "0") not in ("", "0"):
        return None
    try:
        from insitu.engine import _hot
    except ImportError:
        return None
    asked = modes.grad_on, modes.inference_on, modes.autocast_on, modes.functions_on
    usable = _hot.VERSION == _VERSION and _hot.can_ask(*asked, modes.dispatches_on, getcurrent)
    return _hot if usable else None


compiled = _load()
"""What was compiled, where it is in use."""


def in_c(function: Function) -> Function:
    """The function of that name in C."""
    return function if compiled is None else getattr(compiled, function.__name__)


def called_in_c(wrapper: Class) -> Class:
    """The class, with its `__call__` in C."""
    return wrapper if compiled is None else compiled.calling(wrapper)


def set_in_c(method: Function) -> Function:
    """A node's `__setattr__`, which in C writes outputs itself."""
    return method if compiled is None else compiled.setting(method)


def bind(*known: Any) -> None:
    """Give the C what `read` and the calls refer to, in the order of `_hot.bind`."""
    if compiled is not None:
        compiled.bind(*known)
