"""Results as plotly figures: bars, a line, a heat map, small multiples, a slider.

figure(result)                  # what result.plot() shows
figure(result, dark=True)

One axis is a line where its labels are numbers, else bars. Two are a heat map, of tokens, layers or
heads; three are one heat map for each place of the first; four have a slider for the first.
"""

import math
from itertools import product
from typing import Any

from torch import Tensor

from insitu.errors import UsageError
from insitu.methods.axes import Axis, Shown
from insitu.methods.optional import package
from insitu.methods.scales import ink, limits_of, scale, visible

PAPER = {False: "#ffffff", True: "#16191d"}
TEXT = {False: "#20262d", True: "#e4e7eb"}
RULE = {False: "#e1e5ea", True: "#353b42"}
LINES = {
    False: ("#3b78b8", "#c7600a", "#4d8a3f", "#8a5aa8"),
    True: ("#79b4ee", "#f0a04b", "#8cc97c", "#c79be3"),
}
WORDS_MAX = 400
"""Cells in which a word still fits."""
MAPS_MAX = 16
"""Heat maps that are still read side by side; more get a slider."""
LINES_MAX = 12
DASHES = ("solid", "dash", "dot")
_UPWARDS = ("layer",)
"""Axes that grow upwards, as the residual stream is drawn."""


def figure(result: Shown, *, dark: bool = False, title: str | None = None) -> Any:
    """A result's figure, in light or dark colours.

    Raises:
        MissingPackageError: plotly is not installed.
        UsageError: it has more than four axes, or none.
    """
    go = package("plotly.graph_objects", "plot() draws with plotly", "insitu[lab]")
    if not 1 <= len(result.axes) <= 4:
        raise UsageError(
            f"a result with {len(result.axes)} axes cannot be plotted.",
            "a figure shows one to four: bars, a heat map, several of them, and a slider.",
            "select a part with .sel(…), or take a mean, as in .mean('head').plot()."
            if result.axes else "read the number itself: float(result).",
        )  # fmt: skip
    drawn = _lines if _along(result) is not None else _bars if len(result.axes) == 1 else _maps
    shown = drawn(go, result, dark)
    shown.update_layout(**_layout(result, dark, result.title if title is None else title))
    return shown


def _along(result: Shown) -> int | None:
    """The axis that lines run along: a lone one of numbers, or beside others steps or fractions."""
    if len(result.axes) == 1:
        return 0 if result.axes[0].is_numeric else None
    if len(result.axes) == 2:
        for dim, axis in enumerate(result.axes):
            runs = axis.name == "step" or any(isinstance(label, float) for label in axis.labels)
            if axis.is_numeric and runs and len(result.axes[1 - dim]) <= LINES_MAX:
                return dim
    return None


