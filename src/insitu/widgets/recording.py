"""Events of jobs in a file, a line of JSON each: kept while a job runs, and played again.

RemoteLog(job, record="run.jsonl")          # keep what it says
RemoteLog(Recording("run.jsonl"))           # after the kernel was restarted
RemoteLog(Recording("run.jsonl", speed=1))  # as it was, at its own pace
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path
from typing import TextIO

from insitu.errors import UsageError
from insitu.events import ENDS, Channel, Heard, JobEvent
from insitu.widgets.job_record import html_of

POLLED_EVERY_S = 0.2


class EventFile:
    """Events as they come, appended to a file."""

    def __init__(self, file: str | PathLike[str]) -> None:
        self._lock = threading.Lock()
        self._file: TextIO | None = Path(file).open("a", encoding="utf-8")  # noqa: SIM115

    def write(self, event: JobEvent) -> None:
        """Write one event; a line of a log is in the file after the next `flush`."""
        with self._lock:
            if self._file is not None:
                self._file.write(json.dumps(event.as_dict(), ensure_ascii=False) + "\n")
                if event.kind == "status":
                    self._file.flush()  # the last one may come while the kernel ends

    def flush(self) -> None:
        """See that all is in the file."""
        with self._lock:
            if self._file is not None:
                self._file.flush()

    def close(self) -> None:
        """Write no more. Safe to call twice."""
        with self._lock:
            file, self._file = self._file, None
            if file is not None:
                file.close()


class Recording:
    """The job that a file of events is of.

        Recording("run.jsonl")
        Recording("run.jsonl", follow=True)     # another process still writes it

    Args:
        file: one that `RemoteLog(job, record=…)` has written, or a server's events, one a line.
        speed: at its own pace (1), faster or slower; all at once by default.
        follow: wait for more until the job has ended.

    Raises:
        UsageError: there is no such file.
    """

    def __init__(
        self, file: str | PathLike[str], *, speed: float | None = None, follow: bool = False
    ) -> None:
        self._file = Path(file)
        if not self._file.is_file():
            raise UsageError(
                f"there is no recording {str(file)!r}.",
                "a recording is a file of events, one a line, that a log has written.",
                'record a job with RemoteLog(job, record="run.jsonl"), or give the right path.',
            )
        if speed is not None and not speed > 0:
            raise UsageError(
                f"a recording cannot be played at speed {speed}.",
                "its events are told in the order and at the distances they came.",
                "give a number above 0, or leave speed out to have all at once.",
            )
        self._speed = speed
        self._follow = follow
        self._channel = Channel()
        self._stop = threading.Event()
        self._phase = ""
        self._unreadable = 0
        first = next((event for event in self._events(False) if event is not None), None)
        self.id = first.job if first is not None else self._file.stem
        self.title = self._file.name
        if speed is None and not follow:
            self._play()
        else:
            threading.Thread(target=self._play, name="insitu-recording", daemon=True).start()

    def listen(self, heard: Heard) -> Callable[[], None]:
        """Tell what has been played so far, then each event as it comes."""
        return self._channel.listen(heard)

    def _repr_html_(self) -> str:
        return html_of(self)

    def close(self) -> None:
        """Play no more."""
        self._stop.set()

    def _play(self) -> None:
        before: float | None = None
        for event in self._events(self._follow):
            if event is None:
                self._unreadable += 1
                continue
            if self._speed is not None and before is not None:
                self._stop.wait(max(event.time - before, 0) / self._speed)
            if self._stop.is_set():
                return
            before = event.time
            self._phase = event.phase if event.kind == "status" else self._phase
            self._channel.tell(event)
        self._tell_of_its_end(before)

    def _tell_of_its_end(self, last: float | None) -> None:
        when = time.time() if last is None else last
        notes = []
        if self._unreadable:
            notes.append(f"{self._unreadable} lines of the recording are no events: left out.")
        if self._phase not in ENDS:
            notes.append("The recording ends here, before the job did.")
        for words in notes:
            tags = ("recording", "warning")
            self._channel.tell(JobEvent(self.id, text=words, tags=tags, time=when))

    def _events(self, follow: bool) -> Iterator[JobEvent | None]:
        """The events of the file; None for a line that is none."""
        with self._file.open(encoding="utf-8", errors="replace") as file:
            pending = ""
            while True:
                line = file.readline()
                if line.endswith("\n"):
                    if (pending + line).strip():
                        yield _read(pending + line)
                    pending = ""
                    continue
                pending += line
                if not follow or self._phase in ENDS or self._stop.wait(POLLED_EVERY_S):
                    break
            if pending:  # its writer was cut off in the middle of a line, or ended without one
                yield _read(pending)


def _read(line: str) -> JobEvent | None:
    try:
        return JobEvent.of_dict(json.loads(line))
    except (ValueError, RecursionError):
        return None
