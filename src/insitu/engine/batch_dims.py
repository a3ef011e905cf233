"""Whether a tensor with as many rows as the batch really holds the batch there.

    dims = BatchDims(root, call, total=4)
    dims.at(module, OUTPUT)((0,), tensor)     # False for a table of 4 positions

A first dimension of the batch's size usually is the batch. Where the size occurs elsewhere too, in
a weight or in another dimension of the input, the model is run once on fake tensors with a number
of rows that occurs nowhere: what then has that many rows is the batch.

A model may have modules that see something else than prompts, such as their images. Its call then
says what belongs to whom there: `call.apart`, see `Apart`.
"""

import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import nn

from insitu.engine.batch import IsBatch, Path, Split, tensors
from insitu.engine.fakes import fake_tensors
from insitu.engine.order import INPUT, OUTPUT
from insitu.errors import InsituWarning

Known = dict[tuple[nn.Module, int], frozenset[Path]]
"""For each side of each module: where its value holds tensors with the batch's rows."""


class Apart(Protocol):
    """What a call says about values whose rows are not the prompts'."""

    inputs: frozenset[str]
    """Keyword arguments of the call that hold no prompts; it can be made without them."""
    sizes: frozenset[int]
    """Sizes of the batch that need finding out."""

    def split(self, key: Any, path: Path, tensor: torch.Tensor) -> Split | None:
        """What of a tensor is whose, empty where it is all theirs; None for prompts' rows.

        One that never says None has `knows_all = True`, and `in_pieces` where rows of a prompt may
        stand in several places.
        """


class BatchDims:
    """Answers for one pass; what a scan has shown is kept for the model's next ones."""

    def __init__(self, root: Any, call: Any, total: int) -> None:
        self._known: Known | None = None
        self._apart: Apart | None = getattr(call, "apart", None)
        sizes = _sizes(root) | (self._apart.sizes if self._apart is not None else frozenset())
        self.in_pieces: bool = getattr(self._apart, "in_pieces", False)
        """Whether a prompt's rows may stand in several places, so that a body is given a copy."""
        if getattr(self._apart, "knows_all", False):
            return
        if total > 1 and (total in sizes or total in _other_sizes(call)):
            kept: dict[str, Known] = root._batched
            if type(call).__name__ not in kept:
                kept[type(call).__name__] = _scan(call, total, sizes)
            self._known = kept[type(call).__name__]

    def at(self, key: Any, side: int) -> IsBatch:
        """The question for one site."""
        if self._known is None and self._apart is None:
            return _always
        paths = None if self._known is None else self._known.get((key, side))
        of_prompts = _always if paths is None else lambda path, tensor: path in paths
        if self._apart is None:
            return of_prompts
        apart = self._apart

        def is_batch(path: Path, tensor: torch.Tensor) -> bool | Split:
            split = apart.split(key, path, tensor)
            return of_prompts(path, tensor) if split is None else split

        return is_batch


def _always(path: Path, tensor: torch.Tensor) -> bool:
    return True


def _sizes(root: Any) -> frozenset[int]:
    """Every size that a parameter or a buffer of the model has."""
    if root._sizes is None:
        module: nn.Module = root._module
        held = (*module.parameters(), *module.buffers())
        root.__dict__["_sizes"] = frozenset(size for tensor in held for size in tensor.shape)
    sizes: frozenset[int] = root._sizes
    return sizes


def _other_sizes(call: Any) -> set[int]:
    return {size for _, t in tensors((call.args, call.kwargs)) for size in t.shape[1:]}


def _scan(call: Any, total: int, sizes: frozenset[int]) -> Known:
    apart: Apart | None = getattr(call, "apart", None)
    left_out = apart.inputs if apart is not None else frozenset[str]()
    of_prompts = {name: v for name, v in call.kwargs.items() if name not in left_out}
    taken = sizes | _other_sizes(call)
    rows = next(n for n in range(total + 1, total + len(taken) + 2) if n not in taken)
    known: Known = {}
    handles = [handle for m in call.module.modules() for handle in _noting(m, rows, known)]
    try:
        with fake_tensors(call.module), torch.no_grad():
            args, kwargs = _with_rows((call.args, of_prompts), total, rows)
            call.module(*args, **kwargs)
    except Exception as error:
        warnings.warn(
            f"{type(call.module).__name__} cannot run on fake tensors ({error}), so tensors with "
            f"{total} rows are taken to hold the batch's, though that size occurs elsewhere too.",
            InsituWarning,
            stacklevel=2,
        )
        known.clear()
    finally:
        for handle in handles:
            handle.remove()
    return known


def _noting(module: nn.Module, rows: int, known: Known) -> Iterator[Any]:
    def note(side: int, value: Any) -> None:
        paths = {path for path, t in tensors(value) if t.dim() and t.shape[0] == rows}
        known[module, side] = known.get((module, side), frozenset()) | paths

    yield module.register_forward_pre_hook(
        lambda _, args, kwargs: note(INPUT, (args, kwargs)), with_kwargs=True
    )
    yield module.register_forward_hook(lambda _, args, output: note(OUTPUT, output))


def _with_rows(value: Any, total: int, rows: int) -> Any:
    """The same arguments as fakes, the batch having another number of rows."""
    if isinstance(value, torch.Tensor):
        shape = (rows, *value.shape[1:]) if value.dim() and value.shape[0] == total else value.shape
        return torch.empty(shape, dtype=value.dtype, device=value.device)
    if isinstance(value, dict):
        return {key: _with_rows(part, total, rows) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_with_rows(part, total, rows) for part in value)
    return value
