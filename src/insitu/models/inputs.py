"""A prompt in any of its forms, as what a model takes: token ids and a mask, [batch, pos].

    model.trace("The Eiffel Tower is in")                                       # text
    model.trace(["The Eiffel Tower is in", "Hello"])                            # texts
    model.trace([464, 412, 733])                                                # token ids
    model.trace([[464, 412, 733], [15496]])                                     # ragged ones
    model.trace(tokenizer("The Eiffel Tower is in"))                            # its output
    model.trace([{"role": "user", "content": "Where is the Eiffel Tower?"}])    # a conversation

Settings of the tokenizer and of the chat template stand beside the model's own, in a trace and in
each invoke: `model.trace(text, truncation=True, max_length=8)`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from insitu.engine.values import describe
from insitu.errors import InputError, InputTypeError
from insitu.models.in_turn import TURN
from insitu.models.kinds import Kind
from insitu.models.padding import (
    IDS,
    Batch,
    is_padded,
    no_mask,
    no_pad_token,
    padded,
    positions,
    with_default,
)

FOR_TEXT = frozenset({
    "add_special_tokens", "padding", "truncation", "max_length", "stride", "is_split_into_words",
    "pad_to_multiple_of", "padding_side", "return_token_type_ids", "return_attention_mask",
    "text_pair",
})  # fmt: skip
"""Settings of a tokenizer that a trace takes."""
FOR_CHAT = frozenset({
    "add_generation_prompt", "continue_final_message", "tools", "documents", "chat_template",
    "enable_thinking", "chat_template_kwargs",
})  # fmt: skip
"""Settings of a chat template that a trace takes."""
_ALSO_GENERATION = "max_length"
"""A word of the tokenizer that generation has too."""
_ROWS = (*IDS, "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids")
"""Inputs that may be given as lists."""


@dataclass
class Given:
    """What one call was given, told apart."""

    prompt: Any = None
    inputs: Batch = field(default_factory=dict)
    """What the model takes by keyword: tensors, and lists of token ids."""
    encoding: dict[str, Any] = field(default_factory=dict)
    """Settings of the tokenizer and of the chat template."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the forward, or of the generation."""

    @property
    def is_prompted(self) -> bool:
        """Whether there is something to run on."""
        if self.prompt is not None:
            return True
        return any(name in self.inputs for name in (*IDS, "decoder_input_ids"))


def told_apart(
    method: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    words: frozenset[str],
    *,
    generates: bool,
) -> Given:
    """The arguments of a trace, a generation or an invoke, by what they are for.

    Args:
        method: how the error calls it.
        args, kwargs: what it was given.
        words: settings of whatever encodes the prompt.
        generates: `max_length` is then the generation's, unless it cuts or fills the prompt.

    Raises:
        InputTypeError: more than one prompt.
    """
    if len(args) > 1:
        raise InputTypeError(
            f"{method}() takes one prompt, and was given {len(args)}.",
            "several prompts are one argument, a list, and become one batch.",
            f"write model.{method}([first, second, …]).",
        )
    if args and args[0] is None:
        raise _no_prompt(method, None)
    cuts = kwargs.get("truncation") or kwargs.get("padding") == "max_length"
    if generates and not cuts:
        words = words - {_ALSO_GENERATION}
    given = Given(args[0] if args else None)
    for name, value in kwargs.items():
        if name in words:
            given.encoding[name] = value
        elif isinstance(value, torch.Tensor) or name in _ROWS:
            given.inputs.update({} if value is None else {name: value})
        else:
            given.settings[name] = value
    twice = next((name for name in IDS if args and name in given.inputs), None)
    if twice is not None:
        raise _two_prompts(method, twice)
    return given


def encode(method: str, prompt: Any, tokenizer: Any, settings: dict[str, Any]) -> Batch:
    """A prompt as the model's inputs, tensors of [batch, pos].

    Raises:
        InputTypeError: it is of a kind that no language model takes, or needs a tokenizer.
        InputError: it has unequal rows and there is no pad token.
    """
    with TURN:
        return _encoded(method, prompt, tokenizer, settings)


