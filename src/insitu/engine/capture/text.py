"""The text that running code was compiled from, found and checked.

    for tree in trees(frame):
        ...                        # a parsed text that may be the one; the best guess first
    same(frame.f_code, tree, node) # whether this part of it is what runs

A file may have been edited since it was imported, and a cell may have been run again; a wrong body
must never run. So the statement is compiled once more, and its instructions are compared with those
that run, by position, operation and operand.
"""

import ast
import dis
import io
import linecache
import os
import stat
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

from insitu.engine.capture.futures import EVERY
from insitu.engine.capture.parsing import parse

Span = tuple[int | None, int | None, int | None, int | None]
"""First line, last line, first column, last column."""

With = ast.With | ast.AsyncWith
_REWRITTEN = "@pytest_ar"  # the name that pytest's rewritten assertions use
_COROUTINE = 0x80
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(eq=False)
class Tree:
    """A parsed text, or what an earlier captured body was compiled from."""

    root: ast.Module
    lines: list[str]
    compiled: bool = False
    """Whether the running code was compiled from this very tree."""
    items: dict[Span, list[tuple[With, int]]] = field(default_factory=dict)
    """`with` items by the position that 3.13 gives to entering them."""
    withs: dict[Span, list[tuple[With, int]]] = field(default_factory=dict)
    """All items of a `with` by its own position, which earlier versions give them."""
    calls: dict[tuple[int | None, int | None], ast.Expr] = field(default_factory=dict)
    """Statements that are a call, by where they end."""
    around: dict[ast.AST, ast.AST] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in ast.walk(self.root):
            for child in ast.iter_child_nodes(node):
                self.around[child] = node
            if isinstance(node, With):
                self.withs.setdefault(span(node), []).extend(
                    (node, i) for i in range(len(node.items))
                )
                for i, item in enumerate(node.items):
                    self.items[span(item.context_expr)] = [(node, i)]
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                self.calls[node.end_lineno, node.end_col_offset] = node

    def imports(self) -> Iterator[ast.stmt]:
        """The imports outside of functions; calls of attributes of what they bind differ a bit."""
        pending: list[ast.AST] = list(self.root.body)
        while pending:
            node = pending.pop()
            if isinstance(node, ast.Import) or (
                isinstance(node, ast.ImportFrom) and node.module != "__future__"
            ):
                yield node
            elif not isinstance(node, (*_SCOPES, ast.expr)):
                pending.extend(ast.iter_child_nodes(node))

    def above(self, node: ast.AST) -> Iterator[ast.AST]:
        """What a node stands in, from the inside out, without the module."""
        while (outer := self.around.get(node)) is not None and outer is not self.root:
            yield outer
            node = outer


def span(node: Any) -> Span:
    """A node's position, in the order in which code objects give theirs."""
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def flags(code: CodeType) -> int:
    """The compiler flags that a piece of this code's text has to be compiled with."""
    awaits = code.co_flags & _COROUTINE and not code.co_flags & 1
    return (code.co_flags & EVERY) | (ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if awaits else 0)


# Texts --------------------------------------------------------------------------------------------


def trees(frame: FrameType) -> Iterator[Tree]:
    """Parsed texts that the frame's code may come from, without repetition."""
    seen: set[str] = set()
    for text in _texts(frame):
        if text and text not in seen:
            seen.add(text)
            tree = _parsed(text)
            if tree is not None:
                yield tree


def _texts(frame: FrameType) -> Iterator[str]:
    name, names = frame.f_code.co_filename, frame.f_globals
    yield "".join(linecache.getlines(name, names))
    linecache.checkcache(name)  # the file may have been changed, and its code loaded again
    yield "".join(linecache.getlines(name, names))
    if name == "<string>":
        yield from (text for text in getattr(sys, "orig_argv", ()) if "with" in text)
    if name == "<stdin>":
        yield _standard_input()


def _standard_input() -> str:
    """What `python < file` runs, read beside the interpreter's own reading."""
    try:
        status = os.fstat(0)
        if not stat.S_ISREG(status.st_mode):
            return ""
        return os.pread(0, status.st_size, 0).decode().replace("\r\n", "\n")
    except (OSError, AttributeError, UnicodeDecodeError):
        return ""


@lru_cache(maxsize=16)
def _parsed(text: str) -> Tree | None:
    with warnings.catch_warnings():  # they were given when the code was compiled first
        warnings.simplefilter("ignore")
        try:
            return Tree(parse(text), list(io.StringIO(text, newline=None)))
        except (SyntaxError, ValueError):
            return None


def source(node: ast.AST, statements: Sequence[ast.stmt], lines: list[str]) -> str:
    """The text of a body, from column 0."""
    first = statements[0]
    if isinstance(first, With) and isinstance(node, With) and first.body is node.body:
        items = ", ".join(map(ast.unparse, first.items))  # of a `with` that has other items before
        return f"with {items}:\n{_dedented(node.body, lines, 4)}"
    return _dedented(statements, lines, 0)


