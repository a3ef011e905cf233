"""Opening a diffusion pipeline by name, with its components as modules of one tree.

pipeline = opened("path/to/folder", {"dtype": torch.float16})
pipeline = empty("path/to/folder", {})      # the components on `meta`, from their configs alone
tree = Components(pipeline)                 # tree.unet, tree.vae, tree.text_encoder, …
"""

import contextlib
import contextvars
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from insitu.errors import InputTypeError, MissingPackageError, UsageError
from insitu.models import memory
from insitu.models import pipeline_files as files

_SMALL_BYTES = 200_000_000  # loads in a few seconds
_DENOISERS = ("unet", "transformer", "decoder", "prior")
_OTHERS = ("vae", "vqvae", "vqgan", "text_encoder", "image_encoder", "safety_checker", "controlnet")

running: contextvars.ContextVar[Callable[..., Any] | None] = contextvars.ContextVar(
    "insitu_pipeline", default=None
)
"""What a call of the whole tree runs: the pipeline as the pass under way has made it ready."""


class Components(nn.Module):
    """A pipeline as one module: calling it runs the pipeline, its children are the components."""

    def __init__(self, pipeline: Any) -> None:
        super().__init__()
        self.training = False
        self.hold(pipeline)

    pipeline: Any

    def hold(self, pipeline: Any) -> None:
        """Stand for this pipeline from now on."""
        self.__dict__["pipeline"] = pipeline
        self._modules.clear()
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module):
                self._modules[name] = part
        if getattr(pipeline, "scheduler", None) is not None:
            self._modules["scheduler"] = Scheduler(pipeline.scheduler)

    @property
    def denoiser(self) -> str:
        """The name of the component that is called once a step.

        Raises:
            UsageError: the pipeline has none.
        """
        held = [name for name in self._modules if name != "scheduler"]
        for name in _DENOISERS:
            if name in held:
                return name
        others = [name for name in held if not name.startswith(_OTHERS)]
        if not others:
            raise UsageError(
                f"{type(self.pipeline).__name__} has no component that removes noise.",
                f"its modules are {', '.join(held) or 'none'}.",
                "wrap the component itself with NNsight(pipeline.component).",
            )
        return max(
            others, key=lambda name: sum(p.numel() for p in getattr(self, name).parameters())
        )

    def outside_steps(self) -> frozenset[nn.Module]:
        """The modules that are called before the first step and after the last."""
        stepped = {self.denoiser, "scheduler"}
        return frozenset(
            module
            for name, part in self._modules.items()
            if part is not None and name not in stepped
            for module in part.modules()
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pipeline."""
        return (running.get() or self.pipeline)(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        modules: dict[str, Any] = self.__dict__.get("_modules", {})
        if name in modules:
            return modules[name]
        if name.startswith("__") or "pipeline" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["pipeline"], name)

    def _get_name(self) -> str:
        return type(self.pipeline).__name__


class Scheduler(nn.Module):
    """`model.scheduler`: called once a step with what was predicted, gives the new latents.

        with model.generate("a red circle", num_inference_steps=20) as tracer:
            for step in tracer.iter[:]:
                predicted = model.scheduler.input       # after guidance, [image, …]
                latents = model.scheduler.output        # those the next step begins with

    Everything else a scheduler has is there too: `model.scheduler.timesteps`.
    """

    def __init__(self, real: Any) -> None:
        super().__init__()
        self.training = False
        self.__dict__["real"] = real
        self.__dict__["taking"] = contextvars.ContextVar("insitu_step")

    real: Any
    """The scheduler, while a pass runs that pass's own copy of it."""
    taking: contextvars.ContextVar[Callable[..., Any]]
    """What a call runs: the step of the pass under way."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Take a step; gives the latents alone."""
        return self.taking.get()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "real" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.__dict__["real"], name)

    def _get_name(self) -> str:
        return type(self.real).__name__


def opened(name: str, settings: dict[str, Any]) -> Any:
    """The pipeline of that name with its weights, ready to run.

    Args:
        name: `"demo"`, a folder, or a hub name. A folder or a cached name touches no network.
        settings: for `DiffusionPipeline.from_pretrained`: `dtype` (float32 by default),
            `device_map`, components, …

    Raises:
        ModelNotFoundError: there is no such pipeline, or its files cannot be read.
        ModelMemoryError: there is not enough memory for them; nothing of them is left in it.
    """
    diffusers = package()
    place = files.place_of(name, settings)
    size_bytes = files.size_bytes_of(place, settings)
    memory.require(name, size_bytes, None, settings)
    with memory.given(name, size_bytes), _quiet(size_bytes):
        pipeline = _read(diffusers, name, place, settings)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.eval()
    return pipeline


def component(name: str, settings: dict[str, Any], part: str, pipeline: Any) -> nn.Module:
    """One component of that name's pipeline with its weights, as the whole would have it.

    Args:
        name, settings: as for `opened`.
        part: the component.
        pipeline: an opened one, which has the others: nothing of them is read.

    Raises:
        ModelNotFoundError: its files are not there, or cannot be read.
    """
    others = {key: value for key, value in pipeline.components.items() if key != part}
    given = {**settings, **others}
    with _quiet(1):  # who asks for one component shows a bar of its own
        found: nn.Module = getattr(_read(package(), name, files.place_of(name, given), given), part)
    return found


