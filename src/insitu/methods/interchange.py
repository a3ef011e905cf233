"""Does a place in the model hold a variable of a high-level model? Swap it, and see what follows.

city = interchange(
    model,
    bases=["The Eiffel Tower is in the city of", "The Trevi Fountain is in the city of"],
    sources=["The Space Needle is in the city of", "The French Quarter is in the city of"],
    expected=[" Seattle", " New"],              # what the high-level model says after the swap
)
city.max()                                      # 1: there the swap does what it should
"""

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from torch import Tensor

from insitu.errors import InputError, UsageError
from insitu.methods.axes import Axis
from insitu.methods.metrics import Metric, Token
from insitu.methods.prompts import aligned, chosen, shared_labels, token_id
from insitu.methods.result import Result
from insitu.methods.sites import Positions, patterns, site_of
from insitu.methods.sweep import Cells, Swap, Sweep, Sweeping
from insitu.models.language import LanguageModel

SOURCE = "Geiger, Lu, Icard & Potts, Causal Abstractions of Neural Networks (2021)"


class Swapping(Sweeping, total=False):
    """Settings of interchange interventions.

    Attributes:
        positions: each position by itself, all at once, or some, each by itself.
        subspace: swap this part of the value alone: directions as columns, `[width, direction]`,
            for all layers or `{layer: directions}`; they are made orthonormal.
        among: the tokens that are answers at all; the whole vocabulary by default.
    """

    positions: Positions
    subspace: Tensor | dict[int, Tensor] | None
    among: Sequence[Token] | None


def interchange(
    model: LanguageModel,
    bases: Sequence[str],
    sources: Sequence[str],
    expected: Sequence[Token] | Callable[[str, str], Token],
    of: str = "resid_post",
    **settings: Unpack[Swapping],
) -> Result:
    """Run each base with a place's value from its source: how often the answer is as expected.

        interchange(model, bases, sources, lambda base, source: city_of(source))
        interchange(model, bases, sources, expected, of="mlp", positions=[-1], subspace=directions)

    A subspace, as distributed alignment search finds it, is swapped alone: the base keeps what it
    has beside it.

    Args:
        model: one with standard names.
        bases, sources: as many of each, all of one number of tokens.
        expected: what the high-level model answers when its variable is taken from the source: one
            token for each pair, or a function of base and source that gives it.
        of: `resid_pre resid_mid resid_post attention mlp heads q k v`.
        **settings: `positions="each" subspace=None among=None layers=None batch_size=None`.

    Returns:
        Interchange intervention accuracy, 0 to 1, `[layer, pos]`; with heads as for
        `activation_patching`. `info["unchanged"]` is the accuracy without any swap.

    Raises:
        InputError: the prompts differ in number or in tokens, or an answer is not one token.
        UsageError: there is no such place or layer, or the directions do not fit it.

    Source: Geiger et al. (2021); Geiger, Wu, Potts, Icard & Goodman, Finding Alignments Between
    Interpretable Causal Variables and Distributed Neural Representations (2023), for subspaces.
    """
    site = site_of(of)
    ids = aligned(model, list(bases), list(sources))
    answers = answers_of(model, bases, sources, expected)
    layers = chosen(settings.get("layers"), model.dims.n_layers, "layer")
    masks, axes = patterns(model, site, settings.get("positions"), shared_labels(model, ids[0]))
    metric = is_answer(answers, [token_id(model, token) for token in settings.get("among") or ()])
    sweep = Sweep(model, site, metric, settings.get("batch_size"), "interchanging")
    both = sweep.record(torch.cat(ids))
    base, source = both.part(0, len(bases)), both.part(len(bases), len(both.ids))
    swap = of_subspace(settings.get("subspace"), layers, source.values[0].shape[-1])
    cells = Cells.each([range(layer, layer + 1) for layer in layers], masks)
    found = sweep.run(base, source, cells, swap).mean(1)
    axes = [Axis("layer", layers), *axes]
    unchanged = float(sweep.measured(base.logits, len(bases)).mean())
    return Result(
        found.reshape([len(axis) for axis in axes]), tuple(axes),
        "interchange intervention accuracy", "", f"Interchange: {site.name}", SOURCE, (0, 1),
        info=sweep.cost.told(unchanged=unchanged, pairs=len(bases)),
    )  # fmt: skip


def is_answer(answers: Tensor, among: Sequence[int]) -> Metric:
    """Whether the most likely token is the expected one, 1 or 0 for each row."""

    def right(logits: Tensor) -> Tensor:
        last = logits[:, -1]
        if among:
            kept = torch.full_like(last, -torch.inf)
            kept[:, among] = last[:, among]
            last = kept
        wanted = answers.to(last.device).repeat(len(last) // len(answers))
        return (last.argmax(-1) == wanted).float()

    right.__dict__.update(quantity="accuracy", reads_last=True)
    return right


def answers_of(
    model: LanguageModel,
    bases: Sequence[str],
    sources: Sequence[str],
    expected: Sequence[Token] | Callable[[str, str], Token],
) -> Tensor:
    """The expected token of each pair, `[pair]`.

    Raises:
        InputError: there are not as many as pairs, or one is not one token.
    """
    given = list(map(expected, bases, sources)) if callable(expected) else list(expected)
    if len(given) != len(bases):
        raise InputError(
            f"{len(given)} answers are expected of {len(bases)} pairs.",
            "the high-level model says one for each base with its source.",
            "give one token for each pair, or a function of base and source.",
        )
    return torch.tensor([token_id(model, token) for token in given])


def of_subspace(
    subspace: Tensor | dict[int, Tensor] | None, layers: Sequence[int], width: int
) -> Swap | None:
    """Swaps the part of a value that lies in some directions.

    Raises:
        UsageError: they are not columns of the value's width, or a layer has none.
    """
    if subspace is None:
        return None
    given = dict.fromkeys(layers, subspace) if isinstance(subspace, Tensor) else subspace
    for layer in layers:
        found = given.get(layer)
        if found is None or found.dim() != 2 or found.shape[0] != width:
            shape = "none" if found is None else f"shape {list(found.shape)}"
            raise UsageError(
                f"the subspace of layer {layer} has {shape}.",
                f"values there have width {width}, and each direction is one column.",
                f"give a tensor [{width}, number of directions], or one for each layer.",
            )
    bases = {layer: torch.linalg.qr(given[layer].detach().float())[0] for layer in layers}

    def swap(there: Tensor, source: Tensor, layer: int) -> Tensor:
        basis = bases[layer].to(there)
        new: Tensor = there + (source - there) @ basis @ basis.T
        return new

    return swap
