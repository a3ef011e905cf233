"""An image as it comes out of the noise: each step's picture, and where its prompt's words look.

view = watch_denoising(sd, "a red circle", num_inference_steps=20, seed=0)
view.steps[3].latents                       # as the scheduler left them
view.steps[3].maps                          # cross-attention, [token, height, width]
DenoisingView.of(pictures)                  # plain pictures, one a step
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import traitlets
from torch import Tensor

from insitu.errors import UsageError
from insitu.models.diffusion import DiffusionModel
from insitu.twins.denoising import denoising_html
from insitu.widgets import numbers, showing
from insitu.widgets.base import Widget
from insitu.widgets.denoising_maps import attended, crossings, unread, why_none, words
from insitu.widgets.generation_runs import edited
from insitu.widgets.trouble import Trouble
from insitu.widgets.words import word

PICTURE_MAX, PICTURE_BYTES = 160, 24_000
"""A picture is sent in so many pixels a side, and in so many bytes or as a JPEG."""
MAP_MAX, TOKENS_MAX = 16, 24
STEPS_SENT = 8
PROMPT_MAX = 2000
"""So many characters of a prompt are shown."""


@dataclass(frozen=True, eq=False)
class Seen:
    """One step: the picture its latents make, and what is known of them.

    Args:
        picture: a PIL image.
        latents: of the first image, as the scheduler left them.
        timestep: of the scheduler.
        change: how far the latents moved, as a share of their length.
        maps: how much each place of the image attends to each token, `[token, height, width]`.
    """

    picture: Any
    latents: Tensor | None = None
    timestep: float = math.nan
    change: float = math.nan
    maps: Tensor | None = None

    def told(self, number: int) -> dict[str, Any]:
        """As a view is told it."""
        maps = None if self.maps is None else numbers.plain(self.maps)[0][:TOKENS_MAX]
        return {
            "number": number,
            "timestep": _known(self.timestep),
            "change": _known(self.change),
            "picture": _packed(self.picture),
            "shape": [] if maps is None else list(maps.shape),
            "maps": b"" if maps is None else numbers.buffer(maps),
        }


class DenoisingView(Widget):
    """The picture of each step, filled while the pipeline runs, and its cross-attention maps.

        view = watch_denoising(sd, "a red circle")

    Attributes:
        steps: what came so far.
        result: what the pipeline returned; None before, and after a stop.
    """

    front_end = "denoising_view"
    title = traitlets.Unicode().tag(sync=True)
    prompt = traitlets.Unicode().tag(sync=True)
    tokens = traitlets.List().tag(sync=True)
    """The prompt's tokens that have maps."""
    note = traitlets.Unicode().tag(sync=True)
    """What is not shown of the words, and why."""
    state = traitlets.Dict().tag(sync=True)
    """What goes on: `name` (running, done, stopped, failed), `of` how many steps, `trouble`."""
    latest = traitlets.Dict().tag(sync=True)
    """The step that came last; earlier ones are asked for."""

    def __init__(
        self, title: str, prompt: str = "", tokens: Sequence[str] = (), note: str = ""
    ) -> None:
        self.steps: list[Seen] = []
        self.result: Any = None
        self._is_stopped = False
        super().__init__(
            title=word(title),
            prompt=word(prompt, PROMPT_MAX),
            tokens=[word(token) for token in tokens[:TOKENS_MAX]],
            note=note or _cut(len(tokens)),
        )

    @classmethod
    def of(
        cls, pictures: Sequence[Any], *, maps: Sequence[Any] | None = None,
        tokens: Sequence[str] = (), prompt: str = "",
    ) -> "DenoisingView":  # fmt: skip
        """A view of plain pictures, one a step: PIL images, or tensors `[channel, height, width]`.

        Raises:
            UsageError: there are not as many maps as pictures.
        """
        if maps is not None and len(maps) != len(pictures):
            raise UsageError(
                f"{len(maps)} maps were given for {len(pictures)} pictures.",
                "each step has one of each.",
                "give maps [token, height, width] for every step.",
            )
        view = cls("Denoising", prompt, tokens)
        for number, picture in enumerate(pictures):
            view.steps.append(
                Seen(
                    _picture(picture), maps=None if maps is None else torch.as_tensor(maps[number])
                )
            )
        view.state = {"name": "done"}
        return view

    def add(self, step: Seen) -> None:
        """Add a step that has come."""
        self.steps.append(step)
        self.latest = step.told(len(self.steps) - 1)

    def stop(self) -> None:
        """End the run that is under way, after its step; what came stays."""
        self._is_stopped = True

    def text(self) -> str:
        """A line a step."""
        lines = [f"{self.title}: {self.prompt} ({len(self.steps)} steps, {self._told})"]
        lines += [f"  {self.note}"] if self.note else []
        for number, step in enumerate(self.steps):
            size = "×".join(map(str, step.picture.size))
            lines.append(
                f"  {number:3}  timestep {step.timestep:6g}  change {step.change:6.3f}  {size}"
            )
        return "\n".join(lines)

    def html(self) -> str:
        """The steps' pictures in a row, without scripts."""
        pictures = [_packed(it.picture) for it in self.steps]
        return denoising_html(self.title, self.prompt, self._told, pictures, self.note)

    @property
    def _told(self) -> str:
        return str(self.state.get("name", "nothing yet"))

    def answer_steps(
        self, given: dict[str, Any]
    ) -> tuple[dict[str, Any], list[bytes | memoryview]]:
        """Steps from before the view was there, some at a time; what is binary in buffers."""
        first = max(int(given.get("first", 0)), 0)
        part = [
            step.told(first + number)
            for number, step in enumerate(self.steps[first : first + STEPS_SENT])
        ]
        parts = [told.pop(name) for told in part for name in ("picture", "maps")]
        return {"steps": part, "more": first + len(part) < len(self.steps)}, parts

    def answer_stop(self, given: dict[str, Any]) -> None:
        """End the run that is under way."""
        self.stop()

    def _follow(self, count: int, run: Callable[[], Any]) -> None:
        """Run with the state told; an interrupt leaves what came so far."""

        def tell(name: str, trouble: Trouble | None) -> None:
            state = {"name": name, "of": count, "trouble": trouble}
            self.state = {key: it for key, it in state.items() if it is not None}

        def work() -> None:
            self.result = run()

        self._is_stopped = False
        try:
            showing.carry_out(work, tell, lambda: self._is_stopped)
        finally:
            self.show_twins()