def _encoded(method: str, prompt: Any, tokenizer: Any, settings: dict[str, Any]) -> Batch:
    if isinstance(prompt, str):
        return _texts([prompt], tokenizer, settings)
    if isinstance(prompt, torch.Tensor):
        return _of_ids(method, prompt)
    if _is_message(prompt):
        return _chats([[prompt]], tokenizer, settings)
    if isinstance(prompt, Mapping) and any(prompt.get(name) is not None for name in IDS):
        return tensors_of({k: v for k, v in prompt.items() if v is not None}, tokenizer)
    if hasattr(prompt, "tolist"):  # an array
        prompt = prompt.tolist()
    encoded = _of_list(list(prompt), tokenizer, settings) if _is_list(prompt) else None
    if encoded is None:
        raise _no_prompt(method, prompt)
    return encoded


def _of_list(parts: list[Any], tokenizer: Any, settings: dict[str, Any]) -> Batch | None:
    """A list of texts, of ids or of messages; None when it is of something else."""
    if all(isinstance(part, str) for part in parts):
        return _texts(parts, tokenizer, settings)
    if all(map(_is_message, parts)):
        return _chats([parts], tokenizer, settings)
    if all(_is_list(part) and all(map(_is_message, part)) for part in parts):
        return _chats([list(part) for part in parts], tokenizer, settings)
    rows = _rows(parts)
    return None if rows is None else tensors_of({"input_ids": rows}, tokenizer)


def tensors_of(inputs: Mapping[str, Any], tokenizer: Any) -> Batch:
    """Inputs by name as tensors of [batch, …]; ragged rows are padded as the tokenizer pads."""
    ready: Batch = {}
    ragged: dict[str, list[torch.Tensor]] = {}
    for name, value in inputs.items():
        rows = None if isinstance(value, torch.Tensor) else _rows(value)
        if rows is None:
            ready[name] = _as_batch(name, value)
        elif len({len(row) for row in rows}) == 1:
            ready[name] = torch.tensor(rows)
        else:
            ragged[name] = [torch.tensor([row], dtype=torch.long) for row in rows]
    if not ragged:
        return ready
    if "input_ids" not in ragged:
        name, rows_ = next(iter(ragged.items()))
        raise (
            no_pad_token([row.shape[1] for row in rows_])
            if name in IDS
            else InputError(
                f"{name} has rows of unequal length, and input_ids has not.",
                "there is one value for each token.",
                f"give {name} the shape of input_ids.",
            )
        )
    _require_padding(tokenizer)
    count = len(ragged["input_ids"])
    batches = [{name: rows[i] for name, rows in ragged.items()} for i in range(count)]
    joined, _ = padded(batches, tokenizer.pad_token_id, tokenizer.padding_side)
    return {**ready, **joined}


def completed(batch: Batch, kind: Kind, model: Any) -> Batch:
    """The inputs with what the forward would have to guess: where each row begins, and with what
    a decoder of its own does.

    Raises:
        InputError: padding that cannot be hidden from the model, or nothing for its decoder.
    """
    further: Batch = {}
    hides = is_padded(batch)
    if hides and not kind.masks:
        raise no_mask(type(model).__name__)
    if kind.is_causal and hides and "position_ids" in kind.takes:
        further["position_ids"] = positions(batch["attention_mask"])
    if kind.has_decoder and not {"decoder_input_ids", "labels"} & batch.keys():
        rows = next(batch[name] for name in IDS if name in batch).shape[0]
        further["decoder_input_ids"] = torch.full((rows, 1), _start_token(model))
    return with_default(batch, **further)


def placed(batch: Batch, device: torch.device) -> Batch:
    """The same inputs on a device."""
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _start_token(model: Any) -> int:
    """The id that the decoder of an encoder-decoder model begins with.

    Raises:
        InputError: its config has none.
    """
    configs = (getattr(model, "generation_config", None), model.config)
    for name in ("decoder_start_token_id", "bos_token_id"):
        for config in configs:
            if isinstance(token := getattr(config, name, None), int):
                return token
    raise InputError(
        f"{type(model).__name__} was given nothing for its decoder.",
        "it has an encoder and a decoder, and its config names no token to begin with.",
        "give decoder_input_ids=…, [batch, pos].",
    )


def _texts(texts: list[str], tokenizer: Any, settings: dict[str, Any]) -> Batch:
    _require_tokenizer(tokenizer)
    settings = {"padding": len(texts) > 1, **settings}
    if settings["padding"] and len(texts) > 1 and tokenizer.pad_token_id is None:
        settings["padding"] = False
    encoded = tokenizer(texts, **settings)
    return _from_lists(dict(encoded), tokenizer)


