"""Landlock: which files a process may still open by name, whoever it runs as.

rules = Rules.made(listable=["/usr/lib"], readable=["/usr/lib/python3.11"])
rules.enter()                                              # every other path is refused from now on

The rules are made once, in the model process; entering them is one call.
"""

import ctypes
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same on every machine
_VERSION_FLAG, _BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights on files each version knows; from version 5 on the number stays."""
_NETWORK_FROM, _NETWORK = 4, 0b11
_SCOPES_FROM, _SCOPES = 6, 0b11
"""Abstract sockets and signals stay within the jail."""


class LandlockError(OSError):
    """The kernel does not take the rules."""


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("files", ctypes.c_uint64),
        ("network", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def version() -> int:
    """Of the kernel's landlock; 0 where it has none, or has it switched off."""
    if platform.system() != "Linux":
        return 0
    found = _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION_FLAG))
    return max(0, found)


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(number), *arguments))


def _required(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise LandlockError(code, f"landlock cannot {what}: {os.strerror(code)}")
    return result


@dataclass(frozen=True)
class Rules:
    """What may still be opened, ready to be entered."""

    fd: int

    @classmethod
    def made(cls, listable: Iterable[str], readable: Iterable[str]) -> "Rules":
        """Rules under which these can be listed or read, and no other file be opened by its name.

        Raises:
            LandlockError: the kernel has no landlock.
        """
        found = _required(version() or -1, "be used here")
        attributes = _Attributes(
            (1 << _FILES[min(found, max(_FILES))]) - 1,
            _NETWORK if found >= _NETWORK_FROM else 0,
            _SCOPES if found >= _SCOPES_FROM else 0,
        )
        size = 24 if found >= _SCOPES_FROM else 16 if found >= _NETWORK_FROM else 8
        made = _call(_CREATE, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
        rules = cls(_required(made, "make rules"))
        for place in listable:
            rules._allow(place, _READ_DIR)
        for place in readable:
            rules._allow(place, _READ_FILE | (_READ_DIR if os.path.isdir(place) else 0))
        return rules

    def _allow(self, place: str, rights: int) -> None:
        fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
        try:
            beneath = _Beneath(rights, fd)
            flags = ctypes.c_uint32(0)
            done = _call(
                _ADD, ctypes.c_int(self.fd), ctypes.c_int(_BENEATH), ctypes.byref(beneath), flags
            )
            _required(done, f"allow {place}")
        finally:
            os.close(fd)

    def enter(self) -> None:
        """Put this thread, and all it starts, under the rules, for good.

        Raises:
            LandlockError: the kernel refuses; no_new_privs must be set before.
        """
        _required(_call(_RESTRICT, ctypes.c_int(self.fd), ctypes.c_uint32(0)), "be entered")
        os.close(self.fd)
