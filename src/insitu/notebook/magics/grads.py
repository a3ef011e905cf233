"""`%%trace … --grad EXPR`: the gradients of a number at every site the cell has met.

    grads = Grads(model, recorder)
    with grads, tracer: ...
    grads.of(loss)              # {"transformer.h.2.output": tensor, …}

Computed by `torch.autograd.grad`: no `.grad` of a weight is touched. Where no weight wants
gradients they all do for the time of the run, so that a graph comes to be.
"""

from types import TracebackType
from typing import Any

import torch
from torch import nn

from insitu.engine.arming import Node
from insitu.engine.beside import Watcher
from insitu.engine.misses import site
from insitu.engine.written import leaves
from insitu.errors import GradientError
from insitu.twins.table import Table


class Grads:
    """Keeps what the block meets, and asks for gradients once it has ended."""

    def __init__(self, module: nn.Module, beside: Watcher | None) -> None:
        self._module = module
        self._beside = beside
        self._met: dict[str, list[torch.Tensor]] = {}
        self._at = ""
        self._asked: list[nn.Parameter] = []
        self._enabled = torch.enable_grad()

    def __enter__(self) -> "Grads":
        weights = list(self._module.parameters())
        if not any(it.requires_grad for it in weights):
            self._asked = [it for it in weights if it.is_floating_point()]
            for weight in self._asked:
                weight.requires_grad_(True)
        self._enabled.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._enabled.__exit__(kind, error, traceback)
        for weight in self._asked:
            weight.requires_grad_(False)

    def arrived(self, node: Node, kind: int, value: Any, line: int, step: int) -> None:
        """The block has come to a site."""
        self._at = site(node, kind)
        self._met[self._at] = [tensor for _, tensor in leaves(value)]
        if self._beside is not None:
            self._beside.arrived(node, kind, value, line, step)

    def leaving(self, value: Any) -> None:
        """The block goes on; what it wrote is what the model goes on with."""
        if self._at in self._met:
            self._met[self._at] = [tensor for _, tensor in leaves(value)]
        if self._beside is not None:
            self._beside.leaving(value)

    def skipped(self, node: Node, value: Any, line: int, step: int) -> None:
        """A module's call has been replaced."""
        if self._beside is not None:
            self._beside.skipped(node, value, line, step)

    def of(self, number: Any, text: str) -> dict[str, torch.Tensor]:
        """The gradients of a number, by site; a site that has no part in it is left out.

        Raises:
            GradientError: it is no number, or no site has a part in it.
        """
        if not (isinstance(number, torch.Tensor) and number.numel() == 1):
            kind = list(number.shape) if isinstance(number, torch.Tensor) else type(number).__name__
            raise GradientError(
                f"--grad {text} is no single number, but {kind}.",
                "a gradient tells how one number changes.",
                f"make one of it, as in ({text}).sum().",
            )
        first = {path: self._first(tensors) for path, tensors in self._met.items()}
        known = {path: tensor for path, tensor in first.items() if tensor is not None}
        if not (number.requires_grad and known):
            raise GradientError(
                f"--grad {text} depends on nothing the cell has met.",
                f"it met {', '.join(self._met) or 'no site'}."
                + ("" if number.requires_grad else " The number carries no graph."),
                "read the sites you want the gradients of, and compute the number after them.",
            )
        found = torch.autograd.grad(
            number.reshape(()), list(known.values()), allow_unused=True, retain_graph=True
        )
        told = zip(known, found, strict=True)
        return {path: tensor.detach() for path, tensor in told if tensor is not None}

    def _first(self, tensors: list[torch.Tensor]) -> torch.Tensor | None:
        return next((it for it in tensors if it.requires_grad), None)


def table(text: str, found: dict[str, torch.Tensor]) -> Table:
    """The sizes of gradients."""
    rows = [
        (path, str(list(it.shape)), f"{float(it.norm()):.4g}", f"{float(it.abs().max()):.4g}")
        for path, it in found.items()
    ]
    return Table(
        f"Gradients of {text}",
        ("site", "shape", "norm", "largest"),
        rows,
        "whole in the variable grads: grads[site]",
        frozenset({"norm", "largest"}),
    )
