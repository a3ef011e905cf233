"""A lens as a grid: layers by positions, each cell the likeliest token, coloured by its chance.

lens = insitu.methods.logit_lens(model, "The Eiffel Tower is in the city of")
insitu.show(lens)
LensGrid.of(chances, texts=words, tokens=["The", " Eiffel"])      # plain numbers
"""

from collections.abc import Sequence
from typing import Any

import torch
import traitlets

from insitu.errors import UsageError
from insitu.methods.axes import Axis
from insitu.methods.result import Result
from insitu.twins.results import lens_text
from insitu.widgets import numbers
from insitu.widgets.base import Widget
from insitu.widgets.in_sight import in_sight
from insitu.widgets.places import chooses
from insitu.widgets.words import words


class LensGrid(Widget):
    """A result over layers and positions; click a cell to select it and see what else was likely.

    LensGrid(logit_lens(model, prompt))

    Args:
        result: one of two axes; those of its `further` with the same axes can be switched to.

    Attributes:
        cell: the layer and position clicked last, None before.
    """

    front_end = "lens_grid"
    title = traitlets.Unicode().tag(sync=True)
    rows = traitlets.List().tag(sync=True)
    columns = traitlets.List().tag(sync=True)
    names = traitlets.List().tag(sync=True)
    """What rows and columns are: `["layer", "pos"]`."""
    chooses = traitlets.List().tag(sync=True)
    """What rows and columns select, and by which numbers (`insitu.widgets.places`)."""
    first = traitlets.List([0, 0]).tag(sync=True)
    """The first row and column that are shown, where there are too many for a view."""
    note = traitlets.Unicode().tag(sync=True)
    texts = traitlets.List().tag(sync=True)
    measures = traitlets.List().tag(sync=True)
    """What can be shown: name, quantity, unit, limits."""
    values = traitlets.List(traitlets.Bytes()).tag(sync=True)
    """The numbers of each measure, row after row."""
    measure = traitlets.Int().tag(sync=True)
    """Which of them is in sight."""

    def __init__(self, result: Result) -> None:
        if len(result.axes) != 2:
            raise UsageError(
                f"a grid shows two axes, and this result has {len(result.axes)}.",
                f"its axes are {', '.join(result.names) or 'none'}.",
                "choose a place on the others first: result.sel(head=0).",
            )
        self.result = result = numbers.shown(result)
        alike = {name: it for name, it in result.further.items() if it.names == result.names}
        self._measures = shown = {result.quantity: result, **alike}
        part, texts, wide = in_sight(result), result.texts or (), result.shape[1]
        starts = [row * wide + part.first[1] for row in range(part.first[0], result.shape[0])]
        super().__init__(
            title=result.title,
            names=list(result.names),
            chooses=chooses(result.axes, part.first),
            first=part.first,
            note=part.note,
            rows=part.rows,
            columns=part.columns,
            texts=[it for at in starts for it in words(texts[at : at + len(part.columns)])],
            measures=[
                {"name": name, "quantity": it.quantity, "unit": it.unit, "limits": it.limits}
                for name, it in shown.items()
            ],
            values=[numbers.buffer(part.of(numbers.plain(it.values)[0])) for it in shown.values()],
        )

    @classmethod
    def of(
        cls, values: Any, *, tokens: Sequence[str], texts: Sequence[str] | None = None
    ) -> "LensGrid":
        """A grid of plain numbers `[layer, pos]`."""
        values = torch.as_tensor(values)
        axes = Axis("layer", range(len(values))), Axis("pos", list(tokens))
        return cls(Result(values, axes, texts=texts))

    @property
    def cell(self) -> tuple[int, int] | None:
        """The layer and position selected, in whichever view."""
        layer, token = self.selection.get("layer"), self.selection.get("token")
        return None if layer is None or token is None else (layer, token)

    def text(self) -> str:
        """The measure in sight as a grid, with the likeliest tokens where there are such."""
        names = list(self._measures)
        others = [it for it in names if it != names[self.measure]]
        return lens_text(self._in_sight, self.result.texts, others)

    def html(self) -> str:
        """The measure in sight as a table of colours without scripts."""
        return self._in_sight._repr_html_()

    @property
    def _in_sight(self) -> Result:
        return numbers.shown(list(self._measures.values())[self.measure])

    def answer_top(self, given: dict[str, Any]) -> list[tuple[str, float]]:
        """The likeliest tokens of one cell, where the result has them."""
        top = self.result.further.get("top")
        if top is None or top.texts is None:
            return []
        width = top.shape[-1]
        row, column = (
            self.first[axis] + given[name] for axis, name in enumerate(("row", "column"))
        )
        first = (row * self.result.shape[1] + column) * width
        chances = top.values.flatten()[first : first + width].tolist()
        return list(zip(top.texts[first : first + width], chances, strict=True))
