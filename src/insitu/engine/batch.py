"""Several prompts in one pass: joining their inputs, and which rows belong to whom. Pure.

joined = join([((a,), {}), ((b,), {})])        # tensors one below the other
joined.rows                                     # (Rows(0, 1, 3), Rows(1, 2, 3))
take(value, joined.rows[1], is_batch)           # what the second of them sees
put(value, part, joined.rows[1], is_batch)      # the value with its part replaced
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from insitu.engine.values import describe
from insitu.errors import InputError

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call, by position and by keyword."""
Path = tuple[Any, ...]
"""Where a tensor stands inside a nested value: indices and keys, outermost first."""
IsBatch = Callable[[Path, torch.Tensor], bool]
"""Whether the first dimension of a tensor that has as many rows as the batch is the batch."""


@dataclass(frozen=True)
class Rows:
    """The rows of a batch that belong to one prompt, or several given together."""

    start: int
    size: int
    total: int

    @property
    def are_all(self) -> bool:
        """Whether they are the whole batch, so that nothing need be sliced."""
        return self.size == self.total


@dataclass(frozen=True)
class Joined:
    """One call made of several, and whose rows are where."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: tuple[Rows, ...]


def plan(sizes: Iterable[int]) -> tuple[Rows, ...]:
    """Rows for prompts of these sizes, in order."""
    sizes = list(sizes)
    total = sum(sizes)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(Rows(start, size, total) for start, size in zip(starts, sizes, strict=True))


def join(calls: list[Call]) -> Joined:
    """One call whose tensors hold the rows of all; other arguments must be equal.

    Raises:
        InputError: the calls differ in their arguments, or their tensors do not fit together.
    """
    args, kwargs = calls[0]
    for number, (more, named) in enumerate(calls[1:], 2):
        if len(more) != len(args) or named.keys() != kwargs.keys():
            raise _unlike(number, f"{_told(args, kwargs)} and {_told(more, named)}")
    sizes = [rows_of(call) for call in calls]
    places = [(i, [call[0][i] for call in calls]) for i in range(len(args))]
    named_places = [(name, [call[1][name] for call in calls]) for name in kwargs]
    return Joined(
        tuple(_cat(place, values, sizes) for place, values in places),
        {name: _cat(name, values, sizes) for name, values in named_places},
        plan(sizes),
    )


def rows_of(call: Call) -> int:
    """How many rows a call has: the first dimension of its first tensor; 1 without one."""
    first = call[0][0] if call[0] else None
    if isinstance(first, torch.Tensor) and first.dim():
        return int(first.shape[0])
    for _, tensor in tensors(call):
        if tensor.dim():
            return int(tensor.shape[0])
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
        if value.dim() and value.shape[0] == rows.total and is_batch(path, value):
            return value.narrow(0, rows.start, rows.size)
        return value
    return _rebuilt(value, {key: take(v, rows, is_batch, (*path, key)) for key, v in _parts(value)})


def put(
    value: Any, part: Any, rows: Rows, is_batch: IsBatch, path: Path = (), given: Any = None
) -> Any:
    """The same value with these rows replaced by `part`'s; tensors are not changed in place.

    A tensor that is the very one `given` was edited where it is, if at all. It is not copied, so
    that whoever else holds it (a residual sum) sees the edit, as without a batch.
    """
    if isinstance(value, torch.Tensor):
        if part is given and part.requires_grad is value.requires_grad:
            return value
        if not (value.dim() and value.shape[0] == rows.total and is_batch(path, value)):
            return part
        end = rows.start + rows.size
        return torch.cat([value[: rows.start], part, value[end:]])
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
        tensors = [parts[rows] for rows in ordered]
        has_rows = all(
            t.dim() and t.shape[0] == r.size for t, r in zip(tensors, ordered, strict=True)
        )
        return torch.cat(tensors) if has_rows and is_batch(path, first) else first
    return _rebuilt(
        first,
        {
            key: stack({r: _part(v, key) for r, v in parts.items()}, is_batch, (*path, key))
            for key, _ in _parts(first)
        },
    )


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
    if isinstance(value, Mapping):
        return type(value)(parts)  # type: ignore[call-arg]
    if isinstance(value, (tuple, list)):
        kind = type(value)
        return kind(*parts.values()) if hasattr(value, "_fields") else kind(parts.values())
    return type(value)(**parts)


def _cat(place: Any, values: list[Any], sizes: list[int]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return _cat_tensors(place, values, sizes)
    keys = [key for key, _ in _parts(first)]
    if keys and all([key for key, _ in _parts(v)] == keys for v in values):
        return _rebuilt(
            first, {k: _cat(f"{place}[{k!r}]", [_part(v, k) for v in values], sizes) for k in keys}
        )
    for number, value in enumerate(values[1:], 2):
        if value is not first and not _same(value, first):
            raise _unlike(number, f"{place!r}: {describe(first)} and {describe(value)} differ")
    return first


def _cat_tensors(place: Any, values: list[Any], sizes: list[int]) -> torch.Tensor:
    first: torch.Tensor = values[0]
    for number, (value, size) in enumerate(zip(values, sizes, strict=True), 1):
        if not isinstance(value, torch.Tensor):
            raise _unlike(number, f"{place!r}: {describe(first)} and {describe(value)}")
        has_rows = value.dim() > 0 and value.shape[0] == size
        if not has_rows and not (value.shape == first.shape and torch.equal(value, first)):
            raise _unlike(number, f"{place!r}: {describe(value)} has not {size} rows")
        if has_rows and (value.shape[1:] != first.shape[1:] or value.dtype != first.dtype):
            raise _unlike(number, f"{place!r}: {describe(first)} and {describe(value)}")
    if not (first.dim() and first.shape[0] == sizes[0]):
        return first
    return torch.cat(values)


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
