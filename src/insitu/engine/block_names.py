"""The tensors that the block of a `with` names, found without running it.

    with loss.backward():
        print(h.grad, parts[0].grad)      # h, and what `parts` holds

    tensors(frame, frame.f_lasti)         # asked where the block was entered

A backward keeps the gradients of these, so that the block may ask for them in any order.
"""

import dis
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from types import CodeType, FrameType
from typing import Any

from torch import Tensor

from insitu.engine.capture.frame_names import release
from insitu.engine.capture.scope import Names

Steps = list[dis.Instruction]

_CONTAINERS = (list, tuple, dict)

_names: dict[tuple[int, int], tuple[tuple[str, ...], weakref.ref[CodeType]]] = {}
"""By the id of a code object, since codes that compare equal may be different places, and the
instruction. They go when the code does."""


def tensors(frame: FrameType, at: int) -> list[Tensor]:
    """The tensors among the names of a block, and one level down in containers."""
    found: list[Tensor] = []
    used = names(frame.f_code, at)
    for _, value in valued(frame, used) if used else ():
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, _CONTAINERS) or is_dataclass(value):
            found.extend([part for _, part in _parts(value) if isinstance(part, Tensor)])
    return found


def name_of(tensor: Tensor, frame: FrameType, at: int) -> str | None:
    """What the block calls a tensor: `h`, `parts[0]`; None when it has no name there."""
    for name, value in valued(frame, names(frame.f_code, at)):
        if value is tensor:
            return name
        for key, part in _parts(value):
            if part is tensor:
                return f"{name}.{key}" if is_dataclass(value) else f"{name}[{key!r}]"
    return None


def names(code: CodeType, at: int) -> tuple[str, ...]:
    """The names that the block of the `with` entered at an instruction loads."""
    key = id(code)
    known = _names.get((key, at))
    if known is None:
        forget = _names.pop
        dies = weakref.ref(code, lambda _: forget((key, at), None))
        known = _names[key, at] = (tuple(dict.fromkeys(_loaded(code, at))), dies)
    return known[0]


# Values -------------------------------------------------------------------------------------------


def valued(frame: FrameType, used: Iterable[str]) -> list[tuple[str, Any]]:
    """What names stand for in a frame, locally or globally; names without a value are left out."""
    local, elsewhere = frame.f_locals, frame.f_globals
    waits = isinstance(local, Names)
    found = []
    for name in used:
        value = _without_waiting(local, name) if waits else local.get(name)
        if value is None:
            value = elsewhere.get(name)
        if value is not None:
            found.append((name, value))
    del local
    release(frame)
    return found


def _without_waiting(names: Any, name: str) -> Any:
    """A name in a captured body, unless that would wait for an earlier body to assign it."""
    try:
        return names[name] if names.is_due(name) else None
    except KeyError:
        return None


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    if isinstance(value, dict):
        return list(value.items())
    if is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name, None)) for f in fields(value)]
    return ()


# Code ---------------------------------------------------------------------------------------------


def _loaded(code: CodeType, at: int) -> Iterator[str]:
    """Names loaded between entering a `with` and leaving it, told by the table of handlers."""
    steps = list(dis.get_instructions(code))
    offsets = [step.offset for step in steps]
    entries = sorted(dis.Bytecode(code).exception_entries)  # type: ignore[attr-defined]
    starts = [entry.start for entry in entries]

    def handler(offset: int) -> int | None:
        place = bisect_right(starts, offset) - 1
        return entries[place].target if place >= 0 and offset < entries[place].end else None

    def inside(offset: int) -> bool:
        """Under the `with`'s own handler, or under one that is itself under it."""
        target, seen = handler(offset), set()
        while target is not None and target not in seen and target != own:
            seen.add(target)
            target = handler(target)
        return target == own

    first = bisect_right(offsets, at)
    own = handler(offsets[first]) if first < len(steps) else None
    if own is None or not _leaves_a_with(steps, bisect_right(offsets, own) - 1):
        return
    for step in steps:
        if isinstance(step.argval, CodeType) and inside(step.offset):
            yield from _named_by(step.argval)
        elif _loads_a_name(step.opname) and inside(step.offset):
            yield from step.argval if isinstance(step.argval, tuple) else (step.argval,)


def _named_by(function: CodeType) -> Iterator[str]:
    """Names of a function made in the block that may be its surroundings'; attributes too."""
    yield from function.co_names
    yield from function.co_freevars
    for inner in function.co_consts:
        if isinstance(inner, CodeType):
            yield from _named_by(inner)


def _leaves_a_with(steps: Steps, place: int) -> bool:
    return any(step.opname == "WITH_EXCEPT_START" for step in steps[place : place + 2])


def _loads_a_name(operation: str) -> bool:
    """Whether it loads a variable; pairs such as STORE_FAST_LOAD_FAST count."""
    if "LOAD_FAST" in operation:
        return True
    return operation.startswith("LOAD_") and operation.endswith(
        ("_NAME", "_GLOBAL", "_DEREF", "_CLASSDEREF", "_GLOBALS", "_CLOSURE")
    )
