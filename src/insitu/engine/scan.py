"""Shapes without running: a trace on fake tensors, which have all of a tensor but its values.

with model.scan("The Eiffel Tower is in"):
    width = model.transformer.h[0].output.shape[-1]

Works on a model whose weights are on `meta`, costs no memory, and changes nothing.
"""

import copy
import sys
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)
from torch.utils._python_dispatch import _disable_current_modes

from insitu.engine.batch import Call, Rows
from insitu.engine.edits import SCAN
from insitu.engine.fakes import fake_tensors
from insitu.engine.trace import Tracer
from insitu.errors import ScanError

_NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


class Scan:
    """`with model.scan(x) as tracer:`; inside it every tensor is a fake one."""

    def __init__(self, tracer: Tracer, beside: Iterable[nn.Module] = ()) -> None:
        call = tracer.give_call()
        self._call = RealInputs(call) if call.pending else copy.copy(call)
        self._tracer = tracer.again(SCAN, self._call)
        self._fakes = fake_tensors(*tracer.modules, *beside)

    def __enter__(self) -> Tracer:
        return self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> Tracer:
        """Begin, for the block of the `with` that a frame is just entering."""
        fake = self._fakes.__enter__()
        if self._call.pending:
            self._call.fake = fake
        else:
            give_fakes(self._call, fake)
        try:
            return self._tracer.enter(frame)
        except BaseException:
            self._fakes.__exit__(None, None, None)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Any:
        try:
            swallowed = self._tracer.__exit__(kind, error, traceback)
            if isinstance(error, _NEEDS_VALUES):
                raise _needs_values(error) from error
            return swallowed
        except _NEEDS_VALUES as cause:
            raise _needs_values(cause) from cause
        finally:
            self._fakes.__exit__(None, None, None)


class RealInputs:
    """The call of a trace whose invokes bring its inputs: those are joined as they are."""

    pending = True

    fake: Callable[[Any], Any]
    """Makes fakes of the tensors in a value; known once the scan is entered."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def join(self, calls: list[Call]) -> tuple[Any, tuple[Rows, ...]]:
        """One call made of several; to pad and to place them takes their values."""
        with _disable_current_modes():
            joined, rows = self._call.join(calls)
        give_fakes(joined, self.fake)
        return joined, rows

    def alone(self) -> Any:
        """The call without any input."""
        return self._call.alone()


def give_fakes(call: Any, fake: Callable[[Any], Any]) -> None:
    """Let a call be made with fakes of its tensors."""
    for name in ("args", "kwargs"):
        if value := getattr(call, name, None):
            setattr(call, name, fake(value))


def _needs_values(cause: BaseException) -> ScanError:
    return ScanError(
        f"the scan came to an operation that needs real values: {cause}.",
        "fake tensors have shapes, dtypes and devices only, and what follows depends on more.",
        "use model.trace(...) instead.",
    )
