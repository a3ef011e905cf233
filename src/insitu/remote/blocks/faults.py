"""What went wrong in a block, as plain words that can travel, and raised again at home.

fault = fault_of(error, files={"notebook.py"})      # where it runs
raise error_of(fault)                               # IndexError, at the user's own line
"""

import builtins
import traceback
from collections.abc import Set as AbstractSet
from typing import Any

import torch

from insitu import errors
from insitu.errors import InsituError, RemoteError
from insitu.remote.protocol import Fault
from insitu.remote.wire.places import place_of

_OURS = "insitu."
_FRAMES = 20
_TEXT = 4_000
_NOT_RAISED = (SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration)


class BlockFailed(Exception):
    """A block raised; `fault` says what."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.text)
        self.fault = fault


def fault_of(error: BaseException, files: AbstractSet[str]) -> Fault:
    """An error as words.

    Args:
        error: what was raised.
        files: those whose frames are the user's own.
    """
    if isinstance(error, BlockFailed):
        return error.fault
    kind = type(error)
    if isinstance(error, InsituError):
        name = _OURS + kind.__name__
    else:
        home = kind.__module__
        name = kind.__qualname__ if home == "builtins" else f"{home}.{kind.__qualname__}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [(it.filename, it.lineno or 0, it.name) for it in frames if it.filename in files]
    text = str(error) or kind.__name__
    return Fault(name, text[:_TEXT], tuple(own[-_FRAMES:]))


def error_of(fault: Fault) -> BaseException:
    """The error that a fault tells of, of the same class where that is known here."""
    kind = _class(fault.kind)
    if kind is None:
        shown = RemoteError(
            f"the block raised {fault.kind} on the server: {fault.text.splitlines()[0]}",
            "that class of error is not known here, so it is told in words."
            if "\n" not in fault.text
            else fault.text.partition("\n")[2],
            "look at the line of the block that the traceback names.",
        )
        return _at_place(shown, fault)
    if issubclass(kind, InsituError):
        what, why, after = _three(fault.text)
        return _at_place(kind(what, why, after), fault)
    try:
        error = kind(fault.text)
    except Exception:  # a class that wants more than a text
        error = RuntimeError(f"{fault.kind}: {fault.text}")
    return _at_place(error, fault)


def _class(name: str) -> Any:
    if name.startswith(_OURS):
        kind: Any = getattr(errors, name.removeprefix(_OURS), None)
        return kind if isinstance(kind, type) and issubclass(kind, InsituError) else None
    if name in ("torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError"):
        return torch.OutOfMemoryError
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        return None
    return None if issubclass(kind, _NOT_RAISED) else kind


def _three(text: str) -> tuple[str, str, str]:
    lines = [*text.splitlines(), "", ""]
    return lines[0], lines[1].removeprefix("Why: "), lines[2].removeprefix("Next: ")


def _at_place(error: BaseException, fault: Fault) -> BaseException:
    """Give an error a traceback that ends at the user's own line."""
    for file, line, function in fault.place:
        error.add_note(f"on the server, in {function}: {place_of(file, line)}")
    if not fault.place:
        return error
    file, line, function = fault.place[-1]
    if not 0 < line < 10**6:
        return error
    code = compile("\n" * (line - 1) + "raise error", file, "exec")
    code = code.replace(co_name=function[:80] or "<module>")
    try:
        exec(code, {"error": error})
    except BaseException as raised:
        raised.__traceback__ = raised.__traceback__ and raised.__traceback__.tb_next
        return raised
    return error
