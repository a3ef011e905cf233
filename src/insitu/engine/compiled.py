"""Modules that `torch.compile` was given: a pass that stops in one runs it as it was written.

    run_as_written(run, module)     # whichever of the three ways it was compiled in

`torch.compile(module)` and `module.forward = torch.compile(module.forward)` leave a compiled
function in the instance's `forward`, and `module.compile()` one beside it. What they run are
kernels, in which no module is called that could be stopped at. Of a pass only the modules it stops
at, and those around them, run as written; in another thread, and after the pass, all are as they
were. Numbers may differ between the two in the last digits, as torch.compile's do.

A compiled function that calls a module from within (`@torch.compile` on a method) is not to be seen
from outside. torch divides what it compiles at the module a pass stops at: `out_of_graphs`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch._C._dynamo import eval_frame

from insitu.engine.stopping import Stopping, underneath
from insitu.engine.switch import getcurrent

COMPILED = "_torchdynamo_orig_callable"
"""Where `torch.compile` keeps the function it was given."""
COMPILED_CALL = "_compiled_call_impl"
"""Where `module.compile()` keeps the compiled call, in an instance's `__dict__`."""


_WHY_NOT = (
    "a trace of Insitu stops at a module in it. With fullgraph=True that cannot be: compile the "
    "module itself, module.compile(fullgraph=True), which a trace runs as it was written"
)

Function = TypeVar("Function", bound=Callable[..., Any])


def out_of_graphs(function: Function) -> Function:
    """Have torch.compile call a function of ours, and all that it calls, as it is.

    What torch.compiler.disable says with a wrapper (1.5 µs a call), said without one.
    """
    said: Any = function
    said._torchdynamo_disable = said._torchdynamo_disable_recursive = True
    said._torchdynamo_disable_msg = _WHY_NOT
    if hasattr(eval_frame, "set_code_exec_strategy"):  # since torch 2.7
        skip = eval_frame._FrameAction.SKIP
        eval_frame.set_code_exec_strategy(said.__code__, eval_frame._FrameExecStrategy(skip, skip))
    return function


def run_as_written(arming: Any, module: nn.Module) -> None:
    """Let a pass run a module as it was before `torch.compile`."""
    namespace = module.__dict__
    if namespace.get(COMPILED_CALL) is not None:
        arming.place(Slot(namespace, COMPILED_CALL), lambda: None)
    forward = namespace.get("forward")
    if forward is not None and _runs_compiled(arming, forward):
        arming.place(namespace, partial(_as_written, arming, module))


def _runs_compiled(arming: Any, forward: Any) -> bool:
    while isinstance(forward, Stopping):
        if type(forward) is AsWritten and forward[0] is arming:
            return False
        forward = forward[2]
    return hasattr(forward, COMPILED)


def _as_written(arming: Any, module: nn.Module, forward: Any = None) -> Any:
    """The wrappers of all passes, with one at their end that leaves the compiled function out."""
    forward = module.forward if forward is None else forward
    if isinstance(forward, Stopping):
        return type(forward)((forward[0], forward[1], _as_written(arming, module, forward[2])))
    return AsWritten((arming, module, forward))


class AsWritten(Stopping):
    """Runs what `torch.compile` was given, in the pass that stops there."""

    __slots__ = ()

    @out_of_graphs
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward uncompiled in this pass, compiled elsewhere."""
        run, _, forward = self
        if getcurrent() is run.worker:
            forward = getattr(forward, COMPILED, forward)
        return forward(*args, **kwargs)


class Slot(dict[str, Any]):
    """An attribute of an instance other than `forward`, where a pass keeps what it puts in."""

    def __init__(self, namespace: dict[str, Any], name: str) -> None:
        super().__init__()
        self._namespace = namespace
        self._name = name
        self._own = underneath(namespace[name])

    def get(self, key: str, default: Any = None) -> Any:
        """What is there now."""
        return self._namespace.get(self._name, default)

    def __setitem__(self, key: str, value: Any) -> None:
        self._namespace[self._name] = value

    def __delitem__(self, key: str) -> None:
        self._namespace[self._name] = self._own
