"""A sparse autoencoder in the model: its features read, edited, and what it costs measured.

sae = SparseAutoencoder(128, 512, top_k=16).fit(activations_of(model, prompts, layer=3))
spliced = insert_sae(model, sae, layer=3)
with spliced.trace(prompt):
    features = spliced.layers[3].sae.features.output        # [batch, pos, feature]
    features[:, -1, 17] = 0                                 # the model goes on without it
    logits = spliced.output.logits
loss_recovered(model, prompts, sae, layer=3)
"""

from typing import Any

import torch
from torch import Tensor, nn

from insitu.errors import UsageError
from insitu.methods.prompts import chosen, encoded
from insitu.methods.recording import Cost, call_settings, logits_of
from insitu.methods.result import Result
from insitu.methods.sites import site_of
from insitu.models.language import LanguageModel

SOURCE = "Bricken et al., Towards Monosemanticity (2023)"


class InsertedSae(nn.Module):
    """What stands in the model: `features` is where they are read and edited.

    Args:
        sae: anything with `encode` and `decode`.
        error: add what the autoencoder misses of an unedited value, so that without an edit the
            model computes as before.
    """

    def __init__(self, sae: Any, error: bool) -> None:
        super().__init__()
        self.sae = sae
        self.error = error
        self.features = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """A value, by way of its features."""
        plain = self.sae.encode(x)
        again: Tensor = self.sae.decode(self.features(plain.clone())).to(x.dtype)
        return again + (x - self.sae.decode(plain).to(x.dtype)) if self.error else again


def insert_sae(
    model: LanguageModel,
    sae: Any,
    layer: int,
    of: str = "resid_post",
    error: bool = False,
    name: str = "sae",
) -> LanguageModel:
    """A second wrapper of the model, in which a value of a layer goes by way of features.

        spliced = insert_sae(model, sae, layer=3, of="mlp", error=True)
        with spliced.trace(prompt):
            spliced.layers[3].sae.features.output[..., 17] *= 2

    Args:
        model: one with standard names. It stays as it is.
        sae: a module with `encode` and `decode` for the site's width.
        layer: in which layer.
        of: `resid_pre resid_mid resid_post attention mlp`, or per head `heads q k v`.
        error: keep what the autoencoder misses, so that nothing changes until a feature does.
        name: what it is called in its layer; several can be inserted, one into the other's model.

    Raises:
        UsageError: there is no such layer or place, or it cannot encode and decode.
    """
    for word in ("encode", "decode"):
        if not callable(getattr(sae, word, None)):
            raise UsageError(
                f"{type(sae).__name__} has no {word}(), so it is no autoencoder.",
                "a sparse autoencoder turns a value into features, and features into a value.",
                "give a module with encode(x) and decode(features).",
            )
    site, number = site_of(of), chosen(layer, model.dims.n_layers, "layer")[0]
    spliced: Any = model._twin()
    block = spliced.layers[number]
    inserted = spliced.attach(name, InsertedSae(sae, error), at=block)
    with spliced.edit(inplace=True):
        site.write(block, inserted(site.read(block), hook=True))
    wrapper: LanguageModel = spliced
    return wrapper


def activations_of(
    model: LanguageModel, prompts: Any, layer: int, of: str = "resid_post"
) -> Tensor:
    """A site's values at every token of some prompts, without padding, `[token, width]`.

        activations_of(model, ["The Eiffel Tower is in", "Once upon a time"], layer=3)

    Prompts may be of unequal length; those of `heads`, `q`, `k` and `v` are rows head by head.
    """
    site, number = site_of(of), chosen(layer, model.dims.n_layers, "layer")[0]
    inputs = encoded(model, prompts)
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    with torch.no_grad(), model.trace(inputs, **call_settings(model)) as tracer:
        value = site.read(model.layers[number])[mask].clone()
        tracer.stop()
    return value.flatten(0, -2)


def loss_recovered(
    model: LanguageModel, prompts: Any, sae: Any, layer: int, of: str = "resid_post"
) -> Result:
    """How much of the model's loss a sparse autoencoder keeps: 1 is all, 0 no more than the mean.

        loss_recovered(model, texts, sae, layer=3).info["features_on"]

    The loss of next tokens is measured thrice: as the model is, with the value by way of the
    autoencoder, and with its mean over all tokens instead.

    Args:
        model, sae, layer, of: as for `insert_sae`.
        prompts: texts, or token ids; they may be of unequal length.

    Returns:
        One number, (mean − inserted) / (mean − clean). `info` has the three losses in nats, the
        share of variance explained, and how many features are on at a token.

    Source: Bricken et al. (2023), section on the loss recovered.
    """
    site, cost = site_of(of), Cost()
    inputs = encoded(model, prompts)
    spliced = insert_sae(model, sae, layer, of)
    values = activations_of(model, prompts, layer, of)
    block = model.layers[chosen(layer, model.dims.n_layers, "layer")[0]]
    losses = []
    for wrapper, is_mean in ((model, False), (spliced, False), (model, True)):
        with torch.no_grad(), wrapper.trace(inputs, **call_settings(model)) as tracer:
            if is_mean:
                value = site.read(block)
                site.write(block, values.mean(0).expand_as(value).clone())
            logits = logits_of(tracer.result)
        cost.note(len(logits))
        losses.append(next_token_loss(logits, inputs))
    clean, kept, mean = losses
    with torch.no_grad():
        features = sae.encode(values)
        missed = (sae.decode(features) - values).square().sum()
    explained = 1 - float(missed / (values - values.mean(0)).square().sum())
    return Result(
        torch.tensor((mean - kept) / (mean - clean)), (), "loss recovered", "",
        f"{site.name} of layer {layer}", SOURCE,
        info=cost.told(
            clean_nats=clean, inserted_nats=kept, mean_nats=mean, explained=explained,
            features_on=float((features != 0).sum(-1).float().mean()),
        ),
    )  # fmt: skip


def next_token_loss(logits: Tensor, inputs: dict[str, Tensor]) -> float:
    """Mean loss of predicting each token from those before it, in nats; padding left out."""
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    wanted = ids[:, 1:, None].to(logits.device)
    found = logits[:, :-1].float().log_softmax(-1).gather(-1, wanted)[..., 0]
    return -float(found[(mask[:, 1:] & mask[:, :-1]).to(found.device)].mean())
