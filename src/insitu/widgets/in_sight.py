"""The part of a large grid that a view shows: its last rows and columns, near the prediction.

part = in_sight(result)         # a Result of two axes
part.first, part.note           # [0, 999300], "the last 700 of 1,000,000 columns"
part.of(result.values)          # the numbers there
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from insitu.methods.result import Result
from insitu.widgets.words import words

CELLS_MAX, ROWS_MAX, COLUMNS_MAX = 64_000, 400, 700
"""A browser draws no picture wider than 32,767 pixels, and a token wants 44 of them."""


@dataclass(frozen=True)
class Part:
    """From which row and column on a grid is shown, and how that is told."""

    first: list[int]
    note: str
    rows: list[str]
    columns: list[str]

    def of(self, grid: Any) -> Tensor:
        """The numbers of the part."""
        part: Tensor = grid[self.first[0] :, self.first[1] :]
        return part


def in_sight(result: Result) -> Part:
    """What is shown of a result of two axes."""
    rows, columns = result.shape
    high = min(rows, ROWS_MAX)
    wide = min(columns, COLUMNS_MAX, CELLS_MAX // max(high, 1))
    first = [rows - high, columns - wide]
    said = [
        f"the last {shown:,} of {there:,} {name}"
        for shown, there, name in ((high, rows, "rows"), (wide, columns, "columns"))
        if shown < there
    ]
    labels = (axis.labels[start:] for axis, start in zip(result.axes, first, strict=True))
    return Part(first, " and ".join(said), *map(words, labels))
