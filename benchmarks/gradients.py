"""Backward passes that give the gradients of twelve hidden states.

    with insitu.backward(loss):
        grads = [hidden.grad for hidden in reversed(states)]

Plain tensor hooks do the same: `hidden.register_hook`. The first rows run backward again and again
through one graph; the last runs forward and backward, inside a trace. pyvene has no gradients.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import insitu
from benchmarks import libraries
from benchmarks.comparison import TIMES, Row, Task
from benchmarks.libraries import INSITU, LENS, NNSIGHT, both
from benchmarks.overhead import first
from benchmarks.subjects import Subject, gpt2
from benchmarks.timing import Way

TITLE = "Gradients"
GRADIENTS = True
BACKWARD_MAX = 1.05


def rows(quick: bool) -> Iterator[Row]:
    """Read, edited, and read in a whole run."""
    subject = gpt2()
    for edits in (False, True):
        yield Row(
            f"backward, 12 gradients {'replaced' if edits else 'read'}, of tensor hooks", TIMES,
            {INSITU: lambda edits=edits: outside(subject, edits, by_insitu),
             NNSIGHT: lambda edits=edits: outside(subject, edits, by_nnsight)},
            subject.name, bound=BACKWARD_MAX,
        )  # fmt: skip
    plain = whole_by_hooks(subject)
    yield Row(
        "forward and backward, 12 gradients read, of hooks", TIMES,
        {**both(lambda who: Task(whole(who, subject), plain, plain)),
         LENS: lambda: lensed(subject)},
        subject.name, bound=BACKWARD_MAX,
    )  # fmt: skip


# One graph, many backwards --------------------------------------------------------------------


def outside(subject: Subject, edits: bool, by: Callable[..., Any]) -> Task:
    """Backwards through a graph that was built once, outside any trace."""
    states, loss = graph(subject)

    def hooked() -> list[Tensor]:
        seen: list[Tensor] = []

        def read(grad: Tensor) -> None:
            seen.append(grad)

        def edit(grad: Tensor) -> Tensor:
            seen.append(grad)
            return grad * 0.5

        handles = [state.register_hook(edit if edits else read) for state in states]
        try:
            torch.autograd.backward(loss, retain_graph=True)
        finally:
            for handle in handles:
                handle.remove()
        return seen

    base = Way(hooked)
    return Task(Way(by(states, loss, edits)), base, base)


def graph(subject: Subject) -> tuple[list[Tensor], Tensor]:
    """The hidden states of one forward, and a loss."""
    states: list[Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _module, _args, output: states.append(first(output)))
        for layer in subject.layers
    ]
    loss = subject.forward().logits.sum()
    for handle in handles:
        handle.remove()
    return states, loss


def by_insitu(states: list[Tensor], loss: Tensor, edits: bool) -> Callable[[], Any]:
    """`with insitu.backward(loss):`."""
    backwards = states[::-1]

    def read() -> Any:
        seen = []
        with insitu.backward(loss, retain_graph=True):
            for state in backwards:
                seen.append(state.grad)
        return seen

    def edit() -> Any:
        seen = []
        with insitu.backward(loss, retain_graph=True):
            for state in backwards:
                grad = state.grad
                seen.append(grad)
                state.grad = grad * 0.5
        return seen

    return edit if edits else read


def by_nnsight(states: list[Tensor], loss: Tensor, edits: bool) -> Callable[[], Any]:
    """`with loss.backward():`, with nnsight's patch in place for this alone."""
    libraries.keep(NNSIGHT)
    backwards = states[::-1]

    def read() -> Any:
        seen: list[Any] = []
        with libraries.nnsight_backward():
            with loss.backward(retain_graph=True):
                for state in backwards:
                    seen.append(state.grad)
        return seen

    def edit() -> Any:
        seen: list[Any] = []
        with libraries.nnsight_backward():
            with loss.backward(retain_graph=True):
                for state in backwards:
                    grad = state.grad
                    seen.append(grad)
                    state.grad = grad * 0.5
        return seen

    return edit if edits else read


# A whole run ---------------------------------------------------------------------------------


def whole_by_hooks(subject: Subject) -> Way:
    """Forward hooks that put a hook on each hidden state, and a backward."""

    def run() -> Any:
        seen: list[Tensor] = []

        def hook(_module: Any, _args: Any, output: Any) -> None:
            first(output).register_hook(seen.append)

        handles = [layer.register_forward_hook(hook) for layer in subject.layers]
        try:
            torch.autograd.backward(subject.forward().logits.sum())
        finally:
            for handle in handles:
                handle.remove()
        return seen

    return Way(run, subject.module)


def whole(who: str, subject: Subject) -> Way:
    """A trace with a backward in it."""
    model, keep = libraries.plain(who, subject), libraries.keep(who)
    layers, kwargs = subject.wrapped_layers(model), subject.kwargs or {}

    def run() -> Any:
        with model.trace(**kwargs):
            seen = keep([])
            states = []
            for layer in layers:
                states.append(first(layer.output))
            loss = model.lm_head.output.sum()
            with loss.backward():
                for state in reversed(states):
                    seen.append(state.grad)
        return seen

    def patched() -> Any:
        with libraries.nnsight_backward():
            return run()

    return Way(run if who == INSITU else patched, model._module)


def lensed(subject: Subject) -> Task:
    """By TransformerLens's backward hooks, over tensor hooks in its own forward."""
    bridge = libraries.lens(subject)
    ids = (subject.kwargs or {})["input_ids"]
    names = [f"blocks.{number}.hook_out" for number in range(len(subject.layers))]
    points = [bridge.hook_dict[name] for name in names]

    def by_lens() -> Any:
        seen: list[Tensor] = []

        def read(grad: Tensor, hook: Any) -> None:
            seen.append(grad)

        with bridge.hooks(bwd_hooks=[(name, read) for name in names]):
            torch.autograd.backward(bridge(ids).sum())
        return seen

    def by_hooks() -> Any:
        seen: list[Tensor] = []

        def hook(_module: Any, _args: Any, output: Any) -> None:
            output.register_hook(seen.append)

        handles = [point.register_forward_hook(hook) for point in points]
        try:
            torch.autograd.backward(bridge(ids).sum())
        finally:
            for handle in handles:
                handle.remove()
        return seen

    base = Way(by_hooks, bridge.original_model)
    return Task(Way(by_lens, bridge.original_model), base, base)
