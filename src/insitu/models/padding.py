"""Prompts of unequal length as one batch: padded on the left, with mask and positions. Pure.

    batch, rows = padded([{"input_ids": short}, {"input_ids": long}], pad_token_id)

A padded row gives the numbers of the row alone: the mask hides the padding, and positions count
from each row's first real token.
"""

from typing import Any

import torch

from insitu.engine.batch import Rows, plan
from insitu.engine.values import describe
from insitu.errors import InputError

_IDS = ("input_ids", "inputs_embeds", "decoder_input_ids")
_FILL = {"labels": -100}
"""What stands in padding, where it is not zero or the pad token."""

Batch = dict[str, Any]


def padded(batches: list[Batch], pad_token_id: int | None) -> tuple[Batch, tuple[Rows, ...]]:
    """One batch of several, and whose rows are where.

    Raises:
        InputError: padding is needed and there is no pad token, or the inputs cannot be joined.
    """
    lengths = [_shape(batch)[1] for batch in batches]
    rows = plan(_shape(batch)[0] for batch in batches)
    uneven = len(set(lengths)) > 1
    if uneven and pad_token_id is None:
        raise InputError(
            f"the prompts have {min(lengths)} to {max(lengths)} tokens, and there is no pad token.",
            "rows of one batch must be of one length, and only a tokenizer knows with what to pad.",
            "give the model a tokenizer with a pad token, or prompts of equal length.",
        )
    if uneven or any("attention_mask" in batch for batch in batches):
        batches = [{"attention_mask": _mask(batch), **batch} for batch in batches]
    names = list(dict.fromkeys(name for batch in batches for name in batch))
    fill = {**_FILL, "input_ids": pad_token_id or 0, "decoder_input_ids": pad_token_id or 0}
    return {name: _column(name, batches, lengths, fill.get(name, 0)) for name in names}, rows


def is_padded(batch: Batch) -> bool:
    """Whether a batch's mask hides anything."""
    mask = batch.get("attention_mask")
    return mask is not None and mask.dim() == 2 and not bool(mask.all())


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions counted from each row's first real token."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _shape(batch: Batch) -> torch.Size:
    shape: torch.Size = next(batch[name] for name in _IDS if batch.get(name) is not None).shape
    return shape


def _mask(batch: Batch) -> torch.Tensor:
    ids = next(batch[name] for name in _IDS if batch.get(name) is not None)
    return torch.ones(ids.shape[:2], dtype=torch.long, device=ids.device)


def _column(name: str, batches: list[Batch], lengths: list[int], fill: int) -> Any:
    values: list[Any] = [batch.get(name) for batch in batches]
    if not isinstance(values[0], torch.Tensor):
        return values[0]
    if any(not isinstance(value, torch.Tensor) for value in values):
        raise InputError(
            f"{name} was given to some invokes and not to others.",
            "the inputs of invokes are joined into one batch.",
            f"give {name} to every invoke, or to none.",
        )
    longest = max(lengths)
    widened = [
        _widened(value, longest - length, fill) if value.dim() > 1 and value.shape[1] == length
        else value
        for value, length in zip(values, lengths, strict=True)
    ]  # fmt: skip
    try:
        return torch.cat(widened)
    except RuntimeError as error:
        raise InputError(
            f"the invokes' {name} cannot be joined: {', '.join(map(describe, values))}.",
            "they become rows of one tensor.",
            "give them the same shape apart from the first two dimensions.",
        ) from error


def _widened(value: torch.Tensor, by: int, fill: int) -> torch.Tensor:
    """The same rows with `by` columns of padding on their left."""
    if by == 0:
        return value
    padding = value.new_full((value.shape[0], by, *value.shape[2:]), fill)
    return torch.cat([padding, value], dim=1)
