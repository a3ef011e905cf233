"""A lens as a grid: layers by positions, each cell the likeliest token, coloured by its chance.

lens = insitu.methods.logit_lens(model, "The Eiffel Tower is in the city of")
insitu.show(lens)
LensGrid.of(chances, texts=words, tokens=["The", " Eiffel"])      # plain numbers
view.update(logit_lens(edited, prompt))                           # in the same place, at any time
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
from insitu.widgets.batches import Batches
from insitu.widgets.in_sight import in_sight
from insitu.widgets.places import chooses
from insitu.widgets.words import words

NEWS_EVERY_S = 0.1


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
        self._news = Batches(self._tell, NEWS_EVERY_S)
        self._take(result)
        super().__init__(**self._state())

    def update(
        self, data: Any, *, tokens: Sequence[str] | None = None, texts: Sequence[str] | None = None
    ) -> None:
        """Show something else in its place, as often as it comes: in a loop, or as a run goes on.

            view.update(logit_lens(model, "another prompt"))
            view.update(values)                             # of the same size: the same axes

        The measure that is chosen stays, and so does the cell where there is one like it.

        Args:
            data: a result of two axes, or plain numbers `[layer, pos]`.
            tokens: of plain numbers, where they are others than before.
            texts: of plain numbers, what stands in each cell.

        Raises:
            UsageError: it has not two axes, or plain numbers are of another size than the tokens.
        """
        if not isinstance(data, Result):
            values, known = torch.as_tensor(data), self.result.axes
            is_alike = tuple(values.shape) == tuple(self.result.shape)
            axes = known if is_alike and tokens is None else _axes(values, tokens or ())
            data = Result(values, axes, self.result.quantity, self.result.unit, texts=texts)
        self._take(data)
        self._news.soon()

    def _take(self, result: Result) -> None:
        if len(result.axes) != 2:
            raise UsageError(
                f"a grid shows two axes, and this result has {len(result.axes)}.",
                f"its axes are {', '.join(result.names) or 'none'}.",
                "choose a place on the others first: result.sel(head=0).",
            )
        self.result = result = numbers.shown(result)
        alike = {name: it for name, it in result.further.items() if it.names == result.names}
        self._measures = {result.quantity: result, **alike}

    def _tell(self) -> None:
        """Send what is shown now: of many updates the last one."""
        with self.hold_sync():
            for name, value in self._state().items():
                setattr(self, name, value)
            self.measure = min(self.measure, len(self.measures) - 1)

    def _state(self) -> dict[str, Any]:
        """What the page is told."""
        result, shown = self.result, self._measures
        part, texts, wide = in_sight(result), result.texts or (), result.shape[1]
        starts = [row * wide + part.first[1] for row in range(part.first[0], result.shape[0])]
        return {
            "title": result.title,
            "names": list(result.names),
            "chooses": chooses(result.axes, part.first),
            "first": part.first,
            "note": part.note,
            "rows": part.rows,
            "columns": part.columns,
            "texts": [it for at in starts for it in words(texts[at : at + len(part.columns)])],
            "measures": [
                {"name": name, "quantity": it.quantity, "unit": it.unit, "limits": it.limits}
                for name, it in shown.items()
            ],
            "values": [
                numbers.buffer(part.of(numbers.plain(it.values)[0])) for it in shown.values()
            ],
        }

    @classmethod
    def of(
        cls, values: Any, *, tokens: Sequence[str], texts: Sequence[str] | None = None
    ) -> "LensGrid":
        """A grid of plain numbers `[layer, pos]`."""
        values = torch.as_tensor(values)
        return cls(Result(values, _axes(values, tokens), texts=texts))

    @property
    def cell(self) -> tuple[int, int] | None:
        """The layer and position selected, in whichever view."""
        layer, token = self.selection.get("layer"), self.selection.get("token")
        return None if layer is None or token is None else (layer, token)

    def text(self) -> str:
        """The measure in sight as a grid, with the likeliest tokens where there are such."""
        names = list(self._measures)
        others = [it for it in names if it != names[min(self.measure, len(names) - 1)]]
        return lens_text(self._in_sight, self.result.texts, others)

    def html(self) -> str:
        """The measure in sight as a table of colours without scripts."""
        return self._in_sight._repr_html_()

    @property
    def _in_sight(self) -> Result:
        shown = list(self._measures.values())
        return numbers.shown(shown[min(self.measure, len(shown) - 1)])

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


def _axes(values: Any, tokens: Sequence[str]) -> tuple[Axis, Axis]:
    return Axis("layer", range(values.shape[0] if values.dim() else 0)), Axis("pos", list(tokens))