def empty(name: str, settings: dict[str, Any]) -> Any:
    """The pipeline with its components on `meta`, made from their configs: no weight is read.

    Raises:
        ModelNotFoundError: there is no such pipeline.
    """
    diffusers, settings = package(), _plain(settings)
    place = files.place_of(name, settings)
    where = {"local_files_only": files.is_local(place, settings)}
    where |= {key: settings[key] for key in ("revision", "cache_dir", "token") if key in settings}
    with files.named(name), _quiet(files.size_bytes_of(place, settings)):
        index = diffusers.DiffusionPipeline.load_config(place, **where)
        kind = getattr(diffusers, index["_class_name"])
        parts: dict[str, Any] = {}
        for part, entry in index.items():
            if isinstance(entry, (list, tuple)) and not part.startswith("_"):
                is_given = part in settings
                made = settings[part] if is_given else _part(diffusers, place, part, entry, where)
                if isinstance(made, nn.Module) and not is_given:
                    nn.Module.to(made, dtype=_dtype_of(part, settings))  # theirs prints of it
                parts[part] = made
        takes = inspect.signature(kind.__init__).parameters
        more = {k: v for k, v in index.items() if k in takes and k not in parts}
        return kind(**parts, **more)


def package() -> Any:
    """The package diffusers, imported without what transformers prints meanwhile.

    Raises:
        MissingPackageError: it is not installed.
    """
    heard = logging.getLogger("transformers")
    before = heard.level
    try:
        import transformers  # noqa: F401 - sets the level of its logger when it is imported

        before = heard.level
        heard.setLevel(logging.ERROR)  # it tells of torchvision, which is not wanted here
        import diffusers

        _ = diffusers.DiffusionPipeline, diffusers.StableDiffusionPipeline
        return diffusers
    except ImportError as error:
        raise MissingPackageError(
            "the package diffusers is not installed.",
            "DiffusionModel runs its pipelines, and nothing else here needs it.",
            'install it: pip install "insitu[diffusion]" (or pip install diffusers).',
        ) from error
    finally:
        heard.setLevel(before)


def require_pipeline(value: Any) -> Any:
    """A loaded pipeline, as it is.

    Raises:
        InputTypeError: it is something else.
    """
    if hasattr(value, "components") and callable(value) and not isinstance(value, nn.Module):
        return value
    kind = type(value).__name__
    raise InputTypeError(
        f"DiffusionModel() wraps a pipeline, not {kind}.",
        "it runs a whole diffusers pipeline: its denoiser, its text encoder and its decoder.",
        f"wrap one module with NNsight({kind.lower()}), or pass the pipeline or its folder."
        if isinstance(value, nn.Module)
        else 'pass a pipeline, its folder, a hub name, or "demo".',
    )


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by the names of now, with float32 where no dtype is given.

    diffusers makes float32 of its parts, and transformers leaves its own in what was saved.
    """
    settings = dict(settings)
    if "torch_dtype" in settings:  # its name in older releases
        settings["dtype"] = settings.pop("torch_dtype")
    settings.setdefault("dtype", torch.float32)
    return settings


def _dtype_of(part: str, settings: dict[str, Any]) -> Any:
    dtype = settings["dtype"]
    dtype = dtype.get(part, dtype.get("default")) if isinstance(dtype, dict) else dtype
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _read(diffusers: Any, name: str, place: str, settings: dict[str, Any]) -> Any:
    with files.named(name):
        return diffusers.DiffusionPipeline.from_pretrained(
            place, local_files_only=files.is_local(place, settings), **_plain(settings)
        )


def _part(diffusers: Any, place: str, name: str, entry: Any, where: dict[str, Any]) -> Any:
    """One component: a module from its config, on `meta`; anything else as it is."""
    library, kind_name = entry
    if library is None or kind_name is None:
        return None
    if library == "transformers":
        import transformers

        kind = getattr(transformers, kind_name)
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(place, subfolder=name, **where)
        config = kind.config_class.from_pretrained(place, subfolder=name, **where)
        with torch.device("meta"):
            return kind(config).eval()
    kind = getattr(diffusers, kind_name, None)
    if kind is None:
        raise OSError(f"its {name} is a {kind_name} of {library}, which only its weights can make")
    if not issubclass(kind, nn.Module):
        return kind.from_pretrained(place, subfolder=name, **where)
    config = kind.load_config(place, subfolder=name, **where)
    with torch.device("meta"):
        return kind.from_config(config).eval()


@contextlib.contextmanager
def _quiet(size_bytes: int) -> Iterator[None]:
    """No progress bars for weights that load in a blink."""
    if not 0 < size_bytes < _SMALL_BYTES:
        yield
        return
    import transformers
    from diffusers.utils import logging as theirs

    others = [theirs, transformers.utils.logging]
    shown = [one for one in others if one.is_progress_bar_enabled()]
    for one in shown:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in shown:
            one.enable_progress_bar()
