"""A run of a diffusion pipeline that is still to be made.

    with model.generate("a red circle", num_inference_steps=20, seed=0) as tracer:
        for step in tracer.iter[:]:                 # a step is one call of the denoiser
            noise = model.unet.output
        images = tracer.result.images

Each run has a copy of the pipeline and of its scheduler, which counts its steps in itself: two runs
may be under way at once, and nothing of them stays in the pipeline.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from types import SimpleNamespace, TracebackType
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from insitu.engine.batch import Call, Path, Rows, Split
from insitu.engine.fakes import on_fakes
from insitu.engine.interleave import Pass
from insitu.errors import UsageError
from insitu.models import awaited, pipeline_inputs
from insitu.models.in_turn import InTurn
from insitu.models.joining import no_input
from insitu.models.pipeline_inputs import Given
from insitu.models.pipelines import Components, running

_SHORT_STEPS = 10
"""Runs of so many steps have no progress bar, unless the pipeline is told to show one."""
_FOLDS = (1, 2, 3)
"""How often a denoiser may be given every image at once: guided, it sees them twice or thrice."""


class ImageRows:
    """Which rows are whose: of prompts, of their images, and of those doubled for guidance.

    A guided denoiser is given all images without their prompts and, below them, all with them. What
    an invoke sees is what it would see alone: its images without, then with. These rows stand in
    two places, so what it sees is a copy, and its edits are copied back.
    """

    inputs = frozenset[str]()
    sizes = frozenset[int]()
    knows_all = True
    in_pieces = True

    def __init__(self, rows: tuple[Rows, ...], images: int) -> None:
        self._rows = rows
        self._images = images
        self._known: dict[int, Split] = {}

    def split(self, key: Any, path: Path, tensor: torch.Tensor) -> Split:
        """What of a tensor is whose, by its number of rows; empty where it is all theirs."""
        return self.of(int(tensor.shape[0]))

    def of(self, count: int) -> Split:
        """What of so many rows is whose."""
        if count not in self._known:
            self._known[count] = self._found(count)
        return self._known[count]

    def _found(self, count: int) -> Split:
        prompts = self._rows[0].total
        if count == prompts:
            return {rows.start: rows for rows in self._rows}
        each, total = self._images, prompts * self._images
        for folds in _FOLDS:
            if count == total * folds:
                return {
                    rows.start: _only(
                        tuple(
                            Rows(fold * total + rows.start * each, rows.size * each, count)
                            for fold in range(folds)
                        )
                    )
                    for rows in self._rows
                }
        return {}


def _only(pieces: tuple[Rows, ...]) -> Rows | tuple[Rows, ...]:
    return pieces[0] if len(pieces) == 1 else pieces


class Denoising:
    """One call of a pipeline, with its prompts and settings."""

    pending = False
    args = ()

    def __init__(
        self, module: Components, given: Given, rows: tuple[Rows, ...] | None = None
    ) -> None:
        pipeline_inputs.require_image(module.pipeline, given.inputs)
        settings = dict(given.settings)
        self.module = module
        self.grad = bool(settings.pop("grad", False))
        images = int(settings.get("num_images_per_prompt") or 1)
        inputs = pipeline_inputs.as_called(given.inputs)
        self.seeds = pipeline_inputs.seeds(inputs.pop("seed", None), given.count, images)
        self.kwargs = {**inputs, **settings}
        self.apart = None if rows is None else ImageRows(rows, images)

    def make(self, run: Pass | None) -> Any:
        """Run the pipeline, and tell the pass when the last step is over."""
        scanned = on_fakes()
        kwargs = dict(self.kwargs)
        if scanned:
            awaited.place_attributes(self.module.pipeline)
        if scanned and "output_type" in pipeline_inputs.parameters(self.module.pipeline):
            kwargs["output_type"] = "pt"  # pictures take values
        if self.seeds is not None:
            generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
            kwargs["generator"] = generators if len(generators) > 1 else generators[0]
        ended = run.end_steps if run is not None and run.stepping else _nothing
        with _disable_current_modes() if scanned else _Nothing():
            own = _own_copy(self.module.pipeline, ended)
            own.__dict__["_modules"] = self.module._modules  # where order errors look for them
            own_scheduler = getattr(own, "scheduler", None)
        stand_in = self.module._modules.get("scheduler")
        if own_scheduler is not None and stand_in is not None:
            _meet_steps(own_scheduler, stand_in, scanned)
        token = running.set(functools.partial(_plain(own), own) if self.grad else own)
        shown = _Shown(stand_in, own_scheduler)
        try:
            with shown, torch.set_grad_enabled(self.grad or torch.is_grad_enabled()):
                result = self.module(**kwargs)
        finally:
            running.reset(token)
        ended()
        return result

    def result_of(self, result: Any, rows: Rows) -> Any:
        """Of what the pipeline returned, what belongs to some of its prompts."""
        assert self.apart is not None
        if is_dataclass(result):
            parts = {field.name: getattr(result, field.name) for field in fields(result)}
            kind: Any = type(result)
            return kind(**{name: self.result_of(part, rows) for name, part in parts.items()})
        if isinstance(result, tuple):
            return tuple(self.result_of(value, rows) for value in result)
        if isinstance(result, list) or hasattr(result, "shape"):
            own = self.apart.of(len(result)).get(rows.start)
            if isinstance(own, Rows):
                return result[own.start : own.start + own.size]
        return result


class PromptsToCome:
    """A call of a pipeline whose prompts the trace's invokes bring."""

    pending = True

    def __init__(self, model: Any, method: str, given: Given) -> None:
        self._model = model
        self._method = method
        self._given = given

    def join(self, calls: list[Call]) -> tuple[Denoising, tuple[Rows, ...]]:
        """One call made of several, and which prompts are whose."""
        module: Components = self._model._module
        pipeline = module.pipeline
        each = [
            pipeline_inputs.told_apart(pipeline, "invoke", args, kwargs) for args, kwargs in calls
        ]
        for given in each:
            if not pipeline_inputs.is_prompted(pipeline, given.inputs):
                raise no_input("invoke", f"{type(pipeline).__name__} needs a prompt")
        inputs, rows = pipeline_inputs.joined(pipeline, self._given.inputs, each)
        return Denoising(module, Given(inputs, self._given.settings), rows), rows

    def alone(self) -> Denoising:
        """The call without a prompt, which some pipelines do without.

        Raises:
            InputError: this one needs a prompt.
        """
        pipeline = self._model._module.pipeline
        if not pipeline_inputs.is_prompted(pipeline, self._given.inputs):
            raise no_input(self._method, f"{type(pipeline).__name__} needs a prompt")
        return Denoising(self._model._module, self._given)


