"""What is put in the place of a part: nothing, a mean, or what it was in another prompt.

values = replacement(model, batch, site_of("heads"), "mean", reference)     # of every layer
"""

from typing import Any

import torch
from torch import Tensor

from insitu.errors import InputError, UsageError
from insitu.methods.prompts import encoded, tokens, uneven
from insitu.methods.sites import Site
from insitu.models.language import LanguageModel

HOWS = ("zero", "mean", "resample")


def replacement(
    model: LanguageModel, batch: dict[str, Any], site: Site, how: str, reference: Any
) -> list[Tensor]:
    """What is put at the site of each layer, for every row and position: `[prompt, pos, …]`.

    Args:
        model: a language model with standard names.
        batch: ids and mask of the prompts that are changed.
        site: where.
        how: `"zero"`; `"mean"` over the reference's tokens; or `"resample"`, what the next prompt
            of the reference has at the same position.
        reference: prompts; those that are changed for None.

    Raises:
        InputError: prompts to resample from have other lengths, or there is none.
    """
    count, length = batch["input_ids"].shape
    other = batch if reference is None else encoded(model, reference)
    rows = torch.arange(count)
    if how == "resample":
        ids, _ = tokens(model, other)
        if ids.shape[1] != length:
            raise uneven([length, ids.shape[1]])
        rows = _others(count, len(ids), is_same=reference is None)
    with torch.no_grad(), model.trace(other):
        found = [site.read(layer).clone() for layer in model.layers]
    if how == "resample":
        return [value[rows] for value in found]
    mask = other.get("attention_mask", torch.ones_like(other["input_ids"])).bool()
    one = [value[mask].mean(0) * (how == "mean") for value in found]
    return [value.expand(count, length, *value.shape) for value in one]


def check_how(how: str) -> None:
    """Whether that can be put there.

    Raises:
        UsageError: it cannot.
    """
    if how not in HOWS:
        raise UsageError(
            f"how={how!r} is nothing that can be put in a part's place.",
            f"a part is replaced by one of {', '.join(map(repr, HOWS))}.",
            "give one of them.",
        )


def _others(count: int, known: int, *, is_same: bool) -> Tensor:
    """For each prompt the number of the one that it is given the values of, never its own."""
    if is_same and count < 2:
        raise InputError(
            "one prompt cannot be resampled.",
            "each gets the values of another, and there is none.",
            "give several prompts of as many tokens, or others as reference=[…].",
        )
    return (torch.arange(count) + is_same) % known
