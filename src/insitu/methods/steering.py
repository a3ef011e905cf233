"""Steering: a direction found from contrasting prompts, added to the residual stream.

vectors = steering_vectors(model, praising, blaming)            # [layer, d_model]
happy = steer(model, vectors, layer=3, coefficient=2)           # a wrapper, steered in every pass
happy.generate("The movie was terrible. I", max_new_tokens=5)
steering_sweep(model, prompts, metric, vectors, layer=3).plot() # against random directions
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from insitu.errors import UsageError
from insitu.methods.axes import Axis
from insitu.methods.prompts import chosen, encoded, position
from insitu.methods.result import Result
from insitu.models.language import LanguageModel

SOURCE = (
    'Turner et al., "Activation Addition: Steering Language Models Without Optimization" (2023); '
    'Rimsky et al., "Steering Llama 2 via Contrastive Activation Addition" (2023)'
)


@torch.no_grad()
def steering_vectors(
    model: LanguageModel, positive: Sequence[str], negative: Sequence[str], *, pos: int = -1
) -> Result:
    """The mean residual stream of some prompts less that of others, after every layer; two passes.

        vectors = steering_vectors(model, ["The movie was great. I"], ["The movie was awful. I"])

    Args:
        model: a language model with standard names.
        positive: prompts of one kind.
        negative: prompts of the other; they need not be as many.
        pos: at which position; the last by default. Those counted from the end fit any lengths.

    Returns:
        In the stream's own scale, `[layer, d_model]`.

    Raises:
        InputError: prompts of several lengths, and a position counted from the front.
    """
    means = []
    for prompts in (positive, negative):
        batch = encoded(model, list(prompts))
        where = position(batch, pos)
        with model.trace(batch):
            streams = [layer.resid_post[:, where].float().mean(0) for layer in model.layers]
        means.append(torch.stack(streams).cpu())
    values = means[0] - means[1]
    axes = (Axis("layer", range(len(values))), Axis("d_model", range(values.shape[1])))
    return Result(values, axes, "difference of means", title="Steering vectors", source=SOURCE)


def steer(
    model: LanguageModel, vector: Tensor | Result, *, layer: int, coefficient: float = 1.0,
    pos: int | None = None,
) -> LanguageModel:  # fmt: skip
    """A second wrapper of the model with a direction added after a layer, in every pass and step.

        steered = steer(model, vectors, layer=3, coefficient=2)
        steered.generate("I think", max_new_tokens=8)
        steered.save_edits("steer.safetensors")

    Args:
        model: a language model with standard names; it stays as it is.
        vector: a direction `[d_model]`, or the result of `steering_vectors`.
        layer: after which layer it is added.
        coefficient: how much of it.
        pos: to which position; to all by default.

    Raises:
        UsageError: there is no such layer, or the direction is not of the model's width.
    """
    number = chosen(layer, model.dims.n_layers, "layer")[0]
    push = direction(model, vector, number) * coefficient
    if pos is None:
        with model.edit() as steered:
            model.layers[number].resid_post[:] += push
    else:
        with model.edit() as steered:
            model.layers[number].resid_post[:, pos] += push
    return steered  # type: ignore[no-any-return]


def direction(model: LanguageModel, vector: Tensor | Result, layer: int) -> Tensor:
    """The direction for a layer, on the model's device and of its dtype."""
    if isinstance(vector, Result):
        vector = (vector.sel(layer=layer) if "layer" in vector.names else vector).values
    if tuple(vector.shape) != (model.dims.d_model,):
        raise UsageError(
            f"a direction has shape {list(vector.shape)}.",
            f"it is added to the residual stream, whose width is {model.dims.d_model}.",
            f"give a tensor of shape [{model.dims.d_model}], or a result of steering_vectors().",
        )
    weight = next(model.layers[layer]._module.parameters())
    return vector.detach().to(weight.device, weight.dtype)
