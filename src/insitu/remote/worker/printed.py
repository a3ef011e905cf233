"""What a block prints, as lines of its log.

sys.stdout = Printed(link.log, line_chars=4000)
print("loss", 0.31)                                   # link.log("loss 0.31")
"""

import io
import threading
from collections.abc import Callable

_SAYS = 40  # characters that telling of a cut takes


class Printed(io.TextIOBase):
    """A text stream whose lines go to a function; a line without its end is told at `close`."""

    def __init__(self, log: Callable[[str], None], line_chars: int) -> None:
        self._log = log
        self._most = line_chars
        self._begun = ""
        self._dropped = 0
        self._lock = threading.RLock()

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Take text; tell the lines that it completes. A carriage return ends a line too."""
        with self._lock:
            all = self._begun + text.replace("\r\n", "\n").replace("\r", "\n")
            *whole, rest = all.split("\n")
            self._begun = ""
            for number, line in enumerate(whole):
                self._tell(line, first=number == 0)
            self._keep(rest)
        return len(text)

    def close(self) -> None:
        """Tell what has begun."""
        with self._lock:
            if self._begun:
                self._tell(self._begun, first=True)
                self._begun = ""
        super().close()

    def _keep(self, rest: str) -> None:
        """Hold a begun line, and no more of it than will be shown: it may never end."""
        most = self._most + 1
        self._dropped += max(0, len(rest) - most)
        self._begun = rest[:most]

    def _tell(self, line: str, *, first: bool) -> None:
        dropped, self._dropped = (self._dropped, 0) if first else (0, self._dropped)
        if dropped or len(line) > self._most:
            kept = line[: max(0, self._most - _SAYS)]
            line = f"{kept} … ({dropped + len(line) - len(kept):,} characters more)"
        self._log(line)
