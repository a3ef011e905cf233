"""Many named tensors, looked at one at a time: what a cache holds, flat, and numbers of each.

    found = tensors.of(cache)              # or of a dict, a list, a tensor
    found[3].name, found[3].shape          # no value is read for that
    statistics(found[3].read())            # mean, spread, extremes, NaN and infinities

A tensor on disk or on a GPU comes over when it is looked at, and goes again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.entry import Entry
from insitu.engine.cache.record import INPUTS, OUTPUT, STEP, Call, Record
from insitu.engine.cache.values import Ref, leaves
from insitu.errors import InputTypeError
from insitu.widgets import numbers

_SAFE = 1e12
"""The squares of so large numbers, summed, may pass float32."""


class Named(NamedTuple):
    """A tensor and where it is from."""

    name: str
    step: int
    value: Tensor | Ref
    is_lost: bool = False
    """Whether it is there no more: what stands for it has its shape, and no numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.value.shape)

    @property
    def kind(self) -> str:
        """Its type of numbers, and its device where that is another than the CPU."""
        if self.is_lost:
            return "lost"
        device = "" if isinstance(self.value, Ref) else str(self.value.device)
        word = str(self.value.dtype).removeprefix("torch.")
        return f"{word} {device}" if device not in ("", "cpu") else word

    @property
    def size_bytes(self) -> int:
        """Its size."""
        value = self.value
        if self.is_lost:
            return 0
        return value.nbytes if isinstance(value, Ref) else value.numel() * value.element_size()

    def read(self) -> Tensor:
        """The tensor itself."""
        return self.value.read() if isinstance(self.value, Ref) else self.value

    def lost(self) -> "Named":
        """The same where its numbers are gone."""
        return self._replace(value=torch.empty(self.shape, device="meta"), is_lost=True)


def of(given: Any) -> list[Named]:
    """All tensors of a cache, of an entry, of a mapping or sequence, or the one tensor.

    Raises:
        InputTypeError: there is no tensor in it.
    """
    if (records := records_of(given)) is not None:
        return list(_of_records(records))
    if isinstance(given, Tensor) or _is_array(given):
        return [Named("tensor", 0, torch.as_tensor(given))]
    if isinstance(given, Mapping):
        parts = [(str(name), value) for name, value in given.items()]
    elif isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        parts = [(f"[{index}]", value) for index, value in enumerate(given)]
    else:
        raise InputTypeError(
            f"there are no tensors to show in {type(given).__name__}.",
            "a cache, a tensor, or a dict or list of them can be inspected.",
            "give one of those, such as cache or {'hidden': tensor}.",
        )
    found: list[Named] = []
    for name, value in parts:
        if isinstance(value, Tensor) or _is_array(value):
            found.append(Named(name, 0, torch.as_tensor(value)))
        else:
            found += _named(name, 0, value)
    return found


def records_of(given: Any) -> Mapping[str, Record] | None:
    """The records of a cache or an entry, by path; None of anything else."""
    if isinstance(given, ActivationCache):
        return given._records
    return {given._path: given._record} if isinstance(given, Entry) else None


def _is_array(value: Any) -> bool:
    """Whether it is numpy's, or another's that torch can take as it is."""
    return hasattr(value, "__array_interface__")


def _of_records(records: Mapping[str, Record]) -> Iterator[Named]:
    for path, record in records.items():
        several = len(record.calls) > 1
        for number, call in enumerate(record.calls):
            yield from of_call(call, f"{path}[{number}]" if several else path)


def of_call(
    call: Call, where: str, kinds: tuple[type[Any], ...] = (Tensor, Ref)
) -> Iterator[Named]:
    """The tensors of one call of a module, what it was called with first."""
    step = max(call[STEP], 0)
    for side, word in ((INPUTS, "input"), (OUTPUT, "output")):
        if call[side] is not None:
            yield from _named(f"{where}.{word}", step, call[side], kinds)


def _named(
    name: str, step: int, value: Any, kinds: tuple[type[Any], ...] = (Tensor, Ref)
) -> Iterator[Named]:
    found = [leaf for leaf in leaves(value) if isinstance(leaf, kinds)]
    for index, leaf in enumerate(found):
        yield Named(f"{name}[{index}]" if len(found) > 1 else name, step, leaf)


def statistics(tensor: Tensor) -> dict[str, float | int | None]:
    """What is told of a tensor in a row; None where it has no such number."""
    found: dict[str, float | int | None] = {
        "nan": 0, "inf": 0, "mean": None, "std": None, "min": None, "max": None, "zeros": None,
    }  # fmt: skip
    if tensor.is_meta:
        return found
    finite = numbers.real(tensor)[0].flatten()
    # NaN and infinities show in the extremes: of 64 MB, 2 ms rather than 200 to look for each.
    if finite.numel() and not all(bool(end.isfinite()) for end in finite.aminmax()):
        found |= {"nan": int(finite.isnan().sum()), "inf": int(finite.isinf().sum())}
        finite = finite[finite.isfinite()]
    if count := finite.numel():
        low, high = finite.aminmax()
        if float(max(-low, high)) > _SAFE:  # their sum or squares would be no number
            finite = finite.double()
        spread = finite.std(correction=0) if count > 1 else torch.zeros(())
        found |= {
            "mean": float(finite.mean()), "std": float(spread), "min": float(low),
            "max": float(high), "zeros": 1 - int(finite.count_nonzero()) / count,
        }  # fmt: skip
    return found


def difference(tensor: Tensor, other: Tensor) -> dict[str, float | None]:
    """How far one tensor is from another of its shape: largest, relative, and their cosine."""
    if tensor.shape != other.shape or tensor.is_meta or other.is_meta:
        return {"largest": None, "relative": None, "cosine": None}
    first, second = (numbers.plain(it)[0].flatten().double() for it in (tensor, other))
    apart, size = (first - second).norm(), second.norm()
    cosine = first @ second / (first.norm() * size)
    largest = (first - second).abs().max() if first.numel() else torch.zeros(())
    told = {"largest": largest, "relative": apart / size, "cosine": cosine}
    return {name: float(it) if bool(it.isfinite()) else None for name, it in told.items()}
