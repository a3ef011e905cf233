"""`block.output[0]` where the output is a tensor: its first row, not the first part of a tuple.

    with model.trace(["The Eiffel Tower is in", "The Colosseum is in"]):
        model.transformer.h[0].output[0][:, -1, :] = 0
    # IndexError: too many indices for tensor of dimension 2
    # Insitu: transformer.h.0.output is a tensor, float32[2, 7, 128], and no tuple as in …
        model.transformer.h[1].output[0][:] = 0
    # InsituWarning: line 4 writes into transformer.h.1.output[0], …

The blocks of transformers 4 returned tuples, those of transformers 5 return tensors, and programs
are older than either. What a block of code writes is looked for in its instructions, once for each
code object; reads are not told of, and cost nothing.
"""

import dis
import re
import warnings
import weakref
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType
from typing import Any

from torch import Tensor

from insitu.engine.batch import rows_of
from insitu.engine.batch_scan import arguments, row_dims
from insitu.engine.order import OUTPUT
from insitu.engine.values import describe
from insitu.errors import InsituWarning

_FEW = re.compile(r"too many indices for tensor of dimension (\d+)|in range of \[-(\d+), \d+\]")
_PARTS = 'can only concatenate tuple (not "Tensor") to tuple'
_STORES = tuple(dis.opmap[name] for name in ("STORE_SUBSCR", "STORE_SLICE") if name in dis.opmap)
_BLOCKS = ("Block", "Layer")
"""How the classes are called whose outputs were tuples."""

Written = dict[int, int]
"""By the offsets of an instruction that reads an output, and of its caches, one of which Python may
name instead: the line that writes into what `[0]` gives of it."""

_known: dict[int, tuple[weakref.ref[CodeType], Written]] = {}


def note(error: BaseException | None, run: Any) -> None:
    """Tell an error of a block that takes a tensor for a tuple, what it has before it."""
    if not isinstance(error, (IndexError, TypeError)):
        return
    few = _FEW.search(str(error))
    if not (few if isinstance(error, IndexError) else str(error) == _PARTS):
        return
    for node, kind, code, at in reversed(run.trail):
        told = _output_of(run, node) if kind == OUTPUT else ""
        if not _is_tensor(told):
            continue
        if few and (told.count(",") != int(few[1] or few[2]) or not _takes_first(code, at)):
            continue
        path, was = node._path, " as in transformers 4" if _was_a_tuple(node._module) else ""
        error.add_note(
            f"Insitu: {path}.output is a tensor, {told}, and no tuple{was}: {path}.output[0] is "
            f"its first row, and {path}.output the whole batch. Leave out [0], and write a tensor."
        )
        return


def look(frame: FrameType, run: Any) -> None:
    """Have a block told, when its pass is over, that it has written the first prompt alone."""
    code = frame.f_code
    if _written(code):
        run.at_end(lambda failed: None if failed else told_of(code, run))


def told_of(code: CodeType, run: Any) -> None:
    """Warn, once for each place, of a block's first prompt that alone has been written."""
    written = _written(code)
    for node, kind, where, at in run.trail if written else ():
        if where is not code or kind != OUTPUT or at not in written:
            continue
        line, path, rows = written[at], node._path, _rows(run)
        if rows > 1 and _was_a_tuple(node._module) and _is_tensor(_output_of(run, node)):
            for offset in [offset for offset, other in written.items() if other == line]:
                written.pop(offset, None)
            warnings.warn_explicit(
                f"line {line} writes into {path}.output[0], which is the first of {rows} rows: the "
                "output is a tensor, and in transformers 4 it was a tuple. Leave out [0] for all "
                f"rows; for the first alone write {path}.output[0, :].",
                InsituWarning,
                code.co_filename,
                line,
            )


def _output_of(run: Any, node: Any) -> str:
    """What a module returns, in a few characters; of one left behind, what it once returned."""
    if run.at_output is node._module:
        return describe(run.value) if isinstance(run.value, Tensor) else ""
    order = run.order or (run.observation.order if run.observation else None)
    seen = order.called.get(node._module) if order is not None else None
    return seen.output if seen is not None else ""


def _is_tensor(described: str) -> bool:
    kind, opened, _ = described.partition("[")
    return bool(opened) and kind.isidentifier()


def _was_a_tuple(module: Any) -> bool:
    kind = type(module)
    return kind.__module__.startswith("transformers.") and kind.__name__.endswith(_BLOCKS)


def _rows(run: Any) -> int:
    call = run.arming.call
    return rows_of(arguments(call), row_dims(call)) if hasattr(call, "args") else 1


def _takes_first(code: CodeType, at: int) -> bool:
    """Whether `[0]` follows an instruction."""
    following = (step for step in dis.get_instructions(code) if step.offset > at)
    return _is_zero(next(following, None)) and _is_index(next(following, None))


def _is_zero(step: dis.Instruction | None) -> bool:
    return step is not None and step.opname.startswith("LOAD_") and step.argval == 0


def _is_index(step: dis.Instruction | None) -> bool:
    return step is not None and (step.opname == "BINARY_SUBSCR" or step.argrepr == "[]")


def _written(code: CodeType) -> Written:
    found = _known.get(id(code))
    if found is None:
        key, forget = id(code), _known.pop
        may = "output" in code.co_names and any(op in code.co_code for op in _STORES)
        written = dict(_writes(code)) if may else {}
        found = _known[key] = weakref.ref(code, lambda _: forget(key, None)), written
    return found[1]


def _writes(code: CodeType) -> Iterator[tuple[int, int]]:
    """Every `….output[0][…] = …`: the offsets that read the output, and the line."""
    steps = list(dis.get_instructions(code))
    begun: Mapping[Any, range] = {
        _begin(first): range(read.offset, zero.offset)
        for read, zero, first in zip(steps, steps[1:], steps[2:], strict=False)
        if read.opname == "LOAD_ATTR"
        and read.argval == "output"
        and _is_zero(zero)
        and _is_index(first)
    }
    for step in steps:
        place = _begin(step)
        if step.opcode in _STORES and place is not None and place in begun:
            yield from ((offset, place[0]) for offset in begun[place])


def _begin(step: dis.Instruction) -> tuple[int, int] | None:
    """Where the expression of an instruction begins in the text."""
    at = step.positions
    if at is None or at.lineno is None or at.col_offset is None:
        return None
    return at.lineno, at.col_offset
