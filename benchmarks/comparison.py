"""A row of the table: one task, done by several libraries, each beside what it is compared with.

    bare = subject.bare()
    yield Row("12 reads", OVER, {
        HOOKS: lambda: Task(hooked, bare, same_as=bare),
        INSITU: lambda: Task(traced, bare, same_as=hooked),
    }, subject="12-layer MLP")

A way that cannot be made or fails leaves a `Skip` with its reason; one that gives other numbers
ends the whole run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.equality import NotEqual, check
from benchmarks.timing import Spread, Timing, Turns, Way, take_turns

OVER, TIMES, ALONE = "µs over", "times", "µs"
"""What is printed: the difference to the base, the quotient, or the time itself."""


@dataclass(frozen=True)
class Task:
    """How one library does it, and beside what it is timed."""

    way: Way
    base: Way | None = None
    same_as: Way | None = None
    """Whose numbers it must give."""
    tolerance: float = 0.0


Tasks = dict[str, Callable[[], Task]]
"""By whom. They are made when their turn comes, so that one that fails is skipped alone."""


@dataclass(frozen=True)
class Row:
    """One task, done by several libraries."""

    what: str
    unit: str
    tasks: Tasks
    subject: str
    per: int = 1
    """How many there are in a run, where the figure is for one."""
    bound: float | None = None
    """What Insitu's figure may be at most."""
    at: int | None = None
    """Where it lies on a growth curve."""
    flat: float | None = None
    """What Insitu's last point of the curve may be at most, times its first."""
    from_bare: bool = False
    """Whether the base is the bare forward, whose time then stands beside the subject's name."""

    def among(self, libraries: Sequence[str]) -> "Row":
        """The same row for these libraries alone."""
        return replace(self, tasks={who: self.tasks[who] for who in libraries if who in self.tasks})


@dataclass(frozen=True)
class Figure:
    """What was measured: one library's cell of a row."""

    subject: str
    what: str
    unit: str
    who: str
    took: Spread
    base: Spread | None
    paired: float | None = None
    """The median of what each run took over, or times, the run of its base beside it."""
    per: int = 1
    bound: float | None = None
    at: int | None = None
    flat: float | None = None
    from_bare: bool = False
    equality: str = ""

    def value(self, of: str = "quarter") -> float:
        """The figure in the row's unit, from the medians, the first quartiles or the least."""
        took: float = getattr(self.took, of)
        if self.base is None:
            return took / self.per
        base: float = getattr(self.base, of)
        return took / base if self.unit == TIMES else (took - base) / self.per


@dataclass(frozen=True)
class Skip:
    """A cell that stays empty, and why."""

    subject: str
    what: str
    who: str
    reason: str


def measure(row: Row, timing: Timing) -> tuple[list[Figure], list[Skip]]:
    """Check every library's way of doing it, then time them in turns."""
    skipped: list[Skip] = []
    ready: dict[str, tuple[Task, str]] = {}
    for who, make in row.tasks.items():
        try:
            task = make()
            equality = check(task.way, task.same_as, task.tolerance)
            task.way.once()  # warm: what is learned or compiled once is not what a run costs
            ready[who] = task, equality
        except NotEqual as error:
            raise NotEqual(f"{row.subject}, {row.what}, {who}: {error}") from error
        except Exception as error:  # a construct that is not there, or a library that cannot
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"
            skipped.append(Skip(row.subject, row.what, who, reason))
    measured = take_turns([(task.way, task.base) for task, _ in ready.values()], timing)
    figures = [
        Figure(
            row.subject, row.what, row.unit, who, turns.took, turns.base, paired(row, turns),
            row.per, row.bound, row.at, row.flat, row.from_bare, equality,
        )
        for (who, (_, equality)), turns in zip(ready.items(), measured, strict=True)
    ]  # fmt: skip
    return figures, skipped


def paired(row: Row, turns: Turns) -> float | None:
    """The figure from pairs of runs, which a machine that slows down and recovers moves least."""
    if turns.difference is None or turns.quotient is None:
        return None
    return turns.quotient if row.unit == TIMES else turns.difference / row.per
