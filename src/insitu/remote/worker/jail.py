"""What keeps a job from doing more than computing: `--trust team` and `--trust public`.

    print(says("team"))                                # in plain lines, when a server starts
    require("team")                                    # or UsageError, with a sentence
    jail = Jail.prepared("team")                       # once, in the model process
    jail.enter(limits, threads=1)                      # in the job, before it reads its block

Layers, each of which holds by itself: no new privileges, a user id of its own where the server runs
as root, no capabilities, resource limits, landlock (files), seccomp (system calls); around the
model process, in `public`, namespaces without a network. By ctypes alone.
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from insitu.errors import UsageError
from insitu.remote.protocol import Limits, Trust
from insitu.remote.worker import landlock, seccomp

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITY_VERSION = 0x20080522
_SET_IDS = (1 << 6) | (1 << 7)  # CAP_SETGID, CAP_SETUID
_SYS_ADMIN = 1 << 21
_FIRST_UID = 2_000_000_000
"""Of jobs, where the server may change it: no account has so high a number."""
THREADS_MOST = 256
_FILES_MOST = 64
_NEW_USER = 0x10000000
_NEW_OTHERS = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""Mounts, host name, shared memory, processes, network."""
_MOUNT_PRIVATE = 0x4000 | 0x40000


def says(trust: Trust) -> str:
    """What a mode stops and does not stop, in plain lines."""
    return _SAYS[trust]


_SAYS: dict[Trust, str] = {
    "self": """\
trust: self. Blocks run as you, with everything you may do: files, network, programs.
  Stops: edits of weights and globals reaching the next job (CPU models), jobs that never end.
  Does not stop: anything that a block means to do. Serve only yourself, on this machine.""",
    "team": """\
trust: team. A block computes on the model in a process of its own, and can do little else.
  Stops: opening, writing or listing files (packages that Python imports can be read), the
    environment and its keys, network, programs, processes, other jobs, more memory or time
    than a job may take.
  Does not stop: reading the model's weights, a flaw in the kernel or processor, timing how
    busy the machine is. Jobs share the machine's memory bandwidth and cache.
  A model on a GPU computes in a process of its own; jobs have neither the GPU nor its weights.""",
    "public": """\
trust: public. As team, and the model's processes see no network and none of the machine's
    other processes, whatever they call.
  Does not stop: reading the model's weights, a flaw in the kernel or processor. For strangers
    run the server in a virtual machine of its own, which holds nothing else.
  A model on a GPU computes in a process of its own, beside those namespaces; jobs have neither
    the GPU nor its weights.""",
}


@dataclass(frozen=True)
class Offered:
    """What this kernel has for a jail."""

    landlock: int
    """Its version; 0 where it is missing."""
    seccomp: bool
    namespaces: bool
    own_user: bool
    """Each job can have a user id of its own."""


def available(*, namespaces: bool = True) -> Offered:
    """Look what this kernel offers; namespaces are tried in a process of their own (30 ms)."""
    return Offered(
        landlock=landlock.version(),
        seccomp=seccomp.available(),
        namespaces=namespaces and _can_isolate(),
        own_user=_may(_SET_IDS),
    )


def require(trust: Trust) -> None:
    """See that a mode can be had.

    Raises:
        UsageError: this machine lacks a layer of it.
    """
    if trust == "self":
        return
    found = available(namespaces=trust == "public")
    missing = [name for name in ("landlock", "seccomp") if not getattr(found, name)]
    if trust == "public" and not found.namespaces:
        missing.append("namespaces")
    if missing:
        raise UsageError(
            f"--trust {trust} cannot be had on this machine: no {' and no '.join(missing)}.",
            "a job could reach files, network or processes, and nothing would hold it back.",
            "use Linux 5.13 or newer on x86-64 or aarch64 with landlock switched on, "
            "or --trust self for yourself alone.",
        )


def _capabilities() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(it.split()[1], 16) for it in lines if it.startswith("CapEff:")), 0)


def _may(capabilities: int) -> bool:
    return _capabilities() & capabilities == capabilities


