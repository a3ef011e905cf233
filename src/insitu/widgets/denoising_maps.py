"""Where the words of a prompt are looked at while an image is drawn.

places, tokens = words(model, "a red circle")       # of the prompt, without its marks
crossed = crossings(model)                          # cross-attentions, in the order they run
why_none(model, "a red circle", crossed)            # what to say where there are none
attended(read, images, latents, places, 16)         # [token, height, width]
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_DENOISERS = ("unet", "transformer", "prior")
_ORDER = ("down", "mid", "up")
"""The parts of a U-Net, in the order they run."""


def words(model: Any, prompt: Any) -> tuple[list[int], list[str]]:
    """The places and texts of a prompt's tokens, without those that mark its ends."""
    tokenizer = getattr(model.pipeline, "tokenizer", None)
    if tokenizer is None or not isinstance(prompt, str):
        return [], []
    ids = tokenizer(prompt, truncation=True)["input_ids"]
    special = set(tokenizer.all_special_ids)
    places = [place for place, number in enumerate(ids) if number not in special]
    return places, [tokenizer.decode([ids[place]]) for place in places]


def crossings(model: Any) -> list[Any]:
    """The wrapped cross-attentions of a U-Net, in the order they run; none of other denoisers."""
    found = []
    for name, module in getattr(model, "unet", model)._module.named_modules():
        is_crossing = name.endswith(".attn2") and hasattr(module, "to_k")
        if is_crossing and name.startswith(_ORDER):
            part = next(place for place, it in enumerate(_ORDER) if name.startswith(it))
            found.append((part, name))
    found.sort(key=lambda it: it[0])  # within a part they run as they are named
    return [model.unet._at_path(name) for _, name in found]


def unread(model: Any, prompt: Any) -> int:
    """How many tokens at the end of a prompt are too many for the pipeline's tokenizer."""
    tokenizer = getattr(model.pipeline, "tokenizer", None)
    if tokenizer is None or not isinstance(prompt, str):
        return 0
    whole, read = (
        len(tokenizer(prompt, truncation=cuts, verbose=False)["input_ids"])
        for cuts in (False, True)
    )
    return whole - read


def why_none(model: Any, prompt: Any, crossed: Sequence[Any]) -> str:
    """Why an image has no maps of its prompt's words, in a sentence; empty where it has."""
    if getattr(model.pipeline, "tokenizer", None) is None or not isinstance(prompt, str):
        return "No attention maps: what is drawn here is not told in words."
    if crossed:
        return ""
    denoiser = next(
        (it for name in _DENOISERS if (it := getattr(model.pipeline, name, None)) is not None), None
    )
    named = "this denoiser" if denoiser is None else type(denoiser).__name__
    return (
        f"No attention maps: they are read of the cross-attention of U-Nets, and {named} is none."
    )


def attended(
    read: list[tuple[Any, Tensor, Tensor]], images: int, latents: torch.Size, places: list[int],
    side: int,
) -> Tensor:  # fmt: skip
    """How much each place of the first image attends to some tokens, `[token, height, width]`.

    Args:
        read: attentions with their queries and keys, `[row, place, d]`. With guidance the rows with
            the prompt are the last.
        images: how many there are.
        latents: their shape.
        places: of the tokens.
        side: the larger side of the maps.
    """
    ratio = latents[-2] / latents[-1]
    size = (
        (side, max(round(side / ratio), 1)) if ratio >= 1 else (max(round(side * ratio), 1), side)
    )
    maps = []
    for module, queries, keys in read:
        row = max(len(queries) - images, 0)
        split = [
            it[row].view(len(it[row]), module.heads, -1).transpose(0, 1) for it in (queries, keys)
        ]
        query, key = (it.float() for it in split)
        chances = (query @ key.transpose(-1, -2) * module.scale).softmax(-1).mean(0)
        high = max(round(math.sqrt(len(chances) * ratio)), 1)
        if len(chances) % high:
            continue
        map_ = chances[:, places].T.reshape(len(places), high, -1)
        maps.append(functional.interpolate(map_[None], size, mode="bilinear")[0])
    return torch.stack(maps).mean(0).cpu() if maps else torch.zeros(len(places), *size)
