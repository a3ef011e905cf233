"""A function that runs beside the notebook, in a thread, and says how it gets on.

def train(log):
    for epoch in range(10):
        loss = ...
        log(f"loss {loss:.3f}", tags="train")
        log.progress(epoch + 1, 10, "epochs")
    return model

job = LocalJob(train)
RemoteLog(job)                  # watch it
job.result()                    # wait for it
job.cancel()                    # at its next word
"""

import atexit
import itertools
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Any

from insitu.errors import InsituError
from insitu.events import Channel, Heard, JobEvent
from insitu.widgets.job_record import html_of

_numbers = itertools.count(1)
_running: "weakref.WeakSet[LocalJob]" = weakref.WeakSet()


class Cancelled(BaseException):
    """Raised in a job's function, at its next word after it was cancelled."""


class Log:
    """What a job's function is given to speak with: `log("a line", tags="train")`."""

    def __init__(self, job: str, channel: Channel, ended: threading.Event) -> None:
        self._job = job
        self._channel = channel
        self._cancelled = ended

    @property
    def cancelled(self) -> bool:
        """Whether the job has been cancelled; the next word raises."""
        return self._cancelled.is_set()

    def __call__(self, *values: Any, tags: tuple[str, ...] | str = ()) -> None:
        """Say a line, as `print` would; `tags="warning"` or `tags=("train", "warning")`."""
        self._say(
            JobEvent(
                self._job,
                text=" ".join(map(str, values)),
                tags=(tags,) if isinstance(tags, str) else tuple(tags),
            )
        )

    def progress(
        self, done: float, of: float | None = None, text: str = "", unit: str = ""
    ) -> None:
        """Say how far something is."""
        self._say(JobEvent(self._job, "progress", text, done=done, of=of, unit=unit))

    def _say(self, event: JobEvent) -> None:
        if self.cancelled:
            raise Cancelled
        self._channel.tell(event)


class LocalJob:
    """Runs a function in a thread of its own.

        job = LocalJob(train, title="train the probe")

    Args:
        function: called with a `Log`; what it returns is the job's result.
        title: what people call it; the function's name by default.
    """

    phases = ("RUNNING", "COMPLETED")
    cancel_on_main_thread = False

    def __init__(self, function: Callable[[Log], Any], *, title: str = "") -> None:
        self.id = f"local-{next(_numbers)}"
        self.title = title or getattr(function, "__name__", "a function").replace("<lambda>", "job")
        self._channel = Channel()
        self._cancelled = threading.Event()
        self._is_over = False
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(function,), name=f"insitu-{self.id}", daemon=True
        )
        _running.add(self)
        self._thread.start()

    def listen(self, heard: Heard) -> Callable[[], None]:
        """Tell what has been said so far, then each event as it comes."""
        return self._channel.listen(heard)

    def cancel(self) -> None:
        """End it at its next word; a function that says nothing runs to its end."""
        self._cancelled.set()

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for what the function returns, or raise what it raised.

        Raises:
            TimeoutError: it still runs.
            InterruptedError: it was cancelled.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"{self.title} ({self.id}) still runs after {timeout_s} s")
        if isinstance(self._error, Cancelled):
            raise InterruptedError(f"{self.title} ({self.id}) was cancelled")
        if self._error is not None:
            raise self._error
        return self._value

    def __repr__(self) -> str:
        state = "over" if self._is_over else "running"
        return f"<{self.title} ({self.id}), {state}>"

    def _repr_html_(self) -> str:
        return html_of(self)

    def _run(self, function: Callable[[Log], Any]) -> None:
        self._tell("RUNNING", "Your job has started running.")
        try:
            self._value = function(Log(self.id, self._channel, self._cancelled))
        except Cancelled as error:
            self._error = error
            self._tell("CANCELLED", "Your job was cancelled.")
        except BaseException as error:
            self._error = error
            own = error.__traceback__  # its first frame is this one
            below = None if own is None else own.tb_next
            told = traceback.format_exception(type(error), error, below)
            lines = "".join(told).rstrip()
            if not self._is_over:
                self._channel.tell(JobEvent(self.id, text=lines, tags=("traceback", "error")))
            words = str(error).partition("\n")[0]
            known = isinstance(error, InsituError)
            self._tell("ERROR", words if known else f"{type(error).__name__}: {words}")
        else:
            self._tell("COMPLETED", "Your job has been completed.")

    def _tell(self, phase: str, text: str) -> None:
        if not self._is_over:
            self._is_over = phase != "RUNNING"
            self._channel.tell(JobEvent(self.id, "status", text, phase))


@atexit.register
def _lose_all() -> None:
    """The kernel ends, and takes the names of its jobs away: what they say now means nothing."""
    for job in tuple(_running):
        job._tell("LOST", "The kernel ended while the job ran.")
        job._cancelled.set()
