"""A body that has no text, run from the bytecode of the module it stands in.

    echo 'with tracer.invoke(x): h = model.h[0].output' | python      # its text cannot be had

The module's own instructions are run in a new frame that begins in the middle:

    a prologue    what the body expects below it on the stack, with `_leave` for the `__exit__`
    a jump        to the instruction after the one that entered the `with`
    the rest      as it is: jumps are relative, and exceptions the body does not handle leave it

Names in a module are looked up by name, so the new frame's are `Names` like any other body's. A
function keeps its names in numbered places instead; there the text is needed.
"""

import dis
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from sys import _getframe
from types import CodeType, FrameType
from typing import Any

from insitu.engine.capture.scope import VALUE, Body, body_of
from insitu.errors import CaptureError

_SUSPENDS = ("YIELD_VALUE", "SEND", "RETURN_GENERATOR")
_GOES_ON = ("NOP", "JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "EXTENDED_ARG")
_SUSPENDABLE = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR
_UNPLACED = 15  # in a line table: instructions of no line
_RUN_MAX = 8  # instructions in one entry of it


class _End(BaseException):
    """Raised at the end of the body, where the `with` would be left."""


@dataclass(frozen=True)
class Entry:
    """Where exceptions raised in a stretch of instructions go."""

    start: int
    end: int
    target: int
    depth: int
    lasti: int


def find_body(frame: FrameType, what: str) -> Body:
    """The body of the `with` that a module's frame is just entering.

    Raises:
        CaptureError: it awaits, or the code has cells, which only a function around it can fill.
    """
    code, at = frame.f_code, frame.f_lasti
    steps = {step.offset: step for step in dis.get_instructions(code)}
    start = at + 2
    entries = list(entries_of(code.co_exceptiontable))
    own = next(entry for entry in entries if entry.start <= start < entry.end)
    kept = [e for e in entries if e.depth >= own.depth and e.target != own.target]
    inside = [steps[o] for o in sorted(_reached(steps, start, [*kept, own], own))]
    if code.co_freevars or code.co_cellvars or any(s.opname in _SUSPENDS for s in inside):
        raise _cannot(frame, what)
    target = None if steps[start].opname == "POP_TOP" else VALUE
    leave = _Leave(code, steps, _after_swallowing(steps, own.target), what, frame.f_lineno)
    body = _beginning_at(code, start, own.depth, leave, kept)
    line = next((s.positions.lineno for s in inside[1:] if s.positions and s.positions.lineno), 0)
    found = body_of(code, body, target, line or frame.f_lineno, "", inside)
    return replace(found, ending=(_End,))


def target(code: CodeType) -> str | None:
    """The name after `as`, which such a body stores first; None for anything but a name."""
    steps = {step.offset: step for step in dis.get_instructions(code)}
    begins = next(step.argval for step in steps.values() if step.opname == "JUMP_FORWARD")
    stores = steps[begins]
    return stores.argval if stores.opname in ("STORE_NAME", "STORE_GLOBAL") else None


# The body's instructions --------------------------------------------------------------------------


def _reached(
    steps: dict[int, dis.Instruction], start: int, entries: list[Entry], own: Entry
) -> set[int]:
    """The instructions of the body: all that it can come to before the `with` is left."""
    order = sorted(steps)
    following = dict(itertools.pairwise(order))
    found, pending = set[int](), [start]
    while pending:
        offset = pending.pop()
        step = steps[offset]
        around = [e for e in entries if e.start <= offset < e.end and e.depth >= own.depth]
        if offset in found or not (around or step.opname in _GOES_ON):
            continue
        found.add(offset)
        pending.extend(e.target for e in around if e.target != own.target)
        if step.opcode in dis.hasjrel:
            pending.append(step.argval)
        if not step.opname.startswith(("JUMP_", "RERAISE", "RAISE")) and offset in following:
            pending.append(following[offset])
    return found


def _destination(steps: dict[int, dis.Instruction], offset: int) -> Any:
    """What control comes to from an instruction, through jumps; a copy of it counts as the same."""
    while steps[offset].opname in _GOES_ON:
        step = steps[offset]
        offset = step.argval if step.opcode in dis.hasjrel else offset + 2
    step = steps[offset]
    returns = step.opname == "RETURN_CONST" or (
        step.opname == "LOAD_CONST" and steps[offset + 2].opname == "RETURN_VALUE"
    )
    return "end" if returns else (step.opname, step.argrepr, step.positions)


def _after_swallowing(steps: dict[int, dis.Instruction], handler: int) -> Any:
    """Where control goes when `__exit__` has swallowed an exception: after the `with`."""
    offset = handler
    while not steps[offset].opname.startswith("POP_JUMP"):
        offset += 2
        while offset not in steps:
            offset += 2
    offset = steps[offset].argval
    while steps[offset].opname in ("POP_TOP", "POP_EXCEPT"):
        offset += 2
    return _destination(steps, offset)


class _Leave:
    """Stands for the `__exit__` of the `with`; called with no exception at the end of the body."""

    def __init__(
        self,
        code: CodeType,
        steps: dict[int, dis.Instruction],
        after: Any,
        what: str,
        line: int,
    ) -> None:
        self.moved = 0
        self.steps = steps
        self.after = after
        self.what = what
        self.line = line

    def __call__(self, *_: Any) -> None:
        offset = _getframe(1).f_lasti - self.moved + 2
        while offset not in self.steps:  # past the cache of the call
            offset += 2
        if _destination(self.steps, offset + 2) == self.after:
            raise _End
        raise CaptureError(
            f"the body of {self.what} on line {self.line} leaves the loop around it.",
            "this body does not run where it stands but when the model gets there, "
            "apart from the code around it.",
            "put the loop into the body, or `break` after the `with`.",
        )


# The new code -------------------------------------------------------------------------------------


def _beginning_at(
    code: CodeType, start: int, depth: int, leave: _Leave, kept: list[Entry]
) -> CodeType:
    """The same code, begun in the middle with `leave` in the place of an `__exit__`."""
    none, ours = len(code.co_consts), len(code.co_consts) + 1
    prologue = _op("RESUME", 0)
    prologue += _op("LOAD_CONST", none) * (depth - 1)
    prologue += _op("LOAD_CONST", ours) + _op("LOAD_NAME", len(code.co_names))
    prologue += _op("JUMP_FORWARD", start // 2)
    leave.moved = moved = len(prologue)
    length = moved // 2
    places = bytearray()
    while length:
        run = min(length, _RUN_MAX)
        places.append(0x80 | _UNPLACED << 3 | run - 1)
        length -= run
    table = b"".join(_encoded(entry, moved) for entry in kept)
    return code.replace(
        co_code=prologue + code.co_code,
        co_consts=(*code.co_consts, None, leave),
        co_names=(*code.co_names, VALUE),
        co_flags=code.co_flags & ~_SUSPENDABLE,
        co_stacksize=code.co_stacksize + depth + 2,
        co_linetable=bytes(places) + code.co_linetable,
        co_exceptiontable=table,
    )


def _op(name: str, argument: int) -> bytes:
    code = bytes([dis.opmap[name], argument & 0xFF])
    while argument := argument >> 8:
        code = bytes([dis.EXTENDED_ARG, argument & 0xFF]) + code
    return code


def entries_of(table: bytes) -> Iterator[Entry]:
    """What an exception table says."""
    numbers, value = [], 0
    for byte in table:
        if byte & 0x80:  # the first byte of an entry
            value = 0
        value = value << 6 | byte & 0x3F
        if not byte & 0x40:
            numbers.append(value)
            value = 0
    for i in range(0, len(numbers), 4):
        start, length, target, packed = numbers[i : i + 4]
        yield Entry(2 * start, 2 * (start + length), 2 * target, packed >> 1, packed & 1)


def _encoded(entry: Entry, moved: int) -> bytes:
    numbers = (
        (entry.start + moved) // 2,
        (entry.end - entry.start) // 2,
        (entry.target + moved) // 2,
        entry.depth << 1 | entry.lasti,
    )
    out = bytearray()
    for number in numbers:
        digits = [number >> shift & 0x3F for shift in range(30, -1, -6)]
        while len(digits) > 1 and not digits[0]:
            del digits[0]
        out.extend(digit | 0x40 for digit in digits[:-1])
        out.append(digits[-1])
    out[0] |= 0x80
    return bytes(out)


def _cannot(frame: FrameType, what: str) -> CaptureError:
    return CaptureError(
        f"{what} on line {frame.f_lineno} needs the text of its body, which cannot be found.",
        "its body runs later and is compiled from its text, for it awaits, or shares names with "
        "functions around it; this code came from neither a file nor a cell.",
        "put it into a file or a cell.",
    )
