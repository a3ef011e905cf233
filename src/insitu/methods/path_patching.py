"""Which heads speak to which: patch one path from a sender to a receiver, and no other.

to_logits = path_patching(model, clean, corrupt, metric)                    # layer × head
to_queries = path_patching(model, clean, corrupt, metric, to=[(4, 1), (5, 0)], by="q")
to_queries.plot()
"""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

import torch

from insitu.errors import UsageError
from insitu.methods.activation_patching import check_apart
from insitu.methods.axes import Axis
from insitu.methods.metrics import Metric, measure_copies, told
from insitu.methods.paths import Patch, Paths, hold, patched
from insitu.methods.progress import progress
from insitu.methods.prompts import Prompt, aligned, chosen
from insitu.methods.recording import Cost, rows_max
from insitu.methods.result import Result
from insitu.models.language import LanguageModel

SOURCE = (
    "Wang et al., Interpretability in the Wild: a Circuit for Indirect Object Identification (2022)"
)
Receivers = Literal["logits"] | Sequence[tuple[int, int]]


def path_patching(
    model: LanguageModel,
    clean: Prompt,
    corrupt: Prompt,
    metric: Metric,
    to: Receivers = "logits",
    **settings: Unpack[Paths],
) -> Result:
    """Run the clean prompt with one direct path, from each sender, as in the corrupted one.

        path_patching(model, clean, corrupt, metric, of="mlp")              # layer
        path_patching(model, clean, corrupt, metric, to=[(5, 2)], by="v", positions=[-1])

    A sender's output is that of the corrupted run; every other head, and every MLP, is held as in
    the clean run, so that only what goes straight through the residual stream arrives. Receivers
    that are heads are then given what arrived there, all of them, in a clean run that goes on
    freely. All senders are rows of the same passes.

    Args:
        model: one with standard names.
        clean, corrupt: a prompt each, or as many on each side; all of one number of tokens.
        metric: of logits `[row, pos, d_vocab]`, one number for each row.
        to: `"logits"`, or the receiving heads as (layer, head); of `k` and `v` the key-value head.
        **settings: `of="heads" by="q" positions=None through_mlps=False batch_size=…`.

    Returns:
        The share of the way from the clean metric (0) to the corrupted one (1) that the path
        alone takes, `[layer, head]` or `[layer]`; a sender that is not before any receiver has 0.

    Raises:
        InputError: the prompts differ in their number of tokens.
        MetricError: it gives not one number a row, or the same for both sides.
        UsageError: there is no such head, layer or position.

    Source: Wang, Variengien, Conmy, Shlegeris & Steinhardt (2022); Goldowsky-Dill, MacLeod, Sato &
    Arora, Localizing Model Behavior with Path Patching (2023).
    """
    ids = aligned(model, clean, corrupt)
    receivers = receivers_of(model, to, settings)
    senders, axes = senders_of(model, settings)
    at = chosen(settings.get("positions"), ids[0].shape[1], "position")
    held = hold(model, torch.cat(ids), metric)
    best, worst = (
        float(measure_copies(metric, logits, len(ids[0])).mean()) for logits in held.logits.chunk(2)
    )
    check_apart(best, worst)
    cost = Cost()
    cost.note(2 * len(ids[0]))
    end = max(receivers, default=model.dims.n_layers)
    live = [n for n, (layer, _) in enumerate(senders) if layer < end]
    most = settings.get("batch_size") or rows_max(held.mlp[0], held.logits)
    size = max(1, most // len(ids[0]))
    found = torch.full((len(senders),), best)
    for start in progress(range(0, len(live), size), "patching paths"):
        chunk = live[start : start + size]
        patch = Patch(model, held, [senders[n] for n in chunk], at, settings)
        found[chunk] = patched(patch, receivers, ids[0], metric, cost).mean(1).to(found)
    found = found.reshape([len(axis) for axis in axes])
    quantity, unit = told(metric)
    title = "Path patching to " + ("the logits" if to == "logits" else ", ".join(map(str, to)))
    return Result(
        (found - best) / (worst - best), axes, "share of the way to the corrupted run", "",
        title, SOURCE,
        further={"metric": Result(found, axes, quantity, unit, title, SOURCE)},
        info=cost.told(clean=best, corrupt=worst),
    )  # fmt: skip


def senders_of(model: Any, settings: Paths) -> tuple[list[tuple[int, int]], tuple[Axis, ...]]:
    """Every sender as (layer, head), and their axes.

    Raises:
        UsageError: there is no such kind of sender.
    """
    of = settings.get("of", "heads")
    if of not in ("heads", "mlp"):
        raise UsageError(
            f"of={of!r} is no sender.",
            "what is sent along a path is the output of a head or of an MLP.",
            'write of="heads" or of="mlp".',
        )
    layers = Axis("layer", range(model.dims.n_layers))
    heads = Axis("head", range(model.dims.n_heads if of == "heads" else 1))
    each = [(layer, head) for layer in range(len(layers)) for head in range(len(heads))]
    return each, (layers, heads) if of == "heads" else (layers,)


def receivers_of(model: Any, to: Receivers, settings: Paths) -> dict[int, list[int]]:
    """For each layer the heads that receive; none for the logits.

    Raises:
        UsageError: there are no such heads.
    """
    if to == "logits":
        return {}
    by = settings.get("by", "q")
    pairs = [pair for pair in to if isinstance(pair, tuple) and len(pair) == 2]
    if by not in ("q", "k", "v") or isinstance(to, str) or not pairs or len(pairs) < len(to):
        raise UsageError(
            f"to={to!r} with by={by!r} names no receivers.",
            "they are the logits, or the queries, keys or values of heads.",
            'write to="logits", or to=[(layer, head), …] with by="q", "k" or "v".',
        )
    count = model.dims.n_heads if by == "q" else model.dims.n_kv_heads
    found: dict[int, list[int]] = {}
    for layer, head in pairs:
        number = chosen(layer, model.dims.n_layers, "layer")[0]
        found.setdefault(number, []).append(chosen(head, count, "head")[0])
    return found
