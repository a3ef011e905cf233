"""A seccomp filter: the calls of `syscalls.py` are allowed, and every other fails.

program = assembled("x86_64")
enter(program, os.getpid())                                # from now on, in every thread

The filter is classic BPF, put together here because a jail may not need a package. It is made once,
in the model process; a job writes its own process id into it.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass

from insitu.remote.worker import syscalls

_INSTRUCTION = struct.Struct("<HBBI")
_LOAD, _JEQ, _JSET, _JGE, _RETURN, _AND = 0x20, 0x15, 0x45, 0x35, 0x06, 0x54
_NUMBER, _ARCH = 0, 4
_ARGUMENTS = 16
ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE = 0x00050000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000
_NEWER = 424
"""Calls from this number on are unknown to older libraries, which expect ENOSYS and fall back."""
_CALL = {"x86_64": 317, "aarch64": 277}
_FILTER, _THREAD_SYNC = 1, 1
_OWN = 0xFFFFFFF0
"""Stands for the process's own id until it is known."""


class SeccompError(OSError):
    """The kernel does not take the filter."""


@dataclass(frozen=True)
class Filter:
    """A program, and where the id of the process belongs in it."""

    code: bytes
    own: tuple[int, ...]
    machine: str

    def of(self, pid: int) -> bytes:
        """The program of one process."""
        code = bytearray(self.code)
        for at in self.own:
            struct.pack_into("<I", code, at, pid)
        return bytes(code)


class _Program:
    def __init__(self) -> None:
        self.lines: list[tuple[int, int, int, int]] = []

    def add(self, code: int, value: int, then: int = 0, otherwise: int = 0) -> None:
        self.lines.append((code, then, otherwise, value))

    def give(self, action: int) -> None:
        self.add(_RETURN, action)

    def load_argument(self, number: int, *, high: bool = False) -> None:
        self.add(_LOAD, _ARGUMENTS + 8 * number + (4 if high else 0))


_Body = Callable[[_Program], None]


def assembled(machine: str | None = None) -> Filter:
    """The filter for a machine; for this one by default.

    Raises:
        SeccompError: no filter is known for it.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise SeccompError(errno.ENOSYS, f"no filter is known for {machine}")
    column = list(ARCHITECTURES).index(machine)
    program = _Program()
    program.add(_LOAD, _ARCH)
    program.add(_JEQ, ARCHITECTURES[machine], 1, 0)
    program.give(KILL)
    program.add(_LOAD, _NUMBER)
    if machine == "x86_64":  # the x32 calls have other numbers for the same
        program.add(_JGE, _X32, 0, 1)
        program.give(KILL)
    for numbers in syscalls.ALLOWED.values():
        if numbers[column] is not None:
            _equal(program, numbers[column] or 0, ALLOW)
    for name, both in syscalls.BY_ARGUMENT.items():
        if (number := both[column]) is not None:
            _by_argument(program, number, _BODIES[name])
    for missing in syscalls.MISSING.values():
        _equal(program, missing[column], REFUSE | errno.ENOSYS)
    program.add(_JGE, _NEWER, 0, 1)
    program.give(REFUSE | errno.ENOSYS)
    program.give(REFUSE | errno.EPERM)
    own = tuple(8 * i + 4 for i, line in enumerate(program.lines) if line[3] == _OWN)
    return Filter(b"".join(_INSTRUCTION.pack(*line) for line in program.lines), own, machine)


def _equal(program: _Program, value: int, action: int) -> None:
    program.add(_JEQ, value, 0, 1)
    program.give(action)


def _by_argument(program: _Program, number: int, body: _Body) -> None:
    """Look at a call's arguments if it is that call; its part always returns."""
    part = _Program()
    body(part)
    part.give(REFUSE | errno.EPERM)
    program.add(_JEQ, number, 0, len(part.lines))
    program.lines += part.lines


def _to_read(flags: int) -> _Body:
    """Files opened to be read: the flags are the argument of that number."""

    def body(part: _Program) -> None:
        part.load_argument(flags)
        part.add(_JSET, syscalls.WRITING_FLAGS, 1, 0)
        part.give(ALLOW)

    return body


def _threads_only(part: _Program) -> None:
    part.load_argument(0)
    part.add(_JSET, syscalls.FORBIDDEN_FLAGS, 3, 0)
    part.add(_AND, syscalls.THREAD_FLAGS)
    part.add(_JEQ, syscalls.THREAD_FLAGS, 0, 1)
    part.give(ALLOW)


def _itself_only(part: _Program) -> None:
    part.load_argument(0)
    _equal(part, _OWN, ALLOW)


def _fcntl(part: _Program) -> None:
    part.load_argument(1)
    for command in syscalls.FCNTL_COMMANDS:
        _equal(part, command, ALLOW)


def _ioctl(part: _Program) -> None:
    part.load_argument(1)
    for request in syscalls.IOCTL_REQUESTS:
        _equal(part, request, ALLOW)


def _prctl(part: _Program) -> None:
    part.load_argument(0)
    for option in syscalls.PRCTL_OPTIONS:
        _equal(part, option, ALLOW)


def _own_limits_read_only(part: _Program) -> None:
    part.load_argument(0)
    part.add(_JEQ, 0, 0, 5)
    part.load_argument(2)
    part.add(_JEQ, 0, 0, 3)
    part.load_argument(2, high=True)
    part.add(_JEQ, 0, 0, 1)
    part.give(ALLOW)


_BODIES: dict[str, _Body] = {
    "open": _to_read(1), "openat": _to_read(2),
    "clone": _threads_only, "kill": _itself_only, "tgkill": _itself_only, "fcntl": _fcntl,
    "ioctl": _ioctl, "prctl": _prctl, "prlimit64": _own_limits_read_only,
}  # fmt: skip


class _Code(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("lines", ctypes.c_void_p))


def enter(filter: Filter, pid: int) -> None:
    """Put this process under the filter, all its threads, for good.

    Raises:
        SeccompError: the kernel does not take it.
    """
    code = ctypes.create_string_buffer(filter.of(pid))
    lines = len(filter.code) // _INSTRUCTION.size
    said = _Code(lines, ctypes.cast(code, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_long(_CALL[filter.machine])
    arguments = (ctypes.c_ulong(_FILTER), ctypes.c_ulong(_THREAD_SYNC), ctypes.byref(said))
    if libc.syscall(number, *arguments) != 0:
        code_of_error = ctypes.get_errno()
        raise SeccompError(code_of_error, f"seccomp: {os.strerror(code_of_error)}")


def available() -> bool:
    """True when this kernel takes filters and one is known for this machine."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        return False
    wanted = ctypes.c_uint32(KILL)
    libc = ctypes.CDLL(None, use_errno=True)  # SECCOMP_GET_ACTION_AVAIL
    number = ctypes.c_long(_CALL[machine])
    return bool(
        libc.syscall(number, ctypes.c_ulong(2), ctypes.c_ulong(0), ctypes.byref(wanted)) == 0
    )
