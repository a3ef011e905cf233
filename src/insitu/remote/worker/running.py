"""One job as the pool sees it: its stream, its clocks, and how it ends.

job = Running(task, told, kill)
fds = job.open()                    # for the job process; the pool keeps the other end
ended = await job.over
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from insitu.remote.protocol import Ended, Fault, Local, Log, Task, Told
from insitu.remote.worker import messages
from insitu.remote.worker.frames import Frame, FrameError, Inbox, packed

_BUFFER = 1 << 21
_LINGER_S = 1.0
"""So long a process may take to end after it has said that its job is over."""
_SLACK = 1_000
"""Events that a job of ours may be over its limits by, before it counts as hostile."""


class Running:
    """Reads what a job process says, and decides how the job ended.

    Args:
        kill: ends its process; `exited` is called when that has come about.
        early: the job's own word ends it, before its process is gone. Else that holds only when
            nobody can write to its result any more; taking 300 MB of address space down costs
            5 to 10 ms, which a result of a few values need not wait for.
    """

    def __init__(
        self, task: Task, told: Callable[[Told], None], kill: Callable[[], None], *, early: bool
    ) -> None:
        self.task = task
        self.over: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._told = told
        self._kill = kill
        self._early = early
        self._inbox = Inbox(messages.from_job(task.limits))
        self._end: socket.socket | None = None
        self._said: Ended | None = None
        self._verdict: Ended | None = None
        self._lines = self._events = 0
        self._next = 0
        self._waiting: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._wall_s = self._local_s = 0.0
        self.may_run_again = False
        """It was lost by the fault of the job before it, and has told nothing yet."""

    def open(self) -> tuple[int, int, int]:
        """The three files of the job process, to be closed once they are sent; the clock starts.

        Raises:
            OSError: the request cannot be read, the result not be written, or files have run out.
        """
        with contextlib.ExitStack() as held:
            request = os.open(self.task.request, os.O_RDONLY | os.O_CLOEXEC)
            held.callback(os.close, request)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            result = os.open(self.task.result, flags, 0o600)
            held.callback(os.close, result)
            self._close()  # where the process that it was opened for before has died
            ours, theirs = socket.socketpair()
            held.enter_context(theirs)
            self._end = ours
            for end in (ours, theirs):  # fewer turns for a large local() part, where allowed
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
            ours.setblocking(False)
            self._loop.add_reader(ours.fileno(), self._read)
            held.pop_all()
        self._run_clock()
        return theirs.detach(), request, result

    # What the job says ---------------------------------------------------------------------------

    def _read(self) -> None:
        if self._end is None:
            return
        try:
            count = self._end.recv_into(self._inbox.room())
        except (BlockingIOError, ConnectionResetError):
            return
        if not count:
            self._loop.remove_reader(self._end.fileno())
            return
        try:
            for frame in self._inbox.took(count):
                self._take(frame)
        except FrameError as error:
            self._loop.remove_reader(self._end.fileno())
            self._refuse(str(error))

    def _take(self, frame: Frame) -> None:
        if self._verdict is not None or self._said is not None:
            return
        said = messages.told(frame, self.task.limits)
        if isinstance(said, Ended):
            self._said = said
            if self._early or no_writer(self.task.result):
                self._finish(said)
                self._loop.call_later(_LINGER_S, self._kill)
            return
        self._count(said)
        if isinstance(said, Local):
            self._ask(said)
        self._told(said)

    def _count(self, said: Told) -> None:
        limits = self.task.limits
        if isinstance(said, Log):
            self._lines += 1
        self._events += 1
        if self._lines > limits.log_lines + _SLACK or self._events > limits.events + _SLACK:
            raise FrameError(f"more than {limits.events:,} messages")

    def _ask(self, said: Local) -> None:
        if said.number != self._next or self._waiting is not None:
            raise FrameError("a local() part out of its turn")
        self._next += 1
        self._waiting = said.number
        self._stop_clock()
        limits = self.task.limits
        left = min(limits.local_s, limits.local_total_s - self._local_s)
        self._since = self._loop.time()
        self._timer = self._loop.call_later(max(0.0, left), self._local_too_long)

    async def answer(self, number: int, payload: bytes | bytearray) -> None:
        """Send the values that a `local()` part gave.

        Raises:
            ValueError: the job does not wait for that answer.
        """
        if self._waiting != number or self._end is None or self.over.done():
            raise ValueError(f"the job {self.task.id} does not wait for an answer {number}.")
        self._waiting = None
        self._local_s += self._loop.time() - self._since
        self._run_clock()
        head = packed("answer", {"number": number}, len(payload))
        sending = asyncio.ensure_future(self._send(self._end, head, payload))
        both: set[asyncio.Future[Any]] = {sending, self.over}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not sending.done():  # the job is over, and reads no further
            sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError, OSError):
            await sending

    async def _send(self, end: socket.socket, head: bytes, payload: bytes | bytearray) -> None:
        try:
            count = end.sendmsg([head, payload])
        except BlockingIOError:
            count = 0
        for part in (memoryview(head)[count:], memoryview(payload)[max(0, count - len(head)) :]):
            if part and self._end is not None:  # else the job has ended meanwhile
                await self._loop.sock_sendall(end, part)

    # Its clocks ----------------------------------------------------------------------------------

    def _run_clock(self) -> None:
        self._stop_timer()
        self._since = self._loop.time()
        left = max(0.0, self.task.limits.wall_s - self._wall_s)
        self._timer = self._loop.call_later(left, self._too_long)

    def _stop_clock(self) -> None:
        self._stop_timer()
        self._wall_s += self._loop.time() - self._since

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_long(self) -> None:
        wall_s = self.task.limits.wall_s
        self.end(
            "TIMEOUT",
            Fault(
                "TimeoutError",
                f"the job ran for {wall_s:g} s and was ended.\n"
                f"Why: {wall_s:g} s is the most this server gives one job, without the time that "
                "local() parts take.\n"
                "Next: split it into several traces, or ask for fewer prompts, tokens or layers.",
            ),
        )

    def _local_too_long(self) -> None:
        limits = self.task.limits
        self.end(
            "TIMEOUT",
            Fault(
                "TimeoutError",
                "a local() part was not answered in time.\n"
                f"Why: {limits.local_s:g} s are given to one, {limits.local_total_s:g} s to all "
                "of a job.\n"
                "Next: do less inside local(), or save the values and work on them afterwards.",
            ),
        )

    # Its end -------------------------------------------------------------------------------------

    def fails(self, ended: Ended) -> None:
        """It cannot begin."""
        self._finish(ended)

    def end(self, phase: str, fault: Fault | None = None) -> None:
        """Kill the job; this is then how it ended, unless it has ended already."""
        if self.over.done():
            return
        if self._verdict is None and self._said is None:
            self._verdict = Ended(phase, fault)  # type: ignore[arg-type]
        self._stop_timer()
        if self._end is None:  # it has no process yet
            self._finish(self._verdict or Ended("CANCELLED"))
        else:
            self._kill()

    def _refuse(self, why: str) -> None:
        self.end("ERROR", _hostile(f"sent {why}"))

    def exited(self, code: int, reason: str) -> None:
        """Its process is gone; what it has said is still to be read."""
        if self.over.done():
            return
        self._drain()
        self._finish(self._verdict or self._said or _by_exit(code, reason, self.task))

    def lost(self, why: str, *, by_another: bool = False) -> None:
        """Its model process is gone, and it with it.

        Args:
            by_another: the job before it has left the process so.
        """
        if self.over.done():
            return
        self._drain()
        told = self._events or self._said or self._verdict
        self.may_run_again = by_another and not told
        self._finish(self._verdict or self._said or Ended("LOST", _lost(why)))

    def _drain(self) -> None:
        """Read what lies there; no more can come from a process that is gone."""
        if self._end is None or self._verdict is not None:
            return
        with contextlib.suppress(BlockingIOError, ConnectionResetError, FrameError):
            while self._said is None and (count := self._end.recv_into(self._inbox.room())):
                for frame in self._inbox.took(count):
                    self._take(frame)

    def _finish(self, ended: Ended) -> None:
        self._stop_timer()
        self._close()
        if not self.over.done():
            self.over.set_result(ended)

    def _close(self) -> None:
        if self._end is not None:
            self._loop.remove_reader(self._end.fileno())
            self._end.close()
            self._end = None


def no_writer(path: Path) -> bool:
    """True when no process has the file open for writing, nor mapped: the kernel's own count.

    A read lease is given only then. False too where a file system has no leases.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (OSError, AttributeError):  # AttributeError: not Linux
        return False
    finally:
        os.close(fd)
    return True


