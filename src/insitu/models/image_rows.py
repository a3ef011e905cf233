"""Images of several prompts in one pass: joined, and which of their rows belong to whom. Pure.

    images = joined_images(parts, rows)
    whose = apart(parts, ids, rows, about(module))
    whose.split(module.visual, (), patches)       # {0: Rows(0, 64, 96), 1: Rows(64, 32, 96)}

A language model's tensors have a row for each prompt. A vision tower's have one for each image, or
for each patch of all images, one below the other (Qwen2-VL), and its output one for each token that
images take in the prompts. Those three counts tell whose a row is.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from insitu.engine.batch import Path, Rows, Split, plan
from insitu.engine.values import describe
from insitu.errors import InputError
from insitu.models.padding import Batch

_OF_TEXT = frozenset({
    "input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "mm_token_type_ids",
    "position_ids", "labels", "cache_position", "cross_attention_mask",
})  # fmt: skip
_OF_TOKENS = ("image_hidden_states", "image_embeds")
"""What forwards call the tokens of images, in what they return."""
_PER_TOKEN = ("mm_token_type_ids", "token_type_ids")
"""Kinds of tokens, of which text alone has one: 0."""


@dataclass(frozen=True)
class Apart:
    """What a pass holds of the images of each prompt."""

    inputs: frozenset[str]
    modules: frozenset[Any]
    """Those that see images, not prompts."""
    by_name: Mapping[str, Split]
    """For a named input or output, by the first row of each prompt, its rows."""
    by_total: Mapping[int, Split]
    """The same for a tensor inside those modules, by how many rows it has."""
    sizes: frozenset[int] = frozenset({3, 4})
    """Positions of images may be [3 or 4, batch, pos]."""

    def split(self, key: Any, path: Path, tensor: torch.Tensor) -> Split | None:
        """What of a tensor is whose, empty where it is all theirs; None for prompts' rows."""
        for name in path:
            if isinstance(name, str) and name in self.by_name:
                return _fitting(self.by_name[name], tensor)
        if getattr(key, "_around", key) in self.modules:
            return self.by_total.get(int(tensor.shape[0]), {})
        return None


def text_and_images(batch: Batch) -> tuple[Batch, Batch]:
    """The part of a batch that has a row for each prompt, and that of its images."""
    of_images = {
        name: value
        for name, value in batch.items()
        if name not in _OF_TEXT and isinstance(value, torch.Tensor) and is_of_images(name)
    }
    return {name: value for name, value in batch.items() if name not in of_images}, of_images


def is_of_images(name: str) -> bool:
    """Whether an input of that name holds images, or tells of them."""
    return any(word in name for word in ("pixel", "image", "video", "patch", "spatial"))


def is_by_prompt(images: Batch) -> bool:
    """Whether images stand in rows of prompts, `[batch, image, …]` (Idefics, SmolVLM)."""
    mask = images.get("pixel_attention_mask")
    return isinstance(mask, torch.Tensor) and mask.dim() == 4


def with_token_types(batches: list[Batch]) -> list[Batch]:
    """The same prompts, those of text alone having kinds of tokens too, where others have them."""
    for name in _PER_TOKEN:
        if any(name in batch for batch in batches):
            batches = [
                batch if name in batch else {**batch, name: torch.zeros_like(batch["input_ids"])}
                for batch in batches
            ]
    return batches


def joined_images(parts: list[Batch], rows: Iterable[Rows]) -> Batch:
    """One set of image inputs of several, one below the other.

    Raises:
        InputError: their shapes differ.
    """
    names = list(dict.fromkeys(name for part in parts for name in part))
    if any(is_by_prompt(part) for part in parts):
        return {name: _by_prompt(name, parts, list(rows)) for name in names}
    return {name: _below(name, [part[name] for part in parts if name in part]) for name in names}


