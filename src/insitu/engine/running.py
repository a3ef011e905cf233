"""Which pass a piece of code is in: the innermost `with` around it, or one held open.

run = find(model.transformer.h[0])
"""

import contextvars
from threading import get_ident
from typing import Any

from insitu.engine import misses
from insitu.engine.arming import Node
from insitu.engine.interleave import Pass

active: contextvars.ContextVar[Any] = contextvars.ContextVar("insitu_pass", default=None)
"""The innermost pass of this thread or task; `Pass.outer` leads to those around it."""

opened: list[Pass] = []
"""Passes held open, across cells and threads; the latest last."""


def find(node: Node) -> Any:
    """The running pass of this node's model: the innermost around the caller, or one held open.

    One of this very wrapper comes before one of another wrapper of the same module. In a captured
    body it is the body's lane, which looks to it as the pass does to a block in place.
    """
    around = []
    candidate = active.get()
    while candidate is not None:
        if not candidate.closed and candidate.whole is node._whole:
            around.append(candidate)
        candidate = candidate.outer
    for run in around:
        if run.root is node._root:
            return run
    held = [run for run in opened if run.root is node._root and not run.closed]
    here = [run for run in held if run.thread == get_ident()]
    if here:
        return here[-1]
    if around:
        return around[0]
    raise misses.other_thread(held[-1]) if held else misses.no_trace(node)


def around_here() -> list[Any]:
    """The passes that the caller is inside of, and those held open in its thread."""
    around = [run for run in opened if run.thread == get_ident()]
    candidate = active.get()
    while candidate is not None:
        around.append(candidate)
        candidate = candidate.outer
    return around


def anything_runs() -> bool:
    """Whether the caller is inside a trace or has a pass held open."""
    return active.get() is not None or any(r.thread == get_ident() for r in opened)


def is_inside(root: Any) -> bool:
    """Whether the caller is in the block of a trace of this very wrapper, or in an edit of it."""
    run = active.get()
    while run is not None:
        if not run.closed and (run.root is root or run.arming.root is root):
            return True
        run = run.outer
    return False
