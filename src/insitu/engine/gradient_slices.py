"""The gradient of a slice: the part of the gradient of the tensor it was cut from.

    with model.trace() as tracer:
        with tracer.invoke(x):
            h = model.layer1.output           # the rows of this invoke: a slice of the batch
            with model.output.sum().backward():
                h.grad[:] = 0

The model goes on with the whole, so no gradient comes to the slice itself. It is met where the
whole's gradient comes by, at the function that made the whole: the block is given the same cut of
it, as a view, so that edits flow on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from insitu.engine.switch import Exit, getcurrent

Cut = Callable[[Tensor], Tensor]
Edge = tuple[Any, int]
"""A function of the graph, and which of its outputs is meant."""

UNREAD = -1
"""In place of a version: the block has not seen this gradient yet."""

_SIGNED = 1 << 63  # from here on a number stands for a negative one: torch shows them as unsigned


@dataclass(frozen=True, slots=True)
class Origin:
    """A tensor that a slice was cut from, known by what made it."""

    edge: Edge
    cuts: tuple[Cut, ...]

    def part(self, whole: Tensor) -> Tensor:
        """The slice's part of the whole's gradient."""
        for cut in self.cuts:
            whole = cut(whole)
        return whole


def origins(tensor: Tensor) -> list[Origin]:
    """What a tensor was cut from by indices, slices and views, the nearest first; or nothing."""
    found: list[Origin] = []
    node, cuts = tensor.grad_fn, tuple[Cut, ...]()
    while node is not None and (cut := _cut(node, tensor)) is not None:
        cuts = (cut, *cuts)
        edge: Any = node.next_functions[0]
        found.append(Origin(edge, cuts))
        node = edge[0]
    return found


def _cut(node: Any, tensor: Tensor) -> Cut | None:
    """What a function of the graph does to its input, if that is cutting a part out of it."""
    name = node.name()
    if name == "SliceBackward0":
        dim, start, end = (_signed(getattr(node, f"_saved_{n}")) for n in ("dim", "start", "end"))
        step = node._saved_step
        return lambda whole: torch.ops.aten.slice.Tensor(whole, dim, start, end, step)
    if name == "SelectBackward0":
        dim, index = _signed(node._saved_dim), _signed(node._saved_index)
        return lambda whole: whole.select(dim, index)
    if name == "ViewBackward0":  # one axis divided: a slice by heads
        shape = tuple(node._input_metadata[0].shape)
        return lambda whole: whole.view(shape)
    base = tensor._base
    if name == "AsStridedBackward0" and base is not None and base.is_contiguous():
        # What becomes of a slice that was edited in place: a part of the memory.
        size, stride = node._saved_size, node._saved_stride
        offset = (node._saved_storage_offset or 0) - base.storage_offset()
        return lambda whole: whole.as_strided(size, stride, offset)
    return None


def _signed(number: int) -> int:
    return number - 2 * _SIGNED if number >= _SIGNED else number


class Slices:
    """The slices among the tensors a backward's block may ask for."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.origins: dict[int, list[Origin]] = {}
        self.handles: dict[Edge, Any] = {}
        self.passed: dict[Edge, tuple[Tensor, int, Tensor]] = {}
        """The gradient, its version when it had passed, and a slice of it."""
        self.here: Edge | None = None
        self.whole: Any = None

    def add(self, tensor: Tensor, found: list[Origin]) -> None:
        """Stop for a slice where the gradient of what it was cut from comes by."""
        self.origins[id(tensor)] = found
        for origin in found:
            edge = origin.edge
            if edge not in self.handles:
                self.handles[edge] = edge[0].register_prehook(self._arrival(edge, tensor))

    def read(self, tensor: Tensor) -> Tensor | None:
        """The gradient of a slice, where the backward stands at it or has passed it."""
        for origin in self.origins.get(id(tensor), ()):
            if origin.edge == self.here:
                self.run.at, self.run.value = tensor, origin.part(self.whole)
                return self.run.value  # type: ignore[no-any-return]
            if origin.edge in self.passed:
                whole, version, _ = self.passed[origin.edge]
                if version == UNREAD:
                    whole = whole.clone()
                    self.passed[origin.edge] = whole, whole._version, tensor
                return origin.part(whole)
        return None

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self.handles.values():
            handle.remove()
        self.handles = {}

    def _arrival(self, edge: Edge, tensor: Tensor) -> Callable[[Any], Any]:
        _, output = edge

        def arrive(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...] | None:
            run, grad = self.run, grads[output]
            if grad is None or getcurrent() is not run.worker:
                return None
            if run.closed:
                raise Exit
            origin = self._wanted(edge)
            if origin is None:
                self.passed[edge] = grad, UNREAD, tensor
                return None
            whole = grad.clone(memory_format=torch.contiguous_format)
            self.here, self.whole = edge, whole
            run.stand(run.want, origin.part(whole))
            self.here, self.whole = None, None
            self.passed[edge] = whole, whole._version, tensor
            return (*grads[:output], whole, *grads[output + 1 :])

        return arrive

    def _wanted(self, edge: Edge) -> Origin | None:
        found = self.origins.get(id(self.run.want), ())
        return next((origin for origin in found if origin.edge == edge), None)
