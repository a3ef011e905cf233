"""Components of a pipeline whose weights are still to come, each when it is first needed.

    pipeline = pipelines.empty(place, settings)
    awaited = Awaited(place, settings, pipeline)
    pipeline.vae.decode(latents)                # reads the weights of the vae, and of nothing else
    awaited.bring("unet")                       # or now

A module looks its weights up in two dicts, `_parameters` and `_buffers`. Those of a component that
waits bring the weights when one of them is looked up: by a forward, by `vae.decode`, by a pipeline
that takes a buffer out. Listing them brings nothing, so counts, dtypes and reprs are to be had.

The weights are put into the modules that are there, since a pass may be under way in them.
"""

import functools
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from insitu.engine.fakes import on_fakes
from insitu.models import memory, meta, pipeline_files, pipelines

_BARE_BYTES = 200_000_000  # read in a few seconds, without a bar
_AS_A_WHOLE = ("device_map", "max_memory", "quantization_config", "custom_pipeline", "use_onnx")
"""Settings with which modules are made that a config alone does not make."""
_NEED_WEIGHTS = ("_apply", "state_dict", "load_state_dict", "save_pretrained")
"""Methods that list the weights, and need them."""
_THERE = torch.device("cpu")
"""Where weights come to, and where a component that waits says it is."""


class Awaited:
    """The components of a pipeline that wait for their weights.

    Args:
        name: of the pipeline: a folder, a hub name, `"demo"`.
        settings: for `DiffusionPipeline.from_pretrained`.
        pipeline: one with its components on `meta`; those that were given are no part of this.
    """

    def __init__(self, name: str, settings: dict[str, Any], pipeline: Any) -> None:
        self._name = name
        self._settings = settings
        self._pipeline = pipeline
        self._lock = threading.RLock()
        self._kinds: dict[str, type[nn.Module]] = {}
        for part, module in pipeline.components.items():
            if isinstance(module, nn.Module) and part not in settings:
                self._kinds[part] = type(module)
                _let_wait(module, functools.partial(self.bring, part))

    @property
    def names(self) -> tuple[str, ...]:
        """Those that still wait, in the pipeline's order."""
        return tuple(self._kinds)

    def bring(self, *parts: str) -> None:
        """Read the weights of these components, one after the other.

        A component that fails goes on waiting, as those after it; those before it have come.

        Raises:
            ModelNotFoundError: files are not there, or cannot be read.
            ModelMemoryError: there is not enough memory.
            UsageError: they do not belong to the modules that are there.
        """
        with self._lock, _bar({part: self._size_bytes(part) for part in parts}) as done:
            for part in parts:
                if part in self._kinds:  # another thread may have been faster
                    self._bring(part)
                done(part)

    def _bring(self, part: str) -> None:
        module = getattr(self._pipeline, part)
        name, size_bytes = f"{self._name}/{part}", self._size_bytes(part)
        memory.require(name, size_bytes, None, self._settings)
        with memory.given(name, size_bytes), _apart_from_a_pass():
            loaded = pipelines.component(self._name, self._settings, part, self._pipeline)
        meta.fill(part, module, loaded)
        module.__class__ = self._kinds.pop(part)

    def _size_bytes(self, part: str) -> int:
        """How large its files are; 0 where they are not here yet."""
        folder = pipeline_files.folder_of(self._name, self._settings)
        variant = self._settings.get("variant")
        return 0 if folder is None else pipeline_files.size_of(folder / part, variant)


def can_wait(pipeline: Any, settings: dict[str, Any]) -> bool:
    """Whether its components can wait one by one; else the pipeline is read as a whole."""
    if any(settings.get(word) for word in _AS_A_WHOLE):
        return False
    configs = (getattr(part, "config", None) for part in pipeline.components.values())
    return not any(getattr(config, "quantization_config", None) for config in configs)


def place_attributes(pipeline: Any) -> None:
    """In a scan: let the tensors that modules hold as mere attributes be where weights will be."""
    for part in pipeline.components.values():
        if isinstance(part, nn.Module) and getattr(part, "device", None) == _THERE:
            for module in part.modules():
                for name, value in tuple(module.__dict__.items()):
                    if isinstance(value, torch.Tensor) and value.is_meta:
                        module.__dict__[name] = torch.empty_like(value, device=_THERE)


class _Store(dict[str, Any]):
    """What a module that waits holds: tensors on `meta`, until one is looked up."""

    def __init__(self, held: dict[str, Any], bring: Callable[[], None]) -> None:
        super().__init__(held)
        self._bring = bring

    def __getitem__(self, name: str) -> Any:
        held = super().__getitem__(name)
        if held is None or sys._getframe(2).f_code.co_name == "extra_repr":
            return held  # a repr asks whether there is a bias
        if on_fakes():
            return torch.empty_like(held, device=_THERE)
        self._bring()
        return super().__getitem__(name)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """A copy of a module, or a file with it, is one with its weights."""
        self._bring()
        return dict, (dict(self),)


def _let_wait(component: nn.Module, bring: Callable[[], None]) -> None:
    component.__class__ = _waiting(type(component), bring)
    for module in component.modules():
        for store in meta.STORES:
            module.__dict__[store] = _Store(module.__dict__[store], bring)


def _waiting(kind: type[nn.Module], bring: Callable[[], None]) -> type[nn.Module]:
    """The class of a component while it waits: it says where it will be."""

    def after(method: str) -> Callable[..., Any]:
        @functools.wraps(getattr(kind, method))
        def brought(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            bring()
            return getattr(self, method)(*args, **kwargs)  # of its own class by now

        return brought

    own: dict[str, Any] = {word: after(word) for word in _NEED_WEIGHTS if hasattr(kind, word)}
    own |= {"__module__": kind.__module__, "__doc__": kind.__doc__}
    if hasattr(kind, "device"):  # a pipeline makes its latents there
        own["device"] = property(lambda _: _THERE)
    return type(kind.__name__, (kind,), own)


@contextmanager
def _apart_from_a_pass() -> Iterator[None]:
    """Read weights in the middle of a pass as if there were none, and without notices."""
    heard = logging.getLogger("diffusers")
    before = heard.level
    heard.setLevel(logging.ERROR)  # it tells again what it said when the pipeline was made
    try:
        with _disable_current_modes(), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        heard.setLevel(before)


@contextmanager
def _bar(sizes: dict[str, int]) -> Iterator[Callable[[str], None]]:
    """A bar over the bytes of components, where they are many; it is told what has been read."""
    from tqdm.auto import tqdm

    kind: Any = type("Bar", (tqdm,), {"monitor_interval": 0})  # else tqdm leaves a thread behind
    total = sum(sizes.values())
    doing = f"reading {', '.join(sizes)}"
    with kind(
        total=total, desc=doing, unit="B", unit_scale=True, leave=False, disable=total < _BARE_BYTES
    ) as bar:
        yield lambda part: bar.update(sizes[part])
