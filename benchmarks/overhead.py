"""Reading, editing and replacing twelve layers, on models of three sizes.

    with model.trace(x):
        for layer in layers:
            layer.output = layer.output * 1.5

Raw hooks are registered and removed around each forward, each knowing its layer, as a careful user
would write them. TransformerLens runs a forward of its own, so its base is that forward with
nothing asked of it; what that costs over plain transformers stands in the row of the empty trace.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import libraries
from benchmarks.comparison import OVER, Row, Task, Tasks
from benchmarks.libraries import HOOKS, LENS, PYVENE, TOLERANCE, both
from benchmarks.subjects import Subject, gpt2, mlp
from benchmarks.timing import Way

TITLE = "Reads, edits and replacements"
EMPTY, READ, EDIT, REPLACE = "empty trace", "12 reads", "12 edits in place", "12 replacements"


def rows(quick: bool) -> Iterator[Row]:
    """Every task on every model."""
    subjects = [mlp(), gpt2()]
    if not quick:
        subjects.append(gpt2("GPT-2, full size, 64 tokens", width=768, ids=(1, 64)))
    for subject in subjects:
        for what in (EMPTY, READ, EDIT, REPLACE):
            bound = 15 if what == EMPTY and subject.prefix == "" else None
            yield Row(what, OVER, tasks(subject, what), subject.name, bound=bound, from_bare=True)


def tasks(subject: Subject, what: str) -> Tasks:
    """Who can do it, and how."""
    bare = subject.bare()
    raw = bare if what == EMPTY else hooked(subject, what)
    made = both(lambda who: Task(traced(who, subject, what), bare, raw))
    if what != EMPTY:
        made = {HOOKS: lambda: Task(raw, bare, bare if what == READ else None), **made}
    if subject.prefix:
        made[LENS] = lambda: lensed(subject, what)
        if what in (READ, REPLACE):
            made[PYVENE] = lambda: Task(intervened(subject, what), bare, raw)
    return made


def first(output: Any) -> torch.Tensor:
    """The hidden states of what a layer returned."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def scaled(output: Any) -> Any:
    """The same output with other hidden states."""
    if isinstance(output, tuple):
        return (output[0] * 1.5, *output[1:])
    return output * 1.5


def hooked(subject: Subject, what: str) -> Way:
    """By raw hooks."""

    def make(number: int, seen: dict[int, Any]) -> Callable[..., Any]:
        def read(_module: Any, _args: Any, output: Any) -> None:
            seen[number] = output

        def edit(_module: Any, _args: Any, output: Any) -> None:
            first(output).mul_(1.5)

        def replace(_module: Any, _args: Any, output: Any) -> Any:
            return scaled(output)

        return {READ: read, EDIT: edit, REPLACE: replace}[what]

    def run() -> Any:
        seen: dict[int, Any] = {}
        handles = [
            layer.register_forward_hook(make(number, seen))
            for number, layer in enumerate(subject.layers)
        ]
        try:
            subject.forward()
        finally:
            for handle in handles:
                handle.remove()
        return list(seen.values()) or None

    return Way(run, subject.module)


def traced(who: str, subject: Subject, what: str) -> Way:
    """By Insitu or nnsight: both are written alike."""
    model = libraries.plain(who, subject)
    keep = libraries.keep(who)
    args, kwargs = subject.args, subject.kwargs or {}
    layers = subject.wrapped_layers(model)

    def empty() -> Any:
        with model.trace(*args, **kwargs):
            pass

    def read() -> Any:
        with model.trace(*args, **kwargs):
            seen = keep({})
            for number, layer in enumerate(layers):
                seen[number] = layer.output
        return list(seen.values())

    def edit() -> Any:
        with model.trace(*args, **kwargs):
            for layer in layers:
                first(layer.output).mul_(1.5)

    def replace() -> Any:
        with model.trace(*args, **kwargs):
            for layer in layers:
                layer.output = scaled(layer.output)

    run = {EMPTY: empty, READ: read, EDIT: edit, REPLACE: replace}[what]
    return Way(run, model._module)


def lensed(subject: Subject, what: str) -> Task:
    """By TransformerLens, over its own forward."""
    bridge = libraries.lens(subject)
    ids = (subject.kwargs or {})["input_ids"]

    def forward() -> None:
        bridge(ids)

    own = Way(forward, bridge.original_model)
    if what == EMPTY:
        bare = libraries.eager(subject).bare()
        return Task(own, bare, bare, TOLERANCE)
    raw = hooked(libraries.eager(subject), what)

    def run() -> Any:
        seen: list[Any] = []

        def read(value: Any, hook: Any) -> None:
            seen.append(value)

        def edit(value: Any, hook: Any) -> None:
            value.mul_(1.5)

        def replace(value: Any, hook: Any) -> Any:
            return value * 1.5

        hook = {READ: read, EDIT: edit, REPLACE: replace}[what]
        names = [f"blocks.{number}.hook_out" for number in range(len(subject.layers))]
        bridge.run_with_hooks(ids, fwd_hooks=[(name, hook) for name in names])
        return seen or None

    return Task(Way(run, bridge.original_model), own, raw, TOLERANCE)


def intervened(subject: Subject, what: str) -> Way:
    """By pyvene, which is told what to do when it wraps the model."""
    import pyvene

    def act() -> Any:
        return pyvene.CollectIntervention() if what == READ else lambda value, _: value * 1.5

    layers = range(len(subject.layers))
    model = libraries.pyvene(
        subject,
        [{"layer": k, "component": "block_output", "intervention": act()} for k in layers],
    )

    def run() -> Any:
        given, _ = model(subject.kwargs)
        return None if given is None else given[1]

    return Way(run, model.model)
