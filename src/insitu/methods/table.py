"""A result as a small coloured table: no script, and nothing that an untrusted notebook drops.

html(result)        # what a cell shows before anybody asks for .plot()
"""

import math
from html import escape

from torch import Tensor

from insitu.methods.axes import Axis, Shown
from insitu.methods.scales import css, limits_of, rounded, visible

ROWS, COLUMNS, TABLES = 32, 24, 4
"""What is shown at most; the rest is named."""

_CELL = "padding:2px 6px;text-align:right;white-space:nowrap;"


def html(result: Shown) -> str:
    """The numbers as tables of the last two axes, with what they measure above."""
    head = f"<b>{escape(result.measured)}</b>" + (
        f": {escape(result.title)}" if result.title else ""
    )
    return (
        '<div style="overflow-x:auto;font-size:12px">'
        f'<p style="margin:0 0 4px">{head}</p>{_body(result)}</div>'
    )


def _body(result: Shown) -> str:
    if not result.axes:
        return f"<p>{float(result.values):.4g}</p>"
    values = result.values.detach().float()
    known = values[values.isfinite()].flatten().tolist()
    limits = limits_of(known, result.limits, signed=result.is_signed)
    words = list(result.texts) if result.texts is not None else None
    if len(result.axes) == 1:
        return _table(result, values[None], (None, result.axes[0]), limits, words)
    rows, columns = result.axes[-2:]
    size = len(rows) * len(columns)
    flat = values.flatten(0, -3) if values.dim() > 2 else values[None]
    shown = [
        _above(result, number)
        + _table(
            result, part, (rows, columns), limits,
            words[number * size : (number + 1) * size] if words else None,
        )
        for number, part in enumerate(flat[:TABLES])
    ]  # fmt: skip
    if len(flat) > TABLES:
        shown.append(f"<p>and {len(flat) - TABLES} more: select with .sel(), or .plot()</p>")
    return "".join(shown)


def _above(result: Shown, number: int) -> str:
    """Where one of several tables stands on the axes before the last two."""
    said = []
    for axis in reversed(result.axes[:-2]):
        number, place = divmod(number, len(axis))
        said.append(axis.told(place))
    return f'<p style="margin:6px 0 2px">{escape(", ".join(reversed(said)))}</p>' if said else ""


def _table(
    result: Shown,
    values: Tensor,
    axes: tuple[Axis | None, Axis],
    limits: tuple[float, float],
    words: list[str] | None,
) -> str:
    rows, columns = axes
    corner = f"{rows.name} \\ {columns.name}" if rows else columns.name
    labels = "".join(
        f'<th scope="col" style="{_CELL}">{escape(label)}</th>' for label in columns.shown[:COLUMNS]
    )
    lines = []
    for row, numbers in enumerate(values[:ROWS].tolist()):
        told = escape(rows.shown[row]) if rows else ""
        cells = [
            _cell(n, limits, result.is_signed, words[row * len(columns) + i] if words else None)
            for i, n in enumerate(numbers[:COLUMNS])
        ]
        lines.append(f'<tr><th scope="row" style="{_CELL}">{told}</th>{"".join(cells)}</tr>')
    left_out = [
        f"{len(axis)} of {axis.name}"
        for axis, most in ((rows, ROWS), (columns, COLUMNS))
        if axis is not None and len(axis) > most
    ]
    note = f"<p>the first of {' and '.join(left_out)}; .plot() shows all</p>" if left_out else ""
    return (
        f'<table style="border-collapse:collapse;font-size:12px"><thead><tr><th style="{_CELL}">'
        f"{escape(corner)}</th>{labels}</tr></thead><tbody>{''.join(lines)}</tbody></table>{note}"
    )


def _cell(value: float, limits: tuple[float, float], signed: bool, word: str | None) -> str:
    if not math.isfinite(value):
        return f'<td style="{_CELL}">{"" if math.isnan(value) else value}</td>'
    paper, ink = css(value, limits, signed=signed)
    number = rounded(value, limits)
    text = f"{escape(visible(word))}<br>{number}" if word is not None else number
    return f'<td style="{_CELL}background:{paper};color:{ink}">{text}</td>'
