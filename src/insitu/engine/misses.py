"""Why a block did not get what it asked for, as an error in three lines.

The pass knows what the block asked for (its trail) and in which order the model calls its modules
(its order); a miss is explained from the two.
"""

from types import CodeType
from typing import Any, Protocol, cast

from torch import nn

from insitu.engine.arming import Node
from insitu.engine.attached import is_attached
from insitu.engine.order import INPUT, OUTPUT, Observation, Order
from insitu.errors import (
    NeverRanError,
    NoTraceError,
    OutOfOrderError,
    PassClosedError,
    StepError,
    TraceError,
)

Read = tuple[Node, int, CodeType, int]
"""One request of a block: module, side, and the instruction that made it."""

_LISTED_MAX = 6


class Explained(Protocol):
    """What an explanation needs to know of a pass."""

    @property
    def root(self) -> Any:
        """The wrapper whose pass it is."""

    @property
    def order(self) -> Order | None:
        """The learned order, once it is known."""

    @property
    def observation(self) -> Observation | None:
        """What the first pass of a kind has seen so far."""

    @property
    def trail(self) -> list[Read]:
        """What the block has asked for."""

    @property
    def step(self) -> int:
        """The model's step."""


def line(read: Read) -> int:
    """The line of a request in its file or cell."""
    _, _, code, instruction = read
    for start, end, number in code.co_lines():
        if start <= instruction < end and number is not None:
            return number
    return code.co_firstlineno


def site(node: Node, kind: int) -> str:
    """A site's name as a user writes it: `transformer.h.0.output`."""
    return f"{node._path}.{'output' if kind == OUTPUT else 'input'}"


def missed(run: Explained, node: Node, kind: int, overrun: bool) -> TraceError:
    """The pass went by, or ended, without coming to a site that was waited for."""
    if not isinstance(node._module, nn.Module):
        return cast(
            TraceError, node._module._missed(run, kind, overrun)
        )  # an operation's own words
    order = run.order or (run.observation.order if run.observation else None)
    calls = order.calls(node._module) if order is not None else None
    if is_attached(node) and node._module not in run.root._beside:
        return _not_called(node, kind)
    if calls == 0 and not _asked_before(run, node):
        return _never_ran(run, node, kind, order)
    return _out_of_order(run, node, kind, order, overrun)


def _not_called(node: Node, kind: int) -> NeverRanError:
    return NeverRanError(
        f"{site(node, kind)} was asked for, but no call of {node._path} follows.",
        "an attached module runs when a block or an edit calls it with hook=True, and none did "
        "after this line.",
        f"call it so, {node._path}(value, hook=True), in an edit; or ask in the block that calls.",
    )


def _out_of_order(
    run: Explained, node: Node, kind: int, order: Order | None, overrun: bool
) -> OutOfOrderError:
    name = site(node, kind)
    by = ran_past(run, node, kind, order)
    if by is not None:
        asked = f"this one had read {site(by[0], by[1])} (line {line(by)}), which runs later"
        above = f"read {name} above line {line(by)}"
    else:
        asked = "this one asked for it when the model was already beyond it"
        above = f"read {name} before anything that runs later"
    if order is None:
        asked += " as far as is known: no pass has run to its end yet, and it may not run at all"
    when = f" in step {run.step - overrun}" if run.step > 0 or overrun else ""
    again = "read it in the next step of tracer.iter" if overrun else "open a second trace"
    return OutOfOrderError(
        f"{name} was asked for, but the model has already passed it{when}.",
        f"a block meets modules in the order they run; {asked}.",
        f"{above}, or {again}.",
    )


def _never_ran(run: Explained, node: Node, kind: int, order: Order | None) -> NeverRanError:
    ran = run.root._paths_of(order.called if order else ())
    inside = [path for path in ran if path.startswith(_parent_path(node))]
    shown = (inside or ran)[:_LISTED_MAX]
    more = f" and {len(ran) - len(shown)} more" if len(ran) > len(shown) else ""
    return NeverRanError(
        f"{site(node, kind)} was asked for, but {node._path} did not run in this pass.",
        f"the model did not call {type(node._module).__name__} {node._path}; "
        f"it called {', '.join(shown) or 'no module'}{more}.",
        "read one of those; if it does run, its caller uses .forward() directly or another thread.",
    )


def not_this_time(run: Explained, node: Node, kind: int) -> TraceError:
    """A pass went to its end without a module that an earlier one had called there."""
    why = (
        f"an earlier pass did call {type(node._module).__name__} {node._path} there; which modules "
        "this model calls, or in which order, depends on its input or its state."
    )
    before = run.trail[:-1]
    if not before:
        return NeverRanError(
            f"{site(node, kind)} was asked for, but {node._path} did not run in this pass.",
            why,
            "leave this read out where the model does not call it.",
        )
    last = line(before[-1])
    return OutOfOrderError(
        f"{site(node, kind)} was asked for, but {node._path} did not run after line {last}.",
        why,
        f"read it above line {last}, or leave it out where the model does not call it.",
    )