def apart(parts: list[Batch], ids: list[Any], rows: tuple[Rows, ...], about: "About") -> Apart:
    """Whose rows are where, for prompts with these images and token ids."""
    names = list(dict.fromkeys(name for part in parts for name in part))
    by_prompt = any(is_by_prompt(part) for part in parts)
    counts = {name: [_rows(part.get(name)) for part in parts] for name in names}
    tokens = [int((own == about.image_token).sum()) if own is not None else 0 for own in ids]
    splits = {name: _split(counts[name], rows) for name in names}
    if by_prompt:
        splits = {}
    by_total: dict[int, Split] = {}
    measures = [[_filled(part.get("pixel_values")) for part in parts], tokens]
    if not any("grid" in name for name in names):  # a tower given a grid has no row per image
        measures.append(counts.get("pixel_values", [0] * len(parts)))
    for measured in measures:
        if sum(measured) and sum(measured) not in by_total:
            by_total[sum(measured)] = _split(measured, rows)
    for name in _OF_TOKENS:
        splits[name] = _split(tokens, rows)
    if "image_grid_thw" in splits:
        splits["grid_thw"] = splits["image_grid_thw"]
    return Apart(frozenset(names), about.modules, splits, by_total)


@dataclass(frozen=True)
class About:
    """What has to be known of a model: its vision modules, and the token an image's are."""

    modules: frozenset[nn.Module]
    image_token: int | None


def about(module: Any) -> About:
    """Find a model's vision modules: all that are neither its decoder nor around it."""
    config = module.config
    token = getattr(config, "image_token_id", None)
    token = getattr(config, "image_token_index", None) if token is None else token
    get: Callable[[], Any] | None = getattr(module, "get_decoder", None)
    decoder = get() if get is not None else None
    if decoder is None or decoder is module:
        return About(frozenset(), token)
    of_text = set(decoder.modules())
    for ends in (module.get_input_embeddings(), module.get_output_embeddings()):
        of_text |= set(ends.modules()) if ends is not None else set()
    around = {part for part in module.modules() if any(decoder is m for m in part.modules())}
    return About(frozenset(set(module.modules()) - of_text - around), token)


def _fitting(split: Split, tensor: torch.Tensor) -> Split:
    first = next(iter(split.values()))
    total = (first if isinstance(first, Rows) else first[0]).total
    return split if tensor.shape[0] == total else {}


def _split(sizes: list[int], rows: Iterable[Rows]) -> Split:
    return {own.start: span for own, span in zip(rows, plan(sizes), strict=True)}


def _rows(value: Any) -> int:
    return int(value.shape[0]) if isinstance(value, torch.Tensor) and value.dim() else 0


def _filled(pixels: Any) -> int:
    """How many rows a tower sees: of [image, tile, …] those tiles that are not padding."""
    if not isinstance(pixels, torch.Tensor) or pixels.dim() < 5:
        return _rows(pixels)
    return int((pixels.flatten(2) != 0).any(-1).sum())


def _below(name: str, values: list[torch.Tensor]) -> torch.Tensor:
    if name == "pixel_values" and values[0].dim() == 5:  # as many tiles as the most has
        most = max(value.shape[1] for value in values)
        values = [_grown(value, (len(value), most, *value.shape[2:])) for value in values]
    try:
        return torch.cat(values)
    except RuntimeError as error:
        raise InputError(
            f"the images of these prompts cannot be joined: {', '.join(map(describe, values))}.",
            f"{name} of all prompts is one tensor, and this model's processor keeps their sizes.",
            "give images of one size, or trace the prompts one by one.",
        ) from error


def _by_prompt(name: str, parts: list[Batch], rows: list[Rows]) -> torch.Tensor:
    """[batch, image, …], filled with zeros up to the most and the largest images."""
    given = [part[name] for part in parts if name in part]
    most = [max(value.shape[d] for value in given) for d in range(1, given[0].dim())]
    blank = given[0].new_zeros
    filled = [
        _grown(part[name], (own.size, *most)) if name in part else blank((own.size, *most))
        for part, own in zip(parts, rows, strict=True)
    ]
    return torch.cat(filled)


def _grown(value: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if value.shape == shape:
        return value
    grown = value.new_zeros(shape)
    grown[tuple(slice(size) for size in value.shape)] = value
    return grown
