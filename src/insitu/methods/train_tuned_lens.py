"""Training a tuned lens: each layer's map is to give the predictions that the model ends with.

lens = train_tuned_lens(model, texts, steps=250)
lens.training_loss.plot()
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from insitu.methods.progress import progress
from insitu.methods.prompts import encoded
from insitu.methods.readout import read_out
from insitu.methods.tuned_lens import TunedLens
from insitu.models.language import LanguageModel

TOKENS = 128
"""Tokens of a batch that a step learns from: reading all of them would take most of its time."""


def train_tuned_lens(
    model: LanguageModel, prompts: Sequence[Any], *, steps: int = 250, rows: int = 8,
    lr: float = 0.002, seed: int = 0,
) -> TunedLens:  # fmt: skip
    """Train a lens: each layer's map is to give the predictions that the model ends with.

        lens = train_tuned_lens(model, texts, steps=250)

    The model is not changed, and gets no gradients. Two seconds in, a bar shows.

    Args:
        model: a language model with standard names.
        prompts: texts, or token ids, such as the model is to be read on.
        steps: how often the maps are moved.
        rows: prompts in each step, drawn anew.
        lr: how far, by Adam; it falls to nothing in a straight line.
        seed: which prompts each step draws.

    Raises:
        InputError: there are no prompts.

    Source: Belrose et al., "Eliciting Latent Predictions from Transformers with the Tuned Lens".
    """
    with torch.device(next(model._module.parameters()).device):
        lens = TunedLens(model.dims.n_layers, model.dims.d_model)
    optimizer = torch.optim.Adam(lens.parameters(), lr)
    draw = torch.Generator().manual_seed(seed)
    losses = []
    for step in progress(range(steps), "training the lens"):
        chosen = torch.randint(len(prompts), (rows,), generator=draw)
        batch = encoded(model, [prompts[int(i)] for i in chosen])
        loss = _losses(model, lens, batch, draw)
        grads = torch.autograd.grad(loss.sum(), list(lens.parameters()))
        for number, grad in zip(lens.parameters(), grads, strict=True):
            number.grad = grad
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.step()
        losses.append(loss.detach().cpu())
    lens.training_losses = torch.stack(losses)
    return lens.requires_grad_(False)


def _losses(
    model: LanguageModel, lens: TunedLens, batch: dict[str, Any], draw: torch.Generator
) -> Tensor:
    """Mean KL of each mapped layer from the final prediction, over some of the batch's tokens."""
    with torch.no_grad(), model.trace(batch):
        streams = [layer.resid_post.clone() for layer in model.layers]
        final = model.output.logits.clone()
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    real = mask.flatten().nonzero()[:, 0]
    some = real[torch.randperm(len(real), generator=draw)[:TOKENS].to(real.device)]
    target = final.flatten(0, 1)[some].float().log_softmax(-1)
    found = []
    for layer, stream in enumerate(streams[:-1]):
        logits = read_out(model, lens.translated(layer, stream.flatten(0, 1)[some]))
        logprobs = logits.float().log_softmax(-1)
        found.append(functional.kl_div(logprobs, target, reduction="batchmean", log_target=True))
    return torch.stack(found)
