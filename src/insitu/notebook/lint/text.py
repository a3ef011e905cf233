"""A cell's text and its syntax tree, with places counted in characters of the cell.

cell = parsed("%%trace model 'Hello'\\nh = model.lm_head.output")
cell.start(node), cell.end(node)
"""

import ast
import re
from dataclasses import dataclass, field
from functools import cached_property

from insitu.notebook.lint.finding import Change

_MAGIC_LINE = re.compile(r"(?m)^([ \t]*)(?:[!%?].*|[\w.\[\]]+\?{1,2}[ \t]*$)")
_MAGIC_VALUE = re.compile(r"(?m)^([ \t]*[\w., ]+=[ \t]*)[!%].*$")
_TRACE = re.compile(r"\s*%%trace\b(.*)")


@dataclass(frozen=True)
class Cell:
    """A cell that Python understands; `line` is what follows its `%%trace`, None without one."""

    text: str
    tree: ast.Module
    line: str | None = None
    _starts: list[int] = field(default_factory=list)

    def start(self, node: ast.AST) -> int:
        """Where a node begins."""
        return self._place(node.lineno, node.col_offset)  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        """Where a node ends."""
        return self._place(node.end_lineno, node.end_col_offset)  # type: ignore[attr-defined]

    def column(self, node: ast.AST) -> int:
        """The column a node begins in, in characters."""
        return self.start(node) - self.lines_from(node.lineno)  # type: ignore[attr-defined]

    def said(self, node: ast.AST) -> str:
        """A node as it is written."""
        return self.text[self.start(node) : self.end(node)]

    def lines_from(self, line: int) -> int:
        """Where a line begins; the one after the last begins at the end."""
        return self._starts[line - 1] if line <= len(self._starts) else len(self.text)

    def instead(self, node: ast.AST, text: str) -> Change:
        """The change that puts a text in a node's place."""
        return Change(self.start(node), self.end(node), text)

    @cached_property
    def stored(self) -> dict[str, int]:
        """Every name that the cell binds, and how often."""
        found: dict[str, int] = {}
        for node in ast.walk(self.tree):
            for name in _bound(node):
                found[name] = found.get(name, 0) + 1
        return found

    @cached_property
    def loaded(self) -> list[ast.Name]:
        """Every name that the cell reads."""
        names = (it for it in ast.walk(self.tree) if isinstance(it, ast.Name))
        return [it for it in names if isinstance(it.ctx, ast.Load)]

    def is_read_after(self, name: str, statement: ast.stmt) -> bool:
        """Whether a name is read further down."""
        end = self.end(statement)
        return any(it.id == name and self.start(it) >= end for it in self.loaded)

    def _place(self, line: int, column: int) -> int:
        start = self._starts[line - 1]
        text = self.text[start : self.lines_from(line + 1)]
        return start + (column if text.isascii() else len(text.encode()[:column].decode()))


def parsed(text: str) -> Cell | None:
    """A cell's text and tree; None where it is not Python, as far as IPython's lines go."""
    plain, line = text, None
    if text.lstrip().startswith("%%"):
        found = _TRACE.match(text)
        if found is None:
            return None
        line = found[1]
        head = found.end()
        plain = re.sub(r"\S.*", "#", text[:head]) + text[head:]
    plain = _MAGIC_VALUE.sub(r"\g<1>0", _MAGIC_LINE.sub(r"\g<1>pass", plain))
    try:
        tree = ast.parse(plain)
    except (SyntaxError, ValueError):
        return None
    starts = [0, *(it.end() for it in re.finditer("\n", text))]
    return Cell(text, tree, line, starts)


def _bound(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    if isinstance(node, ast.alias):
        return [(node.asname or node.name).partition(".")[0]]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    return [node.arg] if isinstance(node, ast.arg) else []