_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


def _own_copy(pipeline: Any, ended: Callable[[], None]) -> Any:
    """The pipeline for one run: with a scheduler of its own, tokenizers that threads can share, and
    telling when its steps end."""
    own = copy.copy(pipeline)
    if getattr(pipeline, "scheduler", None) is not None:
        own.__dict__["scheduler"] = copy.deepcopy(pipeline.scheduler)
    for name in _TOKENIZERS:
        if own.__dict__.get(name) is not None:
            own.__dict__[name] = InTurn(own.__dict__[name])
    config = dict(getattr(pipeline, "_progress_bar_config", None) or {})

    def progress_bar(iterable: Any = None, total: int | None = None) -> _Progress:
        steps = len(iterable) if iterable is not None else total or 0
        quiet = {"disable": True} if steps <= _SHORT_STEPS else {}
        own.__dict__["_progress_bar_config"] = {**quiet, **config}
        return _Progress(type(own).progress_bar(own, iterable, total), ended)

    own.__dict__["progress_bar"] = progress_bar
    return own


class _Progress:
    """A pipeline's progress bar; every pipeline's loop over steps is within one."""

    def __init__(self, bar: Any, ended: Callable[[], None]) -> None:
        self._bar = bar
        self._ended = ended

    def __iter__(self) -> Iterator[Any]:
        yield from self._bar
        self._ended()

    def __enter__(self) -> "_Progress":
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, traceback)
        if kind is None:
            self._ended()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bar, name)


class _Shown:
    """While a run lasts, `model.scheduler` shows that run's scheduler."""

    def __init__(self, stand_in: Any, scheduler: Any) -> None:
        self._stand_in = stand_in
        self._scheduler = scheduler

    def __enter__(self) -> None:
        if self._stand_in is not None:
            self._before = self._stand_in.real
            self._stand_in.__dict__["real"] = self._scheduler

    def __exit__(self, *_: object) -> None:
        if self._stand_in is not None:
            self._stand_in.__dict__["real"] = self._before


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def _nothing() -> None:
    pass


def _meet_steps(scheduler: Any, stand_in: Any, scanned: bool) -> None:
    """Have a run's scheduler take its steps by way of the module that blocks can meet."""
    real = scheduler.step

    @functools.wraps(real)
    def step(*args: Any, **kwargs: Any) -> Any:
        kept: list[Any] = []

        def take(*args: Any, **kwargs: Any) -> Any:
            if scanned:  # where a step goes is counted in values; its shape is known
                return args[2] if len(args) > 2 else kwargs["sample"]
            kept.append(real(*args, **kwargs))
            return _latents_of(kept[0])

        token = stand_in.taking.set(take)
        try:
            latents = stand_in(*args, **kwargs)
        finally:
            stand_in.taking.reset(token)
        return _with_latents(kept[0] if kept else None, latents, kwargs.get("return_dict", True))

    scheduler.__dict__["step"] = step
    if scanned:
        scheduler.__dict__["set_timesteps"] = _on_real_tensors(scheduler.set_timesteps)


def _on_real_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that computes with values even while everything else is scanned."""

    @functools.wraps(function)
    def real(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return real


def _latents_of(result: Any) -> Any:
    return result[0] if isinstance(result, tuple) else result.prev_sample


def _with_latents(result: Any, latents: Any, as_dict: bool) -> Any:
    """What a scheduler's step returns, with these latents; None for one that was skipped."""
    if result is None:
        return SimpleNamespace(prev_sample=latents) if as_dict else (latents,)
    if isinstance(result, tuple):
        return (latents, *result[1:])
    if latents is not result.prev_sample:
        result.prev_sample = latents
    return result


def _plain(pipeline: Any) -> Callable[..., Any]:
    """A pipeline's call without the `no_grad` around it.

    Raises:
        UsageError: it has something else around it.
    """
    plain: Callable[..., Any] | None = getattr(type(pipeline).__call__, "__wrapped__", None)
    if plain is None:
        raise UsageError(
            f"{type(pipeline).__name__} cannot be run with grad=True.",
            "gradients flow through a pipeline's own call, without its no_grad; this one's cannot "
            "be told apart from it.",
            "trace its denoiser alone: NNsight(pipeline.unet).",
        )
    return plain
