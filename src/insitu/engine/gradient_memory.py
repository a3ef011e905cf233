"""Whether a gradient's memory is its own, so that it can be edited in place.

    references, uses = alone()
    getrefcount(grad) <= references and grad._use_count() <= uses and not grad._is_view()

The backward of `a + b` gives one tensor to both, that of `sum` one number to all places, that of a
view a view. Writing into such a gradient would write into others' too; copying every gradient costs
1 µs and its memory. So the references to it are counted, in the hook that is given it.
"""

from collections.abc import Callable
from sys import getrefcount

import torch
from torch import Tensor

from insitu.engine.modes import swap

Counts = tuple[int, int]
"""References to the Python object, and to the tensor behind it."""

NEVER: Counts = (-1, -1)
_alone: Counts | None = None


def alone() -> Counts:
    """The counts, in a hook, of a gradient that was computed for its tensor and nothing else.

    They depend on how Python and torch pass arguments, so they are learned, once.
    """
    global _alone
    if _alone is None:
        _alone = _learned() if hasattr(torch.Tensor, "_use_count") else NEVER
    return _alone


def _learned() -> Counts:
    modes = swap(True)
    try:
        seen: list[Counts] = []
        leaf = torch.ones(2, device="cpu", requires_grad=True)
        middle = leaf.exp()
        middle.register_hook(_probe(seen))
        torch.autograd.grad(middle.exp(), leaf, torch.ones(2, device="cpu"))
        return seen[0]
    finally:
        swap(modes)


def _probe(seen: list[Counts]) -> Callable[[Tensor], None]:
    def arrive(grad: Tensor) -> None:
        counts = getrefcount(grad), grad._use_count()  # type: ignore[attr-defined]
        seen.append(counts)

    return arrive
