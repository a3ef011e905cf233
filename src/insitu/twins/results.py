"""Numbers over two named axes as text: a lens, a map of patches, a head of attention.

    lens_text(result)           # words and their chances, in the terminal's width
    patches_text(estimate, exact, state)

Of a result no more is known here than what a grid shows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from insitu.twins.grid import Grid, bar, cut, grid_text, number, seen

_HEADS_MAX, _QUERIES_MAX, _READ_MOST = 10, 20, 3


class AxisTold(Protocol):
    """A name and what stands at each place."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def labels(self) -> Sequence[object]:
        """What stands there."""


class Told(Protocol):
    """What is told of a result."""

    @property
    def values(self) -> Tensor:
        """The numbers."""

    @property
    def axes(self) -> Sequence[AxisTold]:
        """The axes, in the tensor's order."""

    @property
    def title(self) -> str:
        """What was done."""

    @property
    def limits(self) -> tuple[float, float] | None:
        """The smallest and largest number there can be."""

    @property
    def measured(self) -> str:
        """The quantity with its unit."""


def lens_text(result: Told, words: Sequence[str] | None, others: Sequence[str] = ()) -> str:
    """A result of two axes: a word and a number in each cell, or the number alone.

    Args:
        result: of real numbers.
        words: one for each number, row after row.
        others: what else of it can be shown, by name.
    """
    values, limits, wide = result.values.float(), _limits(result), result.values.shape[1]
    names, labels = _both(result.axes)

    def word(row: int, column: int) -> str:
        return "" if words is None else words[row * wide + column]

    def told(row: int, column: int) -> tuple[str, str]:
        return word(row, column), number(float(values[row, column]), limits, 2)

    def drawn(row: int, column: int) -> tuple[str, str]:
        return bar(float(values[row, column]), limits), word(row, column)

    legend = f"bars: {result.measured}, ▁ {limits[0]:.3g} to █ {limits[1]:.3g}"
    forms = [Grid(names, labels, told, sides=">>" if words is None else "<>")]
    if words is not None:
        forms.append(Grid(names, labels, drawn, "<<", "", legend, caps=(12, 8, 6, 8)))
    also = [f"also: {', '.join(others)}"] if others else []
    return "\n".join([_head(result), *grid_text(forms), *also])


def patches_text(estimate: Told, exact: Tensor, state: Mapping[str, Any]) -> str:
    """Estimates, and beside them the exact numbers of the patches that were run.

    Args:
        estimate: of two axes.
        exact: as many numbers, NaN where nothing was run.
        state: how far a run is, or how it ended.
    """
    values, limits, names = estimate.values.float(), _limits(estimate), _both(estimate.axes)
    ran = ~exact.isnan()

    def cell(row: int, column: int) -> tuple[str, str]:
        beside = f"={number(float(exact[row, column]), limits)}" if ran[row, column] else ""
        return number(float(values[row, column]), limits), beside

    kept = tuple(ran.any(1 - axis).nonzero().flatten().tolist() for axis in (0, 1))
    lines = grid_text([Grid(*names, cell, ">>", kept=(kept[0], kept[1]))])
    return "\n".join([_head(estimate), *lines, _ran(values, exact, ran, limits), *_going(state)])


@dataclass(frozen=True)
class Attention:
    """One layer of a pattern `[head, query, key]`, and the head that is large."""

    title: str
    measured: str
    layer: str
    """Which it is, as in `layer 3`; empty where there is one."""
    pattern: Tensor
    head: int
    axes: Sequence[AxisTold]
    """Of heads, queries and keys."""


def attention_text(shown: Attention) -> str:
    """One head as a grid, and of each head what the last token reads most."""
    heads, *both = shown.axes
    values = shown.pattern[shown.head] if len(heads.labels) else shown.pattern.sum(0)
    limits = _ends(values)
    names, labels = _both(both)

    def cell(row: int, column: int) -> tuple[str, str]:
        return number(float(values[row, column]), limits, 2), ""

    named = f"{heads.name} {heads.labels[shown.head]}" if heads.name and heads.labels else ""
    where = ", ".join(filter(None, (shown.title, shown.layer, named)))
    lines = grid_text([Grid(names, labels, cell, ">>", caps=(12, 7, 4, 7))], _QUERIES_MAX)
    return "\n".join([f"{where}: {shown.measured}", *lines, *_of_each_head(shown)])


def _of_each_head(shown: Attention) -> list[str]:
    heads, queries, keys = shown.axes
    if len(heads.labels) < 2 or not shown.pattern.numel():
        return []
    last = shown.pattern[:, -1].nan_to_num(0.0)
    best = last.topk(min(_READ_MOST, last.shape[-1]))
    lines = [f"{queries.name} {_label(queries, -1)} reads most, in each head:"]
    width = len(str(heads.labels[-1]))
    for head, (chances, places) in enumerate(zip(*map(Tensor.tolist, best), strict=True)):
        if head == _HEADS_MAX:
            lines.append(f"  … and {len(heads.labels) - head} more heads")
            break
        most = [
            f"{_label(keys, place)} {number(chance, (0, 1), 2)}"
            for chance, place in zip(chances, places, strict=True)
        ]
        lines.append(f"  {heads.labels[head]!s:>{width}}  {',  '.join(most)}")
    return lines


def _label(axis: AxisTold, place: int) -> str:
    """A place of an axis: its number, and the word there."""
    label, place = axis.labels[place], place % len(axis.labels)
    return f"{label}" if isinstance(label, (int, float)) else f"{place} {cut(seen(label), 16)}"


def _both(
    axes: Sequence[AxisTold],
) -> tuple[tuple[str, str], tuple[Sequence[object], Sequence[object]]]:
    rows, columns = axes
    return (rows.name, columns.name), (rows.labels, columns.labels)


def _head(result: Told) -> str:
    shape = " × ".join(f"{axis.name} {len(axis.labels)}" for axis in result.axes)
    said = f"{result.title}: {result.measured}" if result.title else result.measured
    return f"{said} [{shape}]"


def _limits(result: Told) -> tuple[float, float]:
    return result.limits or _ends(result.values.float())


def _ends(values: Tensor) -> tuple[float, float]:
    known = values[values.isfinite()]
    return (float(known.min()), float(known.max())) if known.numel() else (0.0, 1.0)


def _ran(values: Tensor, exact: Tensor, ran: Tensor, limits: tuple[float, float]) -> str:
    count = int(ran.sum())
    if not count:
        return "every number is an estimate: no patch has been run"
    apart = (values - exact)[ran].abs().max()
    far = number(float(apart), limits) if math.isfinite(float(apart)) else "not known"
    return (
        f"= the exact number, of the {count:,} of {ran.numel():,} patches that were run; "
        f"the estimate is at most {far} from it"
    )


def _going(state: Mapping[str, Any]) -> list[str]:
    if "trouble" in state:
        return [f"the last run failed: {state['trouble']['what']}"]
    if "stopped" in state:
        done, of = state["stopped"]
        return [f"the last run was stopped after {done} of {of} layers"]
    return [f"running: {state['done']} of {state['of']} layers are done"] if state else []
