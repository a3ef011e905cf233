"""Whether a module can still be called from where a pass stands.

    may_come_again(node, OUTPUT, (INPUT, standing), frame)

A block that asks for a module which, by the learned order, runs earlier is probably wrong; but a
model may order its modules by its input. So before an order error is raised early, the forward that
contains both is looked at: from the instruction it is parked at, can it still come to this module's
name? In a loop it can; below the last use of the name it cannot. Only then is the error certain.
"""

import dis
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from torch import nn

from insitu.engine.arming import Node
from insitu.engine.order import INPUT, OUTPUT

_ENDS = ("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE")
_LOADS = ("LOAD_ATTR", "LOAD_METHOD")
_METHODS_DEEP = 3
_TORCHS = nn.Module.__call__.__code__.co_filename  # its frames around every forward call no others

Span = tuple[int | None, int | None, int | None, int | None]
"""First line, last line, first column, last column."""


def may_come_again(
    node: Node,
    kind: int,
    standing: tuple[int, Any],
    frame: FrameType | None,
    *,
    onward: bool = False,
) -> bool:
    """Whether the parked model may come to one of a module's sites from the site it stands at.

    Args:
        node: the module asked for.
        kind: its output or its input.
        standing: the side, and the module or operation, the pass stands at.
        frame: the innermost frame of the parked model.
        onward: leave out what is only reached by going round a loop once more.
    """
    module, (side, at) = node._module, standing
    if side == INPUT and isinstance(at, nn.Module) and module in set(at.modules()) - {at}:
        return True  # its forward has not begun
    if kind == OUTPUT and module is not at and any(self_of(it) is module for it in frames(frame)):
        return True  # a call of it is under way
    return may_still_run(node, at, frame, onward=onward)


def only_next_round(
    node: Node, kind: int, standing: tuple[int, Any], frame: FrameType | None
) -> bool:
    """Whether a module comes for certain only when a loop goes round once more.

    Certain is what a forward calls by a name of its own, beside that of the module it is parked in.
    """
    if may_come_again(node, kind, standing, frame, onward=True):
        return False
    for parked in frames(frame):
        around = self_of(parked)
        if isinstance(around, nn.Module) and parked.f_code.co_filename != _TORCHS:
            mine, its = (set(_leading_to(it, around)) for it in (node._module, standing[1]))
            if mine and its and not mine & its:
                return not mine.isdisjoint(parked.f_code.co_names)
    return False


def may_still_run(
    node: Node, standing: Any, frame: FrameType | None, *, onward: bool = False
) -> bool:
    """Whether the parked model may call a module after the one it stands at.

    Every forward that is under way is asked: it may call the module by any of its names, or walk
    through a list of modules in their order. Asked too is what calls the modules without being one,
    and says so by holding them as a module does (`_modules`): a pipeline.

    Args:
        node: the module asked for.
        standing: the module, or the operation, the pass stands at.
        frame: the innermost frame of the parked model.
        onward: as for `may_come_again`.
    """
    module = node._module
    done = standing if isinstance(standing, nn.Module) else None  # its own forward is over
    for parked in frames(frame):
        if parked.f_code.co_filename == _TORCHS:
            continue
        around = self_of(parked)
        if around is done or not isinstance(getattr(around, "_modules", None), dict):
            continue
        if any(_comes_to(parked, name, around, onward) for name in _leading_to(module, around)):
            return True
        if not isinstance(around, nn.Module):
            continue
        if _way(parked.f_code, parked.f_lasti).loops and (
            (not onward and _comes_after(module, done, around)) or _is_held(module, parked, around)
        ):
            return True
    return False


def _leading_to(module: nn.Module, around: Any) -> list[str]:
    """The names in a module under which another one is reached."""
    children = around._modules.items()
    return [name for name, child in children if child is not None and module in child.modules()]


def _comes_after(module: nn.Module, other: nn.Module | None, around: nn.Module) -> bool:
    """Whether a list of modules that holds both has one after the other."""
    inside = list(around.modules())
    return module in inside and other in inside and inside.index(module) > inside.index(other)


def _is_held(module: nn.Module, frame: FrameType, around: nn.Module) -> bool:
    """Whether a loop's frame has it in a local name, other than one that the loop assigns."""
    stored = _way(frame.f_code, frame.f_lasti).stored
    return any(
        isinstance(value, nn.Module) and value is not around and module in value.modules()
        for name, value in frame.f_locals.items()
        if name not in stored
    )


