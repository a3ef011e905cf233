"""A model process: holds one model's weights and forks a job process for every task.

    python -m insitu.remote.worker.model_process 7         # 7: the control socket, from the pool

It opens the model with one thread and never starts OpenMP's: a process whose OpenMP threads have
run hangs in its forks on their first parallel product. Weights are shared with the jobs copy on
write, so an edit in a job is gone with it. No code of a user's runs here; a message is a task and
its files, which go straight on to a job process. Forking GPT-2's size of process takes 10 ms and
its first pass 15 ms more than a later one, so that some job processes are kept ready.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch

from insitu.remote.protocol import Limits
from insitu.remote.worker import frames, inline, job_process, loading, opening
from insitu.remote.worker.apart.bridge import Bridge
from insitu.remote.worker.apart.keeper import Keeper
from insitu.remote.worker.jail import THREADS_MOST, Jail, isolate
from insitu.remote.worker.specs import Settings, read_settings

_WATCH_S = 0.1
SENT = "sent "
"""How the reason begins why a job was killed that sent what it may not."""
DEVICE_MEMORY = "device memory"
"""The reason for one that sent more than there is memory for where the model computes."""
_WARMING = {"job": "", "limits": asdict(Limits())}
"""What the device process is told of a process that warms up, as of a job."""
_IDLE_S = 0.02
"""After so long without work a process is made ready for the next job."""
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


@dataclass
class Child:
    """A forked process: ready for a task, or running one."""

    pid: int
    birth: socket.socket | None
    """Where its task is sent; None once it has one."""
    memory_most: int = 0
    job: str = ""
    reason: str = ""
    """Why it was killed, if it was from here."""


class ModelProcess:
    """Takes tasks from the control socket, and tells of their processes' ends."""

    def __init__(
        self,
        control: socket.socket,
        settings: Settings,
        setup: job_process.Setup,
        keeper: Keeper | None = None,
    ) -> None:
        self._control = control
        self._keeper = keeper
        self._settings = settings
        self._setup = setup
        self._ready: list[Child] = []
        self._running: dict[str, Child] = {}
        self._orphans = settings.trust == "self"
        self._look = False
        self._bell, bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell)

    def serve(self) -> None:
        """Until the pool says stop, or is gone."""
        poller = select.poll()
        poller.register(self._control.fileno(), select.POLLIN)
        poller.register(self._bell, select.POLLIN)
        device = -1 if self._keeper is None else self._keeper.control.fileno()
        if device >= 0:
            poller.register(device, select.POLLIN)
        try:
            while True:
                events = dict(poller.poll(self._wait_s() * 1000))
                if self._bell in events:
                    os.read(self._bell, 4096)
                self._reap()
                if device in events and not self._hear_device():
                    return
                if self._control.fileno() in events:
                    if not self._take():
                        return
                elif not events:
                    self._idle()
                self._watch()
        finally:
            self._kill_all()

    def _wait_s(self) -> float:
        if len(self._ready) < self._wanted() or self._look:
            return _IDLE_S
        return _WATCH_S if self._running else 3600.0

    def _wanted(self) -> int:
        return max(0, self._settings.jobs - len(self._running))

    # What the pool asks for ---------------------------------------------------------------------

    def _take(self) -> bool:
        try:
            got = frames.receive_control(self._control, 3)
        except ConnectionResetError:  # the server was killed
            return False
        if got is None or got[0]["ask"] == "stop":
            return False
        message, fds = got
        if message["ask"] == "submit":
            self._submit(message, tuple(fds))
        elif message["ask"] == "kill" and message["job"] in self._running:
            self._kill(self._running[message["job"]], "asked")
        return True

    def _submit(self, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        try:
            child = self._given(message, fds)
        finally:
            for fd in fds:
                os.close(fd)
        child.job = message["job"]
        child.memory_most = message["limits"]["memory_bytes"] + _held(os.getpid())[0]
        self._running[child.job] = child

    def _given(self, message: dict[str, Any], fds: tuple[int, ...]) -> Child:
        """A process that has the task; one that died while it waited is not it."""
        while True:
            child = self._ready.pop(0) if self._ready else self._fork(warm=False)
            assert child.birth is not None
            further = () if self._keeper is None else self._keeper.hand(message)
            try:
                frames.send_control(child.birth, message, fds + further)
            except OSError:
                child.birth.close()
                continue
            finally:
                for fd in further:
                    os.close(fd)
            child.birth.close()
            child.birth = None
            return child

    def _fork(self, *, warm: bool) -> Child:
        ours, theirs = frames.control_pair()
        further = () if self._keeper is None or not warm else self._keeper.hand(_WARMING)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _die_with(parent)
            job_process.live(theirs, self._setup, warm=warm, files=further)
        theirs.close()
        for fd in further:
            os.close(fd)
        return Child(pid, ours)

    # What happens by itself ---------------------------------------------------------------------

    def _idle(self) -> None:
        if self._look:
            self._look = False
            self._kill_orphans()
        if len(self._ready) < self._wanted():
            with contextlib.suppress(BrokenPipeError):  # the device process is gone, as it will say
                self._ready.append(self._fork(warm=True))

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, os.waitstatus_to_exitcode(status))

    def _ended(self, pid: int, code: int) -> None:
        for child in self._ready:
            if child.pid == pid:
                self._ready.remove(child)
                _close(child.birth)
                return
        for child in self._running.values():
            if child.pid == pid:
                del self._running[child.job]
                _kill_group(pid)  # what the block started
                self._look = self._orphans
                self._say(said="exit", job=child.job, code=code, reason=child.reason)
                return

    def _hear_device(self) -> bool:
        """What the process says in which the model computes; False when it is gone."""
        assert self._keeper is not None
        said = self._keeper.heard()
        if said is not None and said["said"] == "broken":
            self._say(said="broken")
            return False
        if said is not None and said["said"] == "refused" and said["job"] in self._running:
            why = DEVICE_MEMORY if said["of_memory"] else f"{SENT}{said['why']}"
            self._kill(self._running[said["job"]], why)
        return said is not None

    def _watch(self) -> None:
        for child in self._running.values():
            held_bytes, threads = _held(child.pid)
            if held_bytes > child.memory_most:
                self._kill(child, "memory")
            elif threads > THREADS_MOST and self._setup.jail is not None:
                self._kill(child, "threads")

    def _kill(self, child: Child, reason: str) -> None:
        child.reason = child.reason or reason
        _kill_group(child.pid)
        os.kill(child.pid, signal.SIGKILL)  # it may not have its group yet

    def _kill_orphans(self) -> None:
        """End what a block left running: its processes were given to us when it ended."""
        known = {child.pid for child in (*self._ready, *self._running.values())}
        if self._keeper is not None:
            known.add(self._keeper.process.pid)
        for pid in children_of(os.getpid()) - known:
            os.kill(pid, signal.SIGKILL)

    def _kill_all(self) -> None:
        for child in self._running.values():
            self._kill(child, "asked")
        for child in self._ready:
            _close(child.birth)
            os.kill(child.pid, signal.SIGKILL)
        self._kill_orphans()

    def _say(self, **message: Any) -> None:
        frames.send_control(self._control, message)


