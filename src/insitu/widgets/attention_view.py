"""Attention patterns: every head at a glance, one of them large, and the text it reads.

    insitu.show(attention_patterns(model, prompt))
    AttentionView.of(pattern, tokens=tokens)         # [(layer,) head, query, key]
    view.update(attention_patterns(edited, prompt))  # in the same place, at any time

A map of thousands of tokens stays in the kernel: the view asks for what is in sight, and gets the
largest weight of each pixel, so that no single bright cell is lost.
"""

from collections.abc import Sequence
from typing import Any

import torch
import traitlets
from torch import Tensor

from insitu.errors import UsageError
from insitu.methods.axes import Axis
from insitu.methods.result import Result
from insitu.twins.results import Attention, attention_text
from insitu.widgets import numbers
from insitu.widgets.base import Widget
from insitu.widgets.batches import Batches
from insitu.widgets.places import chooses
from insitu.widgets.words import words

SMALL, LARGE = 40, 240
"""Pixels across a head among others, and across the one that is large."""
NEWS_EVERY_S = 0.1
TOKENS_MAX = 2000
"""So many tokens are named in a view; of a longer text the further ones are numbers."""


class AttentionView(Widget):
    """Heads of a layer side by side; the one that is chosen large, over the tokens it reads.

    AttentionView(attention_patterns(model, prompt))

    Args:
        result: `[layer, head, query_pos, key_pos]`, or without the layer or the head.
    """

    front_end = "attention_view"
    title = traitlets.Unicode().tag(sync=True)
    layers = traitlets.List().tag(sync=True)
    heads = traitlets.List().tag(sync=True)
    names = traitlets.List().tag(sync=True)
    """What layers and heads are: `["layer", "head"]`; nothing for an axis that is missing."""
    chooses = traitlets.List().tag(sync=True)
    """What layers, heads and queries select, and by which numbers (`insitu.widgets.places`)."""
    query_tokens = traitlets.List().tag(sync=True)
    key_tokens = traitlets.List().tag(sync=True)
    size = traitlets.List([0, 0]).tag(sync=True)
    """How many queries and keys there are."""
    note = traitlets.Unicode().tag(sync=True)
    shown = traitlets.Int().tag(sync=True)
    """How often other numbers were put in place."""

    def __init__(self, result: Result) -> None:
        self._news = Batches(self._tell, NEWS_EVERY_S)
        self._take(result)
        super().__init__(**self._state())

    def update(self, data: Any, *, tokens: Sequence[str] | None = None) -> None:
        """Show something else in its place, as often as it comes: in a loop, or as a run goes on.

            view.update(attention_patterns(model, "another prompt"))
            view.update(pattern)                            # of the same size: the same tokens

        Layer, head and token that are chosen stay, where there are such.

        Args:
            data: a result, or a plain tensor `[(layer,) head, query, key]`.
            tokens: of a plain tensor, where they are others than before.

        Raises:
            UsageError: it has not 3 or 4 axes, or a tensor is of another size than the tokens.
        """
        if not isinstance(data, Result):
            values = torch.as_tensor(data)
            is_alike = tuple(values.shape) == tuple(self.result.shape) and tokens is None
            axes = self.result.axes if is_alike else _axes(values, tokens or ())
            data = Result(values, axes, self.result.quantity, title=self.result.title)
        self._take(data)
        self._news.soon()

    def _take(self, result: Result) -> None:
        if len(result.axes) not in (3, 4):
            raise UsageError(
                f"attention is shown of 3 or 4 axes, and this result has {len(result.axes)}.",
                "they are [layer, head, query_pos, key_pos]; layer or head may be missing.",
                "give what attention_patterns returns, or AttentionView.of(pattern, tokens=…).",
            )
        values, note = numbers.plain(result.values)
        self.result = result = numbers.shown(result)
        axes = _with_both(result.axes)
        shape = [len(axis) for axis in axes]
        self._values, self._axes, self._note = values.reshape(shape), axes, note

    def _tell(self) -> None:
        """Send what is shown now: of many updates the last one."""
        with self.hold_sync():
            for name, value in self._state().items():
                setattr(self, name, value)
            self.shown += 1

    def _state(self) -> dict[str, Any]:
        """What the page is told; the numbers it asks for."""
        axes = self._axes
        layers, heads = (words(axis.labels) for axis in axes[:2])
        queries, keys = (words(axis.labels[:TOKENS_MAX]) for axis in axes[2:])
        return {
            "title": self.result.title or "Attention",
            "note": self._note,
            "layers": layers,
            "heads": heads,
            "names": [axis.name for axis in axes[:2]],
            "chooses": chooses(axes[:3]),
            "size": [len(axis) for axis in axes[2:]],
            "query_tokens": queries,
            "key_tokens": keys,
        }

    @classmethod
    def of(cls, pattern: Any, *, tokens: Sequence[str]) -> "AttentionView":
        """Of a plain tensor `[(layer,) head, query, key]` and the tokens it is over."""
        pattern = torch.as_tensor(pattern)
        axes = _axes(pattern, tokens)
        return cls(Result(pattern, axes, "attention weight", title="Attention"))

    def text(self) -> str:
        """The head selected, or the first, as a grid, and what each head of its layer reads."""
        layer, head = (self._chosen(axis, at) for axis, at in ((0, -1), (1, 0)))
        told = self._axes[0].told(layer) if self._axes[0].name and self.layers else ""
        pattern = self._values[layer] if self.layers else self._values.sum(0)
        shown = Attention(self.title, self.result.measured, told, pattern, head, self._axes[1:])
        return attention_text(shown)

    def _chosen(self, axis: int, at: int) -> int:
        """The place on an axis of what is selected, or that one."""
        name, there = self.chooses[axis]
        wanted, size = self.selection.get(name), len(self._axes[axis])
        numbered = there if isinstance(there, list) else range(there, there + size)
        return numbered.index(wanted) if wanted in numbered else at % size if size else 0

    def html(self) -> str:
        """The heads of a layer, the one selected or the last, as tables of colours."""
        if len(self.result.axes) < 4 or not self.layers:
            return self.result._repr_html_()
        first = self.result.axes[0]
        layer = self.selection.get(self.chooses[0][0] or "layer")
        chosen = layer if layer in first.labels else first.labels[-1]
        return self.result.sel(**{first.name: chosen})._repr_html_()

    # Questions -------------------------------------------------------------------------------

    def answer_heads(self, given: dict[str, Any]) -> tuple[Any, list[bytes]]:
        """Every head of a layer, small."""
        small = pooled(self._values[given["layer"]], SMALL)
        return {"shape": list(small.shape)}, [numbers.buffer(small)]

    def answer_tile(self, given: dict[str, Any]) -> tuple[Any, list[bytes]]:
        """A part of one head: `rows` and `columns` are `[first, end]`."""
        (top, bottom), (left, right) = given["rows"], given["columns"]
        part = self._values[given["layer"], given["head"], top:bottom, left:right]
        small = pooled(part, LARGE)
        return {"shape": list(small.shape)}, [numbers.buffer(small)]

    def answer_query(self, given: dict[str, Any]) -> tuple[Any, list[bytes]]:
        """What one query reads: a weight for each key that is named."""
        row = self._values[given["layer"], given["head"], given["query"], :TOKENS_MAX]
        return {"shape": list(row.shape)}, [numbers.buffer(row)]


def _axes(pattern: Tensor, tokens: Sequence[str]) -> tuple[Axis, ...]:
    names = ("layer", "head", "query_pos", "key_pos")[-pattern.dim() :]
    sizes: list[Any] = [*map(range, pattern.shape[:-2]), list(tokens), list(tokens)]
    return tuple(Axis(name, labels) for name, labels in zip(names, sizes, strict=False))


def _with_both(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """Four axes: in place of a layer or a head that is missing, one without a name."""
    if len(axes) == 4:
        return axes
    missing = Axis("", ("",))
    return (axes[0], missing, *axes[1:]) if axes[0].name == "layer" else (missing, *axes)


def pooled(values: Tensor, limit: int) -> Tensor:
    """The largest value of each pixel, where the last two dimensions are larger than a picture."""
    rows, columns = values.shape[-2:]
    if rows <= limit and columns <= limit:
        return values
    size = min(rows, limit), min(columns, limit)
    flat = values.reshape(-1, 1, rows, columns)
    small = torch.nn.functional.adaptive_max_pool2d(flat, size)
    return small.reshape(*values.shape[:-2], *size)
