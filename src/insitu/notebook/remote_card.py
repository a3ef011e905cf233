"""What a `%%trace … --remote` cell brought back: its values, how long each phase took, and how less
could travel.

display(came_back(job, {"logits": logits}, 0.41, cell, vocabulary=50257))
"""

import ast
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.table import in_bytes
from insitu.remote.client.job import RemoteJob
from insitu.twins.table import Table

LARGE_BYTES = 50_000_000
"""A saved value beyond this is told how to be smaller."""
ROWS_MAX = 40
_NAMES = ("name", "kind", "dtype", "shape", "size")
_WHOLE = (ast.Name, ast.Attribute, ast.Call, ast.Subscript)
_EXAMPLE = "logits = model.lm_head.output[0, -1].save()"


def came_back(
    job: RemoteJob | None,
    values: Mapping[str, Any],
    took_s: float,
    body: str,
    vocabulary: int | None = None,
) -> Table:
    """What a job gave back; of `--remote local`, which has no job, the same without its phases.

    Args:
        job: the job, which is over.
        values: what it saved, by name.
        took_s: how long the cell waited.
        body: the cell's text, for what could be saved.
        vocabulary: the size of the model's, to know scores over it.
    """
    where = "this process, through the code of a server" if job is None else job.connection.url
    more = [f"… and {len(values) - ROWS_MAX} more"] if len(values) > ROWS_MAX else []
    return Table(
        f"Back from {where}" if values else f"Nothing came back from {where}",
        _NAMES,
        [_row(name, value) for name, value in [*values.items()][:ROWS_MAX]],
        numbers=frozenset({"size"}),
        notes=(
            *more,
            *([] if values else [_unsaved(body)]),
            *(line for name, it in values.items() for line in smaller(name, it, vocabulary, body)),
            _times(job, took_s),
        ),
    )


def sent(job: RemoteJob) -> Table:
    """What a cell with `--background` shows."""
    return Table(
        f"Job {job.id} is on its way", _NAMES, [],
        "It is in the variable job: job.result() waits for it and gives what the cell saves, by "
        "name; job.cancel() ends it.",
        notes=(f"After a restart of the kernel: job = insitu.job({job.id!r}), or %jobs --remote.",),
    )  # fmt: skip


def smaller(name: str, value: Any, vocabulary: int | None = None, body: str = "") -> Iterator[str]:
    """How a large value could have been reduced where it was made, with what would be left."""
    size = size_of(value)
    if size <= LARGE_BYTES:
        return
    if not isinstance(value, Tensor):
        count = len(tensors_in(value))
        yield (
            f"{name} is {in_bytes(size)} in {count} tensors. Reduce each before it is kept: "
            f"{name}.append(h[:, -1]) instead of {name}.append(h)."
        )
        return
    ways = sorted(_ways(value, vocabulary), key=lambda it: it[1])
    if ways:
        told = ", ".join(f"{name}{way} would be {in_bytes(left)}" for way, left in ways)
        yield (
            f"{name} is {in_bytes(size)}. Reduce it on the server: {told}. "
            f"Write {name} = {_saved_in(body, name)}{ways[0][0]}.save()."
        )
    else:
        yield f"{name} is {in_bytes(size)}. Save only the part of it that you need."


def _ways(value: Tensor, vocabulary: int | None) -> Iterator[tuple[str, int]]:
    size, last = size_of(value), value.shape[-1] if value.dim() else 1
    if value.dim() >= 3 and value.shape[1] > 1:
        yield "[:, -1]", size // value.shape[1]
    if value.dim() >= 2 and last == vocabulary:
        yield ".argmax(-1)", value.numel() // last * 8
    if value.is_floating_point() and value.element_size() > 2:
        yield ".half()", value.numel() * 2


def tensors_in(value: Any, depth: int = 0) -> list[Tensor]:
    """The tensors in lists, tuples and dicts, each once."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)) or depth > 8:
        return []
    found = {id(it): it for part in value for it in tensors_in(part, depth + 1)}
    return list(found.values())


def size_of(value: Any) -> int:
    """The bytes of the tensors in a value."""
    if isinstance(value, ActivationCache):
        return value.size_bytes
    return sum(it.numel() * it.element_size() for it in tensors_in(value))


def _row(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return name, "tensor", dtype, str(list(value.shape)), in_bytes(size_of(value))
    kind = type(value).__name__
    if isinstance(value, ActivationCache):
        return name, kind, "", f"{len(value)} modules", in_bytes(value.size_bytes)
    if isinstance(value, (list, tuple, dict, set)):
        kind += f" of {len(value)}"
    elif isinstance(value, (bool, int, float, str, type(None))):
        shown = repr(value)
        kind += f" {shown}" if len(shown) <= 40 else f" {shown[:39]}…"
    count = len(tensors_in(value))
    held = f"{count} tensors" if count > 1 else "1 tensor" if count else ""
    return name, kind, "", held, in_bytes(size_of(value)) if count else ""


def _unsaved(body: str) -> str:
    """What to write in a cell that saves nothing, in its own words."""
    example = _EXAMPLE
    for node in _nodes(body):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            text = f"{node.targets[0].id} = {_saving(node.value)}"
            example = text if len(text) <= 100 else f"{node.targets[0].id} = (…).save()"
    return f"The cell saves nothing, so its values stayed there. Write {example}"


def _saved_in(body: str, name: str) -> str:
    """What a cell saves under a name, in its own words, where that is one short expression."""
    for node in _nodes(body):
        match node:
            case ast.Assign(
                targets=[ast.Name(id=known)],
                value=ast.Call(func=ast.Attribute(value=saved, attr="save"), args=[]),
            ) if known == name and isinstance(saved, _WHOLE):
                text = ast.unparse(saved)
                return text if len(text) <= 60 else "…"
    return "…"


def _saving(value: ast.expr) -> str:
    """An expression, saved; one that binds weaker than a dot goes into brackets."""
    text = ast.unparse(value)
    return f"{text}.save()" if isinstance(value, _WHOLE) else f"insitu.save({text})"


def _nodes(body: str) -> Iterator[ast.AST]:
    """What a body says; nothing of one with IPython's own words in it, which no Python reads."""
    try:
        yield from ast.walk(ast.parse(body))
    except SyntaxError:
        return


def _times(job: RemoteJob | None, took_s: float) -> str:
    """How long the cell waited, and for what."""
    if job is None:
        return f"{took_s:.3f} s in all."
    marks = [event for event in job.events if event.kind == "status"]
    spent: dict[str, float] = {}
    for mark, following in pairwise(marks):
        name = {"LOADING": "loading the model", "RUNNING": "running"}.get(mark.phase, "waiting")
        spent[name] = spent.get(name, 0.0) + max(following.time - mark.time, 0.0)
    rest = max(took_s - sum(spent.values()), 0.0)
    told = [f"{seconds:.3f} s {name}" for name, seconds in spent.items()]
    return f"{took_s:.3f} s in all: {', '.join([*told, f'{rest:.3f} s sending and fetching'])}."
