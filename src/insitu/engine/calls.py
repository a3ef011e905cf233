"""Steps of a model that is called once: further calls of the module that a loop reads first.

with model.trace(sequence) as tracer:
    for step in tracer.iter[1:3]:
        model.cell.output[:] = 0          # its second and third call

That module leads the loop. Its calls are counted from the first that the block reads, also one that
it read above the loop; what else is read in a step is still to come, before the loop in the model's
own forward goes round once more.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from insitu.engine import misses
from insitu.engine.ahead import NOTHING
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.reachable import only_next_round
from insitu.errors import OutOfOrderError, StepError


@dataclass
class Count:
    """Where a loop over the calls of a module stands."""

    number: int
    asked: int
    """How much the block had read when the loop began; when it has ended, until then."""
    earlier: "Count | None"
    hidden: tuple[Any, Any] | None
    """The modules at whose output and input the pass stands, until it moves or the loop reads."""
    leader: Any = None
    first: bool = True
    over: bool = False


def walk(run: Any, numbers: Iterable[int]) -> Iterator[int]:
    """Some steps of a pass, one after another."""
    take_steps(run)
    if not run.stepping:
        yield from _by_calls(run, numbers)
        return
    for number in numbers:
        if not run.advance(number):
            return
        yield number


def take_steps(run: Any) -> None:
    """A body goes from step to step itself: an edit that does is not repeated in each."""
    if (body := getattr(run, "body", None)) is not None:
        body.walks = True


def is_beyond(run: Any) -> bool:
    """Whether a block has missed what leads its loop, which began with a later step than the first:
    the pass has no such step.
    """
    count: Count | None = run.count
    if count is None or not (count.first and count.number):
        return False
    return len(run.trail) <= count.asked + 1


def standing(run: Any) -> tuple[Any, Any]:
    """The modules at whose output and input a pass stands, also while a loop hides them."""
    count: Count | None = run.count
    hidden = None if count is None else count.hidden
    return (run.at_output, run.at_input) if hidden is None else hidden


def asked(run: Any, node: Any, kind: int, *, noted: bool = False) -> bool:
    """A block asks for a site, perhaps in a loop over calls: whether the pass stands there.

    Args:
        run: the pass, or the lane.
        node: the module asked for.
        kind: its output or its input.
        noted: whether the trail has this request already.

    Raises:
        OutOfOrderError: in this step of the loop the site has passed.
    """
    count: Count | None = run.count
    if count is not None and not count.over and count.leader is None:
        return _lead(run, node, kind, count, noted=noted)
    stands = _stands(run, node, kind)
    if stands or count is None or count.over:
        return stands
    if node._module is not count.leader._module and _is_of_the_next(run, node, kind):
        raise OutOfOrderError(
            f"{misses.site(node, kind)} was asked for, but the model has already passed it in step "
            f"{count.number}.",
            f"this model is called once, so a step is a call of {count.leader._path}, which the "
            f"loop reads first; in the forward that calls both, {node._path} comes before.",
            f"read {misses.site(node, kind)} first in the loop.",
        )
    return False


def _stands(run: Any, node: Any, kind: int) -> bool:
    return node._module is run.at_output or (kind == INPUT and node._module is run.at_input)


def _by_calls(run: Any, numbers: Iterable[int]) -> Iterator[int]:
    count: Count | None = None
    try:
        for number in numbers:
            if count is None:
                count = _begin(run, number)
            elif run.to_call(count.leader, number - count.number):
                count.number, count.first = number, False
            else:
                return
            run.arming.near = NOTHING  # so that reads are told of
            yield number
            if count.leader is None:
                raise _nothing_read(number)
    finally:
        if count is not None:
            _end(run, count)


def _begin(run: Any, number: int) -> Count:
    """Hide the site the pass stands at, so that also a read of that one is told of."""
    count = Count(number, len(run.trail), run.count, standing(run))
    run.count, run.at_output, run.at_input = count, None, None
    return count


def _show(run: Any, count: Count) -> None:
    run.at_output, run.at_input = standing(run)
    count.hidden = None


def _end(run: Any, count: Count) -> None:
    _show(run, count)  # if nothing was read
    count.over, count.asked, count.earlier = True, len(run.trail), None


def _lead(run: Any, node: Any, kind: int, count: Count, *, noted: bool) -> bool:
    """The first read of a loop: it is of the call whose number is the step's."""
    count.leader = node
    _show(run, count)
    begun = _begun(run, node, kind, count, noted=noted)
    if begun == count.number + 1 and _stands(run, node, kind):
        if noted:
            del run.trail[-1:]
        return True
    if begun > count.number:
        raise OutOfOrderError(
            f"{misses.site(node, kind)} was asked for in step {count.number}, but its call "
            f"{count.number} is over.",
            "this model is called once, so a step is a call of the module that the loop reads "
            f"first, and of {node._path} this block has met {_calls(begun)} above.",
            f"begin the loop above, or with a later step: tracer.iter[{begun}:].",
        )
    run.calls_over = count.number - begun
    return False


def _begun(run: Any, node: Any, kind: int, count: Count, *, noted: bool) -> int:
    """How many calls the block has met that have come to this side of a module."""
    module, earlier = node._module, count.earlier
    begun, reads = 0, run.trail[:-1] if noted else run.trail
    if earlier is not None and earlier.leader is not None and earlier.leader._module is module:
        begun, reads = earlier.number + 1, reads[earlier.asked :]
    sides = [read[1] for read in reads if read[0]._module is module]
    begun += max(sides.count(OUTPUT), sides.count(INPUT))
    under_way = run.at_input is module
    return max(begun, under_way) - (under_way and kind == OUTPUT)


def _is_of_the_next(run: Any, node: Any, kind: int) -> bool:
    """Whether a site comes only when the forward's own loop goes round once more, for certain."""
    frame = getattr(run.arming.worker, "gr_frame", None)
    standing = (OUTPUT, run.at_output) if run.at_output is not None else (INPUT, run.at_input)
    return (
        frame is not None
        and isinstance(standing[1], nn.Module)
        and isinstance(node._module, nn.Module)
        and only_next_round(node, kind, standing, frame)
    )


def _calls(count: int) -> str:
    return "one call" if count == 1 else f"{count} calls"


def _nothing_read(step: int) -> StepError:
    return StepError(
        f"a loop over steps has read nothing in step {step}.",
        "this model is called once, so its steps are counted by the module the loop reads first.",
        "read a module in every step, or use generate(), where a step is a token.",
    )
