"""Look inside a running neural network and change what happens there.

from insitu import LanguageModel

model = LanguageModel("demo")
with model.trace("The Eiffel Tower is in the city of"):
    model.transformer.h[2].output[:, -1] *= 2
    logits = model.lm_head.output
print(model.tokenizer.decode(logits[0, -1].argmax()))
"""

import importlib
import sys
from typing import Any

from insitu.engine.held import Run
from insitu.engine.save import save
from insitu.engine.trace import Tracer
from insitu.engine.values import force
from insitu.engine.wrapped import WrappedModule
from insitu.errors import (
    DeviceError,
    InputError,
    InputTypeError,
    InsituError,
    InsituWarning,
    ModelNotFoundError,
    NeverRanError,
    NoTraceError,
    OutOfOrderError,
    PassClosedError,
    StepError,
    TraceError,
    UnknownModuleError,
    UsageError,
    WriteError,
)
from insitu.models.base import NNsight
from insitu.models.language import LanguageModel

__version__ = "0.1.0"

__all__ = [
    "DeviceError",
    "InputError",
    "InputTypeError",
    "InsituError",
    "InsituWarning",
    "LanguageModel",
    "ModelNotFoundError",
    "NNsight",
    "NeverRanError",
    "NoTraceError",
    "OutOfOrderError",
    "PassClosedError",
    "Run",
    "StepError",
    "TraceError",
    "Tracer",
    "UnknownModuleError",
    "UsageError",
    "WrappedModule",
    "WriteError",
    "force",
    "save",
]

_EXTENSION = ("load_ipython_extension", "unload_ipython_extension")


def __getattr__(name: str) -> Any:
    if name in _EXTENSION:  # `%load_ext insitu`; importing insitu alone imports no IPython
        return getattr(importlib.import_module("insitu.notebook.extension"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if sys.modules.get("IPython") is not None:  # in a notebook: how to get the rest
    importlib.import_module("insitu.notebook.hint").offer()
