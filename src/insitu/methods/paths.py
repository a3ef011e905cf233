"""Passes in which all is held as in a clean run but one sender: what path patching is made of.

held = hold(model, torch.cat([clean, corrupted]), metric)
patch = Patch(model, held, senders=[(0, 1), (2, 3)], positions=[-1], settings={})
patched(patch, {}, clean, metric, Cost())               # [sender, prompt], paths to the logits
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from insitu.methods.metrics import Metric, measure_copies
from insitu.methods.recording import Cost, call_settings, logits_of
from insitu.methods.sites import SITES

HEADS, MLP = SITES["heads"], SITES["mlp"]


class Paths(TypedDict, total=False):
    """Settings of path patching.

    Attributes:
        of: the senders: `heads` (each by itself), or `mlp`.
        by: through what receivers listen: their `q` (default), `k` or `v`.
        positions: at which positions senders are patched, all by default.
        through_mlps: let later MLPs answer to the sender, as in Wang et al., instead of holding
            them as they were in the clean run, as in Goldowsky-Dill et al.
        batch_size: how many rows a pass may have, all by default.
    """

    of: Literal["heads", "mlp"]
    by: Literal["q", "k", "v"]
    positions: Sequence[int] | None
    through_mlps: bool
    batch_size: int


@dataclass(frozen=True)
class Held:
    """Outputs of every head and MLP in both runs, the clean prompts' rows first, and the logits."""

    heads: list[Tensor]
    mlp: list[Tensor]
    logits: Tensor


def hold(model: Any, ids: Tensor, metric: Metric) -> Held:
    """Run both sides once."""
    held = Held([], [], torch.empty(0))
    with torch.no_grad(), model.trace(ids, **call_settings(model, metric)) as tracer:
        for number in range(model.dims.n_layers):
            held.heads.append(HEADS.read(model.layers[number]).clone())
            held.mlp.append(MLP.read(model.layers[number]).clone())
        logits = logits_of(tracer.result)
    return replace(held, logits=logits)


@dataclass(frozen=True)
class Patch:
    """Senders, one for each copy of the clean prompts, in a run that is held otherwise."""

    model: Any
    held: Held
    senders: list[tuple[int, int]]
    positions: list[int]
    settings: Paths

    def put(self, number: int) -> None:
        """Hold a layer's heads and MLP, those of a sender apart."""
        layer, of = self.model.layers[number], self.settings.get("of", "heads")
        HEADS.write(layer, self._value(self.held.heads[number], number, of == "heads"))
        if not self.settings.get("through_mlps"):
            MLP.write(layer, self._value(self.held.mlp[number], number, of == "mlp"))
        elif of == "mlp":
            MLP.write(layer, self._value(self.held.mlp[number], number, True, MLP.read(layer)))

    def _value(self, both: Tensor, number: int, sends: bool, now: Tensor | None = None) -> Tensor:
        clean, corrupt = both.chunk(2)
        copies = len(self.senders)
        value = clean.repeat(copies, *[1] * (clean.dim() - 1)) if now is None else now.clone()
        rows = value.view(copies, *clean.shape)
        for row, (layer, head) in enumerate(self.senders if sends else ()):
            if layer == number:
                place: Any = (slice(None), self.positions, *([head] if clean.dim() == 4 else []))
                rows[row][place] = corrupt[place]
        return value


def patched(
    patch: Patch, receivers: dict[int, list[int]], ids: Tensor, metric: Metric, cost: Cost
) -> Tensor:
    """The metric when the senders' paths to the receivers are as in the corrupted run."""
    model, copies = patch.model, ids.repeat(len(patch.senders), 1)
    site = SITES[patch.settings.get("by", "q")]
    settings = call_settings(model, metric)
    arrived: dict[int, Tensor] = {}
    cost.note(len(copies))
    with torch.no_grad(), model.trace(copies, **settings) as tracer:
        for number in range(max(receivers, default=model.dims.n_layers - 1) + 1):
            if number in receivers:
                arrived[number] = site.read(model.layers[number])[:, :, receivers[number]].clone()
            patch.put(number)
        if receivers:
            tracer.stop()
        logits = logits_of(tracer.result)
    if receivers:
        cost.note(len(copies))
        with torch.no_grad(), model.trace(copies, **settings) as tracer:
            for number, heads in sorted(receivers.items()):
                value = site.read(model.layers[number]).clone()
                value[:, :, heads] = arrived[number]
                site.write(model.layers[number], value)
            logits = logits_of(tracer.result)
    return measure_copies(metric, logits, len(ids))
