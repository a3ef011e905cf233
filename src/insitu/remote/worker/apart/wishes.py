"""What the passes of a job listen to: which calls the device process is to tell of.

    calls, outputs, arguments = wishes(table, hooks=False)      # numbers of modules

A module that is armed tells nothing by itself: only where someone would do something there. A pass
that waits for one output hears of that one alone, so that a read is one exchange.
"""

from typing import Any

from insitu.engine.arming import AtBothSides, AtOutput
from insitu.engine.stopping import Stopping
from insitu.engine.switch import getcurrent

Row = tuple[int, Any, dict[str, Any], Any]
"""A module's number, itself, its `__dict__`, and its `forward` when nobody listens."""


Wishes = tuple[list[int], list[int], list[int]]
"""Of whose calls, of whose outputs and of whose arguments the values are to be told."""

NOBODY: Wishes = ([], [], [])


def wishes(table: list[Row], hooks: bool) -> Wishes:
    """What is to be told of, by the numbers of modules.

    Args:
        table: every module.
        hooks: whether torch's own hooks are to be looked at too.
    """
    found: Wishes = ([], [], [])
    for number, module, namespace, own in table:
        forward = namespace["forward"]
        if forward is not own:
            _add(number, module, forward, found)
        if hooks and (namespace["_forward_hooks"] or namespace["_forward_pre_hooks"]):
            for kind in found:
                kind.append(number)
    return found


def is_begun_by_a_trace(module: Any) -> bool:
    """Whether a call is one that a trace makes of its model: it asks for the result by itself."""
    forward = module.__dict__["forward"]
    while isinstance(forward, Stopping):
        run = forward.run
        if not run.cleared and run.root._module is module and run.kind == "trace":
            return bool(run.worker is getcurrent())
        forward = forward[2]
    return False


def _add(number: int, module: Any, forward: Any, found: Wishes) -> None:
    calls, outputs, arguments = found
    while isinstance(forward, Stopping):
        kind, run = type(forward), forward.run
        if kind is AtOutput:
            if run.want_output is module:
                outputs.append(number)
        elif kind is AtBothSides:
            if not run.closed:
                if _at_entry(run, module):
                    calls.append(number)
                if _at_exit(run, module):
                    outputs.append(number)
                if _with_arguments(run, module):
                    calls.append(number)
                    arguments.append(number)
        else:  # its forward has been written anew, and runs in the job
            calls.append(number)
        forward = forward[2]


def _at_entry(run: Any, module: Any) -> bool:
    """Whether `run.enter` would do something, or the call may be skipped."""
    return (
        run.observation is not None
        or (run.stepping and module is run.stepped)
        or module in run.skips
        or (run.lanes is not None and module in run.lanes.skips)
        or (run.hooked is not None and module in run.hooked)
    )


def _with_arguments(run: Any, module: Any) -> bool:
    """Whether someone looks at what the module is called with."""
    return (
        run.want_input is module
        or run.halts is not None
        or (run.taps_before is not None and module in run.taps_before)
        or (run.taps is not None and module in run.taps)
        or (run.lanes is not None and module in run.lanes.inputs)
    )


def _at_exit(run: Any, module: Any) -> bool:
    """Whether `run.leave` would do something with the output."""
    return (
        run.want_output is module
        or run.want_any
        or (run.taps is not None and module in run.taps)
        or (run.lanes is not None and (module in run.lanes.outputs or module in run.lanes.skips))
    )
