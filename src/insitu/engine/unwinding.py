"""A call that stack unwinders cannot see through: the first frame of every greenlet.

    enter(body)   # calls body()

torch's C++ errors collect a backtrace; glibc's walks past the first frame of a greenlet into stale
stack bytes and faults. `enter` calls through a page of machine code that carries no unwind
information, and a frame it has no description for ends the walk. Linux needs this; the walkers of
macOS and Windows stay inside the thread's stack bounds and are left alone.
"""

import ctypes
import mmap
import platform
import struct
import sys
from collections.abc import Callable


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


def _make() -> Callable[[Callable[[], None]], object]:
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
enter = _make()
