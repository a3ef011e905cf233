"""Activation checkpointing (`torch.utils.checkpoint`): a pass runs what it wraps without it.

    begin(run)      # when a pass starts that may come to one; undone when it ends

A checkpoint drops what its function computed, and computes it again in the backward. By then the
block's edits are gone: the gradients would be those of another model, without a word (with
reentrant checkpoints always, with others where no tensor more is saved). And what a block computes
while the model stands in one would be taken for the function's own. So a traced pass keeps its
activations.

torch looks its two ways up by name at each call. They are replaced while a pass is open that may
come to one: the first of its kind, one of a model in training mode, and those after a pass that
did. Anything else, other threads too, gets torch's own. Known gap: checkpoints that a model in
evaluation mode begins to use after its first pass.
"""

import sys
import threading
from collections.abc import Iterator
from typing import Any

from insitu.engine.switch import getcurrent

_MODULE = "torch.utils.checkpoint"
_REENTRANT, _OTHER = "CheckpointFunction", "_checkpoint_without_reentrant_generator"

_lock = threading.RLock()
_open: set[Any] = set()
_own: dict[str, Any] = {}
"""torch's own two, while ours are in their place."""


def begin(run: Any) -> None:
    """Let a pass that starts run what comes in a checkpoint as it is."""
    module = sys.modules.get(_MODULE)
    if module is None:
        return
    with _lock:
        if _open:
            _open.difference_update([it for it in _open if it.cleared])  # one that was interrupted
        _open.add(run)
        if not _own:
            names = module.__dict__
            _own[_REENTRANT], _own[_OTHER] = names[_REENTRANT], names[_OTHER]
            names[_REENTRANT], names[_OTHER] = _Reentrant, _without
    run.checkpointed = True  # so `end` is due


def end(run: Any) -> None:
    """A pass is over: torch's own two are back after the last. Safe to call twice."""
    with _lock:
        _open.discard(run)
        if not _open and _own:
            vars(sys.modules[_MODULE]).update(_own)
            _own.clear()


def _is_within_a_pass() -> bool:
    """Whether the model of an open pass is what calls; it is then known to have checkpoints."""
    here = getcurrent()
    for run in tuple(_open):
        if run.worker is here:
            order = run.order or (run.observation and run.observation.order)
            if order is not None:
                order.checkpoints = True
            return True
    return False


class _Reentrant:
    """Stands in for torch's autograd function."""

    @staticmethod
    def apply(function: Any, preserve: bool, *args: Any) -> Any:
        """Call the function, in a pass; checkpoint it elsewhere."""
        if _is_within_a_pass():
            return function(*args)
        return _torchs(_REENTRANT).apply(function, preserve, *args)


def _without(*args: Any, **kwargs: Any) -> Iterator[None]:
    """Stands in for torch's generator around a call; in a pass it does nothing."""
    if _is_within_a_pass():
        yield
    else:
        yield from _torchs(_OTHER)(*args, **kwargs)


def _torchs(name: str) -> Any:
    """torch's own, also when ours is called as the last pass ends."""
    return _own.get(name) or getattr(sys.modules[_MODULE], name)