@dataclass(frozen=True)
class Jail:
    """Everything of a jail that can be made beforehand."""

    rules: landlock.Rules
    filter: seccomp.Filter
    own_user: bool

    @classmethod
    def prepared(cls, trust: Trust) -> "Jail":
        """Made once, in the model process, after its imports.

        Raises:
            LandlockError, SeccompError: this kernel has no such layer.
        """
        if not seccomp.available():
            raise seccomp.SeccompError(38, f"--trust {trust} needs seccomp")
        rules = landlock.Rules.made(listable(), readable())
        return cls(rules, seccomp.assembled(), _may(_SET_IDS))

    @property
    def fds(self) -> tuple[int, ...]:
        """What a fork has to keep open until it enters."""
        return (self.rules.fd,)

    def enter(self, limits: Limits, threads: int) -> None:
        """Jail this process for good. It must have one thread: landlock holds for the caller's.

        Raises:
            OSError: a layer refused; the job must not run.
        """
        if len(os.listdir("/proc/self/task")) != 1:
            raise OSError("a job that has threads already cannot be jailed")
        _limit(limits, threads, own_user=self.own_user)
        _set(_PR_SET_NO_NEW_PRIVS, 1)
        if self.own_user:
            user = _FIRST_UID + os.getpid()
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        _drop_capabilities(self.filter.machine)
        _set(_PR_SET_DUMPABLE, 0)
        _set(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a new user id has cleared it
        self.rules.enter()
        seccomp.enter(self.filter, os.getpid())


def _set(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def _limit(limits: Limits, threads: int, *, own_user: bool) -> None:
    seconds = int((limits.wall_s + limits.local_total_s) * max(1, threads)) + 30
    most = {
        resource.RLIMIT_DATA: data_bytes() + limits.memory_bytes,  # AS would break mappings
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: limits.result_bytes + 2**20,
        resource.RLIMIT_NOFILE: _FILES_MOST,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    if own_user:  # it counts by user: another user's processes would count too
        most[resource.RLIMIT_NPROC] = THREADS_MOST
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # before the model, and before the server
    os.nice(1)
    for name, value in most.items():
        _, hard = resource.getrlimit(name)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))


def bound_memory(more_bytes: int) -> tuple[int, int]:
    """Let this process hold so much more than now; the bound before, for `setrlimit`.

    For a process that serves one job after another: what goes beyond is a MemoryError there.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + more_bytes, before[1]))
    return before


def data_bytes() -> int:
    """What counts as data already: the model's process has it too."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def _drop_capabilities(machine: str) -> None:
    """None of any set; with no_new_privs there is no way back to one."""
    header, none = _Header(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_long(_SYS_CAPSET[machine])
    if libc.syscall(number, ctypes.byref(header), ctypes.byref(none)) != 0:
        raise OSError(ctypes.get_errno(), "the capabilities of a job cannot be dropped")


def _library() -> set[str]:
    return {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}


def listable() -> set[str]:
    """Folders whose names Python looks through when it imports."""
    sites = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return {folder for folder in _library() | sites if os.path.isdir(folder)}


def readable() -> set[str]:
    """Files and folders that late imports need: the library, and what is imported already."""
    own = {
        os.path.join(folder, name)
        for folder in _library()
        if os.path.isdir(folder)
        for name in os.listdir(folder)
        if name not in ("site-packages", "dist-packages")
    }
    return own | _packages()


def _packages() -> set[str]:
    """Where the packages lie that have been imported; a module alone is its file."""
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        if "." in name or name == "__main__":
            continue
        places: Any = getattr(module, "__path__", None) or [getattr(module, "__file__", None)]
        found.update(str(place) for place in places if place and os.path.exists(place))
    return found


# Namespaces, for `public` -----------------------------------------------------------------------

_TRIAL = """
import ctypes, os, sys
libc, user, group = ctypes.CDLL(None, use_errno=True), os.geteuid(), os.getegid()
flags = int(sys.argv[1])
if libc.unshare(flags) != 0:
    sys.exit(1)
if flags & 0x10000000:
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"{user} {user} 1")
    open("/proc/self/gid_map", "w").write(f"{group} {group} 1")
"""


def _namespaces() -> int:
    return _NEW_OTHERS if _may(_SYS_ADMIN) else _NEW_OTHERS | _NEW_USER


def _can_isolate() -> bool:
    if sys.platform != "linux":
        return False
    command = [sys.executable, "-I", "-S", "-c", _TRIAL, str(_namespaces())]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


def isolate(trust: Trust) -> None:
    """Take the model process into namespaces of its own; for `public`, after it has loaded.

    It goes on as the first process of a new process namespace, so that its end ends all in it.

    Raises:
        OSError: the kernel refuses.
    """
    if trust != "public":
        return
    user, group, flags = os.geteuid(), os.getegid(), _namespaces()
    libc = ctypes.CDLL(None, use_errno=True)
    _required(libc.unshare(flags), "unshare")
    if flags & _NEW_USER:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _required(libc.mount(None, b"/", None, ctypes.c_ulong(_MOUNT_PRIVATE), None), "mount /")
    _set(_PR_SET_PDEATHSIG, signal.SIGKILL)  # other credentials have cleared it
    child = os.fork()
    if child:
        os.closerange(3, 2**20)
        os.waitpid(child, 0)
        os._exit(0)
    _set(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _required(libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(0), None), "mount /proc")


def _required(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what} for --trust public: {os.strerror(code)}")
