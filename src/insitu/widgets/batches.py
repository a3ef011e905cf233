"""News sent in batches: many calls of `soon()`, few of `send`, and the last one is never lost.

news = Batches(send, every_s=0.05)
news.soon()                 # from any thread, as often as it comes
news.now()                  # not later
"""

import contextlib
import threading
import time
from collections.abc import Callable


class Batches:
    """Calls `send` at most once in so many seconds, from a thread that lives while there is news.

    What `send` raises is dropped: it tells a view, and who has news must not suffer from it.
    """

    __slots__ = ("_due", "_every_s", "_lock", "_send", "_thread")

    def __init__(self, send: Callable[[], None], every_s: float) -> None:
        self._send = send
        self._every_s = every_s
        self._lock = threading.Lock()
        self._due = False
        self._thread: threading.Thread | None = None

    def soon(self) -> None:
        """There is news."""
        if self._due:
            return
        with self._lock:
            self._due = True
            if self._thread is None:
                self._thread = threading.Thread(target=self._go_on, name="insitu-news", daemon=True)
                self._thread.start()

    def now(self) -> None:
        """Send now, from this thread."""
        self._due = False
        with contextlib.suppress(Exception):
            self._send()

    def _go_on(self) -> None:
        while True:
            time.sleep(self._every_s)
            with self._lock:
                if not self._due:
                    self._thread = None
                    return
            self.now()
