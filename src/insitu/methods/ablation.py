"""Ablation: take one part after another out of the run, and see what that does to the metric.

metric = logit_difference(model, " Paris", " Rome")
ablation(model, "The Eiffel Tower is in the city of", metric).plot()        # every head, zeroed
ablation(model, prompts, metric, of="mlp", how="mean", reference=texts).max(absolute=True)
"""

from typing import Any

import torch
from torch import Tensor

from insitu.methods.axes import Axis
from insitu.methods.metrics import Metric, measure_copies, told
from insitu.methods.progress import progress
from insitu.methods.prompts import encoded, labels_of, tokens
from insitu.methods.replacement import check_how, replacement
from insitu.methods.result import Result
from insitu.methods.sites import Site, site_of
from insitu.models.language import LanguageModel

ROWS = 64
"""Rows of a pass, about."""
ALL = slice(None)
SOURCE = (
    'zero and mean: Wang et al., "Interpretability in the Wild" (2022); resample: Chan et al., '
    '"Causal Scrubbing" (2022)'
)


@torch.no_grad()
def ablation(
    model: LanguageModel, prompts: Any, metric: Metric, *, of: str = "heads", how: str = "zero",
    reference: Any = None,
) -> Result:  # fmt: skip
    """By how much the metric changes when a part is taken out, for every part; rows of few passes.

        ablation(model, prompt, logit_difference(model, " Paris", " Rome"), of="heads")

    Args:
        model: a language model with standard names.
        prompts: one prompt or several; positions are those of the first.
        metric: of logits `[row, pos, d_vocab]`, one number for each row.
        of: one head at a time, at all positions: `"heads"`, `"q"`, `"k"`, `"v"`; what a layer's
            `"attention"` or `"mlp"` adds, at all positions; or the stream, one position at a time:
            `"resid_pre"`, `"resid_mid"`, `"resid_post"`.
        how: put zero there; `"mean"`, that of the reference over rows and positions; or
            `"resample"`, what the next prompt of the reference has at the same position.
        reference: prompts for mean and resample; the prompts themselves by default.

    Returns:
        The metric after minus before, in its unit, mean over the prompts: `[layer, head]`,
        `[layer]` or `[layer, pos]`. `further["each"]` has every prompt's.

    Raises:
        UsageError: another `of` or `how`.
        InputError: prompts differ in their tokens where positions must agree, or there is no other
            prompt to resample from.
        MetricError: the metric does not give a number for each row.
    """
    site, by_pos = site_of(of), of.startswith("resid")
    check_how(how)
    aligned = by_pos or how == "resample"
    batch = {"input_ids": tokens(model, prompts)[0]} if aligned else encoded(model, prompts)
    values = replacement(model, batch, site, how, reference)
    axes = [Axis("layer", range(len(values)))]
    if "head" in site.axes:
        axes.append(Axis("head", range(values[0].shape[2])))
    elif by_pos:
        axes.append(Axis("pos", labels_of(model, batch["input_ids"][0])))
    inner = range(len(axes[1]) if len(axes) > 1 else 1)
    before = (ALL,) if by_pos else (ALL, ALL)  # what stands before the place in a site's value
    places = [(*before, place) if len(axes) > 1 else (ALL,) for place in inner]
    targets = [(layer, place) for layer in range(len(values)) for place in places]
    found = _sweep(model, batch, metric, (site, targets), values)
    change = (found[1:] - found[0]).float().cpu().reshape(*map(len, axes), -1)
    quantity, unit = told(metric)
    words: dict[str, Any] = {"unit": unit, "title": f"Ablation ({how}) of {of}", "source": SOURCE}
    prompt = Axis("prompt", range(change.shape[-1]))
    return Result(
        change.mean(-1), tuple(axes), f"change in {quantity}", **words,
        further={"each": Result(change, (*axes, prompt), f"change in {quantity}", **words)},
        info={"metric before": float(found[0].mean()), "rows": found.numel()},
    )  # fmt: skip


def _sweep(
    model: LanguageModel, batch: dict[str, Any], metric: Metric, where: tuple[Site, list[Any]],
    values: list[Tensor],
) -> Tensor:  # fmt: skip
    """The metric without any change, then with each target replaced: `[1 + target, prompt]`."""
    site, targets = where
    count = len(batch["input_ids"])
    copies = [None, *targets]
    size = max(1, ROWS // count)
    found = []
    for start in progress(range(0, len(copies), size), "ablating"):
        chunk = copies[start : start + size]
        repeated = {name: value.repeat(len(chunk), 1) for name, value in batch.items()}
        with model.trace(repeated):
            for layer in sorted({target[0] for target in chunk if target}):
                now = site.read(model.layers[layer])
                for number, target in enumerate(chunk):
                    if target and target[0] == layer:
                        rows = now[number * count : (number + 1) * count]
                        rows[target[1]] = values[layer][target[1]]
            found.append(measure_copies(metric, model.output.logits, count))
    return torch.cat(found)
