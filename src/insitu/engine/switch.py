"""Coroutines for forward passes: parked greenlets that run a task and come back.

    worker = acquire()
    worker.begin(task, contextvars.copy_context())   # runs task() until it switches away
    ...
    release(worker)

The only file that knows greenlet. A fresh greenlet costs 30 to 60 µs (its data stack is mapped and
unmapped), so each thread keeps a few finished ones parked.
"""

import contextvars
import threading
from collections.abc import Callable
from typing import TypeAlias
from weakref import ReferenceType, ref

import greenlet as _greenlet
from greenlet import getcurrent as getcurrent

from insitu.engine.modes import Modes, swap
from insitu.engine.unwinding import shielded

Greenlet: TypeAlias = _greenlet.greenlet
Exit = _greenlet.GreenletExit
SwitchError = _greenlet.error

PARKED_MAX = 64  # finished workers kept for reuse, per thread: an invoke takes one

Task = Callable[[], Greenlet]


class _Left(list[tuple["Worker", Modes]]):
    """What other threads closed of one thread, which alone can end it; gone with the thread."""

    __slots__ = ("__weakref__",)


class Worker(_greenlet.greenlet):  # type: ignore[misc]
    """A greenlet that serves one task after another; between two it is parked."""

    task: Task | None = None
    home: ReferenceType[_Left]
    gr_context: contextvars.Context | None

    def begin(self, task: Task, context: contextvars.Context) -> None:
        """Run `task` in `context` until it switches away or returns the greenlet to go back to."""
        self.task = task
        self.gr_context = context
        self.switch()


def _serve() -> None:
    """Serve tasks until the worker is dropped; no local may refer to it, or it never would be."""
    while True:
        worker: Worker = getcurrent()
        task, worker.task = worker.task, None
        del worker
        assert task is not None
        back = task()
        del task
        back.switch()


_live = shielded(_serve)


class _Parked(threading.local):
    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self.left = _Left()


_parked = _Parked()


def acquire() -> Worker:
    """Take a parked worker of this thread, or make one."""
    while _parked.left:
        worker, modes = _parked.left.pop(0)
        before = swap(modes)
        worker.parent = getcurrent()  # where its end comes out
        worker.throw(Exit)
        swap(before)
    if _parked.workers:
        return _parked.workers.pop()
    worker = Worker(_live)
    worker.home = ref(_parked.left)
    return worker


def release(worker: Worker) -> None:
    """Park a worker whose task has returned; beyond a few it is dropped, and ends."""
    workers = _parked.workers
    if not worker.dead and len(workers) < PARKED_MAX:
        worker.gr_context = None  # or it would keep the last run's values alive
        workers.append(worker)


def leave(worker: Worker, modes: Modes) -> None:
    """Park a worker; of another thread, have that one, which alone can, end it when it next can."""
    left = worker.home()
    if left is _parked.left:
        release(worker)
    elif left is not None:
        left.append((worker, modes))


def parked() -> int:
    """How many workers this thread keeps parked."""
    return len(_parked.workers)
