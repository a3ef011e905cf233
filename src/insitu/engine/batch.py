"""Several prompts in one pass: joining their inputs, and which rows belong to whom. Pure.

joined = join([((a,), {}), ((b,), {})])        # tensors one below the other
joined.rows                                     # (Rows(0, 1, 3), Rows(1, 2, 3))
take(value, joined.rows[1], is_batch)           # what the second of them sees
put(value, part, joined.rows[1], is_batch)      # the value with its part replaced
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import torch

from insitu.engine.row_dims import FIRST, RowDims
from insitu.engine.values import describe
from insitu.errors import InputError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call, by position and by keyword."""
Path = tuple[Any, ...]
"""Where a tensor stands inside a nested value: indices and keys, outermost first."""
Split = Mapping[int, "Rows | tuple[Rows, ...]"]
"""The rows of a tensor that has others than the batch: by the first row of each prompt, its own;
where they do not stand together, each piece of them."""
Slabs = Mapping[int, "Slab"]
"""The same where the batch is another dimension than the first."""
IsBatch = Callable[[Path, torch.Tensor], "bool | Along | Split | Slabs"]
"""Whether the first dimension of a tensor that has as many rows as the batch is the batch; or which
other one is; or what is a prompt's instead, such as its images."""


class Rows(NamedTuple):
    """The rows of a batch that belong to one prompt, or several given together."""

    start: int
    size: int
    total: int

    @property
    def are_all(self) -> bool:
        """Whether they are the whole batch, so that nothing need be sliced."""
        return self.size == self.total


class Along(NamedTuple):
    """Says that another dimension than the first is the batch: `[layer, batch, d_hidden]`."""

    dim: int


class Slab(NamedTuple):
    """What of such a tensor belongs to one prompt."""

    dim: int
    start: int
    size: int


@dataclass(frozen=True)
class Joined:
    """One call made of several, and whose rows are where."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: tuple[Rows, ...]


def plan(sizes: Iterable[int]) -> tuple[Rows, ...]:
    """Rows for prompts of these sizes, in order."""
    sizes = list(sizes)
    ends = list(itertools.accumulate(sizes))
    return tuple(Rows(end - size, size, ends[-1]) for end, size in zip(ends, sizes, strict=True))


def join(calls: list[Call], dims: RowDims = FIRST) -> Joined:
    """One call whose tensors hold the rows of all; other arguments must be equal.

    Raises:
        InputError: the calls differ in their arguments, or their tensors do not fit together.
    """
    args, kwargs = calls[0]
    for number, (more, named) in enumerate(calls[1:], 2):
        if len(more) != len(args) or named.keys() != kwargs.keys():
            raise _unlike(number, f"{_told(args, kwargs)} and {_told(more, named)}")
    sizes = [rows_of(call, dims) for call in calls]
    places = [(i, [call[0][i] for call in calls]) for i in range(len(args))]
    named_places = [(name, [call[1][name] for call in calls]) for name in kwargs]
    return Joined(
        tuple(_cat((place,), values, sizes, dims) for place, values in places),
        {name: _cat((name,), values, sizes, dims) for name, values in named_places},
        plan(sizes),
    )


def rows_of(call: Call, dims: RowDims = FIRST) -> int:
    """How many rows a call has: those of its first tensor; 1 without one."""
    first = call[0][0] if call[0] else None
    if isinstance(first, torch.Tensor) and (shape := first.shape):
        return int(shape[dims.of((0,), first)])
    for path, tensor in tensors(call):
        if tensor.dim():
            return int(tensor.shape[dims.of(path[1:], tensor)])
    return 1


def tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """Every tensor nested in a value, with where it stands."""
    if isinstance(value, torch.Tensor):
        yield path, value
    else:
        for key, part in _parts(value):
            yield from tensors(part, (*path, key))


def take(value: Any, rows: Rows, is_batch: IsBatch, path: Path = ()) -> Any:
    """The same value with only these rows, in every tensor that has the batch's."""
    if isinstance(value, torch.Tensor):
        own = _own(value, rows, is_batch, path)
        if own is None:
            return value
        if isinstance(own, Rows):  # a slice costs two thirds of what narrow() does
            return value[own.start : own.start + own.size]
        if isinstance(own, Slab):
            return value.narrow(*own)
        return torch.cat([value[piece.start : piece.start + piece.size] for piece in own])
    return _rebuilt(value, {key: take(v, rows, is_batch, (*path, key)) for key, v in _parts(value)})


