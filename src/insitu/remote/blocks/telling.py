"""What a block tells while it runs, beside its lines: new tokens, and how far its result is.

with Generating(model, link):               # link.token(0, (262,)), link.token(1, (1748,)), …
    ...
told = Writing(link, size_bytes=2**30).told
told(2**22)                                 # link.progress("Writing the result", …), now and then
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from insitu.engine.running import active

TOLD_BYTES = 32 * 2**20
"""Of a result; the writing of a smaller one is over before anybody could look."""
TOLD_EVERY_S = 0.25


class Link(Protocol):
    """What a running block says to the outside."""

    def log(self, text: str, tags: tuple[str, ...] = ()) -> None:
        """A line of its log."""

    def progress(self, text: str, done: float, of: float | None, unit: str) -> None:
        """How far something is."""

    def token(self, step: int, ids: tuple[int, ...]) -> None:
        """New tokens, one for each row."""

    def local(self, index: int, *payload: bytes | memoryview) -> bytes | bytearray:
        """Have a `local()` part run on the user's machine, and wait for what it gives.

        The pieces of the payload may be memory of the block's; what comes back is its own.
        """


class Generating:
    """While it is entered, every new token of a generation is told; each begins at step 0."""

    def __init__(self, model: Any, link: Link) -> None:
        self._generator = getattr(model, "_extras", {}).get("generator")
        self._link = link
        self._step = 0
        self._run: Any = None
        """The generation that the last token was of; one that was stopped has no end."""
        self._remove: Callable[[], None] | None = None

    def __enter__(self) -> None:
        streamer = getattr(self._generator, "streamer", None)
        if streamer is not None:
            self._remove = streamer.register_forward_hook(self._tell).remove

    def _tell(self, module: Any, given: Any, tokens: Any) -> None:
        here = active.get()
        run = getattr(here, "run", here)
        if run is not self._run:
            self._run, self._step = run, 0
        self._link.token(self._step, tuple(tokens.reshape(-1).tolist()))
        self._step += 1

    def __exit__(self, *_: object) -> None:
        self._run = None
        if self._remove is not None:
            self._remove()


class Writing:
    """Tells how much of a large result is written.

    Args:
        link: who is told.
        size_bytes: of all its tensors.
    """

    def __init__(self, link: Link, size_bytes: int) -> None:
        self._link = link
        self._of = size_bytes
        self._done = 0
        self._next = time.monotonic()

    def told(self, count: int) -> None:
        """So many bytes more are written."""
        self._done += count
        now = time.monotonic()
        if self._of < TOLD_BYTES or (now < self._next and self._done < self._of):
            return
        self._next = now + TOLD_EVERY_S
        self._link.progress("Writing the result", self._done, self._of, "bytes")
