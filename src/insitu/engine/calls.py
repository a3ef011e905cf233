"""Steps of a model that is called once: further calls of the module that a loop reads first.

with model.trace(sequence) as tracer:
    for step in tracer.iter[1:3]:
        model.cell.output[:] = 0          # its second and third call
"""

from collections.abc import Iterable, Iterator
from typing import Any

from insitu.errors import StepError


def by_calls(run: Any, numbers: Iterable[int]) -> Iterator[int]:
    """Steps of a model that is called once: further calls of the module the loop reads first."""
    leader, before = None, 0
    for number in numbers:
        if leader is None:
            if number:
                run.pass_over(number)
        elif not run.to_call(leader, number - before):
            return
        asked = len(run.trail)
        yield number
        before = number
        if leader is None:
            if len(run.trail) == asked:
                raise _nothing_read(number)
            leader = run.trail[asked][0]


def _nothing_read(step: int) -> StepError:
    return StepError(
        f"a loop over steps has read nothing in step {step}.",
        "this model is called once, so its steps are counted by the module the loop reads first.",
        "read a module in every step, or use generate(), where a step is a token.",
    )
