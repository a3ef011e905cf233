"""A generation that is still to be made, and what its block can read beside the model's modules.

    with model.generate("Once upon a time", max_new_tokens=5):
        ids = model.generator.output                # [batch, prompt and new tokens]

`generator` and `generator.streamer` are modules of ours, called after the last step and after each.
"""

import warnings
from typing import Any

import torch
from torch import nn

from insitu.engine.batch_dims import Apart
from insitu.engine.interleave import Pass
from insitu.errors import InsituWarning, UsageError
from insitu.models.padding import IDS

_TO_CALLER = 5  # frames from the warning up to the line that generates
_OF_TOKENS = ("token_id", "_version", "from_model_config", "cache", "_commit")
"""Parts of names in a generation config that do not change which tokens are chosen."""
_OF_FORWARD = ("output_attentions", "output_hidden_states", "use_cache")
"""Settings of a generation that it gives to each forward."""
_NEUTRAL: tuple[Any, ...] = (None, 0, 1, (), [])
"""Values that do nothing, whatever the setting."""


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
    apart: Apart | None = None
    """What of it has other rows than the prompts'."""

    def __init__(
        self, module: Any, generator: nn.Module, inputs: dict[str, Any], settings: dict[str, Any]
    ) -> None:
        self.module = module
        self.generator = generator
        self.kwargs = inputs
        self.settings = settings
        self.grad = bool(inputs.pop("grad", False) or settings.pop("grad", False))

    @property
    def expansions(self) -> tuple[int, ...]:
        """How many rows a prompt's may become, one below the other: for beams, and in what is
        returned.
        """
        returned = self._count("num_return_sequences")
        return max(self._count("num_beams"), returned), returned

    def _count(self, name: str) -> int:
        given = self.settings.get("generation_config")
        configs = (given, self.module.generation_config)
        counts = [self.settings.get(name), *(getattr(config, name, None) for config in configs)]
        return next((int(count) for count in counts if count is not None), 1)

    def one_forward(self) -> dict[str, Any]:
        """What one of its forwards is called with, but for what earlier steps have left."""
        settings = {name: self.settings[name] for name in _OF_FORWARD if name in self.settings}
        given = {**self.kwargs, **settings}
        ids = next((given[name] for name in IDS if given.get(name) is not None), None)
        needs = getattr(self.module.config, "is_encoder_decoder", False)
        if needs and ids is not None and "decoder_input_ids" not in given:
            given["decoder_input_ids"] = ids.new_zeros((len(ids), 1), dtype=torch.long)
        return given

    def make(self, run: Pass) -> Any:
        """Generate, and tell the pass when the last step is over."""
        settings = {**self.kwargs, **self.settings}
        streams = self._count("num_beams") == 1  # transformers streams no beam search
        if streams and "streamer" not in settings:
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


def require_generate(module: Any) -> None:
    """Refuse to generate with a model that only reads.

    Raises:
        UsageError: it is an encoder, lacks a head, or is wrapped in what only passes forward() on.
    """
    if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UsageError(
            f"{type(module).__name__} cannot generate.",
            "it passes forward() on, and nothing else; generate() is the model's within it.",
            "wrap that: LanguageModel(model.module, tokenizer=tokenizer).",
        )
    can = getattr(module, "can_generate", None)
    if not hasattr(module, "generate") or (can is not None and not can()):
        raise UsageError(
            f"{type(module).__name__} cannot generate.",
            "it has no head that predicts next tokens; encoders and headless models only read.",
            "use model.trace(prompt), or load the model class that generates.",
        )


def tokens_to_come(inputs: dict[str, Any], settings: dict[str, Any], config: Any) -> int:
    """How many tokens a generation was told to add; 0 where it was told nothing."""
    config = settings.get("generation_config") or config
    count = settings.get("max_new_tokens")
    if count is None and settings.get("max_length") is None:
        count = config.max_new_tokens
    if count is not None:
        return int(count)
    length, ids = settings.get("max_length") or config.max_length, inputs.get("input_ids")
    return 0 if length is None or ids is None else max(int(length) - int(ids.shape[1]), 0)


def from_checkpoint(config: Any) -> dict[str, Any]:
    """What a checkpoint's generation config sets, and which changes the tokens that are chosen."""
    if config is None:
        return {}
    return {
        name: value
        for name, value in config.to_diff_dict().items()
        if not any(part in name for part in _OF_TOKENS) and (value is True or value not in _NEUTRAL)
    }


def told(settings: dict[str, Any]) -> str:
    """Settings as they would be written in a call: `do_sample=True, temperature=0.6`."""
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())


def notice(settings: dict[str, Any], own: dict[str, Any], said: set[str]) -> None:
    """Say, once a model, that a generation is random because its checkpoint makes it so.

    Args:
        settings: the checkpoint's.
        own: the caller's.
        said: what this model has said already.
    """
    given = {"do_sample", "generation_config", "num_beams"} & own.keys()
    if not settings.get("do_sample") or given or "sampling" in said:
        return
    said.add("sampling")
    theirs = {name: value for name, value in settings.items() if name not in own}
    warnings.warn(
        f"this generation samples, as the model's checkpoint says: {told(theirs)}. Give "
        "do_sample=False for the likeliest tokens, or do_sample=True and it is not said again.",
        InsituWarning,
        stacklevel=_TO_CALLER,
    )
