"""Where a fact is kept: hide its subject in noise, then give single states back.

trace = causal_tracing(
    model, "The Eiffel Tower is in the city of", "The Eiffel Tower", probability(model, " Paris")
)
trace.plot()                    # the last token of the subject, early; the last of all, late
"""

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor

from insitu.errors import InputError
from insitu.methods.axes import Axis
from insitu.methods.metrics import Metric, told
from insitu.methods.prompts import chosen, tokens
from insitu.methods.result import Result
from insitu.methods.sites import patterns, site_of
from insitu.methods.sweep import Cells, Sweep, Sweeping, window
from insitu.models.language import LanguageModel

SOURCE = "Meng, Bau, Andonian & Belinkov, Locating and Editing Factual Associations in GPT (2022)"


class Tracing(Sweeping, total=False):
    """Settings of causal tracing.

    Attributes:
        window: how many layers around each are restored at once (1; the paper takes 10 of 48
            for `mlp` and `attention`).
        noise: standard deviations of the noise, in those of the embedding (3).
        runs: how many draws of the noise the effect is averaged over (10).
        seed: of the noise (0).
    """

    window: int
    noise: float
    runs: int
    seed: int


def causal_tracing(
    model: LanguageModel,
    prompt: str,
    subject: str | Sequence[int],
    metric: Metric,
    of: str = "resid_post",
    **settings: Unpack[Tracing],
) -> Result:
    """Corrupt the subject's embeddings, restore one state of the clean run, for every state.

        paris = probability(model, " Paris")
        causal_tracing(model, "The Eiffel Tower is in the city of", "Eiffel Tower", paris)
        causal_tracing(model, prompt, [1, 2], paris, of="mlp", window=3, runs=20)

    All draws of the noise are rows of the same passes, and the same for every state.

    Args:
        model: one with standard names.
        prompt: one prompt.
        subject: the words that are hidden, or their positions.
        metric: of logits `[row, pos, d_vocab]`, one number for each row.
        of: the states: `resid_pre resid_mid resid_post attention mlp heads q k v`.
        **settings: `window=1 noise=3.0 runs=10 seed=0`, and `layers=`, `batch_size=`.

    Returns:
        The indirect effect, restored minus corrupted, in the metric's unit, `[layer, pos]`; with
        heads `[layer, pos, head]`. `info` has the metric's clean and mean corrupted value.

    Raises:
        InputError: the subject is not in the prompt.
        UsageError: there is no such place or layer.

    Source: Meng et al. (2022), section 2.
    """
    site = site_of(of)
    ids, labels = tokens(model, prompt)
    at = positions_of(model, prompt, subject, len(labels))
    layers = chosen(settings.get("layers"), model.dims.n_layers, "layer")
    masks, axes = patterns(model, site, "each", labels)
    sweep = Sweep(model, site, metric, settings.get("batch_size"), "tracing")
    clean = sweep.record(ids)
    noise = noises(model, settings, at, len(labels))
    hidden = sweep.record(ids.repeat(len(noise), 1), lambda embedded: embedded + noise)
    best = float(sweep.measured(clean.logits, 1).mean())
    worst = float(sweep.measured(hidden.logits, len(noise)).mean())
    around = [window(layer, settings.get("window", 1), model.dims.n_layers) for layer in layers]
    found = sweep.run(hidden, clean, Cells.each(around, masks)).mean(1)
    axes = [Axis("layer", layers), *axes]
    quantity, unit = told(metric)
    return Result(
        found.reshape([len(axis) for axis in axes]) - worst, tuple(axes),
        f"{quantity}, restored minus corrupted", unit, f"Causal tracing: {site.name}", SOURCE,
        info=sweep.cost.told(clean=best, corrupt=worst),
    )  # fmt: skip


def positions_of(
    model: LanguageModel, prompt: str, subject: str | Sequence[int], length: int
) -> list[int]:
    """The positions of some words of a prompt.

    Raises:
        InputError: they are not in it.
    """
    if not isinstance(subject, str):
        return chosen(subject, length, "position")
    start = prompt.find(subject)
    if start < 0 or not subject:
        raise InputError(
            f"the subject {subject!r} is not in the prompt.",
            f"its embeddings are to be hidden, and the prompt is {prompt!r}.",
            "give words as they stand in the prompt, or the positions of their tokens.",
        )
    spans = model.tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    stop = start + len(subject)
    return [at for at, (begin, end) in enumerate(spans) if begin < stop and end > start]


def noises(model: Any, settings: Tracing, at: Sequence[int], length: int) -> Tensor:
    """Noise for the subject's embeddings in every run, zero elsewhere, `[run, pos, d_model]`."""
    weight = model.embed._module.weight.detach()
    generator = torch.Generator().manual_seed(settings.get("seed", 0))
    runs, scale = settings.get("runs", 10), settings.get("noise", 3.0) * float(weight.std())
    noise = torch.zeros(runs, length, weight.shape[1])
    noise[:, at] = scale * torch.randn(runs, len(at), weight.shape[1], generator=generator)
    return noise.to(weight)