def may_be_beyond(run: Explained, node: Node, kind: int) -> bool:
    """Whether something the block has asked for may run later than a site, or the site again."""
    place = _position(run.order, node._module, kind)
    for read in run.trail[:-1]:
        there = _position(run.order, read[0]._module, read[1])
        if place is None or there is None or there >= place:
            return True
    return False


def _parent_path(node: Node) -> str:
    return node._path.rpartition(".")[0]


def _asked_before(run: Explained, node: Node) -> bool:
    return any(read[0]._module is node._module for read in run.trail[:-1])


def ran_past(run: Explained, node: Node, kind: int, order: Order | None) -> Read | None:
    """The first request of the block that took the model beyond a site."""
    asked = [r for r in run.trail if not (r[0]._module is node._module and r[1] == kind)]
    place = _position(order, node._module, kind)
    for read in asked:
        there = _position(order, read[0]._module, read[1])
        if place is not None and there is not None and there > place:
            return read
    return asked[-1] if asked else None


def _position(order: Order | None, module: nn.Module, kind: int) -> int | None:
    seen = order.called.get(module) if order is not None else None
    if seen is None:
        return None
    events = seen.starts if kind == INPUT else seen.ends
    return events[0] if events else None


def skipped_too_late(node: Node) -> OutOfOrderError:
    """A module was to be skipped after it had begun."""
    return OutOfOrderError(
        f"{node._path}.skip was asked for, but the model has already passed {node._path}.",
        "skip() replaces the module's next call, and none follows.",
        f"call {node._path}.skip(...) before reading anything that runs later.",
    )


def skip_never_used(read: Read) -> TraceError:
    """A skip was left behind: the module was not called again."""
    node = read[0]
    return NeverRanError(
        f"{node._path}.skip on line {line(read)} was never used.",
        f"the model did not call {node._path} between that line and the end of the pass.",
        "skip a module before the model reaches it, or remove the line.",
    )


def too_late_to_write_input(node: Node) -> OutOfOrderError:
    """The input is still readable at a module's output, but no longer of any effect."""
    return OutOfOrderError(
        f"{node._path}.input cannot be written any more: {node._path} has already run.",
        "the pass stands at the module's output, where its input can only be read.",
        f"write {node._path}.input above the line that reads {node._path}.output.",
    )


def own_call_is_over(node: Node, site: str) -> OutOfOrderError:
    """A block wrote to a module that it has called itself, with `hook=True`."""
    return OutOfOrderError(
        f"{node._path}.{site} cannot be written any more: this block has called it itself.",
        "the call is over, and gave back what it computed; its sites can be read.",
        "change what the call returned; to change something inside, make the call in an edit.",
    )


def step_has_passed(run: Explained, step: int) -> StepError:
    """A loop asked for a step before the one the run is in."""
    return StepError(
        f"step {step} was asked for, but the run is already in step {run.step}.",
        "steps come in the order of generation, each once.",
        "ask for the steps in rising order, or start another generate().",
    )


def no_such_step(run: Explained, step: int) -> StepError:
    """`tracer.next()` found the run at its end."""
    return StepError(
        f"there is no step {step}: the run ended after {max(run.step, 0) + 1} steps.",
        "generation stopped there (max_new_tokens, or an end-of-sequence token).",
        "ask for fewer steps, or loop with `for step in tracer.iter[:]`, which ends by itself.",
    )


def pass_is_over(run: Explained) -> PassClosedError:
    """Something was asked of a pass that has ended."""
    return PassClosedError(
        f"the pass of {run.root._path_of(run.root._module)} is over.",
        "it ran to its end, was closed, or failed.",
        "start another one with model.trace(...) or model.open(...).",
    )


def other_thread(run: Explained) -> PassClosedError:
    """A parked pass can only be continued by the thread that started it."""
    return PassClosedError(
        "this pass belongs to another thread.",
        "a forward pass is parked on the stack of the thread that started it.",
        "use it in that thread, or open another pass in this one.",
    )


def asked_by_the_model(run: Explained) -> NoTraceError:
    """A hook or a forward asked for a value of the pass it is itself part of."""
    return NoTraceError(
        f"a value of {type(run.root._module).__name__} was asked for by code that it runs itself.",
        "a hook or a forward cannot wait for the model: the model waits for it.",
        "ask in the block of the trace; inside the model, use the tensors at hand.",
    )


def no_trace(node: Any) -> NoTraceError:
    """A site was asked for while nothing runs."""
    return NoTraceError(
        f"{node._path} was asked for a value outside a trace.",
        "values exist only while the model runs, and no pass of this model is running here.",
        "ask inside `with model.trace(prompt):`, or open a pass: run = model.open(prompt).",
    )
