"""What a model cannot read: positions beyond its table, ids beyond its vocabulary. Pure.

    positions_of(module)        # 1024 for GPT-2; None where positions are rotary or relative
    require_fit(module, batch, tokens_to_come=20)

A table of positions has an end, and beyond it torch raises an index error from deep inside (on a
GPU, an assertion that ends the process). Rotary and relative positions have none: such a model runs
beyond what it was trained on, and warns of nothing.
"""

from typing import Any

import torch
from torch import nn

from insitu.errors import InputError
from insitu.models.padding import Batch

_NAMES = ("wpe", "position_embeddings", "embed_positions", "position_embedding", "pos_emb")
"""What families call their table of positions."""
_NOT_TEXT = ("vision", "visual", "image", "audio", "video")
"""Parts of a model whose positions are not the prompt's."""


def positions_of(module: nn.Module) -> int | None:
    """How many positions a text may have; None where there is no table that ends."""
    limits = []
    for path, part in module.named_modules():
        if any(word in path for word in _NOT_TEXT):
            continue
        if isinstance(part, nn.Embedding) and path.rpartition(".")[2] in _NAMES:
            if (count := _usable(part)) is not None:
                limits.append(count)
        elif isinstance(table := part._buffers.get("embed_positions"), torch.Tensor):
            limits.append(len(table))  # GPT-J's rotary angles, computed beforehand
    return min(limits, default=None)


def _usable(table: nn.Embedding) -> int | None:
    """How many of its rows stand for positions: some families leave the first ones out."""
    if hasattr(table, "make_weights"):
        return None  # sinusoidal, and made longer when needed
    if (offset := getattr(table, "offset", None)) is not None:
        return table.num_embeddings - int(offset)
    if table.padding_idx is not None:
        return table.num_embeddings - table.padding_idx - 1
    return table.num_embeddings


def require_fit(module: Any, batch: Batch, limit: int | None, tokens_to_come: int = 0) -> None:
    """Refuse a prompt that the model has no positions or no embeddings for.

    Args:
        module: the transformers model.
        batch: the prompt, [batch, pos].
        limit: how many positions there are, as `positions_of` tells.
        tokens_to_come: how many a generation is to add; the last one is not read again.

    Raises:
        InputError: it is too long, or has an id beyond the vocabulary.
    """
    ids = batch.get("input_ids")
    given = ids if ids is not None else batch.get("inputs_embeds")
    if given is not None and limit is not None:
        _require_length(module, int(given.shape[1]), limit, tokens_to_come)
    if ids is None or not ids.numel() or ids.device.type != "cpu":  # elsewhere it costs a wait
        return
    rows = getattr(module.get_input_embeddings(), "num_embeddings", None)
    least, most = (int(end) for end in ids.aminmax())
    if rows is not None and (most >= rows or least < 0):
        raise InputError(
            f"the prompt has the token id {most if most >= rows else least}.",
            f"{type(module).__name__} has embeddings for ids 0 to {rows - 1}.",
            "encode the text with this model's own tokenizer: model.tokenizer(text).",
        )


def _require_length(module: Any, length: int, limit: int, tokens_to_come: int) -> None:
    reached = length + max(tokens_to_come - 1, 0)
    if reached <= limit:
        return
    kind = type(module).__name__
    if length > limit:
        raise InputError(
            f"the prompt has {length} tokens, and this model reads at most {limit}.",
            f"{kind} has a table of {limit} positions, and nothing for those beyond.",
            f"shorten it, or give truncation=True, max_length={limit}.",
        )
    raise InputError(
        f"a prompt of {length} tokens and {tokens_to_come} new ones go beyond position {limit}.",
        f"{kind} has a table of {limit} positions, and nothing for those beyond.",
        f"generate at most max_new_tokens={limit - length + 1}, or shorten the prompt.",
    )
