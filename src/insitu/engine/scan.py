"""Shapes without running: a trace on fake tensors, which have all of a tensor but its values.

with model.scan("The Eiffel Tower is in"):
    width = model.transformer.h[0].output.shape[-1]

Works on a model whose weights are on `meta`, costs no memory, and changes nothing.
"""

from types import TracebackType
from typing import Any

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from insitu.engine.fakes import fake_tensors
from insitu.engine.trace import Tracer
from insitu.errors import ScanError

_NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException)


class Scan:
    """`with model.scan(x) as tracer:`; inside it every tensor is a fake one."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._fakes = fake_tensors(tracer.module)

    def __enter__(self) -> Tracer:
        self._fakes.__enter__()
        return self._tracer.__enter__()

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


def _needs_values(cause: BaseException) -> ScanError:
    return ScanError(
        f"the scan came to an operation that needs real values: {cause}.",
        "fake tensors have shapes, dtypes and devices only, and what follows depends on more.",
        "use model.trace(...) instead.",
    )
