"""An error of the device process, raised again in the job.

raise error_of("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (7x5 and 4x3)")
"""

import builtins
import contextlib
from typing import Any

import torch

_NOT_RAISED = (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration)
_OF_MEMORY = ("torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError")


def error_of(kind: str, text: str) -> BaseException:
    """An error of a class that Python has, or a RuntimeError that names it."""
    if kind in _OF_MEMORY:
        return torch.OutOfMemoryError(text)
    found: Any = getattr(builtins, kind, None)
    known = isinstance(found, type) and issubclass(found, Exception)
    if known and not issubclass(found, _NOT_RAISED):
        with contextlib.suppress(TypeError):  # a class that wants more than a text
            error: Exception = found(text)
            return error
    return RuntimeError(f"{kind}: {text}")
