"""Steps of a generation: a loop in the block, a clock in the model.

    with model.generate("Once upon a time", max_new_tokens=5) as tracer:
        for step in tracer.iter[1:4]:
            model.transformer.h[2].output[:] += direction
        text = model.generator.output

A step is one call of the model. A loop ends when the run ends, and what follows it runs.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from insitu.engine import misses
from insitu.engine.interleave import Pass
from insitu.errors import StepError


class Steps:
    """`tracer.iter`: `iter[:]`, `iter[2]`, `iter[1:3]`, `iter[::2]`, `iter[[0, 2, 4]]`."""

    def __init__(self, run: Pass) -> None:
        self._run = run

    def __getitem__(self, which: Any) -> Iterator[int]:
        return _walk(self._run, wanted(which))

    def __iter__(self) -> Iterator[int]:
        return self[:]


def wanted(which: Any) -> Iterable[int]:
    """The step numbers that an index, a slice or a list names, in rising order."""
    if isinstance(which, slice):
        start, step = which.start or 0, 1 if which.step is None else which.step
        if start < 0 or step < 1 or (which.stop is not None and which.stop < 0):
            raise _not_a_step(which)
        return (
            itertools.count(start, step) if which.stop is None else range(start, which.stop, step)
        )
    numbers = [which] if isinstance(which, int) else list(which)
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
        raise _not_a_step(which)
    return sorted(set(numbers))


def advance(run: Pass) -> int:
    """Go to the next step, which must exist; a block begins in step 0."""
    step = max(run.step, 0) + 1
    if not run.advance(step):
        raise misses.no_such_step(run, step)
    return step


def _walk(run: Pass, numbers: Iterable[int]) -> Iterator[int]:
    for number in numbers:
        if not run.advance(number):
            return
        yield number


def _not_a_step(which: Any) -> StepError:
    return StepError(
        f"{which!r} names no steps.",
        "steps are counted from 0, and how many there will be is not known while they run.",
        "use iter[:], iter[2], iter[1:3], iter[::2] or iter[[0, 2, 4]].",
    )
