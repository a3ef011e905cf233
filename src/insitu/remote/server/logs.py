"""What the server says on stderr: lines for people, or JSON for programs.

{"time": 1763.2, "level": "INFO", "text": "job ended", "job": "5f…", "phase": "COMPLETED"}
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAID = ("job", "user", "phase", "model", "number", "status", "path")
"""What a record may carry beside its text. Never a key, never a body."""


class Lines(logging.Formatter):
    """For people."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it where there is one."""
        more = "".join(f" {name}={value}" for name, value in _said(record).items())
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname} {record.getMessage()}"
        trace = "" if record.exc_info is None else "\n" + self.formatException(record.exc_info)
        return text + more + trace


class JsonLines(logging.Formatter):
    """For programs."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        told = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "text": record.getMessage(),
            **_said(record),
        }
        if record.exc_info is not None:
            told["trace"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)


@contextmanager
def to_stderr(as_json: bool) -> Iterator[None]:
    """Send the package's log there, for the length of a block; uvicorn's own words are few."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else Lines())
    levels = {"insitu": logging.INFO, "uvicorn": logging.WARNING}
    loggers = {name: logging.getLogger(name) for name in levels}
    before = {name: it.level for name, it in loggers.items()}
    for name, it in loggers.items():
        it.addHandler(handler)
        it.setLevel(levels[name])
    try:
        yield
    finally:
        for name, it in loggers.items():
            it.removeHandler(handler)
            it.setLevel(before[name])


def _said(record: logging.LogRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in SAID if hasattr(record, name)}
