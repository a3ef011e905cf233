"""The writes that a failure of the model may come from, told with its error.

with model.trace(x):
    model.encoder.output = insitu.force(shorter)
# RuntimeError: The size of tensor a (7) must match the size of tensor b (8) …
# Insitu: in this pass, line 2 replaced encoder.output (float32[1, 8] → float32[1, 7]),
# forced past the check.

What is noted is where a value was replaced and where a call was skipped; reads cost nothing.
"""

import os
from collections import deque
from sys import _getframe
from types import CodeType
from typing import Any, Protocol

from torch import Tensor

from insitu.engine import misses
from insitu.engine.values import Forced, describe, fit
from insitu.errors import InsituError

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_KEPT = 16  # of the writes of a pass, the latest
_SHOWN = 3
_FORCED = ", forced past the check"

Write = tuple[Any, str, CodeType, int, str]
"""Whose site, which one, the instruction that wrote there, and what to say of the value."""


class Written(Protocol):
    """What is needed to know of a pass, or of the lane of a captured body."""

    writes: deque[Write] | None

    @property
    def arming(self) -> Any:
        """The pass itself, which its lanes share."""


def begin(run: Written) -> deque[Write]:
    """Where a pass and its lanes keep their writes, from the first one on."""
    whole = run.arming
    whole.writes = kept = whole.writes if whole.writes is not None else deque(maxlen=_KEPT)
    run.writes = kept
    return kept


def written(run: Written, value: Any, old: Any, node: Any, site: str) -> Any:
    """The value to go on with, as `fit` gives it; the write is noted.

    Raises:
        WriteError: it does not fit and was not forced.
    """
    fitting = fit(value, old, node, site)
    frame = _getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    told = _change(fitting, old) if isinstance(value, Forced) else ""
    begin(run).append((node, site, frame.f_code, frame.f_lasti, told))
    return fitting


def skipped(run: Written, read: misses.Read, value: Any) -> None:
    """Note that a call was skipped."""
    node, _, code, at = read
    begin(run).append((node, "skip", code, at, describe(value)))


def add_note(run: Any, error: BaseException) -> None:
    """Say in an error of the model what its block had put in place of the model's own values."""
    if not run.writes or not isinstance(error, Exception) or isinstance(error, InsituError):
        return
    latest = list(dict.fromkeys(reversed(run.writes)))
    forced = [write for write in latest if write[4].endswith(_FORCED)]
    others = [write for write in latest if write not in forced]
    home = run.entered[0].co_filename if run.entered else ""
    told = [_told(write, home) for write in (*forced, *others)[:_SHOWN]]
    error.add_note(f"Insitu: in this pass, {'; '.join(told)}.")


def _change(new: Any, old: Any) -> str:
    one, other = describe(old), describe(new)
    if one == other and isinstance(old, Tensor) and isinstance(new, Tensor):
        one, other = f"{one} on {old.device}", f"{other} on {new.device}"
    return f" ({one} → {other}){_FORCED}"


def _told(write: Write, home: str) -> str:
    node, site, code, at, told = write
    name = code.co_filename
    line = "a view" if name.startswith(_PACKAGE) else f"line {misses.line((node, 0, code, at))}"
    where = f" of {os.path.basename(name)}" if home and name not in (home,) else ""
    if site == "skip":
        return f"{line}{where} skipped {node._path}, for which it gave {told}"
    return f"{line}{where} replaced {node._path}.{site}{told}"
