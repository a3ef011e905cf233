"""A grid as text, in a terminal's width: rows and columns with names, one or two parts a cell.

    print("\\n".join(grid_text([Grid(("layer", "pos"), (range(2), ["The", " city"]), cell)])))

    pos →    0      1
    layer ↓  The    ·city
    0        a 0.1  b 0.2

Of a grid that is too large the first row and column and the last ones stay, and what was left out
is told below.
"""

import math
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

WIDE, HIGH = 100, 30
"""Columns of a terminal, and rows of a grid."""
_ROW_LABEL = 16
_BARS = "▁▂▃▄▅▆▇█"
_GAPS_TOLD = 3


@dataclass(frozen=True)
class Grid:
    """Labels, and what stands in a cell: two parts, each aligned in its column."""

    names: tuple[str, str]
    labels: tuple[Sequence[object], Sequence[object]]
    cell: Callable[[int, int], tuple[str, str]]
    """Of a row and a column."""
    sides: str = "<>"
    """On which side each part stands."""
    between: str = " "
    legend: str = ""
    kept: tuple[Collection[int], Collection[int]] = ((), ())
    """Rows and columns that are shown before others."""
    caps: tuple[int, ...] = (12, 8)
    """So wide are words and names of columns, the first with which all fits."""


@dataclass(frozen=True)
class _Column:
    head: list[str]
    cells: list[str]
    width: int


def grid_text(forms: Sequence[Grid], high: int = HIGH) -> list[str]:
    """The first of some forms of a grid that fits whole; else as much of the last as fits.

    Args:
        forms: of the same rows and columns.
        high: how many rows.
    """
    counts = [len(labels) for labels in forms[0].labels]
    if not all(counts):
        return ["(no numbers: " + _size(forms[0]) + ")"]
    for form, cap in [(it, cap) for it in forms for cap in it.caps]:
        rows = _rows(form, high)
        corner = _corner(form, rows)
        columns = _columns(form, rows, cap, WIDE - corner.width)
        if len(columns) == counts[1]:
            break
    parts = [corner, *_with_gaps(columns, len(rows), counts[1])]
    lines = ["  ".join(line).rstrip() for line in zip(*map(_lines, parts), strict=True)]
    for row in reversed(_ends_of_gaps(rows, counts[0])):
        lines.insert(len(lines) - len(rows) + row, "…")
    left = [_left_out(form, axis, shown) for axis, shown in enumerate((rows, list(columns)))]
    said = "; ".join(filter(None, left))
    return [*filter(str.strip, lines), *filter(None, (form.legend, said and f"left out: {said}"))]


def bar(value: float, limits: tuple[float, float]) -> str:
    """How large a number is, as a small bar."""
    low, high = limits
    if not math.isfinite(value):
        return "×"
    share = (value - low) / (high - low) if high > low else 0.5
    return _BARS[round(min(max(share, 0.0), 1.0) * (len(_BARS) - 1))]


def number(value: float, limits: tuple[float, float], places: int = 3) -> str:
    """A number to as many places as tell it from others between these limits."""
    far = max(map(abs, limits))
    if not math.isfinite(value) or value == 0:
        return str(value).replace("nan", "NaN") if value else "0"
    if 0 < far < 0.01 or far >= 1e5:
        return f"{value:.1e}"
    text = f"{value:.{places if far <= 1.5 else 2 if far < 30 else 1 if far < 300 else 0}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text


def seen(given: object) -> str:
    """A label or a token on one line, with blanks at its ends and what no eye sees to be seen."""
    text = f"{given:g}" if isinstance(given, float) else str(given)
    inner = text.strip(" ")
    before = len(text) - len(text.lstrip(" "))
    text = "·" * before + inner + "·" * (len(text) - len(inner) - before)
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in text)


def cut(text: str, most: int) -> str:
    """A text in so many columns of a terminal; where it is longer it ends with `…`."""
    if _width(text) <= most:
        return text
    while _width(text) > most - 1:
        text = text[:-1]
    return f"{text}…"


# Inside -------------------------------------------------------------------------------------------