def _dedented(statements: Sequence[ast.stmt], lines: list[str], kept: int) -> str:
    first, last = statements[0], statements[-1]
    start = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", ()))])
    column, end = first.col_offset, last.end_lineno or last.lineno
    inner = {
        line
        for statement in statements
        for n in ast.walk(statement)
        if isinstance(n, (ast.Constant, ast.JoinedStr))
        for line in range(n.lineno + 1, (n.end_lineno or 0) + 1)
    }  # lines that begin within a string
    cut = [" " * min(kept, column) + lines[start - 1].encode()[column:].decode()]
    for number in range(start + 1, end + 1):
        text = lines[number - 1]
        indent = len(text) - len(text.lstrip(" \t\f"))
        cut.append(text if number in inner else text[min(max(column - kept, 0), indent) :])
    return "".join(cut)


# The same code ------------------------------------------------------------------------------------


def same(code: CodeType, tree: Tree, node: ast.AST) -> bool:
    """Whether a part of a text is, statement for statement, what the running code does there."""
    if tree.compiled:
        return True
    inside = [outer for outer in tree.above(node) if isinstance(outer, ast.stmt)]
    statement: Any = inside[-1] if inside else node
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module = ast.Module([*tree.imports(), statement], [])
            top = compile(module, code.co_filename, "exec", flags(code), dont_inherit=True)
        except (SyntaxError, ValueError):
            return False
    by_pytest = _REWRITTEN in code.co_names or any(_REWRITTEN in c.co_names for c in within(code))
    left_out = [span(n) for n in ast.walk(node) if by_pytest and isinstance(n, ast.Assert)]
    here = prints(code, span(node), left_out)
    if any(isinstance(outer, _SCOPES) for outer in inside):
        others = [c for c in within(top) if (c.co_name, c.co_firstlineno) == _first(code)]
    else:
        others = [top]
    return any(prints(other, span(node), left_out) == here for other in others)


def within(code: CodeType) -> Iterator[CodeType]:
    """The code objects of the functions and classes inside a code object."""
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield const
            yield from within(const)


def _first(code: CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


def prints(code: CodeType, where: Span | None, left_out: list[Span]) -> Counter[Any]:
    """The instructions of a stretch of source, without what depends on the code around it."""
    precise = next((p[3] for p in code.co_positions() if p[0] is not None), None) is not None
    found: Counter[Any] = Counter()
    for step in dis.get_instructions(code):
        at = step.positions
        if at is None or at.lineno is None or step.opname in _BETWEEN:
            continue
        place: Span = (at.lineno, at.end_lineno, at.col_offset, at.end_col_offset)
        if any(_within(place, other) for other in left_out):
            continue
        if where is not None and (not _within(place, where) or _returns(step)):
            continue
        if step.opname == "KW_NAMES":  # dis does not know which
            found[step.opname, code.co_consts[step.arg or 0], None] += 1
            continue
        name = step.opname.replace("_FORWARD", "").replace("_BACKWARD", "")
        name = name.replace("LOAD_METHOD", "LOAD_ATTR")
        found[name, _operand(step, left_out), place if precise else at.lineno] += 1
    return found


_BETWEEN = frozenset({
    "NOP", "EXTENDED_ARG", "CACHE", "RESUME", "JUMP_FORWARD", "JUMP_BACKWARD",
    "JUMP_BACKWARD_NO_INTERRUPT",
    "PUSH_NULL",  # calls of attributes of imported modules are compiled apart
})  # fmt: skip


def _returns(step: dis.Instruction) -> bool:
    """Whether an instruction may be how the code around the `with` returns at its end."""
    name = step.opname
    return name == "RETURN_VALUE" or (
        name in ("LOAD_CONST", "RETURN_CONST") and step.argval is None
    )


def _operand(step: dis.Instruction, left_out: list[Span]) -> Any:
    if step.opcode in dis.hasjrel or step.opcode in dis.hasjabs:
        return None
    if step.opcode in dis.hasconst:
        return _constant(step.argval, left_out)
    if step.opcode in dis.hasname or step.opcode in dis.haslocal or step.opcode in dis.hasfree:
        return step.argval
    return step.arg


def _constant(value: Any, left_out: list[Span]) -> Any:
    if isinstance(value, CodeType):
        return frozenset(prints(value, None, left_out).items())
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(repr, value))
    return type(value), repr(value)


def _within(inner: Span, outer: Span) -> bool:
    """Whether a position lies in another; columns count where both are known."""
    (first, last, left, right), (start, end, begin, close) = inner, outer
    if first is None or start is None or end is None:
        return False
    last = first if last is None else last
    if left is None or right is None or begin is None or close is None:
        return start <= first and last <= end
    return (start, begin) <= (first, left) and (last, right) <= (end, close)