def _close(end: socket.socket | None) -> None:
    if end is not None:
        end.close()


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def children_of(parent: int) -> set[int]:
    """The processes whose parent that is."""
    found = set()
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if entry.isdigit() and _parent_of(entry) == parent:
            found.add(int(entry))
    return found


def _parent_of(pid: str) -> int:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return 0


def _held(pid: int) -> tuple[int, int]:
    """What a process holds beyond files, in bytes, and its threads.

    Counted are its own pages and those shared without a file.
    """
    try:
        with open(f"/proc/{pid}/status") as file:
            said = dict(line.split(":", 1) for line in file if ":" in line)
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0, 0
    pages = [said[name].split()[0] for name in ("RssAnon", "RssShmem") if name in said]
    return sum(map(int, pages)) * 1024, int(said["Threads"])


def _die_with(parent: int) -> None:
    """Be killed when the parent ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def prepared(
    settings: Settings, tell: loading.Tell
) -> tuple[job_process.Setup, Keeper | None, dict[str, Any]]:
    """The model opened, the process that computes if it is another, and what is told of it."""
    keeper = Keeper(settings) if settings.apart else None
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    opening.import_beforehand()
    module, _, name = settings.execute.partition(":")
    execute = getattr(importlib.import_module(module), name)
    if keeper is not None:
        return _beside(settings, keeper, execute, tell)
    with loading.told(tell):
        model = opening.opened(settings.spec, settings.device)
    warm = opening.warm(model) if not settings.inline else lambda: None
    setup = job_process.Setup(model, execute, settings.threads, _jail(settings), warm)
    about = {"bytes": opening.size_bytes(model), "about": opening.about(model)}
    return setup, None, about


def _beside(
    settings: Settings, keeper: Keeper, execute: Any, tell: loading.Tell
) -> tuple[job_process.Setup, Keeper, dict[str, Any]]:
    """For a model that computes in another process: its modules here, led there."""
    model = opening.beside(settings.spec)
    bridge = Bridge(model._module)
    about = keeper.ready(opening.tree(model), tell)
    bridge.connect(*keeper.hand(_WARMING))
    try:
        warm = opening.warm(model)
    finally:
        bridge.close()
    setup = job_process.Setup(model, execute, settings.threads, _jail(settings), warm, bridge)
    return setup, keeper, about


def _jail(settings: Settings) -> Jail | None:
    return None if settings.trust == "self" else Jail.prepared(settings.trust)


def main(control: socket.socket) -> None:
    """Open the model that the first message names, then serve."""
    first = frames.receive_control(control)
    if first is None:
        return
    settings = read_settings(first[0])
    _die_with(os.getppid())  # one that died before has closed the socket
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        setup, keeper, about = prepared(settings, loading.over(control))
        isolate(settings.trust)
    except Exception as error:  # it has no one else to tell
        fault = job_process.fault_of(error)
        frames.send_control(
            control, {"said": "failed", "kind": fault.kind, "text": fault.text[:8000]}
        )
        return
    gc.collect()
    gc.freeze()  # a collection in a job would copy every page that has a Python object
    frames.send_control(control, {"said": "ready", "pid": os.getpid(), **about})
    if settings.inline:
        inline.serve(control, setup)
    else:
        ModelProcess(control, settings, setup, keeper).serve()


def _run() -> NoReturn:
    control = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the server was killed
        main(control)
    os._exit(0)  # nothing here needs torch's slow goodbye


if __name__ == "__main__":
    _run()
