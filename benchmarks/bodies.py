"""Bodies that wait: invokes, and the older `with tracer.iter[…]:`.

    with model.trace() as tracer:
        for row in range(64):
            with tracer.invoke(ids[row : row + 1]):
                seen.append(layer.output)

A captured body is compared with the same code in place, a further invoke with the same rows in one
invoke, and 64 invokes with the bare forward of their batch. In nnsight every block is captured, so
it has no place in the first rows; it joins prompts for language models alone.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import libraries
from benchmarks.comparison import OVER, TIMES, Row, Task, Tasks
from benchmarks.libraries import HOOKS, INSITU, NNSIGHT, TOLERANCE, both
from benchmarks.subjects import Subject, gpt2, mlp, with_rows
from benchmarks.timing import Way

TITLE = "Captured bodies and invokes"
BODY_MAX_US, INVOKE_MAX_US, BATCH_MAX = 25, 10, 1.3
FURTHER = 8
"""Invokes beyond the first, in the rows about one invoke more."""


def rows(quick: bool) -> Iterator[Row]:
    """One body, one invoke more, and many."""
    small, tiny = mlp(), gpt2("GPT-2 shape, 2 layers", layers=2)
    for subject in (small, tiny):
        alone: Tasks = {INSITU: lambda subject=subject: inputless(subject)}
        pairs = both(lambda who, subject=subject: stepped(who, subject))
        yield Row(
            "`with tracer.invoke():`, over the same in place",
            OVER, alone, subject.name, bound=BODY_MAX_US,
        )  # fmt: skip
        yield Row(
            "`with tracer.iter[0]:`, over `for step in tracer.iter[0]:`",
            OVER, pairs, subject.name, bound=BODY_MAX_US,
        )  # fmt: skip
        for reads in (True, False):
            pairs = both(lambda who, *given: further(who, *given), subject, reads)
            if subject is small:
                pairs.pop(NNSIGHT)
            yield Row(
                f"a further invoke, its body {'reads one site' if reads else 'is empty'}",
                OVER, pairs, subject.name, per=FURTHER, bound=INVOKE_MAX_US,
            )  # fmt: skip
    large = gpt2("GPT-2 shape, 22 layers (294 modules), 64 rows", layers=22)
    for spread in (False, True):
        where = "sites spread over the layers" if spread else "one site"
        what = f"64 invokes, each reading its row of {where}"
        yield Row(what, TIMES, joined(large, 64, spread), large.name, bound=BATCH_MAX)
    for count in (1, 4, 16) if quick else (1, 4, 16, 64):
        what = "invokes, over the bare forward of their batch"
        yield Row(what, OVER, joined(tiny, count, False), tiny.name, at=count)


def inputless(subject: Subject) -> Task:
    """A captured body in a trace that has its input."""
    model = libraries.plain(INSITU, subject)
    layer = subject.wrapped_layers(model)[-1]
    args, kwargs = subject.args, subject.kwargs or {}

    def in_place() -> Any:
        with model.trace(*args, **kwargs):
            seen = layer.output
        return seen

    def captured() -> Any:
        with model.trace(*args, **kwargs) as tracer:
            with tracer.invoke():
                seen = layer.output
        return seen

    base = Way(in_place, subject.module)
    return Task(Way(captured, subject.module), base, base)


def stepped(who: str, subject: Subject) -> Task:
    """The `with` form of a loop, which is captured, and the `for` form, which is not."""
    model, keep = libraries.plain(who, subject), libraries.keep(who)
    layer = subject.wrapped_layers(model)[-1]
    args, kwargs = subject.args, subject.kwargs or {}

    def in_place() -> Any:
        with model.trace(*args, **kwargs) as tracer:
            seen = keep([])
            for _step in tracer.iter[0]:
                seen.append(layer.output)
        return seen

    def captured() -> Any:
        with model.trace(*args, **kwargs) as tracer:
            seen = keep([])
            with tracer.iter[0]:
                seen.append(layer.output)
        return seen

    base = Way(in_place, model._module)
    return Task(Way(captured, model._module), base, base)


def further(who: str, subject: Subject, reads: bool) -> Task:
    """Nine invokes of a row each, beside one invoke of nine rows."""
    wrap, keep = libraries.language if subject.prefix else libraries.plain, libraries.keep(who)
    model = wrap(who, subject)
    layer = subject.wrapped_layers(model)[-1]
    batch = prompts(subject, FURTHER + 1)

    def run(parts: list[torch.Tensor]) -> Callable[[], Any]:
        def reading() -> Any:
            with model.trace() as tracer:
                seen = keep([])
                for part in parts:
                    with tracer.invoke(part):
                        seen.append(layer.output)
            return torch.cat(list(seen))

        def idle() -> Any:
            with model.trace() as tracer:
                for part in parts:
                    with tracer.invoke(part):
                        pass

        return reading if reads else idle

    apart, together = run(list(batch.split(1))), run([batch])
    base = Way(together, model._module)
    return Task(Way(apart, model._module), base, base)


def joined(subject: Subject, count: int, spread: bool) -> Tasks:
    """So many invokes of a row each, beside the bare forward of all rows."""
    batch = with_rows(subject, count)
    last = len(subject.layers) - 1
    places = [row % (last + 1) if spread else last for row in range(count)]
    bare, raw = batch.bare(), sliced(batch, places)
    others = both(lambda who: Task(invoked(who, batch, places), bare, raw, TOLERANCE))
    return {HOOKS: lambda: Task(raw, bare, bare), **others}


def sliced(batch: Subject, places: list[int]) -> Way:
    """By raw hooks: each takes its rows of what its layer returns."""

    def run() -> Any:
        seen: list[Any] = [None] * len(places)

        def make(layer: int) -> Callable[..., None]:
            own = [row for row, place in enumerate(places) if place == layer]

            def hook(_module: Any, _args: Any, output: Any) -> None:
                for row in own:
                    seen[row] = output[row : row + 1]

            return hook

        handles = [batch.layers[k].register_forward_hook(make(k)) for k in set(places)]
        try:
            batch.forward()
        finally:
            for handle in handles:
                handle.remove()
        return seen

    return Way(run, batch.module)


def invoked(who: str, batch: Subject, places: list[int]) -> Way:
    """By invokes."""
    model, keep = libraries.language(who, batch), libraries.keep(who)
    layers = batch.wrapped_layers(model)
    parts = list(prompts(batch, len(places)).split(1))
    sites = [layers[place] for place in places]

    def run() -> Any:
        with model.trace() as tracer:
            seen = keep({})
            for row, (part, site) in enumerate(zip(parts, sites, strict=True)):
                with tracer.invoke(part):
                    seen[row] = site.output
        return [seen[row] for row in range(len(places))]

    return Way(run, model._module)


def prompts(subject: Subject, rows: int) -> torch.Tensor:
    """An input of so many rows."""
    many = with_rows(subject, rows)
    batch: torch.Tensor = (*many.args, *(many.kwargs or {}).values())[0]
    return batch
