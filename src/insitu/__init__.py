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
from typing import TYPE_CHECKING, Any, TypeVar

from insitu.engine import opening
from insitu.errors import (
    AdapterError,
    CacheBudgetError,
    CacheFileError,
    CaptureError,
    DeviceError,
    EditsFileError,
    FunctionWhitelistError,
    GradientError,
    InputError,
    InputTypeError,
    InsituError,
    InsituWarning,
    JobLostError,
    JobTimeoutError,
    MetricError,
    MissingActivation,
    MissingPackageError,
    ModelMemoryError,
    ModelNotFoundError,
    NeverRanError,
    NoTraceError,
    NotSendableError,
    OutOfOrderError,
    PassClosedError,
    QueueFullError,
    RemoteError,
    ScanError,
    ServerError,
    ServerRefusedError,
    ServerUnreachableError,
    SourceError,
    StepError,
    TraceError,
    UnknownModuleError,
    UnknownOperationError,
    UnknownSettingError,
    UsageError,
    WireError,
    WriteError,
)
from insitu.models import elsewhere
from insitu.settings import CONFIG

if TYPE_CHECKING:  # at run time they are imported when they are first named: see _LATER
    from insitu.engine.backward_call import backward
    from insitu.engine.cache.activations import ActivationCache, load_cache
    from insitu.engine.held import Run
    from insitu.engine.local import local
    from insitu.engine.trace import Tracer
    from insitu.engine.values import force
    from insitu.engine.views import View
    from insitu.engine.wrapped import WrappedModule
    from insitu.models.base import NNsight
    from insitu.models.language import LanguageModel

__version__ = "0.1.0"

__all__ = [  # noqa: RUF022 - in plain alphabetical order
    "ActivationCache",
    "AdapterError",
    "CONFIG",
    "CacheBudgetError",
    "CacheFileError",
    "CaptureError",
    "DeviceError",
    "EditsFileError",
    "FunctionWhitelistError",
    "GradientError",
    "InputError",
    "InputTypeError",
    "InsituError",
    "InsituWarning",
    "JobLostError",
    "JobTimeoutError",
    "LanguageModel",
    "MetricError",
    "MissingActivation",
    "MissingPackageError",
    "ModelMemoryError",
    "ModelNotFoundError",
    "NNsight",
    "NeverRanError",
    "NoTraceError",
    "NotSendableError",
    "OutOfOrderError",
    "PassClosedError",
    "QueueFullError",
    "RemoteError",
    "Run",
    "ScanError",
    "ServerError",
    "ServerRefusedError",
    "ServerUnreachableError",
    "SourceError",
    "StepError",
    "TraceError",
    "Tracer",
    "UnknownModuleError",
    "UnknownOperationError",
    "UnknownSettingError",
    "UsageError",
    "View",
    "WireError",
    "WrappedModule",
    "WriteError",
    "backward",
    "force",
    "load_cache",
    "local",
    "save",
]

_LATER = {  # imported when first named: all that needs torch, which a server's door does without
    "ActivationCache": "insitu.engine.cache.activations",
    "DiffusionModel": "insitu.models.diffusion",
    "LanguageModel": "insitu.models.language",
    "NNsight": "insitu.models.base",
    "Run": "insitu.engine.held",
    "Tracer": "insitu.engine.trace",
    "View": "insitu.engine.views",
    "VisionLanguageModel": "insitu.models.vision_language",
    "WrappedModule": "insitu.engine.wrapped",
    "backward": "insitu.engine.backward_call",
    "compare": "insitu.remote.client.info",
    "force": "insitu.engine.values",
    "is_model_running": "insitu.remote.client.info",
    "job": "insitu.remote.client.info",
    "jobs": "insitu.remote.client.info",
    "load_cache": "insitu.engine.cache.activations",
    "local": "insitu.engine.local",
    "register": "insitu.remote.wire.origins",
    "save": "insitu.engine.save",
    "selection": "insitu.widgets.selection",
    "show": "insitu.widgets.opening",
    "status": "insitu.remote.client.info",
    "whoami": "insitu.remote.client.info",
}
_T = TypeVar("_T")
_PARTS = ("methods", "ndif", "widgets")
_EXTENSION = ("load_ipython_extension", "unload_ipython_extension")

opening.register(
    tree="insitu.widgets.opening:tree",
    view="insitu.widgets.opening:view",
    run="insitu.widgets.opening:stepper",
    job_html="insitu.widgets.job_record:html_of",
)

elsewhere.register("insitu.remote.client.tracer:begin")


def save(value: _T) -> _T:
    """Mark a value to come back from the block, and return it.

        with model.trace(x):
            h = insitu.save(model.layer1.output)

    Raises:
        NoTraceError: no trace is running.
    """
    # Here from the start, unlike the rest: nnsight gives every object a `save`, modules too. The
    # first call puts the function itself into this one's place.
    saved: _T = __getattr__("save")(value)
    return saved


def __getattr__(name: str) -> Any:
    if name in _EXTENSION:  # `%load_ext insitu`; importing insitu alone imports no IPython
        return getattr(importlib.import_module("insitu.notebook.extension"), name)
    if name in _LATER:
        found = globals()[name] = getattr(importlib.import_module(_LATER[name]), name)
        return found
    if name in _PARTS:
        return importlib.import_module(f"insitu.{name}")
    if not name.startswith("_"):  # a name of older documents
        older = importlib.import_module("insitu.compat").OLDER
        if name in older:
            return older[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_PARTS})


if sys.modules.get("IPython") is not None:  # in a notebook: how to get the rest
    importlib.import_module("insitu.notebook.hint").offer()
