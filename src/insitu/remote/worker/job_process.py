"""A job process: one block, run beside a copy of the model that nobody else will ever see.

It is forked from a model process (`model_process.py`), waits for one task and three files, puts
itself into its jail and calls `execute(model, request, link, result, limits)`. What the block
prints, logs and asks for goes out as frames; how it ended is the last of them.
"""

import gc
import os
import random
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedWriter, FileIO, RawIOBase
from typing import Any, BinaryIO, NoReturn, cast

import torch

from insitu.remote.protocol import Ended, Fault, Limits
from insitu.remote.worker import frames, messages
from insitu.remote.worker.apart.bridge import Bridge
from insitu.remote.worker.apart.keeper import FILES as BRIDGE_FILES
from insitu.remote.worker.jail import Jail
from insitu.remote.worker.printed import Printed

Execute = Callable[[Any, bytes, "JobLink", BinaryIO, Limits], None]
SEED = 0
FILES = 3
"""That every task has: where it speaks, its request, its result."""
_KEPT_VARIABLE = "TOKENIZERS_PARALLELISM"
"""The one variable that a job has: without it a tokenizer starts threads."""


@dataclass(frozen=True)
class Setup:
    """What a job process has from its model process."""

    model: Any
    execute: Execute
    threads: int
    jail: Jail | None
    warm: Callable[[], None] = lambda: None
    """Run before there is a task: what only the first use of a model pays for."""
    bridge: Bridge | None = None
    """To where the model computes, if that is another process; a task has files for it."""
    before_end: Callable[[], None] = lambda: None
    """Run when a block is over, before the server is told."""

    @property
    def files(self) -> int:
        """How many a task has."""
        return FILES + (0 if self.bridge is None else BRIDGE_FILES)

    @property
    def kept(self) -> tuple[int, ...]:
        """Files that the jail still needs."""
        return () if self.jail is None else self.jail.fds


class JobLink:
    """How a block speaks to the server: `link.log("…")`, `link.local(0, container)`.

    What goes beyond the limits is counted, and told in one line at the end.
    """

    def __init__(self, fd: int, limits: Limits) -> None:
        self._fd = fd
        self._limits = limits
        self._lines = self._events = self._lines_left_out = self._events_left_out = 0
        self._number = 0

    def log(self, text: str, tags: tuple[str, ...] = ()) -> None:
        """One line for the user."""
        if self._lines >= self._limits.log_lines - 1:  # the last line tells how many there were
            self._lines_left_out += 1
            return
        self._lines += 1
        most = messages.TAG_CHARS_MOST
        cut = [str(tag)[:most] for tag in tags][: messages.TAGS_MOST]
        self._log(str(text), cut)

    def progress(self, text: str, done: float, of: float | None = None, unit: str = "") -> None:
        """How far the block is."""
        if self._counts():
            most, unit_most = messages.TEXT_CHARS_MOST, messages.TAG_CHARS_MOST
            head = {"text": text[:most], "done": done, "of": of, "unit": unit[:unit_most]}
            frames.send(self._fd, "progress", head)

    def token(self, step: int, ids: tuple[int, ...]) -> None:
        """New tokens, one for each row."""
        if self._counts():
            frames.send(self._fd, "token", {"step": step, "ids": list(ids)[: messages.ROWS_MOST]})

    def local(self, index: int, *payload: bytes | memoryview) -> bytes | bytearray:
        """Have a part run on the user's machine; its answer. The payload may come in pieces.

        Raises:
            ValueError: the values are larger than a `local()` part may take.
            ConnectionError: the server is gone.
        """
        most = self._limits.local_bytes
        size = sum(map(len, payload))
        if size > most:
            raise ValueError(
                f"a local() part needs {size:,} bytes of values, more than may cross.\n"
                f"Why: this server allows {most:,} bytes for each.\n"
                "Next: reduce the values in the block before the local() part."
            )
        number, self._number = self._number, self._number + 1
        frames.send(self._fd, "local", {"number": number, "index": index}, *payload)
        answer = frames.receive(self._fd, messages.to_job(self._limits))
        if answer is None:
            raise ConnectionError("the server went away inside a local() part")
        return answer.body

    def end(self, ended: Ended) -> None:
        """Say how the job ended, after what was left out."""
        out = [
            f"{count:,} {name} were left out: a job may send {most:,}."
            for count, name, most in (
                (self._lines_left_out, "more log lines", self._limits.log_lines),
                (self._events_left_out, "more tokens and progress reports", self._limits.events),
            )
            if count
        ]
        if out:
            self._log(" ".join(out), ["insitu"])
        frames.send(self._fd, "ended", messages.ended_head(ended))

    def _log(self, text: str, tags: list[str]) -> None:
        text = messages.shortened(text, self._limits.line_chars)
        frames.send(self._fd, "log", {"text": text, "tags": tags})

    def _counts(self) -> bool:
        self._events += 1
        if self._events <= self._limits.events - self._limits.log_lines:
            return True
        self._events_left_out += 1
        return False


