"""Prompts as the methods need them: token ids with labels, of equal length where that is needed.

ids, labels = tokens(model, "The Eiffel Tower is in")        # [row, pos], ("The", " Eiffel", …)
clean, corrupted = aligned(model, "The Eiffel Tower is in", "The Trevi Fountain is in")
paris = token_id(model, " Paris")
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from insitu.errors import InputError, UsageError
from insitu.models import inputs
from insitu.models.language import LanguageModel

Prompt = str | Sequence[str] | Sequence[int] | Tensor
"""What a language model's `trace` takes: a text, texts, or token ids."""


def encoded(model: LanguageModel, prompt: Any) -> dict[str, Any]:
    """What the model's forward takes for a prompt, padded on the left: ids and mask, `[row, pos]`.

    with model.trace(encoded(model, ["one prompt", "another, which is longer"])):
        ...
    """
    return model._placed(inputs.encode("trace", prompt, model.tokenizer, {}))


def tokens(model: LanguageModel, prompt: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Token ids of prompts of equal length, `[row, pos]`, and the first row's tokens as labels.

    Raises:
        InputError: the prompts differ in their number of tokens.
    """
    batch = encoded(model, prompt)
    mask = batch.get("attention_mask")
    if mask is not None and not bool(mask.all()):
        raise uneven([int(n) for n in mask.sum(-1)])
    ids: Tensor = batch["input_ids"]
    return ids, labels_of(model, ids[0])


def one_prompt(model: LanguageModel, prompt: Any, method: str) -> tuple[Tensor, tuple[str, ...]]:
    """Token ids `[1, pos]` and labels of a prompt that is to be one alone.

    Raises:
        InputError: there are several.
    """
    ids, labels = tokens(model, prompt)
    if len(ids) == 1:
        return ids, labels
    raise InputError(
        f"{method}() was given {len(ids)} prompts.",
        "its axes are the tokens of one.",
        f"call {method}() for each of them.",
    )


def aligned(model: LanguageModel, *prompts: Any) -> tuple[Tensor, ...]:
    """The token ids of each prompt, `[row, pos]`; a position of one is a position of all.

    Raises:
        InputError: they differ in their number of tokens, or of rows.
    """
    ids = [tokens(model, prompt)[0] for prompt in prompts]
    if len({row.shape[1] for row in ids}) > 1:
        raise uneven([row.shape[1] for row in ids])
    if len({row.shape[0] for row in ids}) > 1:
        raise InputError(
            f"the prompts come in {', '.join(str(row.shape[0]) for row in ids)} rows.",
            "the first of one side belongs to the first of the other.",
            "give as many prompts on each side.",
        )
    return tuple(ids)


def labels_of(model: LanguageModel, ids: Iterable[int] | Tensor) -> tuple[str, ...]:
    """The text of each token; without a tokenizer its number."""
    numbers = [int(token) for token in ids]
    if model.tokenizer is None:
        return tuple(map(str, numbers))
    return tuple(model.tokenizer.decode([token]) for token in numbers)


def shared_labels(model: LanguageModel, ids: Tensor) -> tuple[str, ...]:
    """The tokens that all rows have in common; where they differ, the position in brackets."""
    labels = labels_of(model, ids[0])
    same = (ids == ids[:1]).all(0).tolist()
    return tuple(it if same[pos] else f"[{pos}]" for pos, it in enumerate(labels))


def token_id(model: LanguageModel, token: str | int) -> int:
    """The id of a text that is one token: `token_id(model, " Paris")`.

    Raises:
        InputError: it is none, or several.
    """
    if isinstance(token, int):
        return token
    if model.tokenizer is None:
        raise InputError(
            f"the token {token!r} was named, and this model has no tokenizer.",
            "only a tokenizer knows its number.",
            "give the number, or wrap the model with LanguageModel(model, tokenizer=tokenizer).",
        )
    ids = model.tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) == 1:
        return int(ids[0])
    parts = " + ".join(repr(part) for part in labels_of(model, ids)) or "nothing"
    raise InputError(
        f"{token!r} is not one token.",
        f"the tokenizer makes {parts} of it, and the model predicts one token at a time.",
        "give the first of them, mind the blank in front (' Paris'), or a token id.",
    )


def chosen(wanted: Iterable[int] | int | None, count: int, what: str) -> list[int]:
    """Which layers, heads or positions are meant: all for None, negative ones from the end.

    Raises:
        UsageError: there is no such one.
    """
    if wanted is None:
        return list(range(count))
    numbers = [wanted] if isinstance(wanted, int) else [int(one) for one in wanted]
    for one in numbers:
        if not -count <= one < count:
            raise UsageError(
                f"there is no {what} {one}.",
                f"the model has {count}, numbered 0 to {count - 1}."
                if what in ("layer", "head")
                else f"there are {count}, numbered 0 to {count - 1}.",
                f"give a {what} from 0 to {count - 1}, or a negative one from the end.",
            )
    return [one % count for one in numbers]


def position(batch: dict[str, Any], pos: int) -> int:
    """A position of a padded batch, as a place in its rows.

    Raises:
        InputError: it is counted from the front, and the rows begin at several places.
        UsageError: a row has no such position.
    """
    length = batch["input_ids"].shape[1]
    mask = batch.get("attention_mask")
    lengths = [length] if mask is None else [int(n) for n in mask.sum(-1)]
    if pos >= 0 and len(set(lengths)) > 1:
        raise uneven(lengths)
    place: int = length - min(lengths) + chosen(pos, min(lengths), "position")[0]
    return place


def repeated(ids: Tensor, count: int) -> Tensor:
    """One batch of a prompt so many times: `[count * row, pos]`, the rows of one copy together."""
    return ids.repeat(count, 1)


def random_tokens(model: LanguageModel, rows: int, length: int, seed: int) -> Tensor:
    """Ids drawn evenly from the whole vocabulary but its special tokens, `[rows, length]`."""
    vocabulary = torch.arange(model.dims.d_vocab)
    special = getattr(model.tokenizer, "all_special_ids", [])
    allowed = vocabulary[~torch.isin(vocabulary, torch.tensor(special, dtype=torch.long))]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(allowed), (rows, length), generator=generator)
    return allowed[drawn]


def uneven(lengths: Sequence[int]) -> InputError:
    """The error for prompts whose positions do not match."""
    return InputError(
        f"the prompts have {', '.join(map(str, lengths[:6]))} tokens.",
        "a position of one must be the same position of the others.",
        "word them so that they have as many tokens, or give token ids.",
    )
