"""Which features of a sparse autoencoder are on, token by token.

found = sae_features(model, "The Eiffel Tower is in the city of", sae, layer=3)
found.plot()                            # pos × feature, the strongest ones
"""

from typing import Any

import torch

from insitu.errors import InputError
from insitu.methods.axes import Axis
from insitu.methods.prompts import Prompt, chosen, tokens
from insitu.methods.recording import call_settings
from insitu.methods.result import Result
from insitu.methods.sites import site_of
from insitu.models.language import LanguageModel

SOURCE = "Bricken et al., Towards Monosemanticity (2023)"


def sae_features(
    model: LanguageModel,
    prompt: Prompt,
    sae: Any,
    layer: int,
    of: str = "resid_post",
    count: int = 12,
) -> Result:
    """The features that are strongest anywhere in a prompt, at each of its tokens.

    Args:
        model: one with standard names.
        prompt: one prompt.
        sae: a module with `encode` for the site's width.
        layer, of: where it belongs.
        count: how many features.

    Returns:
        Their values, `[pos, feature]`, the strongest feature first; its labels are their numbers.

    Raises:
        InputError: several prompts.
        UsageError: there is no such place or layer.
    """
    site, number = site_of(of), chosen(layer, model.dims.n_layers, "layer")[0]
    ids, labels = tokens(model, prompt)
    if len(ids) > 1:
        raise InputError(
            f"sae_features() was given {len(ids)} prompts.",
            "it shows the features of each token of one.",
            "call it for one prompt at a time, or read features in a trace of insert_sae's model.",
        )
    with torch.no_grad(), model.trace(ids, **call_settings(model)) as tracer:
        value = site.read(model.layers[number])[0].clone()
        tracer.stop()
    with torch.no_grad():
        features = sae.encode(value).flatten(1, -2).sum(1) if value.dim() > 2 else sae.encode(value)
    strongest = features.amax(0).topk(min(count, features.shape[-1])).indices
    axes = (Axis("pos", labels), Axis("feature", strongest.tolist()))
    title = f"Features of {site.name}, layer {number}"
    return Result(features[:, strongest], axes, "feature", "", title, SOURCE)
