"""A call that stack unwinders cannot see through: the first frame of every greenlet.

    greenlet(shielded(body))    # calls body()

torch's C++ errors collect a backtrace; glibc's walks past the first frame of a greenlet into stale
stack bytes and faults. `shielded` calls through a page of machine code that carries no unwind
information, and a frame it has no description for ends the walk. Linux needs this; the walkers of
macOS and Windows stay inside the thread's stack bounds and are left alone.
"""

import ctypes
import mmap
import platform
import struct
import sys
from collections.abc import Callable
from typing import TypeAlias, cast

Body: TypeAlias = Callable[[], object]


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


class _Method(ctypes.Structure):
    """What CPython knows of a function in C: a PyMethodDef."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_NO_ARGUMENTS = 0x0004  # METH_NOARGS: called with what it is bound to, and nothing


def _make() -> Callable[[Body], Body]:
    """What makes of a body one that is called from a frame no unwinder can describe."""
    target = ctypes.cast(ctypes.pythonapi.PyObject_CallNoArgs, ctypes.c_void_p).value
    code = _stub_code(target) if sys.platform == "linux" and target else None
    if code is None:
        return lambda body: body
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
    method = _Method(b"shielded", address, _NO_ARGUMENTS, None)
    bound = ctypes.pythonapi["PyCFunction_NewEx"]  # our own handle of it
    bound.restype = ctypes.py_object
    bound.argtypes = (ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    _keep.append((page, method))
    # What it makes is called as any function in C: no frame of Python's, or of ctypes', lies below
    # a greenlet's work, for each switch copies the stack.
    return lambda body: cast(Body, bound(ctypes.addressof(method), body, None))


def _clear_instruction_cache(address: int, size: int) -> None:
    clear = ctypes.CDLL("libgcc_s.so.1").__clear_cache
    clear.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    clear.restype = None
    clear(address, address + size)


_keep: list[tuple[mmap.mmap, _Method]] = []  # they must outlive every call through them
shielded = _make()
