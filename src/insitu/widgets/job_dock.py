"""Several jobs as a list with their phases; a click shows the log of one.

dock = JobDock(first, second)
dock.add(LocalJob(train))               # or any job that listens
dock.feed(event)                        # or whatever you are told: each event names its job
"""

from collections.abc import Callable
from typing import Any

import traitlets

from insitu.errors import UsageError
from insitu.events import Job, JobEvent
from insitu.twins.job import job_html, jobs_html, jobs_text
from insitu.widgets.base import Widget
from insitu.widgets.batches import Batches
from insitu.widgets.job_record import JobRecord
from insitu.widgets.remote_log import (
    SENT_EVERY_S,
    Wire,
    cancel,
    new_record,
    not_cancellable,
    tail,
    whole,
)

JOBS_MAX = 200
"""Jobs in a list; when more come, the first that has ended goes."""


class _Docked:
    """One job in the list."""

    def __init__(self, record: JobRecord, job: Job | None) -> None:
        self.record = record
        self.job = job
        self.wire = Wire(record)
        self.is_cancelling = False
        self.stop: Callable[[], None] = lambda: None

    def state(self) -> dict[str, Any]:
        state = self.record.state()
        can = getattr(self.job, "cancel", None) is not None and not state["over"]
        return {**state, "cancel": ("asked" if self.is_cancelling else "can") if can else ""}


class JobDock(Widget):
    """Jobs as a list, and the log of the one that is chosen.

        JobDock(LocalJob(train), LocalJob(evaluate))

    Attributes:
        chosen: the id of the job whose log is shown.
    """

    front_end = "job_dock"
    jobs = traitlets.List().tag(sync=True)
    """The state of each job, in the order they came."""
    chosen = traitlets.Unicode().tag(sync=True)

    def __init__(self, *jobs: Job) -> None:
        self._docked: dict[str, _Docked] = {}
        self._news = Batches(self._tell, SENT_EVERY_S)
        super().__init__()
        self.observe(lambda _: self._news.soon(), "chosen")
        for job in jobs:
            self.add(job)
        self._tell()

    def add(self, job: Job) -> "JobDock":
        """One job more; one of the same id takes its place."""
        self.remove(getattr(job, "id", ""))
        docked = self._take(_Docked(new_record(job), job))
        docked.stop = job.listen(self.feed)
        self._news.soon()
        return self

    def remove(self, job: str) -> None:
        """Take a job out of the list; it runs on."""
        docked = self._docked.pop(job, None)
        if docked is not None:
            docked.stop()
            self._news.soon()

    def feed(self, *events: JobEvent) -> None:
        """Show what jobs say, from any thread; a job that is not in the list comes in."""
        for event in events:
            docked = self._docked.get(event.job)
            if docked is None:
                docked = self._take(_Docked(JobRecord(event.job), None))
            docked.record.hear(event)
        self._news.soon()

    def phase(self, job: str) -> str:
        """The phase a job is in."""
        return self._of(job).record.phase

    def text(self) -> str:
        """The jobs, one a line."""
        return jobs_text([docked.state() for docked in tuple(self._docked.values())])

    def html(self) -> str:
        """The jobs as a table, and the log of the chosen one."""
        states = [docked.state() for docked in tuple(self._docked.values())]
        chosen = self._docked.get(self.chosen)
        record = None if chosen is None else chosen.record
        log = (
            "" if record is None else job_html(record.state(), record.since(0, 30)[1], record.heard)
        )
        return jobs_html(states, log)

    def close(self) -> None:
        """Show nothing more; the jobs run on."""
        for docked in tuple(self.__dict__.get("_docked", {}).values()):
            docked.stop()
        super().close()

    # Questions of the view -------------------------------------------------------------------

    def answer_tail(self, given: dict[str, Any]) -> dict[str, Any]:
        """The last lines of a job's log."""
        return tail(self._of(given["job"]).record)

    def answer_all(self, given: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
        """Every line that is kept of it, as a file."""
        return whole(self._of(given["job"]).record)

    def answer_cancel(self, given: dict[str, Any]) -> None:
        """Cancel a job."""
        docked = self._of(given["job"])
        act = getattr(docked.job, "cancel", None)
        if act is None:
            raise not_cancellable(docked.record)

        def failed(words: str) -> None:
            docked.is_cancelling = False
            docked.record.hear(JobEvent(docked.record.job, text=words, tags=("error",)))
            self._tell()

        docked.is_cancelling = True
        self._tell()
        cancel(act, getattr(docked.job, "cancel_on_main_thread", False), failed)

    def answer_clear(self, given: dict[str, Any]) -> None:
        """Take the jobs that have ended out of the list."""
        for name, docked in tuple(self._docked.items()):
            if docked.record.is_over:
                self.remove(name)
        self._tell()

    def _of(self, job: str) -> _Docked:
        if job not in self._docked:
            raise UsageError(
                f"there is no job {job!r} in this list.",
                f"it holds {', '.join(self._docked) or 'none'}.",
                "add it: dock.add(job).",
            )
        return self._docked[job]

    def _take(self, docked: _Docked) -> _Docked:
        while len(self._docked) >= JOBS_MAX:
            over = (name for name, it in self._docked.items() if it.record.is_over)
            self.remove(next(over, next(iter(self._docked))))
        return self._docked.setdefault(docked.record.job, docked)

    def _tell(self) -> None:
        """Send what is new: the states, and the lines of the chosen job."""
        there = tuple(self._docked.values())
        if self.chosen not in self._docked:
            self.chosen = there[0].record.job if there else ""
        states = [docked.state() for docked in there]
        if [{**it, "now": 0} for it in self.jobs] != [{**it, "now": 0} for it in states]:
            self.jobs = states
        for docked in there:
            if docked.record.job == self.chosen:
                docked.wire.send(self.send)
