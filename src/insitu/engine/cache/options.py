"""What a user asks of a cache, checked before the model runs.

settings({"dtype": torch.bfloat16, "steps": [0, 2]})    # Settings(plan=Plan(…), budget=None, …)
"""

import itertools
import os
import sys
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch

from insitu.engine import paths
from insitu.engine.cache.record import Plan
from insitu.engine.steps import wanted
from insitu.errors import UsageError


class Options(TypedDict, total=False):
    """The settings of `tracer.cache`, by name."""

    include_output: bool
    """Keep what modules return; so it is by default."""
    include_inputs: bool
    """Keep what modules are called with."""
    dtype: torch.dtype | None
    """Convert floating-point values; integers stay as they are."""
    device: torch.device | str | None
    """Move values there as they come."""
    steps: int | slice | Iterable[int] | None
    """Of a generation, keep these steps alone."""
    detach: bool
    """Cut values off from the graph of gradients; so it is by default."""
    clone: bool
    """Copy every value, so that nothing can change it in place."""
    budget: int | float | None
    """The bytes that may be held in memory."""
    spill: str | os.PathLike[str] | None
    """A folder to write values to."""


@dataclass(frozen=True)
class Settings:
    """The same, checked."""

    plan: Plan
    budget: int | None = None
    spill: Path | None = None


def settings(options: Mapping[str, Any]) -> Settings:
    """Check options.

    Raises:
        UsageError: one is unknown, or has a value it cannot have.
        StepError: steps are no step numbers.
    """
    for name in options:
        if name not in Options.__annotations__:
            raise _unknown(name)
    outputs, inputs = options.get("include_output", True), options.get("include_inputs", False)
    if not (outputs or inputs):
        raise UsageError(
            "this cache would keep nothing.",
            "include_output is False and include_inputs is not True.",
            "leave include_output out, or add include_inputs=True.",
        )
    spill, detach = options.get("spill"), bool(options.get("detach", True))
    if spill is not None and not detach:
        raise UsageError(
            "detach=False and spill= do not go together.",
            "a value on disk has no graph of gradients any more.",
            "leave one of them out.",
        )
    plan = Plan(
        outputs=bool(outputs),
        inputs=bool(inputs),
        detach=detach,
        clone=bool(options.get("clone", False)),
        dtype=_dtype(options.get("dtype")),
        device=to_device(options.get("device")),
        steps=_steps(options.get("steps")),
    )
    return Settings(plan, _budget(options.get("budget")), None if spill is None else Path(spill))


def to_device(device: Any) -> torch.device | None:
    """A device by name.

    Raises:
        UsageError: there is none of that name.
    """
    if device is None:
        return None
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(
            f"{device!r} is no device.",
            str(error).partition("\n")[0][:160] + ".",
            'write device="cpu" or device="cuda:0".',
        ) from error


def _dtype(dtype: Any) -> torch.dtype | None:
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise UsageError(
        f"dtype={dtype!r} is no floating-point dtype.",
        "a cache converts floating-point values, and keeps integers as they are.",
        "write dtype=torch.bfloat16, torch.float16 or torch.float32.",
    )


def _steps(steps: Any) -> Container[int] | None:
    if steps is None:
        return None
    if isinstance(steps, str) or not isinstance(steps, (int, slice, Iterable)):
        steps = [steps]  # refused below, in the words for steps
    numbers = wanted(steps)
    if isinstance(numbers, itertools.count):
        return range(steps.start or 0, sys.maxsize, steps.step or 1)
    return numbers if isinstance(numbers, range) else frozenset(numbers)


def _budget(budget: Any) -> int | None:
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or budget <= 0:
        raise UsageError(
            f"budget={budget!r} is no number of bytes.",
            "a budget says how many bytes of values may be held in memory.",
            "write budget=2 * 2**30 for 2 GiB.",
        )
    return int(budget)


def _unknown(name: str) -> UsageError:
    close = paths.nearest(name, Options.__annotations__)
    return UsageError(
        f"cache() has no setting {name!r}.",
        f"it takes modules, {', '.join(Options.__annotations__)}.",
        f"did you mean {close[0]}?" if close else "leave it out.",
    )
