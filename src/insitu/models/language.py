"""`LanguageModel`: a transformers model with its tokenizer, wrapped for tracing.

model = LanguageModel("demo")
with model.trace("The Eiffel Tower is in the city of"):
    logits = model.lm_head.output
print(model.tokenizer.decode(logits[0, -1].argmax()))
"""

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from insitu.engine import paths, validate
from insitu.engine.batch import Call, Rows
from insitu.engine.held import Run
from insitu.engine.interleave import Pass
from insitu.engine.trace import Tracer, is_entered
from insitu.errors import InputError, InputTypeError, UsageError
from insitu.models import loading
from insitu.models.base import Forward, NNsight, no_input, own_words
from insitu.models.padding import is_padded, padded, positions

_IDS = ("input_ids", "inputs_embeds", "decoder_input_ids")
Make = Callable[[dict[str, Any], dict[str, Any]], Any]
"""Makes a call of inputs and settings."""


class LanguageModel(NNsight):
    """Wrap a language model; text goes in, and every module in between can be read and changed.

        model = LanguageModel("demo")                       # ships with insitu, no download
        model = LanguageModel("path/to/folder", dtype=torch.bfloat16)
        model = LanguageModel("openai-community/gpt2", device_map="auto")
        model = LanguageModel(hf_model, tokenizer=tokenizer)

        with model.generate("Once upon a time", max_new_tokens=5) as tracer:
            for step in tracer.iter[:]:
                model.transformer.h[2].output[:] += direction
            ids = model.generator.output

    Args:
        model: `"demo"`, a folder, a hub name, or a loaded transformers model. A folder or a name
            that is cached touches no network.
        tokenizer: for a loaded model; a name brings its own.
        dispatch: load the weights now. They are in either case; the word is taken for the
            reference's sake.
        rename: further names of its modules, as for the method `rename`.
        views: view classes of its modules, as for `add_views`.
        **settings: for `from_pretrained`: `device_map`, `dtype`, `attn_implementation`, …

    Raises:
        ModelNotFoundError: no such folder, and no such name in the cache or on the hub.
    """

    tokenizer: Any

    def __init__(
        self,
        model: str | Path | nn.Module,
        *,
        tokenizer: Any = None,
        dispatch: bool = True,
        rename: Mapping[str, Any] | None = None,
        views: Mapping[type[nn.Module], Any] | None = None,
        **settings: Any,
    ) -> None:
        if isinstance(model, nn.Module):
            loaded = model
            tokenizer = tokenizer or loading.tokenizer_of(model)
        else:
            loaded, own = loading.load(str(model), settings, with_tokenizer=tokenizer is None)
            tokenizer = tokenizer or own
        super().__init__(loaded)
        self.__dict__["tokenizer"] = loading.with_padding(tokenizer)
        self._extras["generator"] = generator = Generator()
        self.__dict__["_beside"] = frozenset(generator.modules())
        self._name_further(rename, views)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model once on a prompt, with the block of the `with` inside it.

            with model.trace("The Eiffel Tower is in the city of") as tracer:
                h = model.transformer.h[2].output       # [batch, pos, d_model]
                logits = model.lm_head.output           # [batch, pos, d_vocab]

        Args:
            *args: text, a list of texts, token ids (list, nested list or tensor), or a tokenizer's
                output. Texts of unequal length are padded on the left, with mask and positions.
            **kwargs: what the model's forward takes (`input_ids=…`, `output_attentions=True`);
                `validate=True` checks the block on fake tensors before the model runs.

        Raises:
            InputError: no prompt, or one without tokens.
            UsageError: a setting of `generate()`, or one the model does not know.
        """
        untraced, checked = own_words(kwargs)
        tracer = Tracer(self, self._one_forward("trace", args, kwargs), "trace", False)
        tracer.check = validate.check if checked else None
        return tracer.alone() if untraced or not is_entered(sys._getframe(1)) else tracer

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate from a prompt, with the block inside every step.

            with model.generate("Once upon a time", max_new_tokens=5) as tracer:
                for step in tracer.iter[:]:
                    if step == 2:
                        model.transformer.h[0].output[:] = 0
                ids = model.generator.output            # [batch, prompt and new tokens]

        Args:
            *args: as for `trace`.
            **kwargs: generation settings: `max_new_tokens`, `do_sample`, …; `grad=True` lets
                gradients flow from each step back through the cache to those before it.
        """
        validate.refuse(kwargs, "generate", "a generation goes on from the tokens it has chosen")
        untraced, _ = own_words(kwargs)
        tracer = Tracer(self, self._generation(args, kwargs), "generate", True)
        return tracer.alone() if untraced or not is_entered(sys._getframe(1)) else tracer

    def open(self, *args: Any, generate: int | None = None, **kwargs: Any) -> Run:
        """Start a pass and hold it open, to be read, edited and stepped by later statements.

            run = model.open("The Eiffel Tower is in the city of")
            model.transformer.h[2].output[:] = 0
            out = run.finish()

        Args:
            *args, **kwargs: as for `trace`.
            generate: hold a generation of that many tokens open instead of one forward.
        """
        validate.refuse(kwargs, "open", "what runs in a pass held open is not known yet")
        steps = generate is not None
        call = (
            self._generation(args, {"max_new_tokens": generate, **kwargs})
            if steps
            else self._one_forward("open", args, kwargs)
        )
        call = call.alone() if hasattr(call, "alone") else call
        return Run(self, call, "generate" if steps else "trace", steps)

    def _one_forward(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_settings(kwargs)
        return self._request(method, args, kwargs, self._forward_of)

    def _generation(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._request("generate", args, kwargs, self._generation_of)

    def _request(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any], make: Make
    ) -> Any:
        """The call to be made; without an input, what the trace's invokes make of it."""
        if not args and not any(kwargs.get(name) is not None for name in _IDS):
            return PromptsToCome(self, method, kwargs, make)
        return make(*self._inputs(method, args, kwargs))

    def _forward_of(self, inputs: dict[str, Any], settings: dict[str, Any]) -> Forward:
        if is_padded(inputs) and "position_ids" in self._forward_parameters():
            inputs.setdefault("position_ids", positions(inputs["attention_mask"]))
        return Forward(self._module, (), {**inputs, **settings})

    def _generation_of(self, inputs: dict[str, Any], settings: dict[str, Any]) -> "Generation":
        settings = dict(settings)
        if self.tokenizer is not None and self._transformer.generation_config.pad_token_id is None:
            settings.setdefault("pad_token_id", self.tokenizer.pad_token_id)
        return Generation(self._module, self._extras["generator"], inputs, settings)

    def _joined(self, batches: list[dict[str, Any]]) -> tuple[dict[str, Any], tuple[Rows, ...]]:
        """Several encoded prompts as one batch, padded on the left to the longest."""
        padding = self.tokenizer.pad_token_id if self.tokenizer is not None else None
        return padded(batches, padding)

    def _forward_parameters(self) -> set[str]:
        return set(inspect.signature(type(self._module).forward).parameters)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """Refuse what the forward would swallow and ignore."""
        known = self._forward_parameters() | loading.forward_settings()
        model = self._transformer
        for name in sorted(set(settings) - known):
            if _has_setting(model.config, name):
                continue
            if _has_setting(model.generation_config, name):
                raise UsageError(
                    f"trace() was given {name}, a setting of generation.",
                    "trace runs the model once; the setting would have no effect.",
                    f"use model.generate(prompt, {name}={settings[name]!r}), or leave it out.",
                )
            close = paths.nearest(name, known)
            raise UsageError(
                f"trace() was given {name}, which is not understood.",
                f"{type(self._module).__name__} has no such argument, and would ignore it.",
                f"did you mean {close[0]}?" if close else "leave it out.",
            )

    @property
    def _transformer(self) -> Any:
        return self._module

    # Inputs ----------------------------------------------------------------------------------

    def _inputs(
        self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the forward takes, and the settings that came with it."""
        if not args:
            inputs = {k: v for k, v in kwargs.items() if isinstance(v, torch.Tensor)}
            return self._placed(inputs), {k: v for k, v in kwargs.items() if k not in inputs}
        if len(args) > 1:
            raise InputTypeError(
                f"{method}() takes one prompt, and was given {len(args)}.",
                "several prompts are one argument, a list, and become one batch.",
                f"write model.{method}([first, second, …]).",
            )
        inputs = self._placed(self._encode(method, args[0]))
        ids = next((inputs[name] for name in _IDS if name in inputs), None)
        if ids is not None and ids.shape[1] == 0:
            raise InputError(
                "the prompt has no tokens.",
                f"{args[0]!r} becomes an empty sequence, and a model cannot run on nothing.",
                "give a prompt with at least one token.",
            )
        return inputs, kwargs

    def _encode(self, method: str, prompt: Any) -> dict[str, Any]:
        if isinstance(prompt, str):
            return self._tokenize([prompt])
        if hasattr(prompt, "keys"):
            return dict(prompt)
        if isinstance(prompt, torch.Tensor):
            return _ids(prompt)
        if isinstance(prompt, (list, tuple)) and len(prompt):
            if all(isinstance(part, str) for part in prompt):
                return self._tokenize(list(prompt))
            if all(isinstance(part, int) for part in prompt):
                return _ids(torch.tensor([prompt]))
            if all(isinstance(part, (list, tuple)) for part in prompt):
                return self._pad([list(part) for part in prompt])
        kind = (
            "an empty list"
            if isinstance(prompt, (list, tuple)) and not prompt
            else type(prompt).__name__
        )
        raise InputTypeError(
            f"{method}() cannot run on {kind}.",
            "a language model takes text, texts, token ids, or a tokenizer's output.",
            f'pass a prompt: model.{method}("The Eiffel Tower is in the city of").',
        )

    def _tokenize(self, texts: list[str]) -> dict[str, Any]:
        if self.tokenizer is None:
            raise InputTypeError(
                "this model has no tokenizer, and was given text.",
                "it was wrapped without one, so only token ids can go in.",
                "wrap it with LanguageModel(model, tokenizer=tokenizer), or pass token ids.",
            )
        if any(not self.tokenizer(text)["input_ids"] for text in texts):
            return _ids(torch.zeros(1, 0, dtype=torch.long))
        return dict(self.tokenizer(texts, return_tensors="pt", padding=len(texts) > 1))

    def _pad(self, rows: list[list[int]]) -> dict[str, Any]:
        if len({len(row) for row in rows}) == 1:
            return _ids(torch.tensor(rows))
        if self.tokenizer is None:
            raise InputTypeError(
                "these token ids have unequal lengths, and this model has no tokenizer.",
                "rows of one batch must be padded, and only a tokenizer knows with what.",
                "pad them yourself and pass attention_mask too, or trace them one by one.",
            )
        return dict(self.tokenizer.pad({"input_ids": rows}, return_tensors="pt"))

    def _placed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The same inputs on the device of the embedding, where token ids are needed."""
        device = self._transformer.device
        return {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in inputs.items()
        }


class PromptsToCome:
    """A call whose prompts the trace's invokes bring; its settings are given already."""

    pending = True

    def __init__(
        self, model: LanguageModel, method: str, settings: dict[str, Any], make: Make
    ) -> None:
        self._model = model
        self._method = method
        self._settings = settings
        self._make = make

    def join(self, calls: list[Call]) -> tuple[Any, tuple[Rows, ...]]:
        """One call made of several, and whose rows are where."""
        encoded = [self._model._inputs("invoke", args, kwargs) for args, kwargs in calls]
        inputs, rows = self._model._joined([inputs for inputs, _ in encoded])
        settings = dict(self._settings)
        for _, own in encoded:
            settings.update(own)
        return self._make(inputs, settings), rows

    def alone(self) -> Any:
        """A language model needs a prompt."""
        raise no_input(self._method, f"{type(self._model._module).__name__} needs a prompt")


class Generator(nn.Module):
    """`model.generator`: its output is the generated ids, its `streamer`'s each new token."""

    def __init__(self) -> None:
        super().__init__()
        self.streamer = Streamer()

    def forward(self, ids: Any) -> Any:
        """Give the ids on, for whoever reads `model.generator.output`."""
        return ids


class Streamer(nn.Module):
    """`model.generator.streamer`: called with each step's new tokens, one per row."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Give the tokens on, for whoever reads `model.generator.streamer.output`."""
        return tokens


class Generation:
    """A `generate` call that is still to be made."""

    pending = False
    args = ()

    def __init__(
        self, module: Any, generator: nn.Module, inputs: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        self.module = module
        self.generator = generator
        self.kwargs = inputs
        self.settings = settings
        self.grad = bool(inputs.pop("grad", False) or settings.pop("grad", False))

    def __call__(self, run: Pass) -> Any:
        """Generate, and tell the pass when the last step is over."""
        settings = {**self.kwargs, **self.settings}
        beams = settings.get("num_beams") or self.module.generation_config.num_beams or 1
        if beams == 1 and "streamer" not in settings:  # transformers streams no beam search
            settings["streamer"] = _Stream(self.generator.streamer)
        ids = self._generate_with_grad(settings) if self.grad else self.module.generate(**settings)
        run.end_steps()
        return self.generator(ids)

    def _generate_with_grad(self, settings: dict[str, Any]) -> Any:
        """Without the `no_grad` that transformers puts around `generate`."""
        plain = getattr(self.module.generate, "__wrapped__", None)
        if plain is None:
            raise UsageError(
                f"generate() of {type(self.module).__name__} cannot be run with grad=True.",
                "gradients flow through transformers' own generate, without its no_grad; this "
                "model has another one around it.",
                "wrap the model inside: LanguageModel(model.get_base_model(), tokenizer=...).",
            )
        with torch.enable_grad():
            return plain(self.module, **settings)


class _Stream:
    """What transformers calls a streamer: told the prompt first, then every new token."""

    def __init__(self, streamer: Any) -> None:
        self._streamer = streamer
        self._prompt_seen = False

    def put(self, tokens: torch.Tensor) -> None:
        if self._prompt_seen:
            self._streamer(tokens)
        self._prompt_seen = True

    def end(self) -> None:
        pass


def _has_setting(config: Any, name: str) -> bool:
    """Whether a configuration has a value of that name; its methods are no settings."""
    return hasattr(config, name) and not callable(getattr(config, name))


def _ids(tensor: torch.Tensor) -> dict[str, Any]:
    """Token ids as a batch: one row more where there is none."""
    return {"input_ids": tensor.unsqueeze(0) if tensor.dim() == 1 else tensor}
