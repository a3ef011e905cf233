"""One run of some prompts, kept: what a site held in every layer, and how to go on from there.

run = record(model, ids, site_of("heads"), metric)
run.values[3]                       # [prompt, pos, head, d_head]
run.measured(metric)                # [prompt]
"""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from insitu.errors import UsageError
from insitu.methods.metrics import Metric, measure
from insitu.methods.sites import Site

BYTES_MAX = 1 << 30
"""What the rows of one pass may take, about, where it is not known what is free."""
WIDTHS = 24
"""How many floats of the residual stream's width a token takes at once in a layer, about."""


@dataclass
class Cost:
    """What a call has taken: forward passes, rows in them, seconds."""

    passes: int = 0
    rows: int = 0
    began: float = field(default_factory=time.perf_counter)

    def note(self, rows: int) -> None:
        """One pass more, of so many rows."""
        self.passes += 1
        self.rows += rows

    def told(self, **further: float) -> dict[str, float]:
        """As a result's `info`."""
        took = round(time.perf_counter() - self.began, 4)
        return {"passes": self.passes, "rows": self.rows, "seconds": took, **further}


@dataclass(frozen=True)
class Recording:
    """What one run of some prompts had at a site, and what it takes to go on from any layer.

    Attributes:
        ids: token ids, `[prompt, pos]`.
        values: for each layer the site's value, `[prompt, pos, …, width]`.
        entering: for each layer the residual stream before it, `[prompt, pos, d_model]`.
        logits: `[prompt, pos, d_vocab]`, or the last position's alone.
        in_tuple: for each layer how many things it gives back; 0 where it is the tensor alone.
    """

    ids: Tensor
    values: list[Tensor]
    entering: list[Tensor]
    logits: Tensor
    in_tuple: list[int]

    def part(self, start: int, stop: int) -> "Recording":
        """The same of some prompts alone."""
        return Recording(
            self.ids[start:stop],
            [value[start:stop] for value in self.values],
            [value[start:stop] for value in self.entering],
            self.logits[start:stop],
            self.in_tuple,
        )

    def measured(self, metric: Metric) -> Tensor:
        """The metric of each prompt, `[prompt]`."""
        return measure(metric, self.logits)


def record(
    model: Any,
    ids: Tensor,
    site: Site,
    metric: Metric,
    embedded: Callable[[Tensor], Tensor] | None = None,
) -> Recording:
    """Run the prompts once, without gradients; `embedded` changes their embeddings on the way."""
    values: list[Tensor] = []
    entering: list[Tensor] = []
    in_tuple: list[int] = []
    with torch.no_grad(), model.trace(ids, **call_settings(model, metric)) as tracer:
        if embedded is not None:
            model.embed.output = embedded(model.embed.output)
        for number in range(model.dims.n_layers):
            layer = model.layers[number]
            entering.append(layer.resid_pre.clone())
            values.append(site.read(layer).clone())
            output = layer.output
            in_tuple.append(len(output) if isinstance(output, tuple) else 0)
        logits = logits_of(tracer.result)
    return Recording(ids, values, entering, logits, in_tuple)


def call_settings(model: Any, metric: Metric | None = None) -> dict[str, Any]:
    """No cache; and only the last position's logits, where the metric reads no others.

    Raises:
        UsageError: the model has an encoder and a decoder.
    """
    if getattr(getattr(model._module, "config", None), "is_encoder_decoder", False):
        raise UsageError(
            f"{type(model._module).__name__} has an encoder and a decoder.",
            "this method goes through one stack of layers, over one sequence of tokens.",
            "use a decoder or an encoder alone; a trace reads and patches both stacks.",
        )
    known = inspect.signature(type(model._module).forward).parameters
    wanted: dict[str, Any] = {"use_cache": False}
    if getattr(metric, "reads_last", False):
        wanted["logits_to_keep"] = 1
    return {name: value for name, value in wanted.items() if name in known}


def logits_of(result: Any) -> Tensor:
    """The logits of what a model returned, `[row, pos, d_vocab]`.

    Raises:
        UsageError: it returns none.
    """
    found: Any = getattr(result, "logits", None)
    if isinstance(found, Tensor):
        return found
    raise UsageError(
        f"this model returns {type(result).__name__}, which has no logits.",
        "a metric is a function of the logits.",
        "load it with its head: a class named …ForCausalLM or …ForMaskedLM.",
    )


def rows_max(stream: Tensor, logits: Tensor, layers: int = 1) -> int:
    """How many rows a pass may have: what a gigabyte holds, or a quarter of what a GPU has left.

    Args:
        stream: any value of the residual stream's shape, `[row, pos, d_model]`.
        logits: those of any rows.
        layers: how many layers are kept at once: all of them where gradients are wanted.
    """
    on_gpu = stream.device.type == "cuda"
    free = torch.cuda.mem_get_info(stream.device)[0] // 4 if on_gpu else BYTES_MAX
    floats = layers * WIDTHS * stream[0].numel() + 2 * logits[0].numel()
    return max(1, int(free // (stream.element_size() * floats)))
