"""How the result of a call is used, seen from the instruction that follows it.

    returns_to(sys._getframe(1))        # "with", "stored:tracer", "attribute:save", …

So that `loss.backward()` and `with loss.backward():` can differ, and `model.trace(x)` can run when
no `with` enters it.
"""

import dis
import sys
from types import CodeType, FrameType

from insitu.engine.capture.per_code import facts, known

_ENTERS = ("BEFORE_WITH", "BEFORE_ASYNC_WITH")
_OF_TRACERS = ("__enter__", "__aenter__", "barrier", "invoke", "result", "stop", "watch")
_OF_TRACERS_ALONE = tuple(name for name in _OF_TRACERS if name != "result")
"""Those that a job has not."""
_NO_NAMES = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_CONST")
_PASSES = ("NOP", "CACHE", "EXTENDED_ARG")
_JUMPS = ("JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT")
_DUPLICATES = ("COPY", 1)
_PRINTS = ("CALL_INTRINSIC_1", 1)
_COMPUTES = ("BINARY_OP", "BINARY_SUBSCR", "COMPARE_OP", "CONTAINS_OP")
_COMPUTES_ALONE = (
    *("FORMAT_SIMPLE", "FORMAT_VALUE", "GET_ITER", "LIST_APPEND", "UNARY_INVERT", "UNARY_NEGATIVE"),
    *("UNARY_NOT", "UNPACK_SEQUENCE"),
)
_LOADS = {
    **dict.fromkeys(("LOAD_CONST", "LOAD_DEREF", "LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_NAME"), 1),
    "LOAD_FAST_LOAD_FAST": 2,
}


def returns_to(frame: FrameType) -> str:
    """What a frame does with what the call it is in returns.

    Returns:
        "with", "stored:name", "attribute:name", "discarded", "shown" (the last expression of a
        cell), "computed" (an operand, the base of an index, an iterable, an
        element of a comprehension), "returned", or "other" (an
        argument, an element, …). A value stored on its way into a `with` is "with".
    """
    found = known.get(id(frame.f_code))
    use = None if found is None else found.uses.get(frame.f_lasti)
    if use is None:
        use = facts(frame.f_code).uses[frame.f_lasti] = _use(frame.f_code, frame.f_lasti)
    return use


def enters_later(frame: FrameType, name: str) -> bool:
    """Whether the same function or module enters a name, or treats it as what can be entered.

    That is `with name:`, or an attribute that only such things have: `name.invoke`.
    """
    enters = facts(frame.f_code).enters
    if name not in enters:
        enters[name] = _enters(frame.f_code, name, _OF_TRACERS)
    return enters[name]


def wants_job(frame: FrameType) -> bool:
    """Whether what a call gives is taken for a job: `job = call()`, then `job.result()`.

    A tracer has a `result` too, so that it is one only if nothing else says that it is entered.
    """
    use, _, name = returns_to(frame).partition(":")
    if use == "stored":
        return not _enters(frame.f_code, name, _OF_TRACERS_ALONE)
    return (use, name) == ("attribute", "result")


def is_called_at_once(frame: FrameType) -> bool:
    """Whether the attribute being read in `frame` is called at once, as in `tracer.result()`."""
    code, at = frame.f_code.co_code, frame.f_lasti
    name = dis.opname[code[at]]
    return name == "LOAD_METHOD" or (
        name == "LOAD_ATTR" and sys.version_info >= (3, 12) and bool(code[at + 1] & 1)
    )


def _use(code: CodeType, at: int) -> str:
    steps = {step.offset: step for step in dis.get_instructions(code)}
    stored, above = "", 0  # values on the stack that came after it
    offset = at + 2
    while offset <= max(steps):
        step = steps.get(offset)
        offset += 2
        if step is None or step.opname in _PASSES or (step.opname, step.arg) == _DUPLICATES:
            continue
        if not stored and step.opname in _LOADS:
            above += _LOADS[step.opname]
        elif step.opname in _COMPUTES and above <= 1:
            return "computed"
        elif above:
            if step.opname not in _COMPUTES:
                return "other"
            above -= 1
        elif step.opname in _JUMPS:
            offset = step.argval
        elif step.opname.startswith("STORE_") and _name(step) and not stored:
            stored = f"stored:{_name(step)}"
            if steps.get(offset - 4) is None or steps[offset - 4].opname != "COPY":
                return stored
        else:
            return _ends(step) if _ends(step) == "with" else stored or _ends(step)
    return stored or "other"


def _ends(step: dis.Instruction) -> str:
    if step.opname in _ENTERS:
        return "with"
    if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
        return f"attribute:{step.argval}"
    if step.opname == "PRINT_EXPR" or (step.opname, step.arg) == _PRINTS:
        return "shown"
    if step.opname in _COMPUTES_ALONE:
        return "computed"
    return {"POP_TOP": "discarded", "RETURN_VALUE": "returned"}.get(step.opname, "other")


def _name(step: dis.Instruction) -> str:
    """The name a value is stored under; 3.13 may store, or load, a second one at once."""
    if step.opname in ("STORE_ATTR", "STORE_SUBSCR", "STORE_SLICE"):
        return ""
    return step.argval[0] if isinstance(step.argval, tuple) else str(step.argval)


def _enters(code: CodeType, name: str, asked_for: tuple[str, ...]) -> bool:
    loaded = ""
    for step in dis.get_instructions(code):
        asked = step.argval in asked_for and step.opname in ("LOAD_ATTR", "LOAD_METHOD")
        if loaded == name and (step.opname in _ENTERS or asked):
            return True
        if step.opname not in _PASSES:
            loaded = ""
        loads = step.opname.startswith("LOAD_") and step.opname not in _NO_NAMES
        if loads or step.opname == "STORE_FAST_LOAD_FAST":
            loaded = step.argval[1] if isinstance(step.argval, tuple) else str(step.argval)
    return False