def watch_denoising(
    model: DiffusionModel, prompt: str, *, num_inference_steps: int = 20, maps: bool = True,
    edit: Any = None, **settings: Any,
) -> DenoisingView:  # fmt: skip
    """Draw an image, and show each step's latents as a picture while it comes.

        view = watch_denoising(sd, "a red circle", num_inference_steps=20, seed=0)

    An interrupt, or the view's own button, leaves what came so far. Of several images the first is
    shown.

    Args:
        model: a diffusion pipeline.
        prompt: one prompt.
        num_inference_steps: how many steps to take.
        maps: whether cross-attention is read too, of U-Nets: the mean over heads and layers of how
            much each place attends to each of the prompt's first 24 tokens. The view says where
            there is none to read, or more tokens.
        edit: a change of the model, as a function of it, lines of code, or an edited wrapper.
        **settings: for `model.generate`: `seed`, `guidance_scale`, …

    Source of the maps: Tang et al., "What the DAAM: Interpreting Stable Diffusion Using Cross
    Attention" (2022).
    """
    places, tokens = words(model, prompt) if maps else ([], [])
    note = ""
    if maps:
        note = why_none(model, prompt, crossings(model)) or _cut(len(tokens), unread(model, prompt))
    view = DenoisingView(type(model.pipeline).__name__, str(prompt), tokens, note)
    view.show_now()
    count = num_inference_steps

    def run() -> Any:
        return _run(view, edited(model, edit), prompt, places, {**settings, "steps": count})

    view._follow(count, run)
    return view


def _run(
    view: DenoisingView, model: Any, prompt: str, places: list[int], settings: dict[str, Any]
) -> Any:
    count = settings.pop("steps")
    before = None
    crossed = crossings(model) if places else []
    with torch.no_grad(), model.generate(prompt, num_inference_steps=count, **settings) as tracer:
        for step in tracer.iter[:]:
            read = [(it._module, it.to_q.output, it.to_k.output) for it in crossed]
            latents = model.scheduler.output
            seen = latents[:1].clone()
            times = getattr(model.scheduler, "timesteps", ())
            view.add(
                Seen(
                    model.decode(seen)[0],
                    seen[0],
                    float(times[step]) if step < len(times) else math.nan,
                    math.nan if before is None else float((seen - before).norm() / before.norm()),
                    attended(read, len(latents), seen.shape, places, MAP_MAX) if read else None,
                )
            )
            before = seen
            if view._is_stopped:
                tracer.stop()
        return tracer.result
    return None


def _cut(count: int, unread: int = 0) -> str:
    """That some tokens have no map, where that is so; and that the model does not read some."""
    if count <= TOKENS_MAX and not unread:
        return ""
    told = f"Attention maps of the first {min(count, TOKENS_MAX)} of {count + unread} tokens"
    return f"{told}; the model reads {count}." if unread else f"{told}."


def _packed(picture: Any) -> bytes:
    """A picture as a small PNG, or a JPEG where that is too long."""
    small = picture.convert("RGB")
    small.thumbnail((PICTURE_MAX, PICTURE_MAX))
    for settings in ({"format": "PNG"}, {"format": "JPEG", "quality": 85}):
        file = io.BytesIO()
        small.save(file, **settings)
        if file.tell() <= PICTURE_BYTES:
            break
    return file.getvalue()


def _picture(given: Any) -> Any:
    """A PIL image, of one or of a tensor in 0 … 1."""
    if hasattr(given, "convert"):
        return given
    from PIL import Image

    pixels = numbers.plain(given)[0].nan_to_num().clamp(0, 1)
    if pixels.dim() == 2:
        pixels = pixels[None]
    if pixels.dim() != 3 or pixels.shape[0] not in (1, 3) or not pixels.numel():
        raise UsageError(
            f"a picture was given as a tensor {list(pixels.shape)}.",
            "a picture has 1 or 3 channels, a height and a width.",
            "give [channel, height, width] in 0 … 1, or a PIL image.",
        )
    array = (pixels.expand(3, -1, -1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def _known(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
