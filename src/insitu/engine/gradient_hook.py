"""The hook a backward puts on a tensor: it stops there if its block waits for the gradient.

    hooks = place(run, tensor)
    del hooks[run.key]

A gradient that is handed over may be edited in place, so its memory must be nobody else's: the
backward of `a + b` gives one tensor to both, that of `sum` one number to all places, that of a view
a view. Copying every gradient costs 1 µs and its memory; so the references to it are counted, and
only one that others hold too is copied.
"""

from collections import OrderedDict
from functools import partial
from sys import getrefcount
from typing import Any

import torch
from torch import Tensor

from insitu.engine.modes import swap
from insitu.engine.switch import getcurrent

_grad_mode = torch.is_grad_enabled
_to_grad_mode = torch._C._set_grad_enabled
_storage_uses = torch._C._storage_Use_Count


def place(run: Any, tensor: Tensor) -> dict[int, Any]:
    """What `Tensor.register_hook` does, without its handle, which costs as much again."""
    function = tensor.grad_fn  # first: of a view edited in place torch makes a new one, and a
    hooks: Any = tensor._backward_hooks  # hook registered before that crashes it (torch 2.13)
    if hooks is None:
        hooks = tensor._backward_hooks = OrderedDict()
        if function is not None:
            function._register_hook_dict(tensor)
    hooks[run.key] = partial(_arrive, run, tensor)
    return hooks  # type: ignore[no-any-return]


def _arrive(run: Any, tensor: Tensor, grad: Tensor | None) -> Tensor | None:
    """The hook on a tensor: stops the backward if the block waits for its gradient."""
    if run.want is not tensor or getcurrent() is not run.worker:
        run.keep(tensor, grad)
        return None
    if grad is None:
        return None
    run.want = None
    run.at = tensor
    references, uses, storages = run.alone
    try:
        alone = (
            getrefcount(grad) <= references
            and grad._use_count() <= uses  # type: ignore[attr-defined]
            and _storage_uses(grad.untyped_storage()._cdata) <= storages
        )
    except (NotImplementedError, RuntimeError):  # a sparse tensor has no storage
        alone = False
    run.value = grad if alone else grad.clone()
    if run.light:
        run.backward_modes = _grad_mode()
        _to_grad_mode(run.block_modes)
    else:
        run.backward_modes = swap(run.block_modes)
    run.to_block()
    value = run.value
    return None if value is grad else value


# Whose memory a gradient is ----------------------------------------------------------------------

Counts = tuple[int, int, int]
"""References to the Python object, to the tensor behind it, and to its storage."""

NEVER: Counts = (-1, -1, -1)
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
        middle.register_hook(partial(_probe, seen, middle))  # type: ignore[no-untyped-call]
        torch.autograd.grad(middle.exp(), leaf, torch.ones(2, device="cpu"))
        return seen[0]
    finally:
        swap(modes)


def _probe(seen: list[Counts], _: Tensor, grad: Tensor) -> None:
    """A hook that is called as `_arrive` is."""
    counts = (
        getrefcount(grad),
        grad._use_count(),  # type: ignore[attr-defined]
        _storage_uses(grad.untyped_storage()._cdata),
    )
    seen.append(counts)
