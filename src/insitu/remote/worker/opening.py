"""A model as a model process opens it, and what it tells of it.

model = opened(ModelSpec("demo"), "cpu")
size_bytes(model), about(model)
"""

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any

import torch

import insitu
from insitu.errors import ModelNotFoundError
from insitu.models import image_rows, loading, pipeline_files, places
from insitu.remote.allowed import MODULES
from insitu.remote.blocks.block import Block, Text, sent
from insitu.remote.blocks.run import execute
from insitu.remote.protocol import Limits
from insitu.remote.wire import container
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
    kind = spec.kind or kind_of(spec.opened_as, settings)
    return getattr(insitu, kind)(spec.opened_as, **settings)


def kind_of(name: str, settings: Mapping[str, Any]) -> str:
    """Which class opens a model, as its files tell: those of a pipeline, or of one model's config.

    A name that no file can be found for is a language model, whose error says what is missing.
    """
    if name in loading.BUILT_IN:
        return "LanguageModel"
    folder = places.folder_of(name, settings, pipeline_files.INDEX)
    if folder is not None and (folder / pipeline_files.INDEX).exists():
        return "DiffusionModel"
    import transformers

    try:
        found = loading.find(name, dict(settings))
    except ModelNotFoundError:
        return "DiffusionModel" if _is_pipeline_of_the_hub(name, settings) else "LanguageModel"
    of_both = type(found.config) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    forward = getattr(found.kind, "forward", None)  # an auto class has none
    takes = () if forward is None else inspect.signature(forward).parameters
    of_text = forward is not None and not any(map(image_rows.is_of_images, takes))
    return "VisionLanguageModel" if of_both and not of_text else "LanguageModel"


def _is_pipeline_of_the_hub(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the hub has a pipeline of that name; asked when it has no model of it."""
    from huggingface_hub import file_exists
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    own = {word: settings.get(word) for word in ("revision", "token")}
    try:
        return bool(file_exists(name, pipeline_files.INDEX, **own))
    except (HFValidationError, HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return False


def beside(spec: ModelSpec) -> Any:
    """The same model on the CPU, for jobs whose model computes in a process of its own.

    Its modules stand for those there; of its weights, which are read from the same files, a job
    sees what it asks for.
    """
    settings = {name: value for name, value in spec.settings.items() if name != "device_map"}
    return opened(replace(spec, settings=settings), "cpu")


def tree(model: Any) -> str:
    """A digest of the paths of a model's modules."""
    paths = [path for path, _ in model._module.named_modules()]
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()


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
        "kind": type(model).__name__,
        "class": type(module).__name__,
        "parameters": sum(p.numel() for p in module.parameters()),
        "dtypes": dtypes,
        "devices": sorted({str(p.device) for p in module.parameters()}),
        "modules": sum(1 for _ in module.modules()),
    }


def warm(model: Any) -> Callable[[], None]:
    """Run a request, so that every job finds its imports done; what to run in each job beforehand.

    A job that has run one before copies 700 pages less of its model process while it is waited for.
    Only with one thread: OpenMP's threads would not survive the forks to come.
    """
    if type(model) is not insitu.LanguageModel:
        return lambda: None
    took, request = _WARM_IN_JOBS_S, b""

    def trace() -> None:
        execute(model, request, _NOBODY, BytesIO(), Limits())

    with contextlib.suppress(Exception):  # a model that cannot is still one to serve
        request = _warm_request(model)
        trace()
        began = time.perf_counter()
        trace()
        took = time.perf_counter() - began
        with model.generate(_WARM_TEXT, max_new_tokens=1):
            pass
    return trace if took < _WARM_IN_JOBS_S else lambda: None


def _warm_request(model: Any) -> bytes:
    """A block that reads a little, as a client sends it."""
    inputs = model._module.get_input_embeddings()
    path = next(path for path, module in model._module.named_modules() if module is inputs)
    text = f"seen = model.{path}.output[..., :2].save()\n"
    body = Text(text, "<the first pass>", 1, (), "tracer", {"model": model})
    block = Block("trace", (_WARM_TEXT,), {}, body)
    return container.pack(*sent(block, model, "", ""))


class _Nobody:
    """The link of a request that nobody has sent."""

    def log(self, text: str, tags: tuple[str, ...] = ()) -> None:
        pass

    def progress(self, text: str, done: float, of: float | None, unit: str) -> None:
        pass

    def token(self, step: int, ids: tuple[int, ...]) -> None:
        pass

    def local(self, index: int, *payload: bytes | memoryview) -> bytes:
        return b""


_NOBODY = _Nobody()
