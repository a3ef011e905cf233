"""A model as a model process opens it, and what it tells of it.

model = opened(ModelSpec("demo"), "cpu")
size_bytes(model), about(model)
"""

import contextlib
import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import torch

import insitu
from insitu.remote.allowed import MODULES
from insitu.remote.worker.specs import ModelSpec

_WARM_IN_JOBS_S = 0.2  # a longer forward is not worth it before every job
_WARM_TEXT = "The first pass pays for what all share."


_FURTHER = ("torch.func", "torch.distributions", "encodings.idna", "linecache", "traceback")


def import_beforehand() -> None:
    """Import what blocks may name: a jailed job may not be able to open a module's file."""
    for name in (*sorted(MODULES), *_FURTHER):
        if importlib.util.find_spec(name) is not None:
            importlib.import_module(name)


def opened(spec: ModelSpec, device: str) -> Any:
    """The model with its weights, in evaluation mode."""
    settings = dict(spec.settings)
    if not device.startswith("cpu"):
        settings.setdefault("device_map", device)
    return getattr(insitu, spec.kind)(spec.opened_as, **settings)


def _tensors(model: Any) -> dict[int, torch.Tensor]:
    """Every parameter and buffer once, by its storage."""
    module = model._module
    both = [*module.parameters(), *module.buffers()]
    return {tensor.untyped_storage().data_ptr(): tensor for tensor in both}


def size_bytes(model: Any) -> int:
    """What the weights take in memory."""
    return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(model).values())


def about(model: Any) -> dict[str, Any]:
    """What a list of models shows of it; plain JSON values."""
    module = model._module
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in module.parameters()})
    return {
        "class": type(module).__name__,
        "parameters": sum(p.numel() for p in module.parameters()),
        "dtypes": dtypes,
        "devices": sorted({str(p.device) for p in module.parameters()}),
        "modules": sum(1 for _ in module.modules()),
    }


def warm(model: Any) -> Callable[[], None]:
    """Run a pass, so that every job finds its imports done; what to run in each job beforehand.

    Only with one thread: OpenMP's threads would not survive the forks to come.
    """
    if not isinstance(model, insitu.LanguageModel):
        return lambda: None

    def trace() -> None:
        with torch.no_grad(), model.trace(_WARM_TEXT):
            pass

    took = _WARM_IN_JOBS_S
    with contextlib.suppress(Exception):  # a model that cannot is still one to serve
        trace()
        began = time.perf_counter()
        trace()
        took = time.perf_counter() - began
        with model.generate(_WARM_TEXT, max_new_tokens=1):
            pass
    return trace if took < _WARM_IN_JOBS_S else lambda: None
