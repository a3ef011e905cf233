"""How far a model is that is being opened, as transformers counts the weights it has read.

with loading.told(print):
    opened(spec, "cpu")                     # print("Loading weights", 120, 290, "tensors")
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from insitu.remote.worker import frames

EVERY_S = 0.5
"""What is told comes no faster than so, but for the end."""

Tell = Callable[[str, float, float, str], None]
"""Takes a text, how many are done, of how many, and of what."""


def over(control: socket.socket) -> Tell:
    """Tells it through a control socket."""

    def tell(text: str, done: float, of: float, unit: str) -> None:
        said = {"said": "progress", "text": text[:200], "done": done, "of": of, "unit": unit}
        frames.send_control(control, said)

    return tell


@contextmanager
def told(tell: Tell) -> Iterator[None]:
    """Tell of every loop of transformers' that has a bar and an end, whether or not it is drawn."""
    from transformers.utils import logging

    def made(factory: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        bar = factory(*args, **options)
        total = options.get("total") or _length(args[0] if args else options.get("iterable"))
        return _Told(bar, tell, str(options.get("desc") or "Loading"), total) if total else bar

    before = logging.set_tqdm_hook(made)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)


class _Told:
    """A bar that tells how far it is."""

    def __init__(self, bar: Any, tell: Tell, text: str, total: int) -> None:
        self._bar = bar
        self._tell = tell
        self._text = text
        self._total = total
        self._done = 0.0
        self._next = 0.0

    def __iter__(self) -> Iterator[Any]:
        for it in self._bar:
            yield it
            self._count(1)

    def update(self, more: float = 1) -> Any:
        self._count(more)
        return self._bar.update(more)

    def __enter__(self) -> "_Told":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._bar.__exit__(*error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)

    def _count(self, more: float) -> None:
        self._done += more
        now = time.monotonic()
        if now >= self._next or self._done >= self._total:
            self._next = now + EVERY_S
            unit = "tensors" if "weights" in self._text else ""
            self._tell(self._text, self._done, self._total, unit)


def _length(it: Any) -> int:
    return len(it) if hasattr(it, "__len__") else 0
