"""`DiffusionModel`: a diffusers pipeline, wrapped for tracing.

model = DiffusionModel("demo")
with model.generate("a red circle", num_inference_steps=20, seed=0) as tracer:
    for step in tracer.iter[:]:
        model.unet.mid_block.output[:] *= 1.1
    image = tracer.result.images[0]
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from insitu.engine import paths, validate
from insitu.engine.fakes import on_fakes
from insitu.engine.held import Run
from insitu.engine.running import is_inside
from insitu.engine.scan import Scan
from insitu.engine.trace import Tracer, is_entered
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError
from insitu.models import awaited, elsewhere, meta, pipeline_inputs, pipelines
from insitu.models.awaited import Awaited
from insitu.models.base import NNsight, own_words
from insitu.models.denoising import Denoising, PromptsToCome
from insitu.models.latents import decoded
from insitu.models.pipelines import Components

_told: set[str] = set()
"""The kinds of pipeline of which it has been said that a trace is one step."""


class DiffusionModel(NNsight):
    """Wrap a diffusion pipeline; a prompt goes in, and every component can be read and changed.

        model = DiffusionModel("demo")                  # ships with insitu, no download
        model = DiffusionModel("path/to/folder", dtype=torch.float16)
        model = DiffusionModel(pipeline)                # any diffusers.DiffusionPipeline

        with model.generate("a red circle", num_inference_steps=20, seed=0) as tracer:
            for step in tracer.iter[:]:                 # each call of the denoiser
                noise = model.unet.output[0]
                picture = model.decode(model.scheduler.output)
            images = tracer.result.images

    Components are children: `model.unet` or `model.transformer`, `model.vae`, `model.text_encoder`.
    `model.scheduler.output` is the latents after each step; they are written like any output.

    Guidance doubles the denoiser's rows. A block that runs in place sees all of them as the
    pipeline made them; in an invoke they are those of its own images, `[2 * image, …]`: without the
    prompt, then with it (a DiT: with, then without), as if it ran alone.

    Args:
        model: `"demo"`, a folder, a hub name, or a loaded pipeline. A folder or a name that is
            cached touches no network.
        dispatch: load the weights now. With False the components are on `meta`, made from their
            configs, each until it is first called or one of its weights is read: a run that stops
            after the text encoder reads no denoiser. `scan` works on them.
        rename: further names of its modules, as for the method `rename`.
        views: view classes of its modules, as for `add_views`.
        **settings: for `DiffusionPipeline.from_pretrained`: `dtype` (float32 by default),
            `device_map`, …

    Raises:
        ModelNotFoundError: no such folder, and no such name in the cache or on the hub.
        MissingPackageError: diffusers is not installed.
    """

    _module: Components

    def __init__(
        self,
        model: Any,
        *,
        dispatch: bool = True,
        rename: Mapping[str, Any] | None = None,
        views: Mapping[type[nn.Module], Any] | None = None,
        **settings: Any,
    ) -> None:
        is_named = isinstance(model, (str, Path))
        if not is_named:
            pipeline = pipelines.require_pipeline(model)
        else:
            open_ = pipelines.opened if dispatch else pipelines.empty
            pipeline = open_(str(model), settings)
        super().__init__(Components(pipeline))
        waits = is_named and not dispatch
        one_by_one = waits and awaited.can_wait(pipeline, settings)
        self.__dict__.update(  # the same objects for this wrapper and its twins
            _opened_as=str(model) if is_named else None,
            _awaited=Awaited(str(model), settings, pipeline) if one_by_one else None,
            _unread=[(str(model), settings)] if waits and not one_by_one else [],
        )
        self._module.denoiser  # noqa: B018 - raises where there is none
        self.__dict__["_beside"] = self._module.outside_steps()
        self._name_further(rename, views)

    _awaited: Awaited | None
    """The components that wait for their weights, each by itself."""
    _unread: list[tuple[str, dict[str, Any]]]
    """The name and the settings of a pipeline that can only be read as a whole, and is not yet."""

    @property
    def pipeline(self) -> Any:
        """The diffusers pipeline; a run has a copy of it, with a scheduler of its own."""
        return self._module.pipeline

    @property
    def _step_node(self) -> WrappedModule:
        return self._at_path(self._module.denoiser)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pipeline for one step of noise removal, with the block inside it.

            with model.trace("a red circle", seed=0) as tracer:
                words = model.text_encoder.output[0]    # [prompt, pos, d_model]
                noise = model.unet.output[0]            # [2 * image, channel, height, width]

        Args:
            *args: a prompt or a list of prompts; class labels for a pipeline that draws classes;
                nothing for one that is told nothing.
            **kwargs: as for `generate`; `num_inference_steps=` takes more steps than one;
                `validate=True` checks the block on fake tensors before the model runs.

        Raises:
            InputError: no prompt, one of a wrong kind, or no image where one is needed.
            UsageError: a setting the pipeline does not know.
        """
        if elsewhere.wanted(kwargs):
            return elsewhere.begin(self, "trace", args, kwargs, sys._getframe(1))
        untraced, checked = own_words(kwargs)
        call = self._request("trace", args, self._one_step(kwargs))
        tracer = Tracer(self, call, "trace", self._steps_of(call) != 1)
        tracer.check = validate.check if checked else None
        return tracer.alone() if untraced or not is_entered(sys._getframe(1)) else tracer

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Run the whole pipeline, with the block inside every step.

            with model.generate("a red circle", num_inference_steps=20, seed=0) as tracer:
                for step in tracer.iter[5:]:
                    model.unet.output[0][:] = 0
                images = tracer.result.images
            images = model.generate("a red circle", seed=0).images      # without a block

        Args:
            *args: as for `trace`.
            **kwargs: what the pipeline takes: `num_inference_steps`, `guidance_scale`,
                `negative_prompt`, `num_images_per_prompt`, `output_type`, …; and
                `seed=`: a number, with which every prompt's first image begins, its second one with
                the next number; or a list with one for each prompt, or for each image. An image has
                the same noise whatever else is drawn with it;
                `grad=True` lets gradients flow from step to step.
        """
        if elsewhere.wanted(kwargs):
            return elsewhere.begin(self, "generate", args, kwargs, sys._getframe(1))
        validate.refuse(kwargs, "generate", "a step goes on from the latents of the one before")
        untraced, _ = own_words(kwargs)
        tracer = Tracer(self, self._request("generate", args, kwargs), "generate", True)
        return tracer.alone() if untraced or not is_entered(sys._getframe(1)) else tracer

    def open(self, *args: Any, generate: int | None = None, **kwargs: Any) -> Run:
        """Start a run and hold it open, to be read, edited and stepped by later statements.

            run = model.open("a red circle", generate=20, seed=0)
            noise = model.unet.output[0]
            model.unet.next()                           # the next step
            out = run.finish()

        Args:
            *args, **kwargs: as for `trace`.
            generate: how many steps to hold open; one by default.
        """
        elsewhere.refuse("open", kwargs)
        validate.refuse(kwargs, "open", "what runs in a pass held open is not known yet")
        own_words(kwargs)
        if generate is not None:
            kwargs = {"num_inference_steps": generate, **kwargs}
        call = self._request("open", args, self._one_step(kwargs))
        call = call.alone() if call.pending else call
        steps = self._steps_of(call) != 1
        return Run(self, call, "generate" if steps else "trace", steps)

    def scan(self, *args: Any, **kwargs: Any) -> Scan:
        """Trace one step on fake tensors: shapes without running, and without weights.

        with model.scan("a red circle"):
            width = model.unet.mid_block.output.shape[1]
        """
        elsewhere.refuse("scan", kwargs)
        validate.wanted(kwargs)
        own_words(kwargs)
        call = self._request("scan", args, self._one_step(kwargs), loads=False)
        return Scan(Tracer(self, call, "trace", self._steps_of(call) != 1))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the whole pipeline, with this wrapper's edits: `model("a red circle").images`."""
        if is_inside(self):
            return self._module(*args, **kwargs)
        return self.generate(*args, trace=False, **kwargs)

    def decode(self, latents: torch.Tensor, output_type: str = "pil") -> Any:
        """What latents look like, at any step; inside a block this is no part of the run.

            with model.generate("a red circle", num_inference_steps=20) as tracer:
                pictures = []
                for step in tracer.iter[:]:
                    pictures += model.decode(model.scheduler.output)

        Args:
            latents: as a scheduler gives them, `[image, channel, height, width]`, or packed as
                Flux packs them, of a square image.
            output_type: `"pil"` for pictures, `"pt"` for a tensor
                `[image, channel, height, width]` in 0 … 1, `"np"` for an array with channels last.

        Raises:
            InputError: these are no latents of this pipeline.
        """
        if not on_fakes():
            self._read_as_a_whole()
        return decoded(self.pipeline, latents, output_type)

    @property
    def waiting(self) -> tuple[str, ...]:
        """The components whose weights have not been read yet.

        model = DiffusionModel("demo", dispatch=False)
        model.decode(latents)
        model.waiting                   # ("text_encoder", "unet")
        """
        if self._unread:
            return tuple(name for name in self._module._modules if name != "scheduler")
        return () if self._awaited is None else self._awaited.names

    def dispatch(self, *components: str) -> "DiffusionModel":
        """Read weights now that `dispatch=False` has left for later.

            model = DiffusionModel("path/to/folder", dispatch=False)
            model.dispatch("unet")
            model.dispatch()                            # all that still wait

        Args:
            *components: those to read; by default all.

        Raises:
            ModelNotFoundError: files are not there, or cannot be read.
            ModelMemoryError: there is not enough memory for them.
            UsageError: the pipeline has no such component.
        """
        known = [name for name in self._module._modules if name != "scheduler"]
        for name in components:
            if name not in known:
                close = paths.nearest(name, known)
                raise UsageError(
                    f"dispatch() was given {name!r}, which is no component with weights.",
                    f"{type(self.pipeline).__name__} has {', '.join(known)}.",
                    f"did you mean {close[0]!r}?" if close else "leave it out, to read all.",
                )
        self._read_as_a_whole()
        if self._awaited is not None:
            self._awaited.bring(*(one for one in self.waiting if one in (components or known)))
        return self

    def _read_as_a_whole(self) -> None:
        """Read a pipeline whose components cannot come one by one."""
        if self._unread:
            name, settings = self._unread[0]
            self._module.hold(pipelines.opened(name, settings))
            self._unread.clear()
            for wrapper in self._family:
                meta.lead_to(wrapper, self._module)
                wrapper.__dict__["_beside"] = self._module.outside_steps()

    def _request(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, loads: bool = True
    ) -> Any:
        """The call to be made; without a prompt, what the trace's invokes make of it."""
        given = pipeline_inputs.told_apart(self.pipeline, method, args, kwargs)
        if loads:
            self._read_as_a_whole()
        prompted = pipeline_inputs.is_prompted(self.pipeline, given.inputs)
        if prompted and given.inputs.keys() - {"seed"}:
            return Denoising(self._module, given)
        return PromptsToCome(self, method, given)

    def _one_step(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Settings for one step, unless they say how many; said once."""
        takes = pipeline_inputs.parameters(self.pipeline)
        if any(kwargs.get(name) is not None for name in pipeline_inputs.STEPS):
            return kwargs
        if "num_inference_steps" not in takes:
            return kwargs
        steps, strength = 1, takes.get("strength")
        if strength is not None:  # from an image on, a part of the steps is left out
            share = kwargs.get("strength", strength.default)
            if not isinstance(share, (int, float)) or not 0 < share <= 1:
                raise UsageError(
                    f"strength={share!r} was given.",
                    "it is how much of the image is made anew: more than 0, and 1 at most.",
                    "write strength=0.8, or leave it out.",
                )
            steps = math.ceil(1 / share)
        kind = type(self.pipeline).__name__
        if kind not in _told:
            _told.add(kind)
            print(
                f"insitu: trace() runs {kind} for one step; num_inference_steps= takes more, "
                "generate() all.",
                file=sys.stderr,
            )
        return {"num_inference_steps": steps, **kwargs}

    @staticmethod
    def _steps_of(call: Any) -> int | None:
        """How many steps a call takes; None where that is the scheduler's to say."""
        settings = call.kwargs if not call.pending else call._given.settings
        if any(settings.get(name) is not None for name in pipeline_inputs.STEPS[1:]):
            return None
        if "strength" in settings:
            return None
        count: int | None = settings.get("num_inference_steps")
        return count
