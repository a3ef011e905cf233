"""Values of a model that computes in another process: they come when a block looks at them.

brought.by(bridge)          # by whoever leads a model elsewhere
args = brought.whole(args)  # what stood for tensors there are tensors
"""

from collections.abc import Callable
from typing import Any

_bring: Callable[[Any], Any] | None = None


def by(bring: Callable[[Any], Any] | None) -> None:
    """Say what brings values here; None when nothing does."""
    global _bring
    _bring = bring


def whole(value: Any) -> Any:
    """A value that a block is about to see, with all that its tensors hold."""
    return value if _bring is None else _bring(value)
