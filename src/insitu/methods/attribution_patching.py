"""What patching every activation would do, to first order, from two forwards and one backward.

effects = attribution_patching(
    model,
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    logit_difference(model, " Mary", " John"),
    of="heads",
)
effects.top(3, absolute=True)           # then check those with activation_patching
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from insitu.methods.activation_patching import check_apart
from insitu.methods.axes import Axis
from insitu.methods.metrics import Metric, measure, told
from insitu.methods.prompts import Prompt, aligned, shared_labels
from insitu.methods.recording import Cost, call_settings, logits_of, record
from insitu.methods.result import Result
from insitu.methods.sites import Positions, Site, patterns, site_of
from insitu.models.language import LanguageModel

SOURCE = "Nanda, Attribution Patching: Activation Patching At Industrial Scale (2023)"


def attribution_patching(
    model: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    metric: Metric,
    of: str = "resid_pre",
    positions: Positions = None,
) -> Result:
    """Estimate `activation_patching` of every place at once: (clean − corrupted) · gradient.

        attribution_patching(model, clean, corrupt, metric)                 # layer × pos
        attribution_patching(model, clean, corrupt, metric, of="heads")     # layer × head

    It is good where the model is nearly linear between the two runs, as for single heads, and
    poor for whole residual streams early on, which pass through norms and saturated softmaxes.

    Args:
        model, clean, corrupt, metric, of, positions: as for `activation_patching`.

    Returns:
        The estimated share of the metric restored, with `activation_patching`'s axes;
        `further["metric"]` the estimated change of the metric, in its unit.

    Raises:
        InputError: the prompts differ in their number of tokens.
        MetricError: it gives not one number a row, or the same for both sides.
        UsageError: there is no such place or position.

    Source: Nanda (2023); Syed, Rager & Conmy, Attribution Patching Outperforms Automated Circuit
    Discovery (2023).
    """
    site = site_of(of)
    ids = aligned(model, clean, corrupt)
    masks, axes = patterns(model, site, positions, shared_labels(model, ids[0]))
    cost = Cost()
    source = record(model, ids[0], site, metric)
    values, numbers = with_gradients(model, ids[1], site, metric)
    best, worst = float(source.measured(metric).mean()), float(numbers.detach().mean())
    check_apart(best, worst)
    gradients = torch.autograd.grad(numbers, values, torch.ones_like(numbers))
    cost.note(len(ids[0]))
    cost.note(len(ids[1]))
    each = torch.stack(
        [
            ((clean_value - value) * gradient).sum(-1).mean(0)
            for clean_value, value, gradient in zip(source.values, values, gradients, strict=True)
        ]
    )  # [layer, pos(, head)]
    found = (each.unsqueeze(1) * masks.to(each.device)).flatten(2).sum(-1).detach()
    axes = [Axis("layer", range(model.dims.n_layers)), *axes]
    found = found.reshape([len(axis) for axis in axes])
    quantity, unit = told(metric)
    title, change = f"Attribution patching: {site.name}", f"change of {quantity}"
    return Result(
        found / (best - worst), tuple(axes), "share restored, estimated", "", title, SOURCE,
        further={"metric": Result(found, tuple(axes), change, unit, title, SOURCE)},
        info=cost.told(backwards=1, clean=best, corrupt=worst),
    )  # fmt: skip


def with_gradients(
    model: LanguageModel, ids: Tensor, site: Site, metric: Metric
) -> tuple[Sequence[Tensor], Tensor]:
    """The site's value in every layer, from which gradients can be had, and each row's metric.

    The graph begins at the embeddings, so it is there even if no parameter requires gradients.
    Copies are written back: a view of what the model goes on with would not lie on its way.
    """
    values = []
    with torch.enable_grad(), model.trace(ids, **call_settings(model, metric)) as tracer:
        model.embed.output = model.embed.output.detach().requires_grad_()
        for number in range(model.dims.n_layers):
            value = site.read(model.layers[number]).clone()
            site.write(model.layers[number], value)
            values.append(value)
        logits = logits_of(tracer.result)
    with torch.enable_grad():
        return values, measure(metric, logits)
