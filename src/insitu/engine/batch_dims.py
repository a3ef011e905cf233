"""Whether a tensor with as many rows as the batch really holds the batch there.

    dims = BatchDims(root, call, total=4)
    dims.at(module, OUTPUT)((0,), tensor)     # False for a table of 4 positions

A first dimension of the batch's size usually is the batch. It may as well be a number of layers, of
heads or of positions, so before a joined batch runs the model is run once on fake tensors, with a
number of rows that occurs nowhere: what then has that many rows is the batch. What a scan has shown
is kept for all calls of its kind: with the same arguments, whatever their lengths.

A model may have modules that see something else than prompts, such as their images. Its call then
says what belongs to whom there: `call.apart`, see `Apart`. A generation may repeat each prompt's
row, for beams: `call.expansions` says how often.
"""

import threading
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn

from insitu.engine.batch import Along, IsBatch, Path, Rows, Slab, Slabs, Split, tensors
from insitu.engine.batch_scan import (
    Known,
    NoScanError,
    Seen,
    arguments,
    armed,
    name_of,
    row_dims,
    scan,
)
from insitu.engine.order import INPUT
from insitu.engine.row_dims import FIRST
from insitu.errors import InsituWarning

_lock = threading.RLock()
"""One scan at a time: each puts back what it changed in its modules."""
_KEPT_MAX = 64
_TIME_MAJOR = (nn.RNNBase, nn.MultiheadAttention)
"""Unless they are told `batch_first=True`."""
_INPUT = ((0, 0), (1, "input"), (1, "query"))
"""Where their first argument stands in a call."""


class Apart(Protocol):
    """What a call says about values whose rows are not the prompts'."""

    inputs: frozenset[str]
    """Keyword arguments of the call that hold no prompts; it can be made without them."""
    sizes: frozenset[int]
    """Sizes that are no batch's where they occur."""

    def split(self, key: Any, path: Path, tensor: torch.Tensor) -> Split | None:
        """What of a tensor is whose, empty where it is all theirs; None for prompts' rows.

        One that never says None has `knows_all = True`, and `in_pieces` where rows of a prompt may
        stand in several places.
        """


class _Learned:
    """What a scan has shown about calls of one kind."""

    def __init__(self, known: Known, is_second: bool, unseen: IsBatch) -> None:
        self.known = known
        self._unseen = unseen
        self.operations: set[Any] = set()
        """Those that a scan was to meet, whether it did or not."""
        self.is_stale = False
        """Whether a call has shown what the scan had not."""
        self.is_second = is_second
        """Whether an earlier scan was stale: there is no third."""
        self.trouble = ""
        """What is wrong, such as why nothing was learned; said once, when a pass has ended."""
        self._asked: tuple[dict[Any, IsBatch], dict[Any, IsBatch]] = ({}, {})

    def at(self, key: Any, side: int) -> IsBatch:
        asked = self._asked[side].get(key)
        if asked is None:
            asked = self._question(self.known.get((name_of(key), side)))
            if isinstance(key, nn.Module):
                self._asked[side][key] = asked
        return asked

    def _question(self, seen: Seen | None) -> IsBatch:
        if seen is None:
            return self._unseen
        held = {path: Along(dim) if dim else True for path, dim in seen.rows.items()}
        held.update((path, False) for path in seen.all - held.keys())

        def is_batch(path: Path, tensor: torch.Tensor) -> bool | Along | Split | Slabs:
            if path in held:
                return held[path]
            self.is_stale = True  # in this call its size has to do
            return self._unseen(path, tensor)

        return is_batch


class BatchDims:
    """Answers for one pass; what a scan has shown is kept for the model's next ones.

    Args:
        root: the wrapper whose pass it is.
        call: what is run.
        total: the rows of the batch.
        prompts: those of each prompt; needed where the call repeats them.
        sites: the rewritten forwards of the pass, whose operations a scan is to meet too.
    """

    def __init__(
        self,
        root: Any,
        call: Any,
        total: int,
        prompts: Iterable[Rows] = (),
        sites: Mapping[Any, Any] | None = None,
    ) -> None:
        self._call = call
        self._total = total
        self._root = root
        self._unseen = _always if row_dims(call) is FIRST else _in_dim(_first_of(call))
        self._learned: _Learned | None = None
        self._apart: Apart | None = getattr(call, "apart", None)
        self.in_pieces: bool = getattr(self._apart, "in_pieces", False)
        """Whether a prompt's rows may stand in several places, so that a body is given a copy."""
        self._repeated = _repeated(getattr(call, "expansions", ()), total, prompts)
        if total < 2 or getattr(self._apart, "knows_all", False):
            return
        kept: dict[Any, _Learned] = root._batched
        kind = _kind(call, total)
        learned = kept.get(kind)
        if learned is None or (learned.is_stale and not learned.is_second):
            with _lock:
                learned = self._scanned(learned is not None, sites)
                if len(kept) >= _KEPT_MAX:
                    kept.pop(next(iter(kept)))
                kept[kind] = learned
        self._learned = learned
        if sites:
            self.learn(sites)

    def at(self, key: Any, side: int) -> IsBatch:
        """The question for one site."""
        learned, apart, repeated = self._learned, self._apart, self._repeated
        of_prompts = self._unseen if learned is None else learned.at(key, side)
        if apart is None and not repeated:
            return of_prompts

        def is_batch(path: Path, tensor: torch.Tensor) -> bool | Along | Split | Slabs:
            split = None if apart is None else apart.split(key, path, tensor)
            if split is not None:
                return split
            held = of_prompts(path, tensor)
            return _scaled(held, tensor, repeated) if repeated else held

        return is_batch

    def tell(self) -> None:
        """The pass has come to its end: say, once, what could not be found out."""
        if self._learned is not None and self._learned.trouble:
            trouble, self._learned.trouble = self._learned.trouble, ""
            warnings.warn(trouble, InsituWarning, stacklevel=2)

    def learn(self, sites: Mapping[Any, Any]) -> None:
        """Find out about the operations that a pass has been asked for since."""
        learned = self._learned
        if learned is None or armed(sites) <= learned.operations:
            return
        with _lock:
            more = self._scanned(False, sites)
        learned.known.update(more.known)
        learned.operations |= more.operations

    def _scanned(self, is_second: bool, sites: Mapping[Any, Any] | None) -> _Learned:
        sizes = _sizes(self._root) | (self._apart.sizes if self._apart is not None else frozenset())
        try:
            known = scan(self._call, self._total, sizes, sites or {})
            learned = _Learned(known, is_second, self._unseen)
            learned.trouble = _mixed_up(known)
        except NoScanError as error:
            learned = _Learned({}, is_second, self._unseen)
            further = [held[:dim] + held[dim + 1 :] for held, dim in _shapes(self._call)]
            if self._total in sizes.union(*further):  # else sizes that are known tell it apart
                learned.trouble = str(error)
        learned.operations |= armed(sites or {})
        return learned