def _lines(go: Any, result: Shown, dark: bool) -> Any:
    """A line for each place of the other axis, if there is one."""
    dim = _along(result)
    axis = result.axes[dim or 0]
    rows = result.values.float().reshape(-1, len(axis)) if dim == len(result.axes) - 1 else None
    rows = result.values.float().T if rows is None else rows
    other = result.axes[1 - (dim or 0)] if len(result.axes) == 2 else None
    shown = go.Figure()
    for number, row in enumerate(rows.tolist()):
        colour, dash = LINES[dark][number % 4], DASHES[number // 4 % len(DASHES)]
        shown.add_scatter(
            x=list(axis.labels), y=row, name=_told(other, number) if other else "",
            mode="lines+markers" if len(axis) <= 40 else "lines",
            line={"color": colour, "dash": dash}, showlegend=other is not None,
        )  # fmt: skip
    shown.update_xaxes(title=axis.name)
    if all(isinstance(label, int) for label in axis.labels) and len(axis) <= 40:
        shown.update_xaxes(tickvals=list(axis.labels))
    return _measured(shown, result)


def _bars(go: Any, result: Shown, dark: bool) -> Any:
    """A bar for each word, those below zero in another colour."""
    axis, values = result.axes[0], result.values.float().tolist()
    colours = [LINES[dark][1] if value < 0 else LINES[dark][0] for value in values]
    shown = go.Figure(go.Bar(x=list(range(len(axis))), y=values, marker_color=colours))
    shown.update_xaxes(title=axis.name, **_ticks(axis, 64))
    shown.update_layout(width=min(max(480, 26 * len(axis) + 160), 1200))
    return _measured(shown, result)


def _measured(shown: Any, result: Shown) -> Any:
    shown.update_yaxes(title=result.measured, zeroline=True)
    if result.limits is not None:
        shown.update_yaxes(range=_padded(result.limits))
    return shown.update_layout(height=420)


def _maps(go: Any, result: Shown, dark: bool) -> Any:
    """One heat map for each place of the axes before the last two."""
    subplots = package("plotly.subplots", "plot() draws with plotly", "insitu[lab]")
    slides, panels, rows, columns = _arranged(result)
    across = len(panels) if len(panels) <= 3 else min(4, math.ceil(math.sqrt(len(panels))))
    down = math.ceil(len(panels) / across)
    shown = subplots.make_subplots(
        down, across, subplot_titles=[told for told, _ in panels] if len(panels) > 1 else None,
        horizontal_spacing=0.16 / across, vertical_spacing=0.26 / down if down > 1 else 0,
    )  # fmt: skip
    texts = _texts(result)
    for (slide, (_, before)), (number, (_, index)) in product(enumerate(slides), enumerate(panels)):
        at = (*before, *index)
        place = {"row": number // across + 1, "col": number % across + 1}
        trace = _map(go, result.values[at], rows, columns, texts[at] if texts is not None else None)
        trace.visible = slide == 0
        shown.add_trace(trace, **place)
        is_lowest = number + across >= len(panels)
        shown.update_xaxes(title=columns.name if is_lowest else None, **_ticks(columns), **place)
        is_first = place["col"] == 1
        upright = {**_ticks(rows), "tickangle": 0}
        shown.update_yaxes(title=rows.name if is_first else None, **upright, **place)
        if rows.name not in _UPWARDS:
            shown.update_yaxes(autorange="reversed", **place)
    if len(slides) > 1:
        shown.update_layout(sliders=[_slider(result.axes[0].name, slides, len(panels))])
    shown.update_annotations(font_size=13)  # the panels' titles
    size = _size(len(rows), len(columns), down, across, texts is not None)
    shown.update_layout(**size)
    return shown.update_layout(coloraxis=_colours(result, dark))


_Place = tuple[str, tuple[int, ...]]


def _arranged(result: Shown) -> tuple[list[_Place], list[_Place], Axis, Axis]:
    """Which places are slides, which are panels beside each other, and what a map's axes are."""
    *outer, rows, columns = result.axes
    here: list[_Place] = [("", ())]
    places: list[list[_Place]] = [
        [(_told(axis, i), (i,)) for i in range(len(axis))] for axis in outer
    ]
    if len(outer) == 2:
        return places[0], places[1], rows, columns
    if len(outer) == 1:
        many = len(outer[0]) > MAPS_MAX
        return (places[0], here, rows, columns) if many else (here, places[0], rows, columns)
    return here, here, rows, columns


def _told(axis: Axis, place: int) -> str:
    label = axis.labels[place]
    return f"{axis.name} {label}" if axis.is_numeric else str(label)


def _map(go: Any, values: Tensor, rows: Axis, columns: Axis, texts: Any) -> Any:
    where = "".join(
        f"{axis.name} " + "%{" + letter + "}<br>" for axis, letter in ((rows, "y"), (columns, "x"))
    )
    hover = where + ("%{text}<br>" if texts is not None else "") + "%{z:.4g}<extra></extra>"
    shown = go.Heatmap(
        z=values.float().tolist(), coloraxis="coloraxis", hovertemplate=hover, xgap=1, ygap=1
    )
    if texts is not None:
        shown.text = texts.tolist()
        if values.numel() <= WORDS_MAX:
            shown.texttemplate = "%{text}"
    return shown


def _texts(result: Shown) -> Any:
    if result.texts is None:
        return None
    numpy = package("numpy", "plot() arranges words with numpy", "insitu[lab]")
    words = numpy.array([visible(word) for word in result.texts], dtype=object)
    return words.reshape(tuple(result.values.shape))


def _colours(result: Shown, dark: bool) -> dict[str, Any]:
    values = result.values.float()
    known = values[values.isfinite()].flatten().tolist()
    low, high = limits_of(known, result.limits, signed=result.is_signed)
    colours = scale(signed=result.is_signed, dark=dark)
    steps = [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]
    bar = {"thickness": 14, "outlinewidth": 0}
    return {"colorscale": steps, "cmin": low, "cmax": high, "colorbar": bar}


def _ticks(axis: Axis, most: int = 32) -> dict[str, Any]:
    """A label at each place, or at some where there are many; slanted where they are words."""
    every = max(1, math.ceil(len(axis) / most))
    places = list(range(0, len(axis), every))
    words = [axis.shown[i] for i in places]
    long = max(map(len, words), default=0) > 3
    return {
        "tickmode": "array", "tickvals": places, "ticktext": words,
        "tickangle": -45 if long else 0, "showgrid": False, "zeroline": False,
    }  # fmt: skip


def _slider(name: str, slides: list[_Place], panels: int) -> dict[str, Any]:
    steps = [
        {
            "label": told.removeprefix(f"{name} "),
            "method": "update",
            "args": [{"visible": [i == at for i in range(len(slides)) for _ in range(panels)]}],
        }
        for at, (told, _) in enumerate(slides)
    ]
    return {"steps": steps, "currentvalue": {"prefix": f"{name} "}, "pad": {"t": 60}}


def _size(rows: int, columns: int, down: int, across: int, with_words: bool) -> dict[str, int]:
    wide, high = (62, 30) if with_words else (34, 30)
    map_width = min(max(wide * columns, 170 if across > 1 else 380), 1000 // across)
    map_height = min(max(high * rows, 130), 640 if down == 1 else 320)
    return {
        "width": 190 + int(map_width * across * 1.12),
        "height": 190 + int(map_height * down + 90 * (down - 1)),
    }


def _padded(limits: tuple[float, float]) -> list[float]:
    room = 0.04 * (limits[1] - limits[0])
    return [limits[0] - room, limits[1] + room]


def _layout(result: Shown, dark: bool, title: str) -> dict[str, Any]:
    axis = {"gridcolor": RULE[dark], "zerolinecolor": RULE[dark], "title": {"font": {"size": 13}}}
    is_map = len(result.axes) > 1 and _along(result) is None
    below = result.measured if is_map else ""  # bars and lines have it beside them
    font = {"family": "system-ui, -apple-system, Segoe UI, sans-serif", "size": 13}
    return {
        "template": {
            "layout": {
                "paper_bgcolor": PAPER[dark], "plot_bgcolor": PAPER[dark],
                "font": {**font, "color": TEXT[dark]}, "xaxis": axis, "yaxis": axis,
                "colorway": list(LINES[dark]),
            }
        },
        "title": {
            "text": title or below, "font": {"size": 15}, "x": 0.02, "xanchor": "left",
            "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 16},
            "subtitle": {"text": below if title else "", "font": {"size": 13}},
        },
        "margin": {"t": 90, "r": 30, "b": 70, "l": 80},
        "hoverlabel": {"font": {"color": ink(LINES[dark][0])}},
    }  # fmt: skip