def _chats(chats: list[list[Any]], tokenizer: Any, settings: dict[str, Any]) -> Batch:
    """Conversations by the tokenizer's chat template, each up to where the answer is to begin."""
    _require_tokenizer(tokenizer)
    if not (settings.get("chat_template") or getattr(tokenizer, "chat_template", None)):
        raise InputTypeError(
            "this model was given chat messages, and its tokenizer has no chat template.",
            "a template says how roles and messages become text; base models have none.",
            "give chat_template=…, or write the text as this model expects it.",
        )
    own = {name: value for name, value in settings.items() if name in FOR_CHAT}
    own.update(own.pop("chat_template_kwargs", None) or {})
    rows = []
    for chat in chats:
        to_answer = chat[-1]["role"] != "assistant"
        how = {"add_generation_prompt": to_answer, **own}
        rows.append(tokenizer.apply_chat_template(chat, tokenize=False, **how))
    for_text = {name: value for name, value in settings.items() if name in FOR_TEXT}
    return _texts(rows, tokenizer, {"add_special_tokens": False, **for_text})


def _from_lists(encoded: dict[str, Any], tokenizer: Any) -> Batch:
    rows = encoded["input_ids"]
    if any(not row for row in rows):
        return {"input_ids": torch.zeros(1, 0, dtype=torch.long)}
    return tensors_of(encoded, tokenizer)


def _of_ids(method: str, ids: torch.Tensor) -> Batch:
    if ids.is_floating_point() or ids.is_complex() or ids.dim() not in (1, 2):
        raise InputTypeError(
            f"{method}() cannot run on {describe(ids)}.",
            "token ids are whole numbers, of shape [batch, pos] or [pos].",
            f"pass embeddings by name: model.{method}(inputs_embeds=…)."
            if ids.is_floating_point()
            else "pass ids of that shape.",
        )
    return {"input_ids": _as_batch("input_ids", ids)}


def _as_batch(name: str, value: Any) -> Any:
    """A tensor as a batch: one row more where there is none."""
    is_row = isinstance(value, torch.Tensor) and name in _ROWS and value.dim() == 1
    return value.unsqueeze(0) if is_row else value


def _rows(value: Any) -> list[list[int]] | None:
    """Rows of numbers, of whatever they are made; None when it is something else."""
    if not _is_list(value):
        return None
    if all(_is_number(part) for part in value):
        return [[int(part) for part in value]]
    rows = [part.tolist() if hasattr(part, "tolist") else part for part in value]
    if all(isinstance(row, (list, tuple)) and all(map(_is_number, row)) for row in rows):
        return [[int(number) for number in row] for row in rows]
    return None


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return True
    return getattr(value, "shape", None) == () and hasattr(value, "__index__")


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0


def _is_message(part: Any) -> bool:
    return isinstance(part, Mapping) and "role" in part and "content" in part


def _require_tokenizer(tokenizer: Any) -> None:
    if tokenizer is None:
        raise InputTypeError(
            "this model has no tokenizer, and was given text.",
            "it was wrapped without one, so only token ids can go in.",
            "wrap it with LanguageModel(model, tokenizer=tokenizer), or pass token ids.",
        )


def _require_padding(tokenizer: Any) -> None:
    if tokenizer is None:
        raise InputTypeError(
            "these token ids have unequal lengths, and this model has no tokenizer.",
            "rows of one batch must be padded, and only a tokenizer knows with what.",
            "pad them yourself and pass attention_mask too, or trace them one by one.",
        )


def _two_prompts(method: str, name: str) -> InputTypeError:
    return InputTypeError(
        f"{method}() was given a prompt and {name} too.",
        "both say what the model is to run on.",
        "give one of them.",
    )


def _no_prompt(method: str, prompt: Any) -> InputTypeError:
    is_empty = isinstance(prompt, (list, tuple)) and not prompt
    kind = "an empty list" if is_empty else type(prompt).__name__
    return InputTypeError(
        f"{method}() cannot run on {kind}.",
        "a language model takes text, texts, token ids, a tokenizer's output, or chat messages.",
        f'pass a prompt: model.{method}("The Eiffel Tower is in the city of").',
    )