def _always(path: Path, tensor: torch.Tensor) -> bool:
    return True


def _mixed_up(known: Known) -> str:
    """What to say where prompts stand in a dimension along which a module mixes them; else ""."""
    for (module, side), seen in known.items():
        if side != INPUT or not isinstance(module, _TIME_MAJOR) or module.batch_first:
            continue
        if 0 in [seen.rows[path] for path in _INPUT if path in seen.rows]:
            return (
                f"{type(module).__name__} takes the first dimension of its input for time, and "
                "there the prompts of this trace stand, so that they do not stay apart. If it is "
                "time, join them in the other: NNsight(module, batch_dim=1); if it is meant to be "
                f"the batch, the module needs {type(module).__name__}(…, batch_first=True)."
            )
    return ""


def _shapes(call: Any) -> list[tuple[tuple[int, ...], int]]:
    """The shapes of a call's tensors, and the dimension in which each has its rows."""
    dims, given = row_dims(call), tensors(arguments(call))
    return [(tuple(tensor.shape), dims.of(path[1:], tensor)) for path, tensor in given]


def _first_of(call: Any) -> int:
    return next((dim for shape, dim in _shapes(call) if shape), 0)


def _in_dim(dim: int) -> IsBatch:
    """The guess where rows are in another dimension than the first."""

    def is_batch(path: Path, tensor: torch.Tensor) -> bool | Along:
        there = min(dim, tensor.dim() - 1)
        return Along(there) if there else True

    return is_batch


def _scaled(
    held: bool | Along | Split | Slabs, tensor: torch.Tensor, repeated: Mapping[int, Split]
) -> bool | Along | Split | Slabs:
    """What holds the batch, in a tensor where each prompt's row may have been repeated."""
    if held is False or isinstance(held, Mapping):
        return held
    dim = held.dim if isinstance(held, Along) else 0
    split = repeated.get(tensor.shape[dim])
    if split is None or not dim:
        return held if split is None else split
    return {
        start: Slab(dim, it.start, it.size) for start, it in split.items() if isinstance(it, Rows)
    }


def _repeated(times: Iterable[int], total: int, prompts: Iterable[Rows]) -> dict[int, Split]:
    """For numbers of rows other than the batch's: whose they are, each prompt's being repeated."""
    prompts = list(prompts)
    return {
        total * n: {it.start: Rows(it.start * n, it.size * n, total * n) for it in prompts}
        for n in times
        if n != 1
    }


def _kind(call: Any, total: int) -> Any:
    """What calls have in common whose values hold the batch in the same places."""
    kinds = type(call).__name__, call.module.training, *_kinds(arguments(call), total)
    if row_dims(call) is FIRST:
        return kinds
    return *kinds, *[bool(shape) and shape[dim] == total for shape, dim in _shapes(call)]


def _kinds(value: Any, total: int) -> Any:
    if isinstance(value, torch.Tensor):
        shape = value.shape
        return len(shape), bool(shape) and shape[0] == total
    kind = type(value)
    if kind is tuple or kind is list:
        return tuple([_kinds(part, total) for part in value])
    if isinstance(value, Mapping):
        return tuple([(key, _kinds(part, total)) for key, part in value.items()])
    return value if value is None or kind is bool or kind is str else kind


def _sizes(root: Any) -> frozenset[int]:
    """Every size that a parameter or a buffer of the model has."""
    if root._sizes is None:
        module: nn.Module = root._module
        held = (*module.parameters(), *module.buffers())
        root.__dict__["_sizes"] = frozenset(size for tensor in held for size in tensor.shape)
    sizes: frozenset[int] = root._sizes
    return sizes
