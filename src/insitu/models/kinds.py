"""What kind of model a module is: causal, an encoder, or an encoder with a decoder.

kind = kind_of(module)
kind.has_decoder        # T5: the prompt goes to the encoder
kind.padding_side       # "left" for GPT-2, "right" for BERT and T5
"""

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from insitu.models.padding import LEFT, RIGHT

_IGNORE_MASK = {"rwkv", "xlstm"}
"""Families whose forward takes an attention mask and does nothing with it (transformers 5.19)."""


@dataclass(frozen=True)
class Kind:
    """What a model takes, and what it can do."""

    takes: frozenset[str]
    """The parameters of its forward."""
    has_decoder: bool
    """An encoder reads the prompt, and a decoder of its own writes."""
    is_causal: bool
    """Each position sees those before it, and the last one's logits are the next token's."""
    masks: bool
    """Padding can be hidden from it."""

    @property
    def padding_side(self) -> str:
        """Left where the last position is what counts; an encoder's rows begin at its first."""
        return LEFT if self.is_causal else RIGHT


def kind_of(module: nn.Module) -> Kind:
    """The kind of a transformers model, as its class and config tell."""
    inner: Any = unwrapped(module)
    config = getattr(inner, "config", None)
    takes = _takes(type(inner))  # type: ignore[arg-type]
    has_decoder = "decoder_input_ids" in takes
    masks = "attention_mask" in takes and getattr(config, "model_type", "") not in _IGNORE_MASK
    return Kind(takes, has_decoder, not has_decoder and _is_causal(inner, config), masks)


def _is_causal(inner: Any, config: Any) -> bool:
    """Whether positions see only those before them; a model without its head too."""
    import transformers

    if type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        reads_both_ways = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
        return not reads_both_ways or bool(getattr(config, "is_decoder", False))
    can = getattr(inner, "can_generate", None)
    return can is None or bool(can())


def unwrapped(given: nn.Module) -> nn.Module:
    """The transformers model inside what PEFT, `torch.compile` or DataParallel put around it."""
    module: Any = given
    while True:
        if hasattr(module, "get_base_model"):  # PEFT
            module = module.get_base_model()
        elif isinstance(module._modules.get("_orig_mod"), nn.Module):  # torch.compile
            module = module._modules["_orig_mod"]
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            found: nn.Module = module
            return found


def device_of(model: Any) -> torch.device:
    """Where a model takes its token ids: its embedding's device, or the one accelerate moves it
    to while it runs.
    """
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    hook = getattr(embedding, "_hf_hook", None)
    for part in (hook, *getattr(hook, "hooks", ())):
        if (device := getattr(part, "execution_device", None)) is not None:
            return torch.device(device)
    weight = getattr(embedding, "weight", None)
    device = weight.device if isinstance(weight, torch.Tensor) else model.device
    return torch.device(device)


@functools.cache
def _takes(cls: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)
