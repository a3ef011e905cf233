"""From the residual stream to logits, as the model itself does it.

logits = read_out(model, stream)        # [row, pos, d_model] to [row, pos, d_vocab]
"""

from typing import Any

from torch import Tensor

from insitu.models.language import LanguageModel


def read_out(model: LanguageModel, stream: Tensor) -> Tensor:
    """What the final norm, the unembedding and whatever follows them make of a residual stream.

    Args:
        model: any language model with a final norm and an unembedding.
        stream: residual stream, `[…, d_model]`.
    """
    norm, unembed = model.final_norm._module, model.unembed._module
    return scaled(model, unembed(norm(stream)))


def scaled(model: LanguageModel, logits: Tensor) -> Tensor:
    """What some families do to logits last: Cohere and Granite scale them, Gemma 2 bounds them."""
    config: Any = model._module.config
    if (scale := logit_scale(model)) != 1:
        logits = logits * scale
    bound = getattr(config, "final_logit_softcapping", None)
    return logits if bound is None else (logits / bound).tanh() * bound


def logit_scale(model: LanguageModel) -> float:
    """By what a family multiplies its logits: 1 for most."""
    config: Any = model._module.config
    scale = getattr(config, "logit_scale", None) or 1.0
    return float(scale) / float(getattr(config, "logits_scaling", None) or 1.0)
