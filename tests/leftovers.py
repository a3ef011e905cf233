"""What a trace must not leave: wrappers and hooks on a module, greenlets but the parked ones."""

import gc
from itertools import compress

from insitu.engine import switch

_KINDS = frozenset((switch.Worker, switch.Greenlet))


def ours_on(module):
    """What a trace has put on a module."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    placed = (module.__dict__.get("forward"), *hooks)
    return [it for it in placed if (getattr(it, "__module__", None) or "").startswith("insitu")]


def unparked():
    """The greenlets that wait somewhere, by identity, apart from this thread's parked ones."""
    switch.getcurrent()  # those that another thread let go of end when their own looks
    kept = {id(worker) for worker in switch._parked.workers}
    every = gc.get_objects()
    ours = compress(every, map(_KINDS.__contains__, map(type, every)))  # no Python for the others
    return {id(o) for o in ours if o and o.parent} - kept
