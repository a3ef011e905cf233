"""Coroutines for forward passes: parked greenlets that run a task and come back.

    worker = acquire()
    worker.begin(task, contextvars.copy_context())   # runs task() until it switches away
    ...
    release(worker)

The only file that knows greenlet. A fresh greenlet costs 30 to 60 µs (its data stack is mapped and
unmapped), so each thread keeps a few finished ones parked.

Every greenlet is entered through a page of machine code that carries no unwind information.
torch's C++ errors collect a backtrace; glibc's walks past the first frame of a greenlet into stale
stack bytes and faults. A frame it has no description for ends the walk. Linux needs this; the
walkers of macOS and Windows stay inside the thread's stack bounds and are left alone.
"""

import contextvars
import ctypes
import mmap
import platform
import struct
import sys
import threading
from collections.abc import Callable
from typing import TypeAlias

import greenlet as _greenlet
from greenlet import getcurrent as getcurrent

Greenlet: TypeAlias = _greenlet.greenlet
Exit = _greenlet.GreenletExit
SwitchError = _greenlet.error

PARKED_MAX = 64  # finished workers kept for reuse, per thread: an invoke takes one

Task = Callable[[], Greenlet]


class Worker(_greenlet.greenlet):  # type: ignore[misc]
    """A greenlet that serves one task after another; between two it is parked."""

    task: Task | None = None
    gr_context: contextvars.Context | None

    def begin(self, task: Task, context: contextvars.Context) -> None:
        """Run `task` in `context` until it switches away or returns the greenlet to go back to."""
        self.task = task
        self.gr_context = context
        self.switch()


def _live() -> None:
    _enter(_serve)


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


class _Parked(threading.local):
    def __init__(self) -> None:
        self.workers: list[Worker] = []


_parked = _Parked()


def acquire() -> Worker:
    """Take a parked worker of this thread, or make one."""
    workers = _parked.workers
    return workers.pop() if workers else Worker(_live)


def release(worker: Worker) -> None:
    """Park a worker whose task has returned; beyond a few it is dropped, and ends."""
    workers = _parked.workers
    if not worker.dead and len(workers) < PARKED_MAX:
        worker.gr_context = None  # or it would keep the last run's values alive
        workers.append(worker)


def parked() -> int:
    """How many workers this thread keeps parked."""
    return len(_parked.workers)


def _stub_code(target: int) -> bytes | None:
    """Machine code that calls `target` with its own first argument, for this processor."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        # sub rsp, 8 ; mov rax, target ; call rax ; add rsp, 8 ; ret
        return (
            b"\x48\x83\xec\x08\x48\xb8"
            + struct.pack("<Q", target)
            + b"\xff\xd0\x48\x83\xc4\x08\xc3"
        )
    if machine in ("aarch64", "arm64"):
        # stp x29, x30, [sp, #-16]! ; ldr x16, target ; blr x16 ; ldp x29, x30, [sp], #16 ; ret
        words = (0xA9BF7BFD, 0x580000B0, 0xD63F0200, 0xA8C17BFD, 0xD65F03C0, 0xD503201F)
        return struct.pack("<6I", *words) + struct.pack("<Q", target)
    return None


def _make_stub() -> Callable[[Callable[[], None]], object]:
    """A function that calls its argument from a frame no unwinder can describe."""
    target = ctypes.cast(ctypes.pythonapi.PyObject_CallNoArgs, ctypes.c_void_p).value
    code = _stub_code(target) if sys.platform == "linux" and target else None
    if code is None:
        return lambda body: body()
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc = ctypes.CDLL(None, use_errno=True)
    protect = libc.mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if protect(address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC) != 0:
        raise OSError(ctypes.get_errno(), "the call stub's page could not be made executable")
    if "arm" in platform.machine().lower() or "aarch64" in platform.machine().lower():
        _clear_instruction_cache(address, len(code))
    _keep.append(page)
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(address)


def _clear_instruction_cache(address: int, size: int) -> None:
    clear = ctypes.CDLL("libgcc_s.so.1").__clear_cache
    clear.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    clear.restype = None
    clear(address, address + size)


_keep: list[mmap.mmap] = []  # the page must outlive every call through it
_enter = _make_stub()
