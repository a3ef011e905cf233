"""Where `tracer.log` says its lines: the terminal, or the log of the job that a block is.

with said.to(link.log):             # on a server: link.log("loss 0.31", ("train",))
    ...
said.say(("loss", 0.31), tags="train")
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

Hears = Callable[[str, tuple[str, ...]], None]
"""Told a line, and words to filter it by."""

_heard_by: ContextVar[Hears | None] = ContextVar("insitu_said", default=None)


@contextmanager
def to(hears: Hears) -> Iterator[None]:
    """Within, lines with tags go there."""
    token = _heard_by.set(hears)
    try:
        yield
    finally:
        _heard_by.reset(token)


def say(values: Iterable[Any], tags: Iterable[str] | str) -> None:
    """Print values, or tell them line by line where their tags can be kept."""
    words = (tags,) if isinstance(tags, str) else tuple(map(str, tags))
    hears = _heard_by.get()
    if hears is None or not words:
        print(*values)
        return
    for line in " ".join(map(str, values)).split("\n"):
        hears(line, words)