def frames(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and those that called it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def self_of(frame: FrameType) -> Any:
    """The first argument of the function that runs in a frame."""
    names = frame.f_code.co_varnames
    return frame.f_locals.get(names[0]) if frame.f_code.co_argcount and names else None


def _comes_to(frame: FrameType, name: str, module: Any, onward: bool) -> bool:
    """Whether a name, or a method that uses it, lies on a way from the frame's instruction."""
    for loaded in _way(frame.f_code, frame.f_lasti, onward).names:
        if loaded == name or _uses(getattr(type(module), loaded, None), name, module, 0):
            return True
    return False


def _uses(method: Any, name: str, module: Any, depth: int) -> bool:
    code = getattr(method, "__code__", None)
    if code is None or getattr(nn.Module, method.__name__, None) is method:
        return False
    if name in code.co_names or depth == _METHODS_DEEP:
        return True
    return any(
        _uses(getattr(type(module), other, None), name, module, depth + 1)
        for other in code.co_names
        if other != method.__name__
    )


@dataclass(frozen=True)
class _Way:
    """What lies ahead of an instruction."""

    names: frozenset[str]
    """Attributes that are loaded, or have been for a call that waits for this one."""
    stored: frozenset[str]
    """Local names that are assigned."""
    loops: bool
    """Whether a way leads back to it."""


@functools.lru_cache(maxsize=1024)
def _way(code: CodeType, at: int, onward: bool = False) -> _Way:
    ahead = list(_ahead(code, at, onward))
    names = {str(step.argval) for step in ahead if step.opname in _LOADS}
    loops = any(step.offset == at for step in ahead)
    stored = frozenset(str(step.argval) for step in ahead if step.opname.startswith("STORE_FAST"))
    return _Way(frozenset(names | _names_waiting(code, at)), stored, loops)


def _ahead(code: CodeType, at: int, onward: bool) -> Iterator[dis.Instruction]:
    """The instructions on any way from one on; itself only if a way leads back to it.

    Args:
        code: a function's.
        at: the instruction's offset.
        onward: take no way that leads back.
    """
    listing = dis.Bytecode(code)
    instructions = {i.offset: i for i in listing}
    following = dict(itertools.pairwise(sorted(instructions)))
    handlers = getattr(listing, "exception_entries", ())
    pending = [following[at]] if at in following else []
    pending += [e.target for e in handlers if e.start <= at < e.end]
    seen: set[int] = set()
    while pending:
        offset = pending.pop()
        if offset in seen:
            continue
        seen.add(offset)
        step = instructions[offset]
        yield step
        pending += [e.target for e in handlers if e.start <= offset < e.end]
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            back = onward and step.argval <= offset
            target = instructions[step.argval]
            if not back or target.opname == "FOR_ITER":  # there a loop may also be over
                pending.append(target.argval if back else step.argval)
        if step.opname not in _ENDS and not _always_jumps(step.opname) and offset in following:
            pending.append(following[offset])


def _always_jumps(name: str) -> bool:
    return name in ("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "JUMP_ABSOLUTE")


def _names_waiting(code: CodeType, at: int) -> set[str]:
    """Attributes already loaded for a call that this one is an argument of: `self.a(self.b(x))`."""
    spans = list(code.co_positions())
    here = spans[at // 2]
    names: set[str] = set()
    for step in dis.get_instructions(code):
        span = spans[step.offset // 2]
        if step.offset <= at or not step.opname.startswith("CALL") or not _encloses(span, here):
            continue
        for earlier in dis.get_instructions(code):
            inside = earlier.offset < at and _encloses(span, spans[earlier.offset // 2])
            if (
                inside
                and earlier.opname in _LOADS
                and not _encloses(here, spans[earlier.offset // 2])
            ):
                names.add(str(earlier.argval))
    return names


def _encloses(outer: Span, inner: Span) -> bool:
    """Whether one piece of source lies strictly inside another; unknown positions do not."""
    if None in outer or None in inner or outer == inner:
        return False
    (first, last, left, right), (first_in, last_in, left_in, right_in) = outer, inner
    return (first, left) <= (first_in, left_in) and (last_in, right_in) <= (last, right)
