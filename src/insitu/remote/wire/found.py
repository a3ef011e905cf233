"""The text of a function or a class, found where it was written and checked against what runs.

    text = text_of(function)
    text.source, text.line      # "def centre(h):\n    return h - h.mean()\n", 12

Cells, files and everything else that `linecache` knows are looked in. A file that was edited since
has other instructions, and is not taken for the code that runs.
"""

import ast
import linecache
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any

from insitu.engine.capture.futures import EVERY, flags_of, names_of
from insitu.engine.capture.parsing import parse

_DEFS = (ast.FunctionDef, ast.AsyncFunctionDef)
Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef


@dataclass(frozen=True)
class Found:
    """A piece of source, where it stands, and how it is compiled."""

    source: str
    """From column 0."""
    file: str
    line: int
    """The first line of the source in its file."""
    futures: tuple[str, ...]
    node: Any
    """Its tree, with the lines of its file."""


def text_of_function(function: FunctionType, decorated: bool = False) -> Found | None:
    """The `def` or `lambda` that a function was made by; None where it cannot be found."""
    code = function.__code__
    for text in _texts(code.co_filename, function.__globals__):
        tree = _parsed(text)
        if tree is None:
            continue
        node = _matching(tree, text, code)
        if node is not None:
            return _found(node, text, code.co_filename, code.co_flags, decorated)
    return None


def text_of_class(kind: type) -> Found | None:
    """The `class` statement that made a class; None where it cannot be found."""
    names = vars(sys.modules.get(kind.__module__, sys))
    codes = [one.__code__ for one in _functions(kind)]
    files = [code.co_filename for code in codes if not code.co_filename.startswith("<string")]
    for file in dict.fromkeys([*files, *_files_of(names)]):
        for text in _texts(file, names):
            tree = _parsed(text)
            node = None if tree is None else _class_node(tree, kind, codes)
            if node is not None:
                flags = _module_flags(tree)
                return _found(node, text, file, flags, True)
    return None


def _functions(kind: type) -> Iterator[FunctionType]:
    for one in vars(kind).values():
        inner = getattr(one, "__func__", getattr(one, "fget", one))
        inner = getattr(inner, "__wrapped__", inner)
        if isinstance(inner, FunctionType) and inner.__qualname__.startswith(
            f"{kind.__qualname__}."
        ):
            yield inner


def _files_of(names: Any) -> Iterator[str]:
    """Where a class without methods may stand: its module's file, or a cell, the last one first."""
    file = names.get("__file__")
    if isinstance(file, str):
        yield file
    if names.get("__name__") == "__main__":
        yield from (name for name in reversed(list(linecache.cache)) if "ipy" in name)


def _class_node(tree: ast.Module, kind: type, codes: list[CodeType]) -> ast.ClassDef | None:
    path = [name for name in kind.__qualname__.split(".") if name != "<locals>"]
    found = [node for place, node in _classes(tree, ()) if list(place) == path]
    lines = {code.co_firstlineno for code in codes if not code.co_filename.startswith("<string")}
    for node in reversed(found):
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        if all(first <= line <= (node.end_lineno or line) for line in lines):
            return node
    return None


def _classes(
    node: ast.AST, place: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        inner = place
        if isinstance(child, (*_DEFS, ast.ClassDef)):
            inner = (*place, child.name)
        if isinstance(child, ast.ClassDef):
            yield inner, child
        yield from _classes(child, inner)


# Texts --------------------------------------------------------------------------------------------


def _texts(file: str, names: Any) -> Iterator[str]:
    yield "".join(linecache.getlines(file, names))
    if os.path.exists(file):  # it may have been changed, and its code loaded again
        linecache.checkcache(file)
        yield "".join(linecache.getlines(file, names))


@lru_cache(maxsize=32)
def _parsed(text: str) -> ast.Module | None:
    if not text:
        return None
    with warnings.catch_warnings():  # they were given when it was compiled first
        warnings.simplefilter("ignore")
        try:
            return parse(text)
        except (SyntaxError, ValueError):
            return None


@lru_cache(maxsize=32)
def _compiled(text: str, flags: int) -> CodeType | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code: CodeType = compile(
                text, "", "exec", flags | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
            )
            return code
        except (SyntaxError, ValueError):
            return None


def within(code: CodeType) -> Iterator[CodeType]:
    """A code object and all inside it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, CodeType):
            yield from within(const)


def _matching(tree: ast.Module, text: str, code: CodeType) -> Node | None:
    whole = _compiled(text, code.co_flags & EVERY)
    if whole is None or not any(_alike(one, code) for one in within(whole)):
        return None
    name, line = code.co_name, code.co_firstlineno
    found: list[Node] = []
    for node in ast.walk(tree):
        named = getattr(node, "name", "<lambda>") == name
        if isinstance(node, (*_DEFS, ast.Lambda)) and named and _first_line(node) == line:
            found.append(node)
    if len(found) > 1:  # two lambdas on a line: by the places of their instructions
        spans = [p for p in code.co_positions() if p[0] is not None and p[2] not in (None, 0)]
        found = [node for node in found if all(_covers(node, one) for one in spans)]
        found.sort(key=lambda node: -node.lineno * 10_000 - node.col_offset)
    return found[0] if found else None


def _alike(one: CodeType, other: CodeType) -> bool:
    return (
        one.co_name == other.co_name
        and one.co_firstlineno == other.co_firstlineno
        and one.co_varnames == other.co_varnames
        and one.co_names == other.co_names
        and one.co_freevars == other.co_freevars
        and one.co_code == other.co_code
    )


def _covers(node: Any, span: Any) -> bool:
    first, last, start, end = span
    begins = (node.lineno, node.col_offset) <= (first, start)
    return begins and (last, end) <= (node.end_lineno, node.end_col_offset)


def _first_line(node: Any) -> int:
    lines = [node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))]
    return int(min(lines))


def _module_flags(tree: ast.Module | None) -> int:
    flags = 0
    for node in [] if tree is None else tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                flags |= flags_of([alias.name])
    return flags


def _found(node: Any, text: str, file: str, flags: int, decorated: bool) -> Found:
    first = _first_line(node) if decorated else node.lineno
    rows = text.splitlines(keepends=True)[first - 1 : node.end_lineno]
    if isinstance(node, ast.Lambda):
        source = "(" + (ast.get_source_segment(text, node) or ast.unparse(node)) + ")\n"
    else:
        source = _at_the_margin(rows, node)
    return Found(source, file, first, names_of(flags), node)


def _at_the_margin(rows: list[str], node: Any) -> str:
    """Rows as they are; inside of something, under an `if` of their own, so that no text moves."""
    source = "".join(rows)
    return source if source.endswith("\n") else f"{source}\n"
