"""A bar for what takes long, and silence for what does not.

for layer in progress(layers, "patching"):
    ...
"""

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

WAIT_S = 2.0
"""Work that is over before shows nothing."""


def progress(things: Iterable[T], doing: str) -> Iterator[T]:
    """The same things, one by one; a bar stands beside them after two seconds.

    Args:
        things: what is gone through.
        doing: what is done, as the bar says it.
    """
    from tqdm.auto import tqdm

    kind: Any = type("Bar", (tqdm,), {"monitor_interval": 0})  # else tqdm leaves a thread behind
    with kind(things, desc=doing, delay=WAIT_S, leave=False) as bar:
        yield from bar