def _lost(why: str) -> Fault:
    return Fault(
        "RuntimeError",
        f"the job was lost: {why}.\n"
        "Why: its process was ended from outside; nothing of its result is kept.\n"
        "Next: send it again.",
    )


def _by_exit(code: int, reason: str, task: Task) -> Ended:
    """How a job ended whose process said nothing."""
    if reason == "memory":
        most = task.limits.memory_bytes
        text = (
            f"the job needed more than {most:,} bytes of memory and was ended.\n"
            "Why: that is the most this server gives one job, beside the model.\n"
            "Next: use shorter or fewer prompts, or save and keep less in the block."
        )
        return Ended("ERROR", Fault("MemoryError", text))
    if reason == "device memory":
        text = (
            "the job needed more memory than there is where the model computes.\n"
            "Why: the model computes in a process of its own on this server, and values that the "
            "block gave it did not fit beside it.\n"
            "Next: use shorter or fewer prompts, or give the model smaller tensors."
        )
        return Ended("ERROR", Fault("MemoryError", text))
    if reason == "threads":
        return Ended("ERROR", _died("it started too many threads", "start none; torch has its own"))
    if reason == "asked":
        return Ended("CANCELLED")
    if reason.startswith("sent "):
        return Ended("ERROR", _hostile(reason))
    if code >= 0:
        why = f"its process ended with the code {code}, without a word"
        return Ended("ERROR", _died(why, "leave os._exit and the like out of the block"))
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    if -code == signal.SIGKILL:
        return Ended("LOST", _lost("its process was killed, as a machine does that lacks memory"))
    if -code == signal.SIGXCPU:
        return Ended("TIMEOUT", _died("it used up its processor time", "split it"))
    return Ended("ERROR", _died(f"its process crashed ({name})", "look at the block's last lines"))


def _hostile(did: str) -> Fault:
    return Fault(
        "RuntimeError",
        "the job was ended: it sent the server what it may not.\n"
        f"Why: it {did}.\n"
        "Next: leave the job process's own files and functions alone.",
    )


def _died(why: str, next: str) -> Fault:
    return Fault("RuntimeError", f"the job ended early.\nWhy: {why}.\nNext: {next}.")
