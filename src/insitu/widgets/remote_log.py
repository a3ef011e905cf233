"""A job as it runs: its phases, its place in the queue, its progress, and its log, line by line.

log = RemoteLog(job)                    # a LocalJob, a Recording, a job on a server
log = RemoteLog(); log.feed(event)      # or whatever you are told, from any thread
log.text()                              # the same without a notebook
"""

import threading
from collections.abc import Callable
from os import PathLike
from typing import Any

import traitlets

from insitu.errors import UsageError
from insitu.events import PHASES, Job, JobEvent
from insitu.twins.job import job_html, job_text, stamp
from insitu.widgets import main_thread
from insitu.widgets.base import Widget
from insitu.widgets.batches import Batches
from insitu.widgets.job_record import JobRecord, packed
from insitu.widgets.recording import EventFile
from insitu.widgets.trouble import trouble_of

SENT_EVERY_S = 0.05
SENT_MAX = 2_500
"""Lines of one batch, 50,000 a second; more are dropped from the view, and counted."""
TAIL = 5_000
"""Lines that a view keeps, and is given when it opens."""


class RemoteLog(Widget):
    """The log of one job.

        RemoteLog(job)
        RemoteLog(job, record="run.jsonl")          # keep what it says, for after a restart
        RemoteLog(Recording("run.jsonl"))           # show it again

    Args:
        job: what is shown; without one, what `feed` is given.
        title: what people call it.
        cancel: what the cancel button does; the job's own `cancel` by default.
        on_main_thread: whether that must run on the kernel's main thread, between cells; what the
            job says by default, and otherwise at once.
        record: a file that every event is appended to.
    """

    front_end = "remote_log"
    state = traitlets.Dict().tag(sync=True)
    """All but the lines: phases, queue, progress, whether it can be cancelled."""
    _stop: Callable[[], None] | None = None
    _file: EventFile | None = None

    def __init__(
        self,
        job: Job | None = None,
        *,
        title: str = "",
        cancel: Callable[[], Any] | None = None,
        on_main_thread: bool | None = None,
        record: str | PathLike[str] | None = None,
    ) -> None:
        self.job = job
        self._cancel = cancel if cancel is not None else getattr(job, "cancel", None)
        own = getattr(job, "cancel_on_main_thread", False)
        self._on_main_thread = own if on_main_thread is None else on_main_thread
        self._cancelling = False
        self._record = new_record(job, title)
        self._wire = Wire(self._record)
        self._file = None if record is None else EventFile(record)
        self._news = Batches(self._tell, SENT_EVERY_S)
        super().__init__()
        self._tell()
        self._stop = None if job is None else job.listen(self.feed)

    def feed(self, *events: JobEvent) -> None:
        """Show what a job says, from any thread; events of another job are left out."""
        for event in events:
            self._record.job = self._record.job or event.job
            if event.job == self._record.job:
                self._record.hear(event)
                if self._file is not None:
                    self._file.write(event)
        self._news.soon()

    @property
    def phase(self) -> str:
        """The phase the job is in: `RUNNING`; empty before its first word."""
        return self._record.phase

    @property
    def lines(self) -> list[str]:
        """The lines of the log, as far as they are kept."""
        return [line.text for line in self._record.since(0, self._record.heard)[1]]

    @property
    def count(self) -> int:
        """How many lines the job has said."""
        return self._record.heard

    @property
    def dropped(self) -> int:
        """How many of them came too fast for the view; `lines` and a saved log have them."""
        return self._wire.dropped

    def text(self) -> str:
        """Phases, progress and the last lines."""
        return job_text(self._record.state(), self._record.since(0, 30)[1], self.count)

    def html(self) -> str:
        """The same as a table."""
        return job_html(self._record.state(), self._record.since(0, 30)[1], self.count)

    def close(self) -> None:
        """Show nothing more, and close the record; the job runs on."""
        if self._stop is not None:
            self._stop()
        if self._file is not None:
            self._file.close()
        super().close()

    # Questions of the view -------------------------------------------------------------------

    def answer_tail(self, given: dict[str, Any]) -> dict[str, Any]:
        """The last lines, for a view that has just opened."""
        return tail(self._record)

    def answer_all(self, given: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """Every line that is kept, as a file."""
        return whole(self._record)

    def answer_cancel(self, given: dict[str, Any]) -> None:
        """Cancel the job, at once or when the main thread is free."""
        if self._cancel is None:
            raise not_cancellable(self._record)
        self._cancelling = True
        self._tell()
        cancel(self._cancel, self._on_main_thread, self._cancel_failed)

    def _cancel_failed(self, words: str) -> None:
        self._cancelling = False
        self._record.hear(JobEvent(self._record.job, text=words, tags=("error",)))
        self._tell()

    def _tell(self) -> None:
        """Send what is new."""
        state = self._record.state()
        can = self._cancel is not None and not state["over"]
        state["cancel"] = ("asked" if self._cancelling else "can") if can else ""
        if {**self.state, "now": 0} != {**state, "now": 0}:
            self.state = state
        self._wire.send(self.send)
        if self._file is not None:
            self._file.flush()


class Wire:
    """The lines of a record on their way to the views: each batch holds those since the last."""

    def __init__(self, record: JobRecord) -> None:
        self.dropped = 0
        self._record = record
        self._next = 0
        self._lock = threading.Lock()

    def send(self, send: Callable[[dict[str, Any]], Any]) -> None:
        """Send the lines since the last time, or the last of them."""
        with self._lock:
            first, lines = self._record.since(self._next, SENT_MAX)
            if lines:
                self.dropped += first - self._next
                self._next = first + len(lines)
                send({"lines": packed(first, lines), "job": self._record.job})


def new_record(job: Job | None, title: str = "") -> JobRecord:
    """The empty record of a job."""
    if job is None:
        return JobRecord("", title)
    if not callable(getattr(job, "listen", None)):
        raise UsageError(
            f"a log shows a job, not {type(job).__name__}.",
            "it listens to its events: a LocalJob, a Recording, or a job on a server.",
            "give one of those, or make an empty log and feed it: RemoteLog().feed(event).",
        )
    return JobRecord(job.id, title or job.title, getattr(job, "phases", PHASES))


def tail(record: JobRecord) -> dict[str, Any]:
    """The last lines of a record, for a view that has just opened."""
    return packed(*record.since(0, TAIL))


def whole(record: JobRecord) -> tuple[dict[str, Any], list[bytes]]:
    """Every line that is kept of a record, as a text file in a buffer."""
    _, lines = record.since(0, record.heard)
    tags = [f"  [{', '.join(line.tags)}]" if line.tags else "" for line in lines]
    text = "".join(
        f"{stamp(line.time)}  {line.text}{said}\n" for line, said in zip(lines, tags, strict=True)
    )
    return {"lines": len(lines), "forgotten": record.forgotten}, [text.encode()]


def cancel(act: Callable[[], Any], on_main_thread: bool, failed: Callable[[str], None]) -> None:
    """Cancel, here or on the main thread; a failure there is told when it happens."""

    def failing(error: BaseException) -> None:
        failed(f"cancelling failed: {trouble_of(error)['what']}")

    if on_main_thread:
        main_thread.call(act, failing)
        return
    try:
        act()
    except Exception as error:
        failing(error)


def not_cancellable(record: JobRecord) -> UsageError:
    """The error of a job that nobody can end from here."""
    return UsageError(
        f"{record.title or 'this job'} cannot be cancelled from here.",
        "the log was given no function that does it.",
        "open it with one: RemoteLog(job, cancel=…).",
    )
