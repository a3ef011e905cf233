"""Logistic regressions at many places at once.

weights, accuracy = fit(inputs, truth, 2, train)
"""

import torch
from torch import Tensor

L2 = 1e-2
"""What long weights cost, on standardised streams."""


def fit(inputs: Tensor, truth: Tensor, count: int, train: Tensor) -> tuple[Tensor, Tensor]:
    """Every place's regression at once: weights on the stream, accuracies in training and out."""
    known = inputs[:, :, train]
    mean, spread = known.mean(2, keepdim=True), known.std(2, keepdim=True).clamp(min=1e-6)
    inputs = (inputs - mean) / spread
    weights = torch.zeros(*inputs.shape[:2], inputs.shape[-1], count, requires_grad=True)
    bias = torch.zeros(*inputs.shape[:2], 1, count, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logprobs = (inputs[:, :, train] @ weights + bias).log_softmax(-1)
        wrong = -logprobs[..., torch.arange(int(train.sum())), truth[train]].mean(-1)
        total = (wrong + L2 * weights.square().sum((-1, -2))).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    hit = ((inputs @ weights + bias).argmax(-1) == truth).float().detach()
    accuracy = torch.stack([hit[..., train].mean(-1), hit[..., ~train].mean(-1)])
    return (weights / spread.transpose(2, 3)).detach().transpose(2, 3), accuracy
