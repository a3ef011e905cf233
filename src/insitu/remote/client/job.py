"""A job on a server: what it says, what it asks of this process, and its result.

job = RemoteJob.sent(connection, request, Caller(local=run_part), title="trace of gpt2")
values = job.run()                  # followed here until it is over; Ctrl-C cancels it

job.start()                         # or in a thread of its own
job.phase, job.logs                 # "RUNNING", ["tensor(5.4688)"]
job.result(timeout_s=60)
await job
job.cancel()
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from insitu.engine.opening import opened
from insitu.errors import (
    JobLostError,
    JobTimeoutError,
    MissingPackageError,
    RemoteError,
    ServerError,
    ServerRefusedError,
)
from insitu.events import Channel, Heard, JobEvent
from insitu.remote.blocks.faults import error_of
from insitu.remote.blocks.run import RETURNED
from insitu.remote.client import download, sending, told, words
from insitu.remote.client.connection import Body, Connection
from insitu.remote.client.events import Events, Said
from insitu.remote.protocol import ENDS, Fault
from insitu.remote.wire.values import decode_all

_CANCEL_S = 3.0


def values(header: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """What a job saved, by name; of a call without a block, what it returned."""
    found = decode_all(header, tensors)
    return found[RETURNED] if found.keys() == {RETURNED} else found


@dataclass(frozen=True)
class Caller:
    """What a job needs of the process that sent it.

    Args:
        local: runs the `local()` part of a number on a container of values, and gives one back: in
            the thread that follows the job.
        token: told each step of a generation, with one id a row.
        decode: makes the result of the header and the tensors of its container.
        error: makes the error that a fault means.
    """

    local: Callable[[int, bytes | bytearray], Body] | None = None
    token: Callable[[int, tuple[int, ...]], None] | None = None
    decode: Callable[[dict[str, Any], dict[str, Tensor]], Any] = values
    error: Callable[[Fault], BaseException] = error_of


class RemoteJob:
    """A job, as a log, a dock and its caller see it.

    Args:
        connection: the server it is on.
        id: what the server calls it.
        caller: what it needs of this process; without one it is only watched.
        title: what people call it.
    """

    cancel_on_main_thread = False
    shows_bar = True
    """Whether a download draws a bar; its progress is told to who listens either way."""

    def __init__(
        self, connection: Connection, id: str, caller: Caller | None = None, *, title: str = ""
    ) -> None:
        self.id = id
        self.title = title or f"job {id[:8]}"
        self.connection = connection
        self.phase = ""
        self._caller = caller or Caller()
        self._channel = Channel()
        answers = self._caller.local is not None
        self._events = Events(connection, id, self._lost, values=answers)
        self._budget = told.Budget()
        self._lock = threading.Lock()
        self._concluding = threading.Lock()
        self._is_read = False
        self._over = threading.Event()
        self._after: list[Callable[[], None]] = []
        self._end: told.End | None = None
        self._error: BaseException | None = None
        self._trace: TracebackType | None = None
        self._value: list[Any] = []

    @staticmethod
    def sent(
        connection: Connection, request: bytes, caller: Caller | None = None, *, title: str = ""
    ) -> "RemoteJob":
        """Send a request; gives the job that the server makes of it.

        Raises:
            ServerRefusedError: it does not take it; `QueueFullError` if it has too many.
            ServerUnreachableError: it does not answer.
        """
        return RemoteJob(connection, sending.request(connection, request), caller, title=title)

    # What it says ---------------------------------------------------------------------------------

    def listen(self, heard: Heard) -> Callable[[], None]:
        """Tell what has been said so far, then each event as it comes; call the result to stop."""
        return self._channel.listen(heard)

    @property
    def events(self) -> list[JobEvent]:
        """What it has said so far."""
        found: list[JobEvent] = []
        self._channel.listen(found.append)()
        return found

    @property
    def logs(self) -> list[str]:
        """The lines of its log so far."""
        return [event.text for event in self.events if event.kind == "log"]

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or can be followed no more."""
        return self._over.is_set()

    # Following it ---------------------------------------------------------------------------------

    def run(self) -> Any:
        """Follow it in this thread to its end, and give its result; Ctrl-C cancels it."""
        if self._is_mine():
            self._follow()
        return self.result()

    def start(self) -> "RemoteJob":
        """Follow it in a thread of its own."""
        if self._is_mine():
            name = f"insitu-{self.id}"
            threading.Thread(target=self._follow_apart, name=name, daemon=True).start()
        return self

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for its end; whether it has come."""
        self.start()
        return self._over.wait(timeout_s)

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for its end; gives what it saved, by name, or raises what it raised.

        Raises:
            JobTimeoutError: it is not over yet, or took longer than it may.
            JobLostError: it was cancelled, or is lost.
        """
        if not self.wait(timeout_s):
            raise JobTimeoutError(
                f"job {self.id} is not over after {timeout_s:g} s.",
                f"its phase is {self.phase or 'not known yet'}.",
                "wait longer: result() waits to the end; cancel() ends it.",
            )
        with self._concluding:
            if self._error is None and not self._value:
                self._conclude()
        if self._error is not None:
            raise self._error.with_traceback(self._trace)  # it does not grow from call to call
        return self._value[0]

    def cancel(self) -> None:
        """End it; it then says CANCELLED. One that is over stays as it is."""
        try:
            self.connection.ask("DELETE", f"/v1/jobs/{self.id}", read_s=_CANCEL_S)
        except ServerRefusedError as error:
            if error.status not in (404, 409):
                raise

    def __await__(self) -> Generator[Any, None, Any]:
        return self._awaited().__await__()

    async def __aiter__(self) -> AsyncIterator[JobEvent]:
        """Each event, to the last: `async for event in job:`."""
        loop, waiting = asyncio.get_running_loop(), asyncio.Queue[JobEvent | None]()

        def put(event: JobEvent | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone, and who waited with it
                loop.call_soon_threadsafe(waiting.put_nowait, event)

        stop = self.listen(put)
        try:
            self._when_over(lambda: put(None))
            self.start()
            while (event := await waiting.get()) is not None:
                yield event
        finally:
            stop()

    def __repr__(self) -> str:
        return f"<{self.title} ({self.id}), {(self.phase or 'sent').lower()}>"

    def _repr_html_(self) -> Any:
        with contextlib.suppress(MissingPackageError):  # without the views there is the text
            return opened("job_html", self)
        return None

    async def _awaited(self) -> Any:
        async for _ in self:
            pass
        return await asyncio.to_thread(self.result)

    def _when_over(self, act: Callable[[], None]) -> None:
        with self._lock:
            if not self._over.is_set():
                self._after.append(act)
                return
        act()

    def _is_mine(self) -> bool:
        """Whether the caller is the first to follow it, and is to do so."""
        with self._lock:
            mine, self._is_read = not self._is_read, True
        return mine

    # Reading --------------------------------------------------------------------------------------

    def _follow_apart(self) -> None:
        with contextlib.suppress(BaseException):  # it is kept, and raised by result()
            self._follow()

    def _follow(self) -> None:
        """Read to the end. A failing local part and Ctrl-C cancel the job; both are passed on."""
        try:
            for said in self._events:
                self._take(said)
        except BaseException as error:
            self._error, self._trace = error, error.__traceback__
            if isinstance(error, ServerError):
                self._tell(JobEvent(self.id, "status", error.what, phase="LOST"))
            else:
                with contextlib.suppress(ServerError):
                    self.cancel()
                why = words.one_line(f"{type(error).__name__}: {error}", 300).rstrip(": ")
                self._tell(JobEvent(self.id, "status", f"Cancelled here: {why}", phase="CANCELLED"))
            raise
        finally:
            with self._lock:
                self._over.set()
                after, self._after = self._after, []
            for act in after:
                act()

    def _take(self, said: Said) -> None:
        if said.kind == "local":
            self._answer_local(said)
        elif said.kind == "token":
            self._take_token(said)
        elif said.kind == "end":
            self._end = told.end(said)
            if self.phase != self._end.phase:  # its status was left out
                self._tell(JobEvent(self.id, "status", self._end.text, phase=self._end.phase))
        elif (event := told.event(self.id, said, self._budget)) is not None:
            self._tell(event)

    def _tell(self, event: JobEvent) -> None:
        if event.kind == "status":
            if self.phase in ENDS:
                return
            self.phase = event.phase
        self._channel.tell(event)

    def _lost(self, text: str) -> None:
        self._tell(JobEvent(self.id, text=text, tags=("connection", "warning")))

    def _take_token(self, said: Said) -> None:
        step, ids = told.token(said)
        self._tell(JobEvent(self.id, "progress", "Generating", done=step + 1, unit="tokens"))
        if self._caller.token is not None:
            self._caller.token(step, ids)

    def _answer_local(self, said: Said) -> None:
        exchange = told.local(said)
        if exchange.is_answered:  # it is told again to one who comes late
            return
        if self._caller.local is None:
            text = "a local() part is for the process that sent this job"
            self._tell(JobEvent(self.id, text=text, tags=("warning",)))
            return
        path = f"/v1/jobs/{self.id}/local/{exchange.number}"
        payload = exchange.payload
        if payload is None:
            payload = sending.values(self.connection, path, exchange.size_bytes)
        answer = self._caller.local(exchange.index, payload)
        try:
            sending.insistent(self.connection, path, answer)
        except ServerRefusedError as error:
            if error.status not in (404, 409):  # it is answered already, or over: the end tells
                raise

    # The end --------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        """Fetch the result, or make the error; once."""
        end = self._end
        if end is None:
            raise words.strange("no end of the job")
        if end.phase != "COMPLETED":
            self._error = self._failure(end)
            self._trace = self._error.__traceback__
        elif end.result is None:
            raise words.strange("the end of a completed job without a result")
        else:
            told, bar = self._downloaded, self.shows_bar
            header, tensors = download.fetch(self.connection, self.id, end.result, told, bar=bar)
            self._value = [self._caller.decode(header, tensors)]

    def _failure(self, end: told.End) -> BaseException:
        why = end.text.rstrip(".")
        if end.phase == "ERROR" and end.fault is not None:
            error = self._caller.error(end.fault)
            if isinstance(error, RemoteError):
                error.job, error.kind = self.id, end.fault.kind
            error.add_note(f"This was job {self.id} on {self.connection.url}.")
            return error
        if end.phase == "TIMEOUT":
            return JobTimeoutError(
                f"job {self.id} took longer than it may.",
                f"{why}.",
                "do less in one block, or ask for more time where the server runs.",
            )
        ended = "was cancelled" if end.phase == "CANCELLED" else "ended without a result"
        return JobLostError(f"job {self.id} {ended}.", f"{why}.", "run the block again.")

    def _downloaded(self, done: int, of: int) -> None:
        now = time.monotonic()
        if done == of or self._budget.is_time(now):
            event = JobEvent(
                self.id, "progress", "Downloading result", done=done, of=of, unit="bytes"
            )
            self._tell(event)
