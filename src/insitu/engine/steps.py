"""Steps of a generation: a loop in the block, a clock in the model.

    with model.generate("Once upon a time", max_new_tokens=5) as tracer:
        for step in tracer.iter[1:4]:
            model.transformer.h[2].output[:] += direction
        text = model.generator.output

A step is one call of the model. A loop ends when the run ends, and what follows it runs.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any

from insitu.engine import misses
from insitu.engine.calls import take_steps, walk
from insitu.engine.capture.bodies import Names, Skip, find_body, find_rest
from insitu.engine.capture.usage import returns_to
from insitu.engine.interleave import Pass
from insitu.errors import StepError, UsageError


class Steps:
    """`tracer.iter`: `iter[:]`, `iter[2]`, `iter[1:3]`, `iter[::2]`, `iter[[0, 2, 4]]`."""

    def __init__(self, run: Pass) -> None:
        self._run = run

    def __getitem__(self, which: Any) -> "Walk":
        return Walk(self._run, wanted(which))

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])


class Walk:
    """Some steps, one after another: `for step in …:`, or the older `with … as step:`."""

    def __init__(self, run: Pass, numbers: Iterable[int]) -> None:
        self._run = run
        self._numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return walk(self._run, self._numbers)

    def __enter__(self) -> "Walk":
        frame = sys._getframe(1)
        self._body = find_body(frame, "with tracer.iter[…]")
        self._names = Names(frame, self._body)
        self._skip = Skip(frame)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not self._skip.swallow(error):
            return False
        try:
            for step in self:
                if self._body.target is not None:
                    self._names[self._body.target] = step
                self._body.run(self._names)
        finally:
            self._names.write_back()
            self._names.close()
        return True


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


class RestDone(BaseException):
    """Leaves a block whose remaining statements have run in every step; its trace swallows it."""

    def __init__(self, run: Any) -> None:
        self.run = run


def all_steps(run: Any, frame: FrameType) -> Walk:
    """Every step; as a statement of its own, the rest of the block runs in each of them."""
    walk = Walk(run, wanted(slice(None)))
    if returns_to(frame) != "discarded":
        return walk
    code, entered = getattr(run, "arming", run).entered or (None, None)
    body = find_rest(frame, "model.all()", entered if code is frame.f_code else None)
    names = Names(frame, body)
    try:
        for _ in walk:
            body.run(names)
    finally:
        names.write_back()
        names.close()
    raise RestDone(getattr(run, "arming", run))


def stream(run: Any) -> Iterator[Any]:
    """Each step's new tokens, as they are generated."""
    generator = run.root._extras.get("generator")
    if generator is None or run.kind != "generate":
        raise UsageError(
            "stream() was called where nothing is generated.",
            "it gives the new token of each step of a generation.",
            "use it inside `with model.generate(prompt, max_new_tokens=20) as tracer:`.",
        )
    streamer = run.root.generator.streamer
    for _ in Walk(run, wanted(slice(None))):
        yield streamer.output


def next_call(node: Any, run: Any) -> Any:
    """Go to a module's next call, in a generation to the next step, and give the module.

    Raises:
        StepError: it is not called again.
    """
    take_steps(run)
    if run.stepping:
        advance(run)
    elif not run.to_call(node, 1):
        raise StepError(
            f"{node._path} is not called again.",
            "the pass ended before its next call.",
            "loop with `for step in tracer.iter[:]`, which ends by itself.",
        )
    return node


def advance(run: Any) -> int:
    """Go to the next step, which must exist; a block begins in step 0."""
    if not run.stepping and run.trail:
        next_call(run.trail[-1][0], run)
        return 1
    take_steps(run)
    step: int = max(run.step, 0) + 1
    if not run.advance(step):
        raise misses.no_such_step(run, step)
    return step


def _not_a_step(which: Any) -> StepError:
    return StepError(
        f"{which!r} names no steps.",
        "steps are counted from 0, and how many there will be is not known while they run.",
        "use iter[:], iter[2], iter[1:3], iter[::2] or iter[[0, 2, 4]].",
    )
