"""How much each token adds to a metric: its gradient, gathered on the way from a baseline.

shares = integrated_gradients(
    model, "The Eiffel Tower is in the city of", logit_difference(model, " Paris", " Rome")
)
shares.plot()                           # pos; they sum to metric(prompt) - metric(baseline)
"""

import warnings
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from insitu.errors import InputError, InsituWarning, UsageError
from insitu.methods.axes import Axis
from insitu.methods.metrics import Metric, measure, told
from insitu.methods.progress import progress
from insitu.methods.prompts import Prompt, aligned, chosen, labels_of
from insitu.methods.recording import Cost, call_settings, logits_of, rows_max
from insitu.methods.result import Result
from insitu.methods.sites import Site, site_of
from insitu.models.language import LanguageModel

SOURCE = "Sundararajan, Taly & Yan, Axiomatic Attribution for Deep Networks (2017)"
EMBED = Site("embed", "embed.output")
GAP_MAX = 0.05
"""The share of the difference that attributions may miss before a warning."""


class Integrating(TypedDict, total=False):
    """Settings of integrated gradients.

    Attributes:
        layer: of the site, 0 by default; the embeddings have none.
        steps: points between baseline and prompt (64), all rows of one pass.
        batch_size: how many of them a pass may have, all by default.
    """

    layer: int
    steps: int
    batch_size: int


def integrated_gradients(
    model: LanguageModel,
    prompt: Prompt,
    metric: Metric,
    baseline: Prompt | None = None,
    of: str = "embed",
    **settings: Unpack[Integrating],
) -> Result:
    """Attribute a metric to the positions of a prompt, from a baseline that stands for nothing.

        integrated_gradients(model, prompt, metric)                         # from zero embeddings
        integrated_gradients(model, prompt, metric, "The Trevi Fountain is in the city of")
        integrated_gradients(model, prompt, metric, of="heads", layer=0)    # pos × head

    The path is a straight line; the integral is taken by Gauss and Legendre's rule, whose points
    need fewer steps than equal ones.

    Args:
        model: one with standard names.
        prompt: one prompt.
        metric: of logits `[row, pos, d_vocab]`, one number for each row.
        baseline: a prompt of as many tokens, whose values at the site are the start; or zeros.
        of: `embed`, or a place in a layer: `resid_pre attention mlp heads …`.
        **settings: `layer=0 steps=64 batch_size=…`.

    Returns:
        The attributions in the metric's unit, `[pos]` or `[pos, head]`. `info` has the metric of
        the prompt and of the baseline, and `gap`, what their difference is not explained by.

    Raises:
        InputError: several prompts, or a baseline of another length.
        MetricError: it gives not one number a row.
        UsageError: there is no such place or layer.
    """
    site = EMBED if of == "embed" else site_of(of)
    ids = aligned(model, prompt, prompt if baseline is None else baseline)
    check_one(ids[0], settings)
    layer = chosen(settings.get("layer", 0), model.dims.n_layers, "layer")[0]
    owner = model if site is EMBED else model.layers[layer]
    cost = Cost()
    with torch.no_grad(), model.trace(torch.cat(ids), **call_settings(model, metric)) as tracer:
        end, start = site.read(owner).clone()
        logits = logits_of(tracer.result)
    cost.note(2)
    start = torch.zeros_like(end) if baseline is None else start
    points, weights = gauss_legendre(settings.get("steps", 64))
    size = settings.get("batch_size") or rows_max(end.flatten(1)[None], logits, model.dims.n_layers)
    numbers, gradient = [], torch.zeros_like(end)
    for at in progress(range(0, len(points), size), "integrating"):
        alphas = points[at : at + size].to(end).reshape(-1, *[1] * end.dim())
        rows = (start + alphas * (end - start)).requires_grad_()
        measured = of_rows(model, owner, site, rows, ids[0], metric)
        cost.note(len(rows))
        (slopes,) = torch.autograd.grad(measured, rows, torch.ones_like(measured))
        gradient += torch.tensordot(weights[at : at + size].to(end), slopes, 1)
        numbers.append(measured.detach())
    first, last = (float(number) for number in torch.cat(numbers)[:2])
    found = (gradient * (end - start)).sum(-1)
    heads = [Axis("head", range(count)) for count in found.shape[1:]]
    axes = (Axis("pos", labels_of(model, ids[0][0])), *heads)
    quantity, unit = told(metric)
    gap = last - first - float(found.sum())
    if abs(gap) > GAP_MAX * abs(last - first):
        warnings.warn(
            f"the attributions miss {gap:.3g} of {last - first:.3g}: the path is not smooth. Take "
            f"more steps than {len(points) - 2}, or a baseline other than zero, where norms jump.",
            InsituWarning, stacklevel=2,
        )  # fmt: skip
    return Result(
        found, axes, f"{quantity}, attributed", unit, f"Integrated gradients: {site.name}", SOURCE,
        info=cost.told(prompt=last, baseline=first, gap=gap),
    )  # fmt: skip


def of_rows(
    model: Any, owner: Any, site: Site, rows: Tensor, ids: Tensor, metric: Metric
) -> Tensor:
    """The metric of a prompt with each row's values at a site, with a graph, `[row]`."""
    settings = call_settings(model, metric)
    with torch.enable_grad(), model.trace(ids.repeat(len(rows), 1), **settings) as tracer:
        site.write(owner, rows)
        return measure(metric, logits_of(tracer.result))


def gauss_legendre(steps: int) -> tuple[Tensor, Tensor]:
    """Points from 0 to 1 and their weights; before them both ends, which weigh nothing.

    Source: Golub & Welsch, Calculation of Gauss Quadrature Rules (1969).
    """
    order = torch.arange(1, steps, dtype=torch.float64)
    beside = order / (4 * order**2 - 1).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return torch.cat([ends, (points + 1) / 2]), torch.cat([0 * ends, vectors[0] ** 2])


def check_one(ids: Tensor, settings: Integrating) -> None:
    """Raise if there are several prompts, or no steps."""
    if len(ids) > 1:
        raise InputError(
            f"integrated_gradients() was given {len(ids)} prompts.",
            "each has tokens of its own, and attributions belong to them.",
            "call it for one prompt at a time.",
        )
    if min(settings.get("steps", 1), settings.get("batch_size", 1)) < 1:
        raise UsageError(
            f"integrated_gradients() was given {settings}.",
            "the integral is a sum over points between baseline and prompt, some in each pass.",
            "give steps=1 or more (64 is usual), and batch_size=1 or more.",
        )
