"""Attention patterns: which positions each head reads from, before each token.

patterns = attention_patterns(model, "The Eiffel Tower is in the city of")
patterns.sel(layer=3).plot()                    # a map for each head
patterns.sel(layer=3, head=1, query_pos=-1)     # what the last token looks at
"""

from collections.abc import Iterable
from typing import Any

import torch

from insitu.methods.axes import Axis
from insitu.methods.prompts import chosen, one_prompt
from insitu.methods.result import Result
from insitu.models.language import LanguageModel

SOURCE = 'Vaswani et al., "Attention Is All You Need" (2017)'


@torch.no_grad()
def attention_patterns(
    model: LanguageModel, prompt: Any, *, layers: Iterable[int] | int | None = None
) -> Result:
    """Read the attention pattern of every head, as the model uses it; one pass.

        attention_patterns(model, prompt, layers=[2, 3]).plot()

    Args:
        model: a language model with standard names.
        prompt: one prompt.
        layers: which layers; all by default.

    Returns:
        Weights, 0 to 1, `[layer, head, query_pos, key_pos]`; each query's sum to 1.

    Raises:
        InputError: several prompts.
        UsageError: there is no such layer.
    """
    ids, labels = one_prompt(model, prompt, "attention_patterns")
    wanted = chosen(layers, model.dims.n_layers, "layer")
    with model.trace(ids):
        found = {i: model.layers[i].attention.pattern[0].float().cpu() for i in sorted({*wanted})}
    axes = (
        Axis("layer", wanted),
        Axis("head", range(model.dims.n_heads)),
        Axis("query_pos", labels),
        Axis("key_pos", labels),
    )
    return Result(
        torch.stack([found[i] for i in wanted]), axes, "attention",
        title="Attention patterns", source=SOURCE, limits=(0, 1),
    )  # fmt: skip
