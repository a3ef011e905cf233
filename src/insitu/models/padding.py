"""Prompts of unequal length as one batch: padded, with mask and positions. Pure.

    batch, rows = padded([{"input_ids": short}, {"input_ids": long}], pad_token_id)

A padded row gives the numbers of the row alone: the mask hides the padding, and positions count
from each row's first real token. What a decoder of its own is given is padded on the right, where a
causal decoder does not see it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from insitu.engine.batch import Rows, plan
from insitu.engine.values import describe
from insitu.errors import InputError

IDS = ("input_ids", "inputs_embeds")
"""What a prompt comes in as: token ids [batch, pos], or embeddings [batch, pos, d_model]."""
LEFT, RIGHT = "left", "right"
_FILL = {"labels": -100}
"""What stands in padding, where it is not zero or the pad token."""

Batch = dict[str, Any]


def padded(
    batches: list[Batch], pad_token_id: int | None, side: str = LEFT, *, has_decoder: bool = False
) -> tuple[Batch, tuple[Rows, ...]]:
    """One batch of several, and whose rows are where.

    Args:
        batches: encoded prompts, each with `input_ids` or `inputs_embeds`.
        pad_token_id: what stands in padding.
        side: where a prompt is padded.
        has_decoder: the model has an encoder and a decoder; labels are then the decoder's.

    Raises:
        InputError: padding is needed and there is no pad token, or the inputs cannot be joined.
    """
    rows = plan(_ids(batch).shape[0] for batch in batches)
    lengths = [_ids(batch).shape[1] for batch in batches]
    if len(set(lengths)) > 1 and pad_token_id is None:
        raise no_pad_token(lengths)
    if len(set(lengths)) > 1 or any("attention_mask" in batch for batch in batches):
        batches = [with_default(batch, attention_mask=_seen(_ids(batch))) for batch in batches]
    if len({batch["decoder_input_ids"].shape[1] for batch in batches if _decoded(batch)}) > 1:
        batches = [
            with_default(batch, decoder_attention_mask=_seen(batch["decoder_input_ids"]))
            if _decoded(batch)
            else batch
            for batch in batches
        ]
    names = list(dict.fromkeys(name for batch in batches for name in batch))
    fill = {**_FILL, "input_ids": pad_token_id or 0, "decoder_input_ids": pad_token_id or 0}
    of_decoder = {name for name in names if name.startswith("decoder_")}
    of_decoder |= {"labels"} if has_decoder else set()
    columns: Batch = {}
    for name in names:
        values = [batch.get(name) for batch in batches]
        if name in of_decoder:
            own = [v.shape[1] if isinstance(v, torch.Tensor) and v.dim() > 1 else 0 for v in values]
            columns[name] = _column(name, values, own, fill.get(name, 0), RIGHT)
        else:
            columns[name] = _column(name, values, lengths, fill.get(name, 0), side)
    return columns, rows


def with_default(batch: Batch, **further: Any) -> Batch:
    """A batch with what it lacks of these; what it has comes first, the ids first of all."""
    return {**batch, **{name: value for name, value in further.items() if name not in batch}}


def no_pad_token(lengths: Sequence[int]) -> InputError:
    """The error for rows of unequal length that nothing can fill."""
    return InputError(
        f"the prompts have {min(lengths)} to {max(lengths)} tokens, and there is no pad token.",
        "rows of one batch must be of one length, and only a tokenizer knows with what to pad.",
        "give the model a tokenizer with a pad token, or prompts of equal length.",
    )


def no_mask(model: str) -> InputError:
    """The error for padding that a model would read as text."""
    return InputError(
        "the prompts have unequal lengths, and this model takes no attention mask.",
        f"{model} would read the padding as text, and give other numbers.",
        "trace them one by one, or give prompts of equal length.",
    )


def is_padded(batch: Batch) -> bool:
    """Whether a batch's mask hides anything."""
    mask = batch.get("attention_mask")
    return mask is not None and mask.dim() == 2 and not bool(mask.all())


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Positions counted from each row's first real token."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def _ids(batch: Batch) -> torch.Tensor:
    ids: torch.Tensor = next(batch[name] for name in IDS if batch.get(name) is not None)
    return ids


def _decoded(batch: Batch) -> bool:
    return isinstance(batch.get("decoder_input_ids"), torch.Tensor)


def _seen(ids: torch.Tensor) -> torch.Tensor:
    return torch.ones(ids.shape[:2], dtype=torch.long, device=ids.device)


def _column(name: str, values: list[Any], lengths: list[int], fill: int, side: str) -> Any:
    if not any(isinstance(value, torch.Tensor) for value in values):
        return values[0]
    if any(not isinstance(value, torch.Tensor) for value in values):
        raise InputError(
            f"{name} was given to some invokes and not to others.",
            "the inputs of invokes are joined into one batch.",
            f"give {name} to every invoke, or to none.",
        )
    longest = max(lengths)
    widened = [
        _widened(value, longest - length, fill, side)
        if value.dim() > 1 and value.shape[1] == length
        else value
        for value, length in zip(values, lengths, strict=True)
    ]
    try:
        return torch.cat(widened)
    except RuntimeError as error:
        raise InputError(
            f"the invokes' {name} cannot be joined: {', '.join(map(describe, values))}.",
            "they become rows of one tensor.",
            "give them the same shape apart from the first two dimensions.",
        ) from error


def _widened(value: torch.Tensor, by: int, fill: int, side: str) -> torch.Tensor:
    """The same rows with `by` columns of padding at one side."""
    if by == 0:
        return value
    padding = value.new_full((value.shape[0], by, *value.shape[2:]), fill)
    return torch.cat([padding, value] if side == LEFT else [value, padding], dim=1)
