"""Which activations carry the difference between two prompts: put the one's into the other.

effects = activation_patching(
    model,
    "When Mary and John went to the store, John gave a drink to",
    "When Mary and John went to the store, Mary gave a drink to",
    logit_difference(model, " Mary", " John"),
)
effects.max()                           # 1 is the clean prompt's metric, 0 the corrupted one's
"""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from insitu.errors import MetricError
from insitu.methods.axes import Axis
from insitu.methods.metrics import Metric, told
from insitu.methods.prompts import Prompt, aligned, chosen, shared_labels
from insitu.methods.result import Result
from insitu.methods.sites import Positions, patterns, site_of
from insitu.methods.sweep import Cells, Sweep, Sweeping
from insitu.models.language import LanguageModel

SOURCE = "Zhang & Nanda, Towards Best Practices of Activation Patching in Language Models (2023)"


class Patched(Sweeping, total=False):
    """What of all is patched, and how.

    Attributes:
        heads: which heads, all by default.
    """

    heads: Sequence[int] | None


def activation_patching(
    model: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    metric: Metric,
    of: str = "resid_pre",
    positions: Positions = None,
    **sweeping: Unpack[Patched],
) -> Result:
    """Run the corrupted prompt with one activation of the clean one, for every activation.

        pair = (model, "The Eiffel Tower is in the city of", "The Trevi Fountain is in the city of")
        metric = logit_difference(model, " Paris", " Rome")
        activation_patching(*pair, metric)                          # layer × pos
        activation_patching(*pair, metric, of="heads")              # layer × head
        activation_patching(*pair, metric, of="heads", positions="each")    # layer × pos × head
        activation_patching(*pair, metric, of="heads", heads=[2], layers=[4])    # one patch
        activation_patching(*pair, metric, of="mlp", layers=[3, 4]).plot()

    Args:
        model: one with standard names.
        clean, corrupt: a prompt each, or as many on each side; all of one number of tokens.
        metric: of logits `[row, pos, d_vocab]`, one number for each row.
        of: `resid_pre resid_mid resid_post attention mlp heads q k v`.
        positions: `"each"` position by itself, `"all"` at once, or some, each by itself; where
            there are heads it is "all" by default, else "each".
        **sweeping: `layers=[…]` and `heads=[…]` for some alone, `batch_size=` rows in a pass.

    Returns:
        The share of the metric restored, `[layer, pos]`, `[layer, head]` or `[layer, pos, head]`:
        0 is the corrupted prompts' mean, 1 the clean ones'. `further["metric"]` has the metric
        itself, in its unit; `info` how many passes, rows and seconds it took.

    Raises:
        InputError: the prompts differ in their number of tokens.
        MetricError: it gives not one number a row, or the same for both sides.
        UsageError: there is no such place, layer, head or position.
    """
    site = site_of(of)
    ids = aligned(model, clean, corrupt)
    layers = chosen(sweeping.get("layers"), model.dims.n_layers, "layer")
    labels = shared_labels(model, ids[0])
    masks, axes = patterns(model, site, positions, labels, sweeping.get("heads"))
    sweep = Sweep(model, site, metric, sweeping.get("batch_size"))
    both = sweep.record(torch.cat(ids))
    source, base = both.part(0, len(ids[0])), both.part(len(ids[0]), len(both.ids))
    best, worst = (float(sweep.measured(it.logits, len(it.ids)).mean()) for it in (source, base))
    check_apart(best, worst)
    cells = Cells.each([range(layer, layer + 1) for layer in layers], masks)
    axes = [Axis("layer", layers), *axes]
    found = sweep.run(base, source, cells).mean(1).reshape([len(axis) for axis in axes])
    return restored(found, (best, worst), axes, sweep, SOURCE)


def restored(
    found: Tensor, ends: tuple[float, float], axes: Sequence[Axis], sweep: Sweep, source: str
) -> Result:
    """A result of the share of a metric that patches restore, between its clean and worst value."""
    best, worst = ends
    quantity, unit = told(sweep.metric)
    title = f"Activation patching: {sweep.site.name}"
    return Result(
        (found - worst) / (best - worst), tuple(axes), "share restored", "", title, source,
        further={"metric": Result(found, tuple(axes), quantity, unit, title, source)},
        info=sweep.cost.told(clean=best, corrupt=worst),
    )  # fmt: skip


def check_apart(best: float, worst: float) -> None:
    """Raise if there is nothing between the two that a patch could restore.

    Raises:
        MetricError: they are the same.
    """
    if abs(best - worst) < 1e-6:
        raise MetricError(
            f"the metric is {best:.4g} for the clean prompts and for the corrupted ones.",
            "a patch restores a share of the difference, and there is none.",
            "give prompts that the metric tells apart, or another metric.",
        )
