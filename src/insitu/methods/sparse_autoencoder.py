"""A small sparse autoencoder: activations as sums of a few of many learned directions.

sae = SparseAutoencoder(d_model=128, features=512, top_k=16).fit(activations)     # [row, d_model]
features = sae.encode(x)                # [..., features], mostly zero
again = sae.decode(features)            # [..., d_model]
"""

import math
from typing import TypedDict, Unpack

import torch
from torch import Tensor, nn

from insitu.errors import InputError
from insitu.methods.progress import progress


class Fitting(TypedDict, total=False):
    """Settings of a fit.

    Attributes:
        steps: how many batches (1,000).
        batch_size: rows in each (1,024).
        lr: Adam's learning rate (0.003).
        l1: weight of the features in the loss, where there is no `top_k` (0.1; more is sparser).
        seed: of the batches (0).
    """

    steps: int
    batch_size: int
    lr: float
    l1: float
    seed: int


class SparseAutoencoder(nn.Module):
    """Encode into many features, of which few are on; decode by a direction for each.

        SparseAutoencoder(128, 512)                 # sparse by an L1 penalty
        SparseAutoencoder(128, 512, top_k=16)       # sparse by keeping the 16 largest

    Args:
        d_model: width of the activations.
        features: how many there are.
        top_k: how many are kept for each row; by default all that are positive.
        seed: of the first weights.

    Source: Bricken et al., Towards Monosemanticity (2023); Gao et al., Scaling and Evaluating
    Sparse Autoencoders (2024), for `top_k`.
    """

    scale: Tensor

    def __init__(
        self, d_model: int, features: int, top_k: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(features, d_model, generator=generator)
        directions /= directions.norm(dim=-1, keepdim=True)
        self.top_k = top_k
        self.decoder = nn.Parameter(directions)
        self.encoder = nn.Parameter(directions.T.clone())
        self.threshold = nn.Parameter(torch.zeros(features))
        self.centre = nn.Parameter(torch.zeros(d_model))
        self.register_buffer("scale", torch.ones(()))

    def encode(self, x: Tensor) -> Tensor:
        """Features of activations `[..., d_model]`, zero or more each, `[..., features]`."""
        found = torch.relu((x - self.centre) / self.scale @ self.encoder + self.threshold)
        if self.top_k is None:
            return found
        values, at = found.topk(self.top_k, dim=-1)
        return torch.zeros_like(found).scatter(-1, at, values)

    def decode(self, features: Tensor) -> Tensor:
        """The activations that features stand for, `[..., d_model]`."""
        return features @ self.decoder * self.scale + self.centre

    def forward(self, x: Tensor) -> Tensor:
        """Activations, by way of their features."""
        return self.decode(self.encode(x))

    def fit(self, activations: Tensor, **settings: Unpack[Fitting]) -> "SparseAutoencoder":
        """Learn from activations `[..., d_model]`; the same seed gives the same weights.

            sae.fit(activations, steps=2000, l1=0.02)

        Raises:
            InputError: they have another width, or there are none.
        """
        rows = activations.detach().flatten(0, -2) if activations.dim() > 1 else activations
        if rows.dim() != 2 or rows.shape[-1] != len(self.centre) or not len(rows):
            raise InputError(
                f"fit() was given activations of shape {list(activations.shape)}.",
                f"this autoencoder takes rows of width {len(self.centre)}.",
                "give [row, d_model], at least one row, from the place it is to be put in.",
            )
        generator = torch.Generator().manual_seed(settings.get("seed", 0))
        with torch.no_grad():
            self.centre.copy_(rows.mean(0))
            self.scale.copy_((rows - self.centre).norm(dim=-1).mean() / math.sqrt(rows.shape[1]))
        size, l1 = settings.get("batch_size", 1024), settings.get("l1", 0.1)
        optimizer = torch.optim.Adam(self.parameters(), settings.get("lr", 3e-3))
        for _ in progress(range(settings.get("steps", 1000)), "fitting"):
            at = torch.randint(len(rows), (min(size, len(rows)),), generator=generator)
            self._step(rows[at.to(rows.device)], optimizer, 0.0 if self.top_k else l1)
        return self

    def _step(self, rows: Tensor, optimizer: torch.optim.Optimizer, l1: float) -> None:
        with torch.enable_grad():
            features = self.encode(rows)
            missed = ((self.decode(features) - rows) / self.scale).square().mean()
            loss = missed + l1 * features.abs().sum(-1).mean() / math.sqrt(rows.shape[1])
        gradients = torch.autograd.grad(loss, list(self.parameters()))
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # else features shrink, and directions grow, to save on L1
            self.decoder.div_(self.decoder.norm(dim=-1, keepdim=True))
