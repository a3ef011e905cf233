"""A block taken apart: what runs on the server as text, what runs here as bodies.

    taken = take_apart(body, values)
    taken.text                  # h = model.h[2].output
                                # __insitu_local__(0, model.lm_head.output)
    taken.parts[0].body         # what stood in `with insitu.local():`

A `local()` part leaves a call behind, which waits on the server until this side has run the part.
The sites that it reads are arguments of that call: they are read on the server, in the order of
the text, and handed over under names of their own.
"""

import ast
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from insitu.engine.capture.bodies import cut_out, text_of, tree_of
from insitu.engine.capture.needs import needed
from insitu.engine.capture.parsing import parse
from insitu.engine.capture.scope import VALUE, Body
from insitu.engine.local import local
from insitu.engine.wrapped import WrappedModule
from insitu.errors import CaptureError, UsageError

CALL = "__insitu_local__"
"""What a `local()` part leaves behind on the server."""
SITE = "__insitu_site_{}__"
_SITES = ("output", "input", "inputs")
_WHAT = "insitu.local"
_DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


@dataclass
class Part:
    """One `local()` part: it runs here, in the middle of the server's pass."""

    body: Body
    sites: list[str]
    """Under which names it is given the sites it reads, in the order of the call's arguments."""
    wanted: tuple[str, ...] = ()
    """Names whose values the server is asked for."""
    gives: tuple[str, ...] = ()
    """Names it assigns that the server reads."""

    @property
    def reads(self) -> frozenset[str]:
        """The caller's names that it uses."""
        return self.body.names - set(self.sites)


@dataclass
class Taken:
    """A block as text for the server, and the parts that stay."""

    text: str
    line: int
    """The first line of the text in its file."""
    reads: frozenset[str]
    stores: frozenset[str]
    needs: frozenset[str] = frozenset()
    """The caller's names whose values the server needs."""
    parts: list[Part] = field(default_factory=list)


def take_apart(body: Body, values: Mapping[str, Any]) -> Taken:
    """Take the `local()` parts out of a captured body.

    Args:
        body: the block.
        values: what its names stand for here, as far as they are known.

    Raises:
        CaptureError: the block has no text, or a part stands where it cannot be cut out.
        UsageError: a part writes to a site, or chooses one by a name that it assigns itself.
    """
    root = tree_of(body)
    if root is None:
        raise CaptureError(
            "a block without text cannot be sent.",
            "it came from neither a file nor a cell, and a server compiles its text.",
            "write it in a file or a cell.",
        )
    statements = root.body[1:] if body.target == VALUE else root.body
    cutter = _Cutter(body, values)
    changed = ast.Module([cutter.visit(copy.deepcopy(one)) for one in statements], [])
    ast.fix_missing_locations(changed)
    first = min([statements[0].lineno, *(d.lineno for d in _decorators(statements[0]))])
    text = _text(body, changed, cutter.cuts, first)
    reads, stores = _names(changed)
    taken = Taken(text, first, reads, stores, parts=cutter.parts)
    _share(taken, values)
    taken.needs = frozenset(_needs(changed, taken, values) - {body.target})
    return taken


def _needs(changed: ast.Module, taken: Taken, values: Mapping[str, Any]) -> set[str]:
    """The names that the server reads before it, or a part, has given them a value."""
    given = _Given(taken.parts)
    module = ast.fix_missing_locations(given.visit(copy.deepcopy(changed)))
    return needed(compile(module, "<a block>", "exec", dont_inherit=True), values)


class _Given(ast.NodeTransformer):
    """Writes the call that a part has left as the assignment that it amounts to."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        call = node.value
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == CALL:
            index: Any = call.args[0]
            names = self._parts[index.value].gives
            if names:
                return ast.Assign([ast.Name(name, ast.Store()) for name in names], call)
        return node


def _decorators(statement: ast.stmt) -> list[ast.expr]:
    return getattr(statement, "decorator_list", [])


def _share(taken: Taken, values: Mapping[str, Any]) -> None:
    """Find out which names the two sides have to tell each other."""
    for part in taken.parts:
        there = taken.stores | {
            name for name in taken.reads if isinstance(values.get(name), (list, dict, set))
        }
        part.wanted = tuple(sorted(part.reads & there))
        part.gives = tuple(sorted(part.body.stored & taken.reads))


def _names(module: ast.Module) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a program reads, in functions too, and those it stores outside of them."""
    reads: set[str] = set()
    stores: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Name):
            (reads if isinstance(node.ctx, ast.Load) else stores).add(node.id)
            if isinstance(node.ctx, ast.Del):
                reads.add(node.id)
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            reads.add(node.target.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            stores.add(node.name)
        elif isinstance(node, ast.alias):
            stores.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            stores.add(node.name)
    return frozenset(reads), frozenset(stores)


# Cutting ------------------------------------------------------------------------------------------


class _Cutter(ast.NodeTransformer):
    """Puts a call in the place of every `with insitu.local():`."""

    def __init__(self, body: Body, values: Mapping[str, Any]) -> None:
        self.parts: list[Part] = []
        self.cuts: list[tuple[ast.With, ast.Expr]] = []
        self._body = body
        self._values = values
        self._within = 0

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, _DEFINES):
            self._within += 1
            self.generic_visit(node)
            self._within -= 1
            return node
        if isinstance(node, ast.With) and _is_local(node.items[0].context_expr, self._values):
            return self._cut(node)
        return super().visit(node)

    def _cut(self, node: ast.With) -> ast.Expr:
        if self._within:
            raise CaptureError(
                f"insitu.local() on line {node.lineno} stands in a function of its own.",
                "the server comes to such a part while it runs the block, and hands over the "
                "names of the block.",
                "write `with insitu.local():` in the block itself.",
            )
        statements = node.body
        if len(node.items) > 1:
            rest = ast.With(items=node.items[1:], body=node.body)
            statements = [ast.copy_location(rest, node)]
        sites = _Sites(self._values, len(self.parts))
        statements = [sites.visit(one) for one in statements]
        sites.check(statements, node.lineno)
        part = Part(cut_out(self._body, statements, _WHAT), sites.names)
        index = ast.Constant(len(self.parts))
        self.parts.append(part)
        call = ast.Call(ast.Name(CALL, ast.Load()), [index, *sites.read], [])
        left = ast.copy_location(ast.Expr(call), node)
        self.cuts.append((node, left))
        return left


