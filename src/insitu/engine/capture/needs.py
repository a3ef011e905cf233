"""Which of its caller's names a body needs: those it may look up before it has stored them itself.

    needed(compile("h = f(x); g(h)", "", "exec"), {"f", "g", "h", "x"})      # {"f", "g", "x"}

What a body stores first is its own, whatever the caller has under that name. A function inside the
body counts where it is defined, since it may be called there. A `with` counts as one that lets
exceptions through (`torch.no_grad()` does), where the body does not speak of `suppress`.
"""

import dis
import itertools
from collections.abc import Iterable
from types import CodeType

from insitu.engine.capture.bytecode import Entry, entries_of

_READS = ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS", "DELETE_NAME", "DELETE_GLOBAL")
_STORES = ("STORE_NAME", "STORE_GLOBAL")
_LEAVES = ("JUMP_FORWARD", "JUMP_BACKWARD", "RETURN_", "RERAISE", "RAISE_VARARGS")
_LEAVES_ON_ERROR = (*_LEAVES, "WITH_EXCEPT_START")


def needed(code: CodeType, names: Iterable[str]) -> set[str]:
    """Those of the names that some way through a module's code reads before it stores them."""
    steps = {step.offset: step for step in dis.get_instructions(code)}
    entries = list(entries_of(code.co_exceptiontable))
    leaves = _LEAVES if "suppress" in code.co_names else _LEAVES_ON_ERROR
    following = {
        offset: after
        for offset, after in itertools.pairwise(steps)
        if not steps[offset].opname.startswith(leaves)
    }
    return {name for name in names if _is_read_first(name, steps, following, entries)}


def _is_read_first(
    name: str,
    steps: dict[int, dis.Instruction],
    following: dict[int, int],
    entries: list[Entry],
) -> bool:
    seen, pending = set[int](), [min(steps)]
    while pending:
        offset = pending.pop()
        if offset in seen:
            continue
        seen.add(offset)
        step = steps[offset]
        if _reads(step, name):
            return True
        pending.extend(entry.target for entry in entries if entry.start <= offset < entry.end)
        if step.opname in _STORES and step.argval == name:
            continue
        if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
            pending.append(step.argval)
        if offset in following:
            pending.append(following[offset])
    return False


def _reads(step: dis.Instruction, name: str) -> bool:
    if isinstance(step.argval, CodeType):
        return any(_reads(inner, name) for inner in dis.get_instructions(step.argval))
    return step.opname in _READS and step.argval == name
