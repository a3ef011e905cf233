"""How: a way and what it is compared with take turns, run by run, in random order.

    bare = Way(lambda: module(x), module)
    turns = take_turns([(traced, bare)], Timing(rounds=40))[0]
    turns.took.quarter - turns.base.quarter      # µs over the bare forward

A machine that others use too, or that changes its clock, then slows both alike. The first quartile
is what a run takes when it is left alone; the median is what it takes; the least says how much of
the difference is noise.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

ROUND_US = 20_000
"""About how long one way runs in each round, however short one run is."""
REPEAT_MAX = 50


@dataclass(frozen=True, eq=False)
class Way:
    """One way to do a task: what is timed, and the module whose outputs show what it did."""

    run: Callable[..., Any]
    module: nn.Module | None = None
    prepare: Callable[[], Any] | None = None
    """Makes what `run` is given, before each run and untimed: a cold start needs a fresh thing."""

    def once(self) -> Any:
        """Run it; gives the values it saw."""
        return self.run() if self.prepare is None else self.run(self.prepare())


@dataclass(frozen=True)
class Spread:
    """Single runs of one way, in µs."""

    median: float
    quarter: float
    least: float


@dataclass(frozen=True)
class Timing:
    """How often, and by which clock: of the wall, or of this thread's own work alone."""

    rounds: int
    clock: Callable[[], int] = time.perf_counter_ns


@dataclass(frozen=True)
class Turns:
    """A way and its base, and the medians of what the one took over and times the other."""

    took: Spread
    base: Spread | None = None
    difference: float | None = None
    quotient: float | None = None


def take_turns(pairs: Sequence[tuple[Way, Way | None]], timing: Timing) -> list[Turns]:
    """Time each way beside its base; a way without one is timed alone."""
    took: list[list[float]] = [[] for _ in pairs]
    based: list[list[float]] = [[] for _ in pairs]
    clock = timing.clock
    repeats = [_repeats(way) for way, _ in pairs]
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        for _ in range(timing.rounds):
            for k in random.sample(range(len(pairs)), len(pairs)):
                way, base = pairs[k]
                for _ in range(repeats[k]):
                    if base is not None:
                        based[k].append(_time(base, clock))
                    took[k].append(_time(way, clock))
            gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    return [_turns(*both) for both in zip(took, based, strict=True)]


def _repeats(way: Way) -> int:
    if way.prepare is not None:
        return 1
    warm = min(_time(way, time.perf_counter_ns) for _ in range(3))
    return max(1, min(REPEAT_MAX, int(ROUND_US / warm)))


def _time(way: Way, clock: Callable[[], int]) -> float:
    if way.prepare is None:
        start = clock()
        way.run()
        return (clock() - start) / 1000
    given = way.prepare()
    start = clock()
    way.run(given)
    return (clock() - start) / 1000


def _turns(took: list[float], based: list[float]) -> Turns:
    if not based:
        return Turns(_spread(took))
    beside = list(zip(took, based, strict=True))
    difference = statistics.median(way - base for way, base in beside)
    quotient = statistics.median(way / base for way, base in beside)
    return Turns(_spread(took), _spread(based), difference, quotient)


def _spread(values: list[float]) -> Spread:
    quarter = (
        statistics.quantiles(values, n=4, method="inclusive")[0] if len(values) > 1 else values[0]
    )
    return Spread(statistics.median(values), quarter, min(values))
