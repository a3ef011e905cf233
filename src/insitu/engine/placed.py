"""Wrappers in the `forward` of modules: putting many in, and taking them out again.

    put_in(plain)               # False when a module is not as it was when this was learned
    take_out(placed, take_out_one)

Each does all of a pass in one loop; the caller holds the lock.
"""

import threading
from collections.abc import Callable
from typing import Any

from torch import nn

from insitu.engine import hot
from insitu.engine.compiled import COMPILED_CALL
from insitu.engine.stopping import Forward, Stopping

Placed = tuple[dict[str, Any], Any, Any]
"""An instance's `__dict__`, the wrapper that was put there, and what was there before."""

lock = threading.RLock()
"""Held while wrappers change places. A collection meanwhile may end a pass that was dropped."""

Plain = tuple[dict[str, Any], str, nn.Module, dict[str, Any], Any, Stopping]
"""Where a module stands, under which name, it and its `__dict__`, its class's forward, and the
wrapper of it."""


@hot.in_c
def put_in(plain: tuple[Plain, ...]) -> bool:
    """Put all wrappers in; False when something is not as it was."""
    for siblings, name, module, namespace, forward, wrapper in plain:
        if (
            siblings.get(name) is not module
            or namespace["_forward_hooks"]
            or COMPILED_CALL in namespace
            or type(module).forward is not forward
            or namespace.setdefault("forward", wrapper) is not wrapper
        ):
            return False
    return True


@hot.in_c
def take_out(placed: list[Placed], one: Callable[..., None]) -> None:
    """Take wrappers out, the last first; `one` does what is more than to delete it."""
    for namespace, wrapper, before in reversed(placed):
        one(namespace, wrapper, before)


def take_out_one(namespace: dict[str, Any], wrapper: Any, before: Any) -> None:
    """Put back what was there before."""
    if namespace.get("forward") is not wrapper:
        return  # another pass's stands over it, and will see that this one is over
    if before is None:
        del namespace["forward"]
    else:
        _restore(namespace, before)


def _restore(namespace: dict[str, Any], before: Forward | None) -> None:
    """Put back what was there, unless that is a wrapper whose pass has ended meanwhile."""
    while isinstance(before, Stopping) and before.run.cleared:
        before = _unless_its_own(before[1], before[2])
    if before is None:
        del namespace["forward"]
    else:
        namespace["forward"] = before


def _unless_its_own(module: nn.Module, forward: Forward) -> Forward | None:
    """A forward that belongs into the instance; None for the one its class defines."""
    is_class_own = getattr(forward, "__func__", None) is getattr(type(module), "forward", None)
    return None if is_class_own else forward
