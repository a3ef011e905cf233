"""The tensors that the block of a `with` names, found without running it.

    with loss.backward():
        print(h.grad, parts[0].grad)      # h, and what `parts` holds

    tensors(frame, frame.f_lasti)         # asked where the block was entered

A backward keeps the gradients of these, so that the block may ask for them in any order.
"""

import dataclasses
import dis
import weakref
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

from torch import Tensor

from insitu.engine.capture.frame_names import release
from insitu.engine.capture.scope import Names

Steps = list[dis.Instruction]

_names: dict[int, tuple[weakref.ref[CodeType], dict[int, tuple[str, ...]]]] = {}
"""By the id of a code object, since codes that compare equal may be different places."""


def tensors(frame: FrameType, at: int) -> list[Tensor]:
    """The tensors among the names of a block, and one level down in containers."""
    found = []
    for _, value in _values(frame, at):
        if isinstance(value, Tensor):
            found.append(value)
        else:
            found.extend([part for _, part in _parts(value) if isinstance(part, Tensor)])
    return found


def name_of(tensor: Tensor, frame: FrameType, at: int) -> str | None:
    """What the block calls a tensor: `h`, `parts[0]`; None when it has no name there."""
    for name, value in _values(frame, at):
        if value is tensor:
            return name
        for key, part in _parts(value):
            if part is tensor:
                return f"{name}.{key}" if dataclasses.is_dataclass(value) else f"{name}[{key!r}]"
    return None


def names(code: CodeType, at: int) -> tuple[str, ...]:
    """The names that the block of the `with` entered at an instruction loads."""
    key = id(code)
    if key not in _names:
        _names[key] = weakref.ref(code, lambda _: _names.pop(key, None)), {}
    by_place = _names[key][1]
    if at not in by_place:
        by_place[at] = tuple(dict.fromkeys(_loaded(code, at)))
    return by_place[at]


# Values -------------------------------------------------------------------------------------------


def _values(frame: FrameType, at: int) -> list[tuple[str, Any]]:
    used = names(frame.f_code, at)
    return valued(frame, used) if used else []


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
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value)]
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
