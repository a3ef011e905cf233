"""What a job says, as lines on the screen.

2025-03-17 15:10:19,417 270a6e4d-… - RECEIVED: Your job has been received and is waiting approval.
2025-03-17 15:10:23,319 270a6e4d-… - LOG: tensor(5.4688, device='cuda:2')

stop = show(job)
"""

import time
from collections.abc import Callable

from insitu.events import Job, JobEvent
from insitu.remote.protocol import TEXTS
from insitu.settings import CONFIG

QUEUE_EVERY_S = 2.0
"""A place in the queue is told at most so often, but for the first and the last."""
LOADING_EVERY_S = 5.0
"""How far the model is that a job waits for is told so often."""


class Shown:
    """Prints the events of one job, as it hears them."""

    def __init__(self) -> None:
        self._place: float | None = None
        self._told = 0.0
        self._loading: float | None = None
        """When it was last said how far the model is, while the job waits for that."""

    def hear(self, event: JobEvent) -> None:
        """Print an event, if it is for the screen and CONFIG.APP.REMOTE_LOGGING is on."""
        if not CONFIG.APP.REMOTE_LOGGING:
            return
        if event.kind == "status" and event.phase != "QUEUED":  # that one comes with its place
            _line(event, event.phase, event.text or TEXTS.get(event.phase, ""))
            self._loading = event.time if event.phase == "LOADING" else None
        elif event.kind == "progress" and self._loading is not None:
            if event.time - self._loading >= LOADING_EVERY_S:
                self._loading = event.time
                _line(event, "LOADING", _progress(event))
        elif event.kind == "log":
            _line(event, "LOG", event.text)
        elif event.kind == "queue" and self._is_news(event):
            _line(event, "QUEUED", f"Your job is {_place(event)} in the queue.")

    def _is_news(self, event: JobEvent) -> bool:
        if event.done is None or event.done < 1 or event.done == self._place:
            return False
        now = time.monotonic()
        if self._place is not None and event.done > 1 and now - self._told < QUEUE_EVERY_S:
            return False
        self._place, self._told = event.done, now
        return True


def show(job: Job) -> Callable[[], None]:
    """Print what a job has said and what it will say; call the result to stop."""
    return job.listen(Shown().hear)


def _line(event: JobEvent, word: str, text: str) -> None:
    print(f"{stamp(event.time)} {event.job} - {word}: {text}".rstrip(), flush=True)


def stamp(when: float) -> str:
    """A time as the lines have it, `2025-03-17 15:10:19,417`, by this machine's clock."""
    try:
        day = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (OverflowError, ValueError, OSError):
        return stamp(time.time())
    return f"{day},{int(when * 1000) % 1000:03d}"


def _progress(event: JobEvent) -> str:
    of = "" if event.of is None else f" of {event.of:,.0f}"
    return f"{event.text}: {event.done or 0:,.0f}{of} {event.unit}".rstrip() + "."


def _place(event: JobEvent) -> str:
    place = int(event.done or 0)
    of = "" if event.of is None else f" of {int(event.of)}"
    return f"number {place}{of}"
