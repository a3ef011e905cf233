"""Gradients over two processes: in the job every value of the model's is a node of torch's graph.

    job                                             device process
    ───                                             ──────────────
    h = h.2's output, a node                        h.2's output, cut: the model goes on with a leaf
    the block edits it, as torch records it         the leaf takes the new values
    logits, a node that came of h                   logits
    loss.backward() … the gradient of logits ─────► torch.autograd.grad(logits, [h's leaf], …)
                    ◄─ the gradient of h there ────
    … through the block's edit, to what came before

So the job's graph has a node for each value that crossed, and an edge to all that crossed before;
what lies between two of them is the device process's own graph. Weights have no gradients here.
"""

import weakref
from collections.abc import Callable
from types import CodeType
from typing import Any

import torch

from insitu.engine.backward_call import can_go_back
from insitu.engine.running import active

Pull = Callable[[int, torch.Tensor, list[int]], list[torch.Tensor | None]]
"""Of a number's value, what a gradient there is at earlier numbers."""


_WORDS = frozenset({"backward", "grad", "autograd"})


def says_gradients() -> bool:
    """Whether a trace is open whose code may ask for gradients, and the call is to be recorded."""
    run = active.get()
    entered = None if run is None else run.arming.entered
    return can_go_back() or (entered is not None and _says(entered[0]))


def _says(code: CodeType) -> bool:
    return not _WORDS.isdisjoint(code.co_names) or any(
        _says(inner) for inner in code.co_consts if type(inner) is CodeType
    )


class Token:
    """As long as it lives, the device process keeps what a number stands for."""

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number


class Graph:
    """The nodes of one job.

    Args:
        pull: asks the device process for gradients.
        gone: told of a number that no node needs any more.
    """

    def __init__(self, pull: Pull, gone: Callable[[int], None]) -> None:
        self.pull = pull
        self._gone = gone
        self._anchor = torch.zeros((), requires_grad=True)
        self._tokens: weakref.WeakValueDictionary[int, Token] = weakref.WeakValueDictionary()
        self._crossed: dict[int, tuple[Token, torch.Tensor]] = {}
        """What crossed in this pass: later values may have come of it."""

    def begin(self) -> None:
        """Another pass: nothing in it comes of what crossed in the last one."""
        self._crossed.clear()

    def needs(self, number: int) -> bool:
        """Whether a node is left that may ask for a number's gradient."""
        return number in self._tokens

    def node(self, number: int, values: torch.Tensor) -> torch.Tensor:
        """A tensor of the model's, which came of all that crossed before."""
        before = [(token, tensor) for token, tensor in self._crossed.values()]
        token = self._token(number)
        with torch.enable_grad():
            made: Any = _FromModel.apply(  # type: ignore[no-untyped-call]
                self, token, [it for it, _ in before], [values], self._anchor,
                *[tensor for _, tensor in before],
            )  # fmt: skip
        self._crossed[number] = token, made
        return made  # type: ignore[no-any-return]

    def crossed(self, number: int, tensor: torch.Tensor) -> None:
        """A tensor of the block's goes to the model, which may use it."""
        self._crossed[number] = self._token(number), tensor

    def _token(self, number: int) -> Token:
        token = self._tokens.get(number)
        if token is None:
            token = self._tokens[number] = Token(number)
            weakref.finalize(token, self._gone, number).atexit = False
        return token


class _FromModel(torch.autograd.Function):
    """A value that the device process computed from earlier ones."""

    @staticmethod
    def forward(
        ctx: Any, graph: Graph, token: Token, before: list[Token], values: list[Any], *_: Any
    ) -> torch.Tensor:
        """Give the values on; they are no input, so that they may be changed in place."""
        ctx.graph, ctx.token, ctx.before = graph, token, before
        found: torch.Tensor = values.pop()
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """Ask the device process what the gradient is at each of the earlier ones."""
        numbers = [token.number for token in ctx.before]
        found = ctx.graph.pull(ctx.token.number, grad, numbers) if numbers else []
        return (None, None, None, None, None, *found)
