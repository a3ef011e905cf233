"""What a block did, site by site: the pure record behind the run card.

    tracer.watch = recorder = Recorder()
    with tracer:
        ...
    recorder.visits      # (Visit(path="transformer.h.1.output", line=2, written="in place", …), …)

Nothing of the run is kept alive, but for the parts that the block wrote: those are replayed
afterwards to measure what each write did.
"""

import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from insitu.engine.arming import Node
from insitu.engine.misses import site
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.values import describe
from insitu.engine.written import Before, Leaf, leaves

KEPT_BYTES_MAX = 256 * 2**20
"""Written values kept for the replays; a block that writes more gets the total effect alone."""


@dataclass(frozen=True)
class Stats:
    """A tensor in a few numbers."""

    shape: tuple[int, ...]
    dtype: str
    device: str
    norm: float | None
    """Euclidean norm of all its elements; None for whole numbers, which are names, not amounts."""
    nans: int


@dataclass(frozen=True)
class Visit:
    """One site that the block met."""

    path: str
    line: int
    step: int
    kind: str
    """The value's kind in words: `float32[1, 8, 96]`, `(float32[1, 8], None)`."""
    parts: int
    """How many tensors the value holds; the statistics are those of the first."""
    arrived: Stats | None
    left: Stats | None = None
    """The same, after the block wrote; None when it only read."""
    written: str = ""
    """`edited in place`, `replaced`, `skipped`, or empty."""


@dataclass(frozen=True)
class Write:
    """What the block left at a site, for replaying it."""

    visit: int
    module: nn.Module
    is_input: bool
    values: dict[Leaf, torch.Tensor] | None
    """The tensors that differ from what was there; None when they cannot be put back."""


@dataclass
class _Standing:
    """A site the block has not left yet."""

    visit: int
    node: Node
    is_input: bool
    before: Before


@dataclass
class Recorder:
    """Watches a pass (`insitu.engine.interleave.Watcher`) and never raises into it."""

    visits: list[Visit] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    trouble: str = ""
    """Why the record is incomplete, when it is."""
    seconds: float = 0.0
    """Time spent here, which is no part of the run."""
    _standing: _Standing | None = None
    _kept_bytes: int = 0

    def arrived(self, node: Node, kind: int, value: Any, line: int, step: int) -> None:
        """The block has come to a site."""
        began = time.perf_counter()
        try:
            with torch.no_grad():
                self._arrive(node, kind, value, line, step)
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"
        self.seconds += time.perf_counter() - began

    def leaving(self, value: Any) -> None:
        """The block asks for something else; `value` is what the model goes on with."""
        began = time.perf_counter()
        standing, self._standing = self._standing, None
        try:
            if standing is not None:
                with torch.no_grad():
                    self._leave(standing, dict(leaves(value)))
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"
        self.seconds += time.perf_counter() - began

    def skipped(self, node: Node, value: Any, line: int, step: int) -> None:
        """A module's call has been replaced by a value."""
        began = time.perf_counter()
        try:
            with torch.no_grad():
                self._skip(node, value, line, step)
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"
        self.seconds += time.perf_counter() - began

    def finish(self) -> None:
        """The pass is over; one that was stopped has not left its last site."""
        if (standing := self._standing) is not None:
            self._standing = None
            with torch.no_grad():
                self._leave(standing, standing.before.tensors)

    def _arrive(self, node: Node, kind: int, value: Any, line: int, step: int) -> None:
        before = Before(value)
        self._standing = _Standing(len(self.visits), node, kind == INPUT, before)
        self.visits.append(
            Visit(
                path=site(node, kind),
                line=line,
                step=step,
                kind=describe(_first_argument(value) if kind == INPUT else value),
                parts=len(before.tensors),
                arrived=_stats(next(iter(before.tensors.values()), None)),
            )
        )

    def _skip(self, node: Node, value: Any, line: int, step: int) -> None:
        tensors = dict(leaves(value))
        self.writes.append(Write(len(self.visits), node._module, False, self._kept(tensors)))
        self.visits.append(
            Visit(
                path=site(node, OUTPUT),
                line=line,
                step=step,
                kind=describe(value),
                parts=len(tensors),
                arrived=None,
                left=_stats(next(iter(tensors.values()), None)),
                written="skipped",
            )
        )

    def _leave(self, standing: _Standing, tensors: dict[Leaf, torch.Tensor]) -> None:
        before = standing.before
        replaced = [
            leaf for leaf, tensor in tensors.items() if tensor is not before.tensors.get(leaf)
        ]
        edited = [
            leaf
            for leaf, tensor in tensors.items()
            if leaf not in replaced and before.edited(leaf, tensor)
        ]
        lost = before.tensors.keys() - tensors.keys()
        if not (replaced or edited or lost):
            return
        visit = self.visits[standing.visit]
        self.visits[standing.visit] = replace(
            visit,
            left=_stats(next(iter(tensors.values()), None)),
            written="replaced" if replaced or lost else "edited in place",
        )
        same_places = before.tensors.keys() == tensors.keys()
        kept = self._kept({leaf: tensors[leaf] for leaf in (*replaced, *edited)})
        self.writes.append(
            Write(
                standing.visit,
                standing.node._module,
                standing.is_input,
                kept if same_places else None,
            )
        )

    def _kept(self, values: dict[Leaf, torch.Tensor]) -> dict[Leaf, torch.Tensor] | None:
        self._kept_bytes += sum(tensor.nbytes for tensor in values.values())
        if self._kept_bytes > KEPT_BYTES_MAX:
            return None
        return {leaf: tensor.detach().clone() for leaf, tensor in values.items()}


def _first_argument(value: Any) -> Any:
    args, kwargs = value
    return args[0] if args else next(iter(kwargs.values()), None)


def _stats(tensor: torch.Tensor | None) -> Stats | None:
    if tensor is None:
        return None
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.device.type == "meta":
        return Stats(shape, dtype, str(tensor.device), None, 0)
    values = tensor.detach()
    if values.is_complex():
        values = values.abs()
    elif values.element_size() == 1:  # float8 has no arithmetic
        values = values.float()
    wide = torch.float64 if values.dtype is torch.float64 else torch.float32
    norm = torch.linalg.vector_norm(values, dtype=wide)
    norm_and_nans = torch.stack((norm.double(), values.isnan().sum().double()))
    length, nans = norm_and_nans.tolist()  # one copy from the device for both
    return Stats(shape, dtype, str(tensor.device), length, int(nans))
