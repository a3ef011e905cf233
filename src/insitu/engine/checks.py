"""What a pass refuses, and when: before it arms a module, runs on, or skips one."""

from typing import Any, Protocol

from torch import nn

from insitu.engine import calls, misses
from insitu.engine.arming import Node
from insitu.engine.order import INPUT, OUTPUT, Order
from insitu.engine.reachable import may_come_again
from insitu.engine.switch import Greenlet, Worker
from insitu.engine.values import Forced, describe, same_kind
from insitu.errors import TraceError, WriteError


class Checked(misses.Explained, Protocol):
    """What the checks need to know of a pass, and set in it."""

    single: dict[nn.Module, tuple[int, int]]
    worker: Greenlet | None
    at_output: nn.Module | None
    at_input: nn.Module | None
    want_output: nn.Module | None
    want_input: nn.Module | None
    here: int
    ended: bool
    closed: bool
    cleared: bool
    both: bool
    unbound: bool
    stepping: bool
    overrun: bool

    def settle(self) -> None:
        """Take away what the pass needed, and raise the model's own error."""


def still_open(run: Checked, node: Node, kind: int) -> None:
    """Raise if the pass can go nowhere any more."""
    if run.closed:
        raise misses.pass_is_over(run)
    if run.ended:
        raise _passed(run, node, kind)


def may_come(run: Checked, node: Node, kind: int) -> None:
    """The order says that a site has passed: raise if it cannot come again."""
    if run.unbound and run.stepping:
        return
    if not _can_come(run, node, kind):
        raise _passed(run, node, kind)


def _can_come(run: Checked, node: Node, kind: int) -> bool:
    """Whether the pass may still come to a site from where it stands."""
    frame = run.worker.gr_frame if isinstance(run.worker, Worker) else None
    at_output, at_input = calls.standing(run)
    if at_output is not None:
        return may_come_again(node, kind, (OUTPUT, at_output), frame)
    return at_input is not None and may_come_again(node, kind, (INPUT, at_input), frame)


def may_skip(run: Checked, node: Node, module: nn.Module) -> None:
    """Raise if a module has begun, and no call of it can follow that could be skipped."""
    at_output, at_input = calls.standing(run)
    if module is at_input:
        return
    place = run.single.get(module)
    begun = module is at_output or (place is not None and place[1] < run.here)
    if run.observation is not None:
        begun = run.observation.has_entered(module)
    if run.ended or (begun and not _can_come(run, node, INPUT)):
        raise misses.skipped_too_late(node)


def fitting_skip(value: Any, node: Node, order: Order | None) -> Any:
    """The value to return instead of a call, checked against what the module returned before."""
    if isinstance(value, Forced):
        return value.value
    seen = order.called.get(node._module) if order is not None else None
    if seen is not None and seen.output and not same_kind(value, seen.output):
        raise WriteError(
            f"the value given to {node._path}.skip does not fit: {describe(value)}.",
            f"it stands for what the module returns, and that was {seen.output}.",
            f"give a value of that kind, or force it: {node._path}.skip(insitu.force(value)).",
        )
    return value


def missed(run: Checked, node: Node, kind: int) -> TraceError:
    """The pass ran on and did not come to a site; the model's own error comes first."""
    overrun = _give_up(run)
    first_step = run.ended and not (overrun or run.step > 0)
    learned = not run.both and node._module in run.single  # from an earlier pass
    if first_step and learned and not misses.may_be_beyond(run, node, kind):
        return misses.not_this_time(run, node, kind)
    return misses.missed(run, node, kind, overrun)


def _passed(run: Checked, node: Node, kind: int) -> TraceError:
    return misses.missed(run, node, kind, _give_up(run))


def _give_up(run: Checked) -> bool:
    """Wait for nothing any more; whether the model has begun another step meanwhile."""
    if run.ended and not run.cleared:
        run.settle()
    run.want_output = run.want_input = None
    overrun, run.overrun = run.overrun, False
    return overrun


def in_another_thread(run: Checked) -> TraceError:
    """The pass is parked on another thread's stack; what was asked for was not reached."""
    run.want_output = run.want_input = None
    run.here = -1
    del run.trail[-1:]
    return misses.other_thread(run)
