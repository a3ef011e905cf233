"""What a module's `.output` gives and takes: the hottest lines of the engine.

    output                          # the property of WrappedModule
    write(self, value)              # in its __setattr__

Where a pass has armed a module ahead and nobody else has a say in it, a read is what stands here:
it notes where it is made, and changes places with the model. All else is the pass's own to do.
"""

from sys import _getframe
from typing import Any

from torch import Tensor

from insitu.engine import blame, checks, hot, met, misses
from insitu.engine.interleave import Pass
from insitu.engine.modes import swap
from insitu.engine.order import OUTPUT
from insitu.engine.running import active, find
from insitu.engine.stopping import Lease
from insitu.engine.switch import SwitchError

_active = active.get


def read(node: Any) -> Any:
    """What the module returned.

        with model.trace(x):
            h = model.layer1.output          # read
            model.layer1.output[:, 0] = 0    # edit in place
            model.layer1.output = h * 2      # replace

    Raises:
        OutOfOrderError: the model has passed this module.
        NeverRanError: the pass does not call it.
        NoTraceError: no pass is running.
        WriteError: a value of another shape, dtype or device was written without `force`.
    """
    run = _active()
    try:
        if run is None or (near := run.near.get(node)) is None:
            run = _found(node, run)
            module = node._module
            return run.value if run.at_output is module else run.read_output(node, module)
        module, place = near
        if run.at_output is module:
            return run.value
        if place < run.here:
            checks.may_come(run, node, OUTPUT)
        run.here = place
        frame = _getframe(1)
        run.trail.append((node, OUTPUT, frame.f_code, frame.f_lasti))
        run.want_output = module
        run.block_modes = swap(run.model_modes)
        run.to_model()
        if run.at_output is not module:
            raise checks.missed(run, node, OUTPUT)
        return run.value
    except SwitchError as error:
        raise checks.in_another_thread(run) from error
    except AttributeError as error:
        node.__dict__["_raised"] = error
        raise


def write(node: Any, value: Any) -> None:
    """Have a module return another value; called by the `__setattr__` that the block runs."""
    run = _active()
    near = None if run is None else run.near.get(node)
    if near is None or run.at_output is not near[0]:
        run = _found(node, run)
        if run.at_output is not node._module:
            require_to_come(run, node, "output")
            run.read_output(node, node._module, 3)
    old = run.value
    if not (
        type(value) is type(old) is Tensor
        and value.dtype is old.dtype
        and value.shape == old.shape
        and ((value.is_cpu and old.is_cpu) or value.device == old.device)
    ):
        run.value = blame.written(run, value, old, node, "output")
        return
    run.value = value
    frame = _getframe(2)
    written = node, "output", frame.f_code, frame.f_lasti, ""
    (blame.begin(run) if run.writes is None else run.writes).append(written)


hot.bind(
    read, blame.begin, Pass, Lease, Tensor, active, swap,
    checks.missed, checks.in_another_thread, SwitchError, OUTPUT,
)  # fmt: skip
output = property(hot.in_c(read), doc=read.__doc__)


def require_to_come(run: Any, node: Any, site: str) -> None:
    """Raise if a site is that of a call which the block has made itself, and is over."""
    if run.told is not None and met.told(run, node._module) is not None:
        raise misses.own_call_is_over(node, site)


def _found(node: Any, run: Any) -> Any:
    return find(node) if run is None or run.root is not node._root or run.closed else run
