"""The gate: before anything is timed, every way must give the same numbers.

    check(traced, hooked)          # raises NotEqual, or gives "exact" or "within 1e-05"

Compared are what the module returned in every call, and the values that the ways saw,
where both say which.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from benchmarks.timing import Way


class NotEqual(AssertionError):
    """Two ways that should do the same gave different numbers."""


def check(way: Way, like: Way | None, tolerance: float = 0.0) -> str:
    """Run both and compare; says how equal they are."""
    outputs, values = _outcome(way)
    if like is None:
        return "the definition"
    wanted_outputs, wanted_values = _outcome(like)
    exact = True
    for what, got, wanted in (
        ("outputs", outputs, wanted_outputs),
        ("values", values, wanted_values),
    ):
        if got is not None and wanted is not None:
            exact &= _compare(what, got, wanted, tolerance)
    return "exact" if exact else f"within {tolerance:g}"


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors(part)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            yield from tensors(part)


def _outcome(way: Way) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    with _outputs(way.module) as outputs:
        seen = way.once()
    values = None if seen is None else [tensor.detach().clone() for tensor in tensors(seen)]
    return (None if way.module is None else outputs), values


@contextmanager
def _outputs(module: nn.Module | None) -> Iterator[list[Tensor]]:
    outputs: list[Tensor] = []

    def note(called: nn.Module, _args: Any, output: Any) -> None:
        if called is module:
            outputs.extend(tensor.detach().clone() for tensor in tensors(output))

    handle = register_module_forward_hook(note)  # not the module's: pyvene takes all of those away
    try:
        yield outputs
    finally:
        handle.remove()


def _compare(what: str, got: list[Tensor], wanted: list[Tensor], tolerance: float) -> bool:
    if len(got) != len(wanted):
        raise NotEqual(f"{len(got)} {what} where {len(wanted)} were wanted")
    exact = True
    for number, (a, b) in enumerate(zip(got, wanted, strict=True)):
        if a.shape != b.shape:
            raise NotEqual(f"{what}[{number}] is {tuple(a.shape)}, not {tuple(b.shape)}")
        if torch.equal(a, b):
            continue
        exact = False
        if not torch.allclose(a, b, rtol=tolerance, atol=tolerance):
            far = (a - b).abs().max().item()
            raise NotEqual(f"{what}[{number}] differ by up to {far:.3g}")
    return exact
