"""The inputs of a trace's invokes become the one call of a module.

model = NNsight(lstm, batch_dim=1)         # [time, batch, feature]
with model.trace() as tracer:
    with tracer.invoke(first):             # [time, 1, feature]
        ...
    with tracer.invoke(second):
        ...

def padded(calls):
    texts = [args[0] for args, kwargs in calls]
    return (pad_sequence(texts, batch_first=True),), {"lengths": lengths(texts)}

model = NNsight(net, batch=padded)
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from insitu.engine.batch import Call, Rows, join, plan, rows_of
from insitu.engine.batch_dims import Apart
from insitu.engine.interleave import Pass
from insitu.engine.row_dims import FIRST, RowDims
from insitu.engine.values import describe
from insitu.errors import DeviceError, InputError, InputTypeError

Batch = Callable[[list[Call]], tuple[Any, ...]]
"""A user's function that makes one call of several."""


@dataclass(frozen=True)
class Joining:
    """How several calls of a module become one."""

    dims: RowDims
    batch: Batch | None

    @classmethod
    def of(
        cls, module: nn.Module, batch_dim: int | Mapping[str, int], batch: Batch | None
    ) -> "Joining":
        """What `NNsight` was told.

        Raises:
            InputTypeError: no dimension, or no function.
        """
        if batch is not None and not callable(batch):
            raise InputTypeError(
                f"NNsight() was given batch={batch!r}, which is no function.",
                "it is called with what the invokes were given, and makes one call of it.",
                "pass a function, or say in which dimension the rows are: batch_dim=1.",
            )
        dims = batch_dim if isinstance(batch_dim, Mapping) else {"": batch_dim}
        if not all(type(dim) is int and dim >= 0 for dim in dims.values()):
            raise _no_dimension(batch_dim, "dimensions are counted from 0")
        if not isinstance(batch_dim, Mapping):
            return cls(RowDims(batch_dim) if batch_dim else FIRST, batch)
        names, takes_any = _arguments(module)
        if unknown := [name for name in dims if name not in names and not takes_any]:
            kind = type(module).__name__
            raise _no_dimension(
                batch_dim, f"the forward of {kind} takes {', '.join(names)}, and no {unknown[0]}"
            )
        return cls(RowDims(0, dict(batch_dim), names), batch)

    def __call__(self, calls: list[Call]) -> tuple[Call, tuple[Rows, ...]]:
        """One call made of several, and whose rows are where.

        Raises:
            InputError: they cannot be joined, or the user's function did not say how they were.
        """
        if self.batch is None:
            joined = join(calls, self.dims)
            return (joined.args, joined.kwargs), joined.rows
        made = self.batch(calls)
        args, kwargs, *more = made if _is_call(made) else (None, None)
        if not isinstance(args, tuple) or not isinstance(kwargs, Mapping):
            raise InputError(
                f"batch() has given {describe(made)}.",
                "it makes one call of those of the invokes: its arguments and keyword arguments.",
                "return (args, kwargs), where args is a tuple and kwargs a dict: return (x,), {}.",
            )
        call = args, dict(kwargs)
        return call, plan(self._sizes(call, len(calls), *more))

    def _sizes(self, call: Call, invokes: int, given: Sequence[int] | None = None) -> Sequence[int]:
        """How many rows each invoke has: one each, unless the user's function says otherwise."""
        rows, sizes = rows_of(call, self.dims), [1] * invokes if given is None else list(given)
        if len(sizes) != invokes or sum(sizes) != rows:
            said = f", and says {sizes}" if given is not None else ""
            raise InputError(
                f"batch() has made {rows} rows of {invokes} invokes{said}.",
                "each invoke sees its own rows: one, unless the function says how many each has.",
                "return (args, kwargs, sizes), the rows of each invoke in order; where rows are in "
                "another dimension than the first, say so: batch_dim=1.",
            )
        return sizes


class ToBeJoined:
    """A call of a module whose inputs the trace's invokes bring; settings are given already."""

    pending = True

    def __init__(self, module: nn.Module, settings: dict[str, Any], joining: Joining) -> None:
        self.module = module
        self.settings = settings
        self.joining = joining

    def join(self, calls: list[Call]) -> tuple["Forward", tuple[Rows, ...]]:
        """One call made of several, and whose rows are where."""
        all_ = [(args, {**self.settings, **kwargs}) for args, kwargs in calls]
        (args, kwargs), rows = self.joining(all_)
        return Forward(self.module, args, kwargs, self.joining.dims), rows

    def alone(self) -> "Forward":
        """The call without any input.

        Raises:
            InputError: the module needs one.
        """
        for parameter in _parameters(self.module):
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is parameter.empty and parameter.name not in self.settings:
                raise no_input("trace", f"{type(self.module).__name__} needs {parameter.name}")
        return Forward(self.module, (), self.settings)


class Forward:
    """A call of a module that is still to be made."""

    pending = False
    apart: Apart | None = None
    """What of it has other rows than the prompts'."""

    def __init__(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        dims: RowDims = FIRST,
    ) -> None:
        self.module = module
        self.args = args
        self.kwargs = kwargs
        self.dims = dims

    def make(self, run: Pass) -> Any:
        """Make the call, inside its pass."""
        try:
            return self.module(*self.args, **self.kwargs)
        except RuntimeError as error:
            if (told := self._on_another_device()) is not None:
                raise told from error
            raise

    def _on_another_device(self) -> DeviceError | None:
        theirs = {p.device for p in self.module.parameters()}
        given = {
            v.device for v in (*self.args, *self.kwargs.values()) if isinstance(v, torch.Tensor)
        }
        if not theirs or not given - theirs:
            return None
        there, here = sorted(map(str, theirs)), sorted(map(str, given - theirs))
        return DeviceError(
            f"the input is on {here[0]}, the model on {there[0]}.",
            f"a forward pass needs both in one place; the parameters are on {', '.join(there)}.",
            f"pass input.to({there[0]!r}), or move the model with .to({here[0]!r}).",
        )


def no_input(method: str, why: str) -> InputError:
    """The error for a trace without anything to run on."""
    return InputError(
        f"{method}() was given no input.",
        f"{why}, and a block can only look inside a pass that runs on something.",
        f"pass the input: with model.{method}(input) as tracer: …",
    )


def _is_call(made: Any) -> bool:
    return isinstance(made, tuple) and len(made) in (2, 3)


def _arguments(module: nn.Module) -> tuple[tuple[str, ...], bool]:
    """The names of what a module's forward takes, and whether it takes others too."""
    parameters = _parameters(module)
    names = [it.name for it in parameters if it.kind not in (it.VAR_POSITIONAL, it.VAR_KEYWORD)]
    return tuple(names), any(it.kind is it.VAR_KEYWORD for it in parameters)


def _parameters(module: nn.Module) -> list[inspect.Parameter]:
    """What a module's forward takes, but for the module itself."""
    forward = getattr(type(module), "forward", nn.Module.forward)  # TorchScript's has none
    return list(inspect.signature(forward).parameters.values())[1:]


def _no_dimension(given: Any, why: str) -> InputTypeError:
    return InputTypeError(
        f"NNsight() was given batch_dim={given!r}.",
        f"it says in which dimension of the inputs the rows are, and {why}.",
        'write batch_dim=1, or of single arguments by their names: batch_dim={"hx": 1}.',
    )