def _is_local(expression: ast.expr, values: Mapping[str, Any]) -> bool:
    """Whether an expression is a call of `insitu.local`, under whatever name it goes here."""
    if not isinstance(expression, ast.Call):
        return False
    called = expression.func
    if isinstance(called, ast.Name):
        return values.get(called.id) is local
    if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
        owner = values.get(called.value.id)
        return isinstance(owner, ModuleType) and getattr(owner, called.attr, None) is local
    return False


class _Sites(ast.NodeTransformer):
    """Puts a name in the place of every site that a part reads."""

    def __init__(self, values: Mapping[str, Any], part: int) -> None:
        self.names: list[str] = []
        self.read: list[ast.expr] = []
        self._values = values
        self._part = part

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if node.attr not in _SITES or not self._is_of_a_model(node.value):
            return self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            raise _writes(node)
        name = SITE.format(f"{self._part}_{len(self.names)}")
        self.names.append(name)
        self.read.append(copy.deepcopy(node))
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def _is_of_a_model(self, node: ast.expr) -> bool:
        while isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
        return isinstance(node, ast.Name) and isinstance(self._values.get(node.id), WrappedModule)

    def check(self, statements: list[ast.stmt], line: int) -> None:
        """Refuse what would change a site here, or name one that is not known before the part."""
        ours = set(self.names)
        for node in (inner for one in statements for inner in ast.walk(one)):
            written = isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
            if written or isinstance(node, ast.AugAssign):
                target: Any = node.target if isinstance(node, ast.AugAssign) else node
                while isinstance(target, (ast.Subscript, ast.Attribute)):
                    target = target.value
                if isinstance(target, ast.Name) and target.id in ours:
                    raise _writes(self.read[self.names.index(target.id)])
        _, stored = _names(ast.Module(statements, []))
        for site in self.read:
            chosen = {it.id for it in ast.walk(site) if isinstance(it, ast.Name)} & stored
            if chosen:
                raise UsageError(
                    f"the local() part on line {line} reads {ast.unparse(site)}, and assigns "
                    f"{min(chosen)} itself.",
                    "the sites of such a part are read on the server before it begins here.",
                    "read the site outside, before `with insitu.local():`.",
                )


def _writes(site: ast.expr) -> UsageError:
    text = ast.unparse(site)
    return UsageError(
        f"a local() part writes to {text}.",
        "it runs on this machine; the model is on the server, and goes on when the part has ended.",
        f"assign a name in the part, and after it: {text}[:] = name.",
    )


# Text ---------------------------------------------------------------------------------------------


def _text(
    body: Body, changed: ast.Module, cuts: list[tuple[ast.With, ast.Expr]], first: int
) -> str:
    """The server's text, line for line as it was written, where that means the same."""
    rows = text_of(body).splitlines(keepends=True)
    for node, left in cuts:
        begin, end = node.lineno - first, (node.end_lineno or node.lineno) - first
        if end >= len(rows):
            break
        indent = rows[begin][: len(rows[begin]) - len(rows[begin].lstrip())]
        rows[begin] = f"{indent}{ast.unparse(left)}\n"
        rows[begin + 1 : end + 1] = ["\n"] * (end - begin)
    text = "".join(rows)
    try:
        same = ast.dump(parse(text)) == ast.dump(_plain(changed))
    except SyntaxError:
        same = False
    return text if same else ast.unparse(changed) + "\n"


def _plain(module: ast.Module) -> ast.Module:
    """Without the `pass` that keeps a first string from being a docstring."""
    first = module.body[0]
    if isinstance(first, ast.Pass) and len(module.body) > 1:
        second = module.body[1]
        if isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant):
            return ast.Module(module.body[1:], [])
    return module