def put(
    value: Any, part: Any, rows: Rows, is_batch: IsBatch, path: Path = (), given: Any = None
) -> Any:
    """The same value with these rows replaced by `part`'s; tensors are not changed in place.

    A tensor that is the very one `given` was edited where it is, if at all. It is not copied, so
    that whoever else holds it (a residual sum) sees the edit, as without a batch. Rows in several
    pieces were given as a copy, which is copied back.
    """
    if isinstance(value, torch.Tensor):
        own = _own(value, rows, is_batch, path)
        kept = part is given and part.requires_grad is value.requires_grad
        if isinstance(own, tuple) and not isinstance(own, (Rows, Slab)):
            return _with_pieces(value, part, own, kept)
        if kept:
            return value
        if own is None:
            return part
        if isinstance(own, Slab):
            rest = own.start + own.size
            ends = value.narrow(own.dim, rest, value.shape[own.dim] - rest)
            return torch.cat([value.narrow(own.dim, 0, own.start), part, ends], own.dim)
        return torch.cat([value[: own.start], part, value[own.start + own.size :]])
    parts = {}
    for key, inner in _parts(value):
        own = None if given is None else _part(given, key)
        parts[key] = put(inner, _part(part, key), rows, is_batch, (*path, key), own)
    return _rebuilt(value, parts)


def stack(parts: Mapping[Rows, Any], is_batch: IsBatch, path: Path = ()) -> Any:
    """One value whose tensors hold the rows of all; what holds no rows is the first's."""
    ordered = sorted(parts, key=lambda rows: rows.start)
    first = parts[ordered[0]]
    if isinstance(first, torch.Tensor):
        return _stacked([parts[rows] for rows in ordered], ordered, is_batch, path)
    return _rebuilt(
        first,
        {
            key: stack({r: _part(v, key) for r, v in parts.items()}, is_batch, (*path, key))
            for key, _ in _parts(first)
        },
    )


def begins_a_graph(given: Any, output: Any) -> bool:
    """Whether a body has asked for gradients of its rows, where the whole has none."""
    return (
        given is not output
        and isinstance(given, torch.Tensor)
        and given.requires_grad
        and not output.requires_grad
    )


def _stacked(
    tensors: list[torch.Tensor], rows: list[Rows], is_batch: IsBatch, path: Path
) -> torch.Tensor:
    first = tensors[0]
    if not all(tensor.dim() for tensor in tensors):
        return first
    along = is_batch(path, first)
    if isinstance(along, Along):
        return torch.cat(tensors, along.dim)
    total = sum(tensor.shape[0] for tensor in tensors)
    whole = torch.empty((total, *first.shape[1:]), device="meta")
    own = [_pieces(_own(whole, r, is_batch, path)) for r in rows]
    sizes = [sum(piece.size for piece in pieces) for pieces in own]
    if [tensor.shape[0] for tensor in tensors] != sizes or 0 in sizes:
        return first
    return _assembled(
        (piece, part)
        for tensor, pieces in zip(tensors, own, strict=True)
        for piece, part in zip(pieces, _cut(tensor, pieces), strict=True)
    )


def _with_pieces(
    value: torch.Tensor, part: torch.Tensor, pieces: tuple[Rows, ...], kept: bool
) -> torch.Tensor:
    """A tensor whose rows in these places are `part`'s; changed in place where it was kept."""
    parts = _cut(part, pieces)
    if not kept or value.requires_grad:  # a gradient then comes by way of the copy
        held = list(zip(pieces, parts, strict=True))
        start = 0
        for piece in sorted(pieces, key=lambda piece: piece.start):
            held.append((Rows(start, 0, 0), value[start : piece.start]))
            start = piece.start + piece.size
        return _assembled([*held, (Rows(start, 0, 0), value[start:])])
    if part.is_inference() or part._version:  # a copy nobody has changed has version 0
        for piece, rows in zip(pieces, parts, strict=True):
            value.narrow(0, piece.start, piece.size).copy_(rows)
    return value


def _cut(tensor: torch.Tensor, pieces: tuple[Rows, ...]) -> list[torch.Tensor]:
    """Rows that stand together, cut into pieces of these sizes."""
    ends = list(itertools.accumulate(piece.size for piece in pieces))
    return [tensor[end - piece.size : end] for end, piece in zip(ends, pieces, strict=True)]


def _assembled(parts: Iterable[tuple[Rows, torch.Tensor]]) -> torch.Tensor:
    ordered = sorted(parts, key=lambda part: part[0].start)
    return torch.cat([tensor for _, tensor in ordered])


def _pieces(own: "Rows | Slab | tuple[Rows, ...] | None") -> tuple[Rows, ...]:
    if isinstance(own, Slab):
        return ()
    return () if own is None else (own,) if isinstance(own, Rows) else own