def _width(text: str) -> int:
    """How many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.category(it) in ("Mn", "Me")
        else 1 + (unicodedata.east_asian_width(it) in "WF")
        for it in text
    )


def _padded(text: str, width: int, side: str) -> str:
    blanks = " " * (width - _width(text))
    return blanks + text if side == ">" else text + blanks


def _order(count: int, kept: Collection[int]) -> Iterator[int]:
    """Which are shown first: those to be kept, the first, then from the last back."""
    yield from kept
    there = set(kept)
    if 0 not in there:
        yield 0
    yield from (it for it in range(count - 1, 0, -1) if it not in there)


def _ends_of_gaps(shown: Sequence[int], count: int) -> list[int]:
    """Before which of those shown some are left out; their number, if it is behind the last."""
    all_ends = zip([-1, *shown], [*shown, count], strict=True)
    return [place for place, (a, b) in enumerate(all_ends) if b - a > 1]


def _rows(form: Grid, high: int) -> list[int]:
    count, shown = len(form.labels[0]), list[int]()
    if count <= high:
        return list(range(count))
    for row in _order(count, form.kept[0]):
        further = sorted([*shown, row])
        if len(further) + len(_ends_of_gaps(further, count)) > high:
            break
        shown = further
    return shown


def _corner(form: Grid, rows: Sequence[int]) -> _Column:
    shown = [form.labels[0][row] for row in rows]
    labels = [seen(it) for it in shown]
    if _are_words(shown):
        digits = len(str(rows[-1]))
        labels = [f"{row:>{digits}} {label}" for row, label in zip(rows, labels, strict=True)]
    labels = [cut(label, _ROW_LABEL) for label in labels]
    down, across = (
        f"{name} {way}" if name else "" for name, way in zip(form.names, "↓→", strict=True)
    )
    is_worded = _are_words([form.labels[1][0], form.labels[1][-1]])
    head = [across, down] if is_worded else [f"{down} {across}".strip(), ""]
    return _Column(head, labels, max(map(_width, [*head, *labels])))


def _columns(form: Grid, rows: Sequence[int], cap: int, room: int) -> dict[int, _Column]:
    """As many columns as there is room for, by their places."""
    count, shown = len(form.labels[1]), dict[int, _Column]()
    is_worded = _are_words([form.labels[1][0], form.labels[1][-1]])
    for place in _order(count, form.kept[1]):
        further = {**shown, place: _column(form, rows, place, (cap, is_worded))}
        gaps = len(_ends_of_gaps(sorted(further), count)) if len(further) < count else 0
        if shown and sum(it.width + 2 for it in further.values()) + 3 * gaps > room:
            break
        shown = further
    return dict(sorted(shown.items()))


def _column(form: Grid, rows: Sequence[int], place: int, how: tuple[int, bool]) -> _Column:
    cap, is_worded = how
    parts = [[cut(seen(it), cap) for it in form.cell(row, place)] for row in rows]
    widths = [max(map(_width, side)) for side in zip(*parts, strict=True)]
    cells = [
        form.between.join(
            _padded(text, width, side)
            for text, width, side in zip(row, widths, form.sides, strict=True)
            if width
        )
        for row in parts
    ]
    label = cut(seen(form.labels[1][place]), cap)
    head = [str(place), label] if is_worded else [label, ""]
    width = max(map(_width, [*cells, *head]))
    side = form.sides[0]
    return _Column([_padded(it, width, side) for it in head], cells, width)


def _with_gaps(columns: dict[int, _Column], high: int, count: int) -> list[_Column]:
    shown = list(columns.values())
    for place in reversed(_ends_of_gaps(list(columns), count)):
        shown.insert(place, _Column(["…", ""], ["…"] * high, 1))
    return shown


def _lines(column: _Column) -> list[str]:
    return [_padded(it, column.width, "<") for it in [*column.head, *column.cells]]


def _are_words(labels: Sequence[object]) -> bool:
    return not all(isinstance(it, (int, float)) or str(it).isdigit() for it in labels)


def _size(form: Grid) -> str:
    return " × ".join(f"{name} {len(it)}" for name, it in zip(form.names, form.labels, strict=True))


def _left_out(form: Grid, axis: int, shown: Sequence[int]) -> str:
    """Which places of an axis are not shown, in words."""
    labels, name = form.labels[axis], form.names[axis]
    count = len(labels)
    if len(shown) == count:
        return ""
    gaps = []
    for place in _ends_of_gaps(shown, count):
        a, b = [-1, *shown][place] + 1, [*shown, count][place] - 1
        first, last = (a, b) if _are_words([labels[a], labels[b]]) else (labels[a], labels[b])
        gaps.append(f"{first}" if a == b else f"{first} to {last}")
    told = ", ".join(gaps[:_GAPS_TOLD]) + (" and others" if len(gaps) > _GAPS_TOLD else "")
    return f"{name} {told} ({count - len(shown):,} of {count:,})"
