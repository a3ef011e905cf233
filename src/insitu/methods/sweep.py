"""Many patched copies of a few prompts, as rows of few passes: what patching methods share.

sweep = Sweep(model, site_of("resid_pre"), metric)
both = sweep.record(torch.cat([clean, corrupted]))
cells = Cells.each([range(i, i + 1) for i in range(6)], torch.eye(n_pos, dtype=torch.bool))
effects = sweep.run(both.part(1, 2), both.part(0, 1), cells)        # [cell, prompt]

A cell is one patch. Below its first layer its row is the base run, so those layers are skipped and
the row begins with the base's residual stream; the cells of a layer are rows of one pass. A cell
whose patch changes nothing is not run at all. Whether layers can be skipped in this model is seen
in a control row that is patched nowhere: where it does not give the base's number, none is skipped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from torch import Tensor

from insitu.methods.metrics import Metric, measure_copies
from insitu.methods.progress import progress
from insitu.methods.recording import Cost, Recording, call_settings, logits_of, record, rows_max
from insitu.methods.sites import Site

TOKENS_MIN = {"cpu": 128, "cuda": 8192}
"""From so many tokens on, another layer's cells begin a pass of their own: measured on the demo
model, a pass costs 1 ms more than its rows, which a layer that is run in vain costs 14 rows of."""
AWAY_MAX = {torch.float64: 1e-6, torch.float32: 1e-4}
"""By how much of the largest logit a row may differ from the same row of another batch."""

Swap = Callable[[Tensor, Tensor, int], Tensor]
"""What is put in: of the value there, the source's, and the layer."""


class Sweeping(TypedDict, total=False):
    """Settings of every method that sweeps.

    Attributes:
        layers: which layers, all by default.
        batch_size: how many rows a pass may have; by default what about a gigabyte holds.
    """

    layers: Sequence[int] | None
    batch_size: int | None


