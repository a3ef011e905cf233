"""What a cache holds: a table of its tensors, numbers of each, a map and a histogram of one.

    cache.view()
    CacheInspector(cache, other_cache)               # how far they are apart
    insitu.show({"before": a, "after": b})           # any tensors

All stays in the kernel: the view asks for the rows in sight, and gets a picture's worth of a
tensor, whatever its size. Of a cache that a pass still fills it is told what came, ten times a
second at most; what comes is put at the end, so that a number stays that of its tensor.
"""

import re
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
import traitlets
from torch import Tensor

from insitu.errors import MissingActivation
from insitu.twins.cache import cache_html
from insitu.twins.comparison import HTML_MAX, TEXT_MAX, Row, comparison
from insitu.twins.table import Table
from insitu.twins.tensors import tensors_html, tensors_text
from insitu.widgets import numbers, tensors
from insitu.widgets.arriving import Arriving
from insitu.widgets.base import Widget
from insitu.widgets.batches import Batches

PIXELS = 200
"""Across the picture of a tensor."""
BINS = 60
ROWS_SENT, ROWS_FIRST = 500, 60
"""So many rows a question, and with the view itself: none has to be asked for to see the first."""
_LAYER = re.compile(r"(?:^|(?<=\.))\d+(?=[.\[]|$)")
"""The first number in a path is that of the layer."""
_CALL = re.compile(r"\[\d+\](?=\.(?:input|output))")
COMPARED_MAX, COMPARED_BYTES = 1000, 40_000_000
"""So many tensors, and so much of them, are compared for the twins: a second at most."""
NEWS_EVERY_S = 0.1
STALE_MAX = 500
"""The numbers of so many tensors are named as out of date; of more, all are."""
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
    """The first rows, as they would be answered when it was opened, and when the pass was over."""
    growing = traitlets.Bool().tag(sync=True)
    """Whether a pass that fills it is under way."""
    chosen = traitlets.Int(None, allow_none=True).tag(sync=True)

    def __init__(self, given: Any, other: Any = None) -> None:
        self._given = given
        self._telling = threading.Lock()
        self._news = Batches(self._tell, NEWS_EVERY_S)
        self._arriving = Arriving(given, self._heard_news)
        self._found = self._arriving.found
        self._other = Arriving([] if other is None else other, self._heard_news)
        self._others = {it.name: it for it in self._other.found}
        self._numbers: dict[int, dict[str, Any]] = {}
        self._apart: dict[int, dict[str, float | None]] = {}
        self._steps = {it.step for it in self._found}
        model = getattr(given, "_model", "")
        super().__init__(
            title=f"Cache of {model}" if model else "Tensors",
            count=len(self._found),
            size_bytes=self._arriving.size_bytes,
            compares=other is not None,
            first=self.answer_rows({"first": 0, "end": ROWS_FIRST}),
            growing=self._is_growing,
        )

    def close(self) -> None:
        """Show nothing more, and hear of no more tensors."""
        for name in ("_arriving", "_other"):
            if (arriving := getattr(self, name, None)) is not None:  # what it was given was refused
                arriving.stop()
        super().close()

    @property
    def tensor(self) -> Tensor | None:
        """The tensor clicked last, whole.

        Raises:
            MissingActivation: it was changed in place since, or its pass failed.
        """
        return None if self.chosen is None else self._read(self.chosen)

    def text(self) -> str:
        """The table as text; numbers are computed for it where two are compared."""
        if self.compares:
            return repr(self._comparison(TEXT_MAX))
        return tensors_text(self.title, tensors.of(self._given))

    def html(self) -> str:
        """The same as HTML without scripts."""
        if self.compares:
            return self._comparison(HTML_MAX)._repr_html_()
        if hasattr(self._given, "_records") and hasattr(self._given, "title"):
            return cache_html(self._given)
        return tensors_html(self.title, tensors.of(self._given))

    def _comparison(self, most: int) -> Table:
        """How far the tensors that both have are apart, of so many bytes of them."""
        rows: list[Row] = []
        both = [(n, it) for n, it in enumerate(self._found) if it.name in self._others]
        left_bytes = COMPARED_BYTES
        for number, it in both:
            other = self._others[it.name]
            if it.shape != other.shape:
                kinds = f"{_kind(it)} | {_kind(other)}"
                rows.append((it.name, kinds, None))
                continue
            left_bytes -= it.size_bytes
            if (left_bytes < 0 and rows) or len(rows) == COMPARED_MAX:
                break
            if number not in self._apart:
                self._apart[number] = tensors.difference(self._arriving.read(number), other.read())
            rows.append((it.name, _kind(it), self._apart[number]))
        mine = {it.name for it in self._found}
        only = ([it.name for it in self._found if it.name not in self._others],
                [name for name in self._others if name not in mine])  # fmt: skip
        return comparison(self.title, rows, only, len(both) - len(rows), most)

    # What comes while it is open -------------------------------------------------------------

    @property
    def _is_growing(self) -> bool:
        return self._arriving.is_growing or self._other.is_growing

    def _heard_news(self, is_over: bool) -> None:
        """Something came; at the end of a pass all of it is told before its cell ends."""
        if is_over:
            self._news.now()
            self.show_twins()
        else:
            self._news.soon()

    def _tell(self) -> None:
        """Tell the view what came since the last time."""
        with self._telling:
            before, steps = len(self._found), len(self._steps) > 1
            changed = self._arriving.take()
            stale = changed | self._compared_anew()
            for number in stale:
                self._numbers.pop(number, None)
                self._apart.pop(number, None)
            self._steps.update(it.step for it in self._found[before:])
            is_other = steps != (len(self._steps) > 1)  # every row has a step now
            new = range(before, min(len(self._found), before + ROWS_FIRST))
            rows = [self._row(number) for number in [*sorted(changed)[:ROWS_FIRST], *new]]
            with self.hold_sync():
                self.count = len(self._found)
                self.size_bytes = self._arriving.size_bytes
                self.growing = self._is_growing
                if not self.growing:
                    self.first = self.answer_rows({"first": 0, "end": ROWS_FIRST})
            news = {
                "count": self.count, "size": self.size_bytes, "rows": rows,
                "rest": is_other or len(changed) > ROWS_FIRST,
                "stale": sorted(stale) if len(stale) <= STALE_MAX else None,
            }  # fmt: skip
            self.send({"news": news})

    def _compared_anew(self) -> set[int]:
        """Take in what came to the other cache; the numbers that are compared anew by that."""
        if not self.compares:
            return set()
        before = len(self._other.found)
        named = self._other.take()
        if not named and before == len(self._other.found):
            return set()
        old, self._others = self._others, {it.name: it for it in self._other.found}
        return {
            number
            for number, it in enumerate(self._found)
            if old.get(it.name) is not self._others.get(it.name)
        }

    # Questions -------------------------------------------------------------------------------

    def answer_rows(self, given: dict[str, Any]) -> dict[str, Any]:
        """The rows `first` to `end` of those whose name holds the words looked for."""
        words = str(given.get("words", "")).lower()
        every: Sequence[int] = range(len(self._found))
        wanted = [n for n in every if words in self._found[n].name.lower()] if words else every
        shown = wanted[given["first"] : min(given["end"], given["first"] + ROWS_SENT)]
        return {"total": len(wanted), "rows": [self._row(number) for number in shown]}

    def _row(self, number: int) -> list[Any]:
        it = self._found[number]
        step = it.step if len(self._steps) > 1 else None
        return [number, it.name, step, list(it.shape), it.kind, it.size_bytes, layer_of(it.name)]

    def answer_place(self, given: dict[str, Any]) -> int | None:
        """The tensor of a layer and a step, at the site of the one that is chosen if it has one.

        That one itself where it is of both. A layer, or a step, that none is of says nothing.
        """
        layer, step, chosen = given["layer"], given["step"], given["chosen"]
        layer = layer if any(layer_of(it.name) == layer for it in self._found) else None
        step = step if len(self._steps) > 1 and any(it.step == step for it in self._found) else None
        if layer is None and step is None:
            return None
        found = [
            number
            for number, it in enumerate(self._found)
            if (layer is None or layer_of(it.name) == layer) and (step is None or it.step == step)
        ]
        if chosen in found or not found:
            return chosen if found else None
        sites = {n: _site(self._found[n].name, layer is None) for n in found}
        wanted = None if chosen is None else _site(self._found[chosen].name, layer is None)
        return next((number for number, site in sites.items() if site == wanted), found[0])

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
        values, note = numbers.plain(self._read(given["which"]))
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

    def _read(self, number: int) -> Tensor:
        tensor, it = self._arriving.read(number), self._found[number]
        if it.is_lost:
            raise MissingActivation(
                f"{it.name} is lost.",
                "it was changed in place after it was kept, or its pass failed and took it along.",
                "trace again: its values are copied then; or copy all: tracer.cache(clone=True).",
            )
        return tensor

    def _numbers_of(self, number: int) -> dict[str, Any]:
        if number not in self._numbers:
            it = self._found[number]
            tensor = self._arriving.read(number)
            told: dict[str, Any] = tensors.statistics(tensor)
            if self.compares:
                other = self._others.get(it.name)
                told["apart"] = None if other is None else tensors.difference(tensor, other.read())
            self._numbers[number] = told
        return self._numbers[number]


def _kind(it: tensors.Named) -> str:
    return f"{it.kind}{list(it.shape)}"


def layer_of(name: str) -> int | None:
    """Of which layer a tensor is: the first number in its path."""
    found = _LAYER.search(name)
    return int(found[0]) if found else None


def _site(name: str, in_layer: bool) -> str:
    """Where a tensor is from, in whichever call, and in whichever layer if that is asked for."""
    site = _CALL.sub("", name)
    return site if in_layer else _LAYER.sub("*", site, count=1)


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
