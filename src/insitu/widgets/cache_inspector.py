"""What a cache holds: a table of its tensors, numbers of each, a map and a histogram of one.

    cache.view()
    CacheInspector(cache, other_cache)               # how far they are apart
    insitu.show({"before": a, "after": b})           # any tensors

All stays in the kernel: the view asks for the rows in sight, and gets a picture's worth of a
tensor, whatever its size.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
import traitlets
from torch import Tensor

from insitu.twins.cache import cache_html
from insitu.twins.tensors import tensors_html, tensors_text
from insitu.widgets import numbers, tensors
from insitu.widgets.base import Widget

PIXELS = 200
"""Across the picture of a tensor."""
BINS = 60
ROWS_SENT, ROWS_FIRST = 500, 60
"""So many rows a question, and with the view itself: none has to be asked for to see the first."""
PATIENCE_S = 0.1
"""A search goes on for so long before it says how far it is."""


class CacheInspector(Widget):
    """A cache's tensors, lazily: statistics, heat map, histogram, a search for NaN.

    CacheInspector(cache)

    Args:
        given: a cache, one of its entries, or a tensor, dict or list of tensors.
        other: another of the same, to be compared by name.

    Attributes:
        chosen: the number of the tensor clicked last.
        tensor: that tensor.
    """

    front_end = "cache_inspector"
    title = traitlets.Unicode().tag(sync=True)
    count = traitlets.Int().tag(sync=True)
    size_bytes = traitlets.Int().tag(sync=True)
    compares = traitlets.Bool().tag(sync=True)
    first = traitlets.Dict().tag(sync=True)
    """The first rows, as they would be answered."""
    chosen = traitlets.Int(None, allow_none=True).tag(sync=True)

    def __init__(self, given: Any, other: Any = None) -> None:
        self._given = given
        self._found = tensors.of(given)
        self._others = {} if other is None else {it.name: it for it in tensors.of(other)}
        self._numbers: dict[int, dict[str, Any]] = {}
        model = getattr(given, "_model", "")
        super().__init__(
            title=f"Cache of {model}" if model else "Tensors",
            count=len(self._found),
            size_bytes=sum(it.size_bytes for it in self._found),
            compares=other is not None,
            first=self.answer_rows({"first": 0, "end": ROWS_FIRST}),
        )

    @property
    def tensor(self) -> Tensor | None:
        """The tensor clicked last, whole."""
        return None if self.chosen is None else self._found[self.chosen].read()

    def text(self) -> str:
        """The table as text, without numbers that would have to be computed."""
        return tensors_text(self.title, self._found)

    def html(self) -> str:
        """The same as HTML without scripts."""
        if hasattr(self._given, "_records") and hasattr(self._given, "title"):
            return cache_html(self._given)
        return tensors_html(self.title, self._found)

    # Questions -------------------------------------------------------------------------------

    def answer_rows(self, given: dict[str, Any]) -> dict[str, Any]:
        """The rows `first` to `end` of those whose name holds the words looked for."""
        words = str(given.get("words", "")).lower()
        every: Sequence[int] = range(len(self._found))
        wanted = [n for n in every if words in self._found[n].name.lower()] if words else every
        shown = wanted[given["first"] : min(given["end"], given["first"] + ROWS_SENT)]
        rows = [(n, self._found[n]) for n in shown]
        return {
            "total": len(wanted),
            "rows": [
                [n, it.name, it.step, list(it.shape), it.kind, it.size_bytes] for n, it in rows
            ],
        }

    def answer_numbers(self, given: dict[str, Any]) -> dict[str, Any]:
        """Statistics of some tensors, as many as come in good time; the rest is asked again."""
        until, told = time.monotonic() + PATIENCE_S, {}
        for number in given["which"]:
            told[str(number)] = self._numbers_of(number)
            if time.monotonic() > until:
                break
        return told

    def answer_hunt(self, given: dict[str, Any]) -> dict[str, Any]:
        """The next tensor with a NaN or an infinity, or how far the search has come."""
        until = time.monotonic() + PATIENCE_S
        for number in range(given["start"], len(self._found)):
            told = self._numbers_of(number)
            if told["nan"] or told["inf"]:
                return {"found": number, "next": number + 1}
            if time.monotonic() > until:
                return {"found": None, "next": number + 1}
        return {"found": None, "next": None}

    def answer_picture(self, given: dict[str, Any]) -> tuple[Any, list[bytes]]:
        """A tensor's last two dimensions at some place of the others, and a histogram of all."""
        values, note = numbers.plain(self._found[given["which"]].read())
        flat = values.reshape(1, -1) if values.dim() < 2 else values
        leading = list(flat.shape[:-2])
        for size, place in zip(leading, given.get("at") or [0] * len(leading), strict=True):
            flat = flat[min(place, size - 1)] if size else flat.reshape(0, *flat.shape[2:])
        rows, columns = given.get("rows") or [0, None], given.get("columns") or [0, None]
        part = flat[rows[0] : rows[1], columns[0] : columns[1]]
        small = extremes(part, PIXELS)
        counts, low, high = histogram(values)
        about = {
            "shape": list(values.shape), "leading": leading, "picture": list(small.shape),
            "part": [rows[0], rows[0] + part.shape[0], columns[0], columns[0] + part.shape[1]],
            "note": note, "low": low, "high": high, "name": self._found[given["which"]].name,
        }  # fmt: skip
        return about, [numbers.buffer(small), numbers.buffer(counts)]

    def _numbers_of(self, number: int) -> dict[str, Any]:
        if number not in self._numbers:
            it = self._found[number]
            told: dict[str, Any] = tensors.statistics(it.read())
            if self.compares:
                other = self._others.get(it.name)
                told["apart"] = (
                    None if other is None else tensors.difference(it.read(), other.read())
                )
            self._numbers[number] = told
        return self._numbers[number]


def extremes(values: Tensor, limit: int) -> Tensor:
    """A picture of a matrix: of each pixel the value furthest from zero; NaN where there is one."""
    rows, columns = values.shape
    if (rows <= limit and columns <= limit) or not values.numel():
        return values
    size = min(rows, limit), min(columns, limit)
    pool = torch.nn.functional.adaptive_max_pool2d
    plain = values.nan_to_num(0.0, 0.0, 0.0)[None]
    high, low = pool(plain, size)[0], -pool(-plain, size)[0]
    small = torch.where(high > -low, high, low)
    broken = pool((~values.isfinite()).float()[None], size)[0] > 0
    return torch.where(broken, torch.nan, small)


def histogram(values: Tensor) -> tuple[Tensor, float, float]:
    """How many finite numbers lie in each of the bins, and from where to where they go."""
    finite = values[values.isfinite()]
    if not finite.numel():
        return torch.zeros(0), 0.0, 0.0
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return torch.full((1,), float(finite.numel())), low, high
    return torch.histc(finite, BINS, low, high), low, high