class Bounded(FileIO):
    """A result file that refuses to grow beyond a size."""

    def __init__(self, fd: int, most: int) -> None:
        super().__init__(fd, "w")
        self._most = most
        self._written = 0

    def write(self, data: Any) -> int:
        """Write, or raise ValueError with a sentence."""
        size = memoryview(data).nbytes
        if self._written + size > self._most:
            raise ValueError(
                f"the result is larger than {self._most:,} bytes.\n"
                "Why: that is the most this server keeps for one job.\n"
                "Next: save less, or reduce it inside the block (a slice, a mean, half precision)."
            )
        count = super().write(data)
        self._written += count
        return count


def live(
    birth: socket.socket, setup: Setup, *, warm: bool, files: tuple[int, ...] = ()
) -> NoReturn:
    """Wait for a task, run it and end the process. Called in the fork; never returns.

    Args:
        birth: where the task comes from.
        setup: what it has from its model process.
        warm: whether there is time to warm up.
        files: for that, to speak to where the model computes, if that is another process.
    """
    code = 1
    try:
        _become_a_process_of_its_own(birth.fileno(), *setup.kept, *files)
        if warm:
            _warm_up(setup, files)
            _seed()  # 500 pages that are copied now, not when the task has come
        given = frames.receive_control(birth, setup.files)
        if given is None:  # the model process has no use for it any more
            code = 0
        else:
            birth.close()
            _silence()
            code = run(given[0], tuple(given[1]), setup)
    except BaseException:  # the server's log is the only one who can hear of it
        traceback.print_exc()
    finally:
        os._exit(code)


def _warm_up(setup: Setup, files: tuple[int, ...]) -> None:
    if setup.bridge is None:
        setup.warm()
        return
    setup.bridge.connect(*files)
    try:
        setup.warm()
    finally:
        setup.bridge.close()


def _become_a_process_of_its_own(*kept: int) -> None:
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    start = 3
    for fd in sorted(kept):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, 2**20)
    for name in [name for name in os.environ if name != _KEPT_VARIABLE]:
        del os.environ[name]


def _silence() -> None:
    """Take the server's own log away, before anything of the user's runs."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)


def run(message: dict[str, Any], fds: tuple[int, ...], setup: Setup) -> int:
    """Run one task with its three files; the exit code of its process. `fds[0]` stays open.

    Where its model computes in another process, there are further files, to speak to that.
    """
    link_fd, request_fd, result_fd = fds[:FILES]
    limits = Limits(**message["limits"])
    link = JobLink(link_fd, limits)
    try:
        with FileIO(request_fd, "r") as request:
            asked = request.read(limits.request_bytes + 1)
        if setup.bridge is not None:
            setup.bridge.connect(*fds[FILES:])
        if setup.jail is not None:  # from here on nothing is to be trusted
            setup.jail.enter(limits, setup.threads)
        torch.set_num_threads(setup.threads)  # starts none, so that the jail met only one thread
        _seed()
        file: RawIOBase = Bounded(result_fd, limits.result_bytes)
        with BufferedWriter(file, 1 << 20) as written:
            ended = _ended_by(setup, bytes(asked or b""), link, cast(BinaryIO, written), limits)
    except BaseException as error:
        ended = Ended("ERROR", fault_of(error))
    setup.before_end()
    link.end(ended)
    return 0 if ended.phase == "COMPLETED" else 3


def _ended_by(
    setup: Setup, asked: bytes, link: JobLink, written: BinaryIO, limits: Limits
) -> Ended:
    printed = Printed(link.log, limits.line_chars)
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = cast(Any, printed)
    try:
        setup.execute(setup.model, asked, link, written, limits)
        written.flush()
        return Ended("COMPLETED")
    except BaseException as error:  # whatever a block raises is its user's to read
        return Ended("ERROR", fault_of(error))
    finally:
        sys.stdout, sys.stderr = before
        printed.close()


def _seed() -> None:
    """The same beginning for every job, whichever process it comes to."""
    gc.enable()
    random.seed(SEED)
    torch.manual_seed(SEED)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(SEED)


def fault_of(error: BaseException) -> Fault:
    """An error as plain words; a block's own fault (`error.fault`) as it is."""
    own = getattr(error, "fault", None)
    if isinstance(own, Fault):
        return own
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
    try:
        text = str(error) or kind.__name__
    except Exception as further:  # a user's own __str__
        text = f"{kind.__name__}, whose text cannot be made ({type(further).__name__})"
    if isinstance(error, MemoryError) and not str(error):
        text = "the block needed more memory than a job may take."
    return Fault(f"{module}{kind.__name__}", text)