def _own(
    value: torch.Tensor, rows: Rows, is_batch: IsBatch, path: Path
) -> "Rows | Slab | tuple[Rows, ...] | None":
    """The rows of a tensor that are one prompt's; None where it has no prompt's."""
    shape = value.shape
    if not shape:
        return None
    held = is_batch(path, value)
    if not isinstance(held, bool):
        if isinstance(held, Along):
            is_whole = shape[held.dim] == rows.total
            return Slab(held.dim, rows.start, rows.size) if is_whole else None
        return held.get(rows.start)
    return rows if held and shape[0] == rows.total else None


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return []


def _part(value: Any, key: Any) -> Any:
    if isinstance(value, (Mapping, tuple, list)):
        return value[key]
    return getattr(value, key)


def _rebuilt(value: Any, parts: dict[Any, Any]) -> Any:
    """A container like `value` with these parts; `value` itself when none of them changed."""
    if all(parts[key] is part for key, part in _parts(value)):
        return value
    kind = type(value)
    if isinstance(value, (tuple, list)):
        return like_sequence(value, parts.values())
    if isinstance(value, Mapping):
        if is_dataclass(value):
            return kind(**parts)
        if kind is dict or not isinstance(value, MutableMapping):
            return kind(parts)
    like = copy.copy(value)  # a class of one's own may be made of other things than its parts
    for key, part in parts.items():
        if isinstance(value, Mapping):
            like[key] = part
        else:
            object.__setattr__(like, key, part)
    return like


def like_sequence(value: Any, parts: Iterable[Any]) -> Any:
    """A list or tuple of these parts; one of a class of one's own keeps its attributes."""
    kind = type(value)
    if kind is tuple or kind is list:
        return kind(parts)
    if isinstance(value, list):
        like = copy.copy(value)
        like[:] = parts
        return like
    try:
        made = tuple.__new__(kind, parts)
    except TypeError:  # of a class of C's, such as torch.return_types.topk
        return kind(parts)
    getattr(made, "__dict__", {}).update(getattr(value, "__dict__", {}))
    return made


def _cat(path: Path, values: list[Any], sizes: list[int], dims: RowDims) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return _cat_tensors(path, values, sizes, dims.of(path, first))
    keys = [key for key, _ in _parts(first)]
    if keys and all([key for key, _ in _parts(v)] == keys for v in values):
        return _rebuilt(
            first, {k: _cat((*path, k), [_part(v, k) for v in values], sizes, dims) for k in keys}
        )
    for number, value in enumerate(values[1:], 2):
        if value is not first and not _same(value, first):
            raise _unlike(number, f"{_name(path)}: {describe(first)} and {describe(value)} differ")
    return first


def _cat_tensors(path: Path, values: list[Any], sizes: list[int], dim: int) -> torch.Tensor:
    first: torch.Tensor = values[0]
    shape, dtype = first.shape, first.dtype
    holds_rows = bool(shape) and shape[dim] == sizes[0]
    for number, (value, size) in enumerate(zip(values, sizes, strict=True), 1):
        if not isinstance(value, torch.Tensor):
            raise _unlike(number, f"{_name(path)}: {describe(first)} and {describe(value)}")
        if holds_rows and size == sizes[0] and value.shape == shape and value.dtype is dtype:
            continue
        has_rows = value.dim() > dim and value.shape[dim] == size
        if not has_rows and not (value.shape == first.shape and torch.equal(value, first)):
            there = f" in dimension {dim}" if dim else ""
            raise _unlike(number, f"{_name(path)}: {describe(value)} has not {size} rows{there}")
        if has_rows and (_row(value, dim) != _row(first, dim) or value.dtype != first.dtype):
            raise _unlike(number, f"{_name(path)}: {describe(first)} and {describe(value)}")
    return torch.cat(values, dim) if holds_rows else first


def _row(tensor: torch.Tensor, dim: int) -> tuple[int, ...]:
    """The shape of one row."""
    return (*tensor.shape[:dim], *tensor.shape[dim + 1 :])


def _name(path: Path) -> str:
    """An argument's number or name, and what is meant within it."""
    return repr(f"{path[0]}{''.join(f'[{key!r}]' for key in path[1:])}" if path[1:] else path[0])


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (ValueError, RuntimeError):
        return False


def _told(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    told = [describe(a) for a in args] + [f"{k}={describe(v)}" for k, v in kwargs.items()]
    return f"({', '.join(told)})"


def _unlike(number: int, what: str) -> InputError:
    return InputError(
        f"the input of invoke {number} does not fit those before it: {what}.",
        "the inputs of a trace are joined into one batch, row below row.",
        "give all invokes the same arguments, with rows of one shape, or trace them one by one.",
    )