def window(layer: int, size: int, count: int) -> range:
    """So many layers around one, as far as there are any: `window(3, 3, 6)` is 2, 3 and 4."""
    return range(max(0, layer - size // 2), min(count, layer - (-size // 2)))


@dataclass(frozen=True)
class Cells:
    """Patches to be tried: at which layers each, and where in the site.

    Attributes:
        layers: for each cell the layers it patches.
        masks: what it patches there, `[cell, pos]` or `[cell, pos, head]`.
    """

    layers: list[range]
    masks: Tensor

    @classmethod
    def each(cls, layers: Sequence[range], patterns: Tensor) -> "Cells":
        """Every pattern `[pattern, pos, …]` at every layer or window of layers, layer by layer."""
        masks = patterns.repeat(len(layers), *[1] * (patterns.dim() - 1))
        return cls([window for window in layers for _ in patterns], masks)

    def __len__(self) -> int:
        return len(self.layers)

    def live(self, base: Recording, source: Recording) -> list[int]:
        """Those that change anything: below the first token that differs, nothing does."""
        differs = torch.stack([
            (one != other).any(-1).any(0)
            for one, other in zip(base.values, source.values, strict=True)
        ]).cpu()  # fmt: skip
        return [
            number
            for number, (layers, mask) in enumerate(zip(self.layers, self.masks, strict=True))
            if bool((differs[layers.start : layers.stop] & mask).any())
        ]


@dataclass
class Sweep:
    """A model, a site of it and a metric, and what sweeping over cells has cost so far."""

    model: Any
    site: Site
    metric: Metric
    batch_size: int | None = None
    doing: str = "patching"
    cost: Cost = field(default_factory=Cost)
    shares: bool = True
    """Whether a row may begin at its first patched layer, as far as control rows have shown."""

    def record(self, ids: Tensor, embedded: Callable[[Tensor], Tensor] | None = None) -> Recording:
        """Run prompts unpatched."""
        self.cost.note(len(ids))
        return record(self.model, ids, self.site, self.metric, embedded)

    def run(
        self, base: Recording, source: Recording, cells: Cells, swap: Swap | None = None
    ) -> Tensor:
        """The metric of the base run with each cell's values of the source, `[cell, prompt]`."""
        unpatched = self.measured(base.logits, len(base.ids))[0]
        found = unpatched.repeat(len(cells), 1)
        work = Patching(self, base, source, cells, swap or _whole)
        for chunk in progress(self._chunks(cells, base, cells.live(base, source)), self.doing):
            first = min(cells.layers[n].start for n in chunk) if self.shares else 0
            numbers, is_base = work.run(chunk, first)
            if first and not is_base:
                self.shares = False
                numbers, _ = work.run(chunk, 0)
            found[chunk] = numbers
        return found

    def measured(self, logits: Tensor, prompts: int) -> Tensor:
        """The metric of copies of some prompts, `[copy, prompt]`."""
        return measure_copies(self.metric, logits, prompts)

    def _chunks(self, cells: Cells, base: Recording, live: list[int]) -> list[list[int]]:
        """The cells of each pass, the deepest layers first."""
        prompts, length = base.ids.shape
        most = max(1, (self.batch_size or rows_max(base.entering[0], base.logits)) // prompts - 1)
        enough = TOKENS_MIN.get(base.ids.device.type, 8192)
        chunks: list[list[int]] = []
        for number in sorted(live, key=lambda number: -cells.layers[number].start):
            last = chunks[-1] if chunks else []
            deeper = last and cells.layers[last[-1]].start > cells.layers[number].start
            full = len(last) >= most or (deeper and len(last) * prompts * length >= enough)
            if not last or full:
                chunks.append([])
            chunks[-1].append(number)
        return chunks


@dataclass(frozen=True)
class Patching:
    """A base run, where its patches come from, and which there are."""

    sweep: Sweep
    base: Recording
    source: Recording
    cells: Cells
    swap: Swap

    def run(self, chunk: list[int], first: int) -> tuple[Tensor, bool]:
        """The metric of some cells, `[cell, prompt]`, the layers below `first` skipped.

        Also whether a copy without a patch, the last one, gives the base run's logits.
        """
        model, base, prompts = self.sweep.model, self.base, len(self.base.ids)
        copies = len(chunk) + 1
        self.sweep.cost.note(copies * prompts)
        entering = base.entering[first].repeat(copies, 1, 1)
        settings = call_settings(model, self.sweep.metric)
        with torch.no_grad(), model.trace(base.ids.repeat(copies, 1), **settings) as tracer:
            for number in range(first):
                size = base.in_tuple[number]
                model.layers[number].skip((entering, *[None] * (size - 1)) if size else entering)
            model.layers[first].resid_pre = entering
            for number in range(first, max(self.cells.layers[n].stop for n in chunk)):
                self._patch(number, chunk, copies)
            logits = logits_of(tracer.result)
        away = (logits[-prompts:] - base.logits).abs().max()
        is_base = bool(away <= AWAY_MAX.get(logits.dtype, 0.05) * base.logits.abs().max())
        return self.sweep.measured(logits[:-prompts], prompts), is_base

    def _patch(self, number: int, chunk: list[int], copies: int) -> None:
        """Put the source's values into the rows that patch this layer."""
        rows = [row for row, n in enumerate(chunk) if number in self.cells.layers[n]]
        if not rows:
            return
        layer, site = self.sweep.model.layers[number], self.sweep.site
        value = site.read(layer).clone()
        rows_of = value.view(copies, -1, *value.shape[1:])
        mask = self.cells.masks[[chunk[row] for row in rows]].unsqueeze(1).unsqueeze(-1)
        there = rows_of[rows]
        rows_of[rows] = torch.where(
            mask.to(value.device), self.swap(there, self.source.values[number], number), there
        )
        site.write(layer, value)


def _whole(there: Tensor, source: Tensor, layer: int) -> Tensor:
    return source
