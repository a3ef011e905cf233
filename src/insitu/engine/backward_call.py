"""`with loss.backward():` inside a trace: the method gives back a block's backward there.

    mount(sys._getframe(1), run)  # at the beginning of a trace, if its code can use it
    with loss.backward():         # in the trace: gradients can be read and written
        ...
    loss.backward()               # torch's own
    unmount(run)

`torch.Tensor.backward` is replaced while at least one trace that can use it is open, and is the
original object again after the last: the call looks at the instruction that follows it, and where
that is not a `with`, torch's own function runs.
"""

import functools
import sys
import threading
import weakref
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack

from insitu.engine.block_names import valued
from insitu.engine.capture.usage import returns_to
from insitu.engine.gradients import Backward

_NAME = "backward"
_NOTE = (
    "Insitu: `with loss.backward():` works where the trace's own code, or a function it names, "
    "says it; deeper down write `with insitu.backward(loss):`."
)

_lock = threading.RLock()  # a collection while it is held may end a trace that was dropped
_mounts: dict[Any, int] = {}
"""The traces that can use it, and how many function modes were on when each began."""
_original: Any = None
_replacement: Any = None


@dataclass(frozen=True, slots=True)
class Use:
    """What a piece of code has to do with `backward`; kept by the code's id while it lives."""

    reference: weakref.ref[CodeType]
    says: bool
    functions: tuple[str, ...]
    """Its names that were global functions when it was first looked at."""
    local_functions: tuple[str, ...]


_uses: dict[int, Use] = {}


def backward(
    tensors: Any,
    gradient: Any = None,
    *,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> Any:
    """Run a backward with the block of the `with` inside it.

        with insitu.backward(loss):
            g = hidden.grad                 # of any tensor the loss was computed from
            hidden.grad = g * 2
        with insitu.backward([first, second], grad_tensors=[one, other]):
            ...

    Inside the block `t.grad` is the gradient on its way through t: read and written in the order
    the backward comes to them; those that the block names can be read later too. After the block
    `.grad` is torch's own again. Without `with` it is `torch.autograd.backward`.

    Args:
        tensors: the loss, or several.
        gradient, grad_tensors: the gradient to begin with, where a loss is no scalar.
        retain_graph: keep the graph for another backward.
        create_graph: build a graph of the gradients, for derivatives of higher order.
        inputs: accumulate into `.grad` of these alone.

    Raises:
        GradientError: no gradient comes to the tensor asked for, or it has passed.
    """
    given = gradient if grad_tensors is None else grad_tensors
    run = Backward(tensors, given, retain_graph, create_graph, inputs)
    if returns_to(sys._getframe(1)) not in ("discarded", "shown"):
        return run
    run.call()
    return None


def mount(frame: FrameType, run: Any) -> bool:
    """Let `with loss.backward():` work, if a frame's code can use it; then `unmount` is due."""
    if not can_use(frame):
        return False
    global _original, _replacement
    with _lock:
        _mounts[run] = torch._C._len_torch_function_stack()
        if _replacement is None:
            _original = torch.Tensor.backward
            _replacement = _around(_original)
            torch.Tensor.backward = _replacement  # type: ignore[method-assign]
    return True


def can_go_back() -> bool:
    """Whether a trace is open whose code says `backward`."""
    return bool(_mounts)


def unmount(run: Any, failed: bool = False) -> None:
    """Put torch's own method back, if this is the last to go. Safe to call twice.

    Of a failed trace, end also the backwards whose own end an interrupt has kept from running.
    """
    global _original, _replacement
    if failed and run in _mounts:
        for mode in reversed(_get_current_function_mode_stack()[_mounts[run] :]):  # type: ignore[no-untyped-call]
            if isinstance(mode, Backward):
                mode.close()
    with _lock:
        _mounts.pop(run, None)
        if not _mounts:
            if torch.Tensor.backward is _replacement:  # else someone has put theirs around it
                torch.Tensor.backward = _original  # type: ignore[method-assign]
            _original = _replacement = None


def can_use(frame: FrameType) -> bool:
    """Whether a frame's code, or a Python function that it names, says `backward`."""
    use = _uses.get(id(frame.f_code)) or _look_at(frame)
    if use.says or not (use.functions or use.local_functions):
        return use.says
    elsewhere = frame.f_globals
    values = [elsewhere.get(name) for name in use.functions]
    if use.local_functions:
        values += [value for _, value in valued(frame, use.local_functions)]
    return any(_says(code) for value in values for code in _code(value))


def note_unmounted(error: BaseException | None) -> None:
    """Tell an error about None in a `with` what to write, if it comes from `loss.backward()`."""
    if not isinstance(error, TypeError) or "context manager protocol" not in str(error):
        return
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is not None and _NAME in traceback.tb_frame.f_code.co_names:
        error.add_note(_NOTE)


# Code ---------------------------------------------------------------------------------------------


def _look_at(frame: FrameType) -> Use:
    code, key = frame.f_code, id(frame.f_code)
    forget = _uses.pop
    elsewhere = frame.f_globals
    local = (*code.co_varnames, *code.co_freevars, *code.co_cellvars)
    _uses[key] = use = Use(
        reference=weakref.ref(code, lambda _: forget(key, None)),
        says=_says(code),
        functions=tuple(name for name in code.co_names if _code(elsewhere.get(name))),
        local_functions=tuple(name for name, value in valued(frame, local) if _code(value)),
    )
    return use


def _code(value: Any) -> list[CodeType]:
    function = value.__func__ if type(value) is MethodType else value
    return [function.__code__] if type(function) is FunctionType else []


def _says(code: CodeType) -> bool:
    return _NAME in code.co_names or any(
        _says(inner) for inner in code.co_consts if type(inner) is CodeType
    )


# The method ---------------------------------------------------------------------------------------


def _around(original: Any) -> Any:
    @functools.wraps(original)
    def backward(
        self: Any,
        gradient: Any = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> Any:
        if returns_to(sys._getframe(1)) == "with":
            return Backward(self, gradient, retain_graph, create_graph, inputs)
        return original(self, gradient, retain_graph, create_graph, inputs)

    return backward
