"""What grows with what: modules nobody touches, and reads in one pass.

    NNsight(model)                     # of 100 to 10,000 modules
    with model.trace(x):
        seen = [layer.output for layer in layers]

The modules beside the twelve layers are there and do not run, so that the bare forward stays the
same; a library that walks through all of them in every pass shows it.
"""

from collections.abc import Iterator
from typing import Any

from benchmarks import libraries
from benchmarks.comparison import ALONE, OVER, Row, Task, Tasks
from benchmarks.libraries import HOOKS, NNSIGHT, both
from benchmarks.overhead import EMPTY, READ, hooked, traced
from benchmarks.subjects import Subject, beside, mlp
from benchmarks.timing import Way

TITLE = "Growth"
FLAT_MAX = 1.2
SUBJECT = "12-layer MLP among untouched modules"


def rows(quick: bool) -> Iterator[Row]:
    """By modules, then by reads."""
    counts = (100, 1_000) if quick else (100, 1_000, 10_000)
    for what in (EMPTY, READ):
        for count in counts:
            tasks = tracing(beside(count), what)
            yield Row(what, OVER, tasks, SUBJECT, at=count, flat=FLAT_MAX)
    for count in counts:
        yield Row("wrapping the model", ALONE, both(wrapping, beside(count)), SUBJECT, at=count)
    for depth in (1, 4, 16, 64):
        yield Row("reads", OVER, tracing(mlp(depth), READ), "MLP of as many layers", at=depth)


def tracing(subject: Subject, what: str) -> Tasks:
    """Over the bare forward."""
    bare = subject.bare()
    raw = bare if what == EMPTY else hooked(subject, what)
    tasks = both(lambda who: Task(traced(who, subject, what), bare, raw))
    return tasks if what == EMPTY else {HOOKS: lambda: Task(raw, bare, bare), **tasks}


def wrapping(who: str, subject: Subject) -> Task:
    """Wrapping a module; nnsight leaves something on each, so it is given another every time."""
    wrap, module = libraries.wrapper(who), subject.module

    def run(given: Any = module) -> None:
        wrap(given)

    return Task(Way(run, prepare=(lambda: subject.twin().module) if who == NNSIGHT else None))
