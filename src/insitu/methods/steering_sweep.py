"""How far a direction steers: the metric under more and more of it, beside random ones as long.

steering_sweep(model, prompts, metric, vectors, layer=3).plot()
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from insitu.methods.axes import Axis
from insitu.methods.metrics import Metric, measure_copies, told
from insitu.methods.progress import progress
from insitu.methods.prompts import chosen, encoded
from insitu.methods.result import Result
from insitu.methods.steering import SOURCE, direction
from insitu.models.language import LanguageModel

ROWS = 64
"""Rows of a pass, about."""
CONTROLS = 3
"""Random directions that a direction is compared with."""


@torch.no_grad()
def steering_sweep(
    model: LanguageModel, prompts: Any, metric: Metric, vector: Tensor | Result, *, layer: int,
    coefficients: Sequence[float] = (-2, -1, 0, 1, 2),
) -> Result:  # fmt: skip
    """The metric under more and more of a direction, and of three random ones as long.

        steering_sweep(model, prompts, metric, vectors, layer=3, coefficients=(0, 1, 2, 4))

    Args:
        model, vector, layer: as for `steer`; the direction is added at all positions.
        prompts: one or several.
        metric: of logits `[row, pos, d_vocab]`, one number for each row.
        coefficients: how much of the direction.

    Returns:
        In the metric's unit, mean over prompts, `[direction, coefficient]`; directions are
        "steered", "random 1", "random 2" and "random 3".
        `further["each"]` has every prompt's.

    Raises:
        UsageError, MetricError: as for `steer`, and as for any metric.
    """
    number = chosen(layer, model.dims.n_layers, "layer")[0]
    pushes = _with_controls(direction(model, vector, number))
    batch = encoded(model, prompts)
    count = len(batch["input_ids"])
    steps = torch.tensor([float(c) for c in coefficients]).to(pushes)
    added = (pushes[:, None] * steps[:, None]).flatten(0, 1)  # [direction * coefficient, d_model]
    found = []
    for part in progress(torch.split(added, max(1, ROWS // count)), "steering"):
        repeated = {name: value.repeat(len(part), 1) for name, value in batch.items()}
        with model.trace(repeated):
            model.layers[number].resid_post[:] += part.repeat_interleave(count, 0)[:, None]
            found.append(measure_copies(metric, model.output.logits, count).float().cpu())
    each = torch.cat(found).reshape(len(pushes), len(steps), count)
    names = ("steered", *(f"random {i + 1}" for i in range(CONTROLS)))
    axes = (Axis("direction", names), Axis("coefficient", steps.tolist()))
    quantity, unit = told(metric)
    words: dict[str, Any] = {
        "unit": unit,
        "title": f"Steering after layer {number}",
        "source": SOURCE,
    }
    by_prompt = Result(each, (*axes, Axis("prompt", range(count))), quantity, **words)
    return Result(each.mean(-1), axes, quantity, further={"each": by_prompt}, **words)


def _with_controls(push: Tensor) -> Tensor:
    """The direction, and random ones of its length: `[1 + control, d_model]`."""
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(CONTROLS, len(push), generator=draw).to(push)
    return torch.cat([push[None], noise / noise.norm(dim=-1, keepdim=True) * push.norm()])
