"""A body of statements made to stand alone: what cannot is refused, what differs is rewritten.

    check(statements, "tracer.invoke", line)
    statements = standing_alone(statements, place)

A captured body is compiled like a module, whose names are the caller's. So names that the caller's
class mangles are mangled here, `nonlocal` becomes `global`, `super()` is told its class, and the
annotations of a function's locals go, as functions do not evaluate them.
"""

import ast
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from insitu.errors import CaptureError

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_MANGLED = ("id", "attr", "name", "arg", "rest", "asname")
_ASYNC = "await before the `with` or after it, and hand the value over in a name."
_LEAVING: dict[type[ast.AST], tuple[str, str]] = {
    ast.Return: (
        "return",
        "assign the value to a name in the body, and return it after the `with`.",
    ),
    ast.Yield: ("yield", "put the values in a list in the body, and yield them after the `with`."),
    ast.YieldFrom: (
        "yield from",
        "put the values in a list in the body, and yield them after the `with`.",
    ),
    ast.Await: ("await", _ASYNC),
    ast.AsyncFor: ("async for", _ASYNC),
    ast.comprehension: ("async for", _ASYNC),
    ast.AsyncWith: ("async with", _ASYNC),
    ast.Break: ("break", "put the loop into the body, or `break` after the `with`."),
    ast.Continue: ("continue", "put the loop into the body, or `continue` after the `with`."),
}


@dataclass(frozen=True)
class Place:
    """Where a body stands."""

    in_function: bool
    owner: str
    """The innermost class around it, for private names; empty without one."""
    first: str
    """The first argument of its function, for `super()`; empty without one."""
    local: frozenset[str]
    """The names that are its function's own."""


# What cannot stand alone --------------------------------------------------------------------------


def check(statements: Sequence[ast.AST], what: str, line: int) -> None:
    """Refuse a body that leaves its function, its loop or its coroutine.

    Raises:
        CaptureError: it returns, yields, awaits, or leaves a loop around it.
    """
    for node in leaving(statements):
        name, advice = _LEAVING[type(node)]
        at = getattr(node, "lineno", line)
        raise CaptureError(
            f"the body of {what} on line {line} has a `{name}`"
            f"{'' if at == line else f' on line {at}'}.",
            "this body does not run where it stands but when the model gets there, "
            "apart from the code around it.",
            advice,
        )


def leaving(nodes: Sequence[ast.AST], in_loop: bool = False) -> Iterator[ast.AST]:
    """What leaves the body for the code around it."""
    for node in nodes:
        if isinstance(node, (ast.Break, ast.Continue)):
            if not in_loop:
                yield node
        elif type(node) in _LEAVING and getattr(node, "is_async", True):
            yield node
        elif isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield from leaving(_outside(node))
        elif isinstance(node, _LOOPS):
            parts = [n for n in ast.iter_child_nodes(node) if n not in node.orelse]
            yield from leaving(parts, True)
            yield from leaving(node.orelse, in_loop)
        else:
            yield from leaving(list(ast.iter_child_nodes(node)), in_loop)


def _outside(node: Any) -> list[ast.AST]:
    """The parts of a function or class that are evaluated where it is defined."""
    if isinstance(node, ast.ClassDef):
        return [*node.decorator_list, *node.bases, *node.keywords]
    defaults = [default for default in node.args.defaults + node.args.kw_defaults if default]
    return [*getattr(node, "decorator_list", ()), *defaults]


# What is rewritten --------------------------------------------------------------------------------


def standing_alone(statements: Sequence[ast.stmt], place: Place, what: str) -> list[ast.stmt]:
    """A copy of a body's statements that means the same when it is compiled like a module.

    Raises:
        CaptureError: it has a `global` of a name that is also its function's own.
    """
    rewriter = _Rewriter(place, what)
    return [rewriter.visit(statement) for statement in copy.deepcopy(list(statements))]


class _Rewriter(ast.NodeTransformer):
    def __init__(self, place: Place, what: str) -> None:
        self.place = place
        self.what = what
        self.inside: list[Any] = []  # functions and classes of the body around the node

    def visit(self, node: ast.AST) -> Any:
        if self.place.owner and not any(isinstance(n, ast.ClassDef) for n in self.inside):
            self._mangle(node)
        return super().visit(node)

    def _mangle(self, node: ast.AST) -> None:
        for field in _MANGLED:
            if isinstance(name := getattr(node, field, None), str):
                setattr(node, field, self._mangled(name))
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            node.names = [self._mangled(name) for name in node.names]

    def _mangled(self, name: str) -> str:
        owner = self.place.owner.lstrip("_")
        if not owner or not name.startswith("__") or name.endswith("__") or "." in name:
            return name
        return f"_{owner}{name}"

    def _visit_scope(self, node: Any) -> Any:
        """What a function or class has outside its own scope first, then its body."""
        body, node.body = node.body, []
        self.generic_visit(node)
        node.body = body
        self.inside.append(node)
        node.body = self.visit(body) if isinstance(body, ast.AST) else list(map(self.visit, body))
        self.inside.pop()
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_ClassDef = _visit_scope

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        if self.inside or not self.place.in_function:
            return node
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Nonlocal(self, node: ast.Nonlocal) -> ast.AST:
        functions = [outer for outer in self.inside[:-1] if not isinstance(outer, ast.ClassDef)]
        of_body = [n for n in node.names if any(n in _bound(outer) for outer in functions)]
        of_caller = [name for name in node.names if name not in of_body]
        if not self.inside:
            return ast.copy_location(ast.Pass(), node)
        if of_body and of_caller:  # `nonlocal a, b` of two scopes
            node.names = of_body
            both = [node, ast.copy_location(ast.Global(of_caller), node)]
            return ast.copy_location(
                ast.If(ast.copy_location(ast.Constant(True), node), both, []), node
            )
        return node if of_body else ast.copy_location(ast.Global(of_caller), node)

    def visit_Global(self, node: ast.Global) -> ast.AST:
        if not self.inside:
            return ast.copy_location(ast.Pass(), node)
        for name in self.place.local.intersection(node.names):
            raise CaptureError(
                f"the body of {self.what} has a `global {name}` on line {node.lineno}, "
                f"and {name} is also a local name of the function around it.",
                "in a captured body the two would be one.",
                "give one of them another name.",
            )
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        own_class = any(isinstance(outer, ast.ClassDef) for outer in self.inside)
        is_super = isinstance(node.func, ast.Name) and node.func.id == "super"
        if is_super and not own_class and not node.args and not node.keywords:
            first = self.place.first
            if self.inside:
                arguments = self.inside[-1].args
                first = next((a.arg for a in arguments.posonlyargs + arguments.args), "")
            if first:
                names = [ast.Name("__class__", ast.Load()), ast.Name(first, ast.Load())]
                node.args = [ast.copy_location(name, node) for name in names]
        return node


def _bound(function: Any) -> set[str]:
    """The names that are a function's own: its arguments and what it stores."""
    arguments = function.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = {a.arg for a in (*given, arguments.vararg, arguments.kwarg) if a is not None}
    body = function.body if isinstance(function.body, list) else [function.body]
    pending, elsewhere = list(body), set[str]()
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            elsewhere.update(node.names)
        names.update(_stored(node))
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            pending.extend(_outside(node))
        else:
            pending.extend(ast.iter_child_nodes(node))
    return names - elsewhere


def _stored(node: Any) -> list[str]:
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    if isinstance(node, ast.alias):
        return [(node.asname or node.name).partition(".")[0]]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler)
    if isinstance(node, (*kinds, ast.MatchAs, ast.MatchStar)):
        return [node.name] if node.name else []
    return [node.rest] if isinstance(node, ast.MatchMapping) and node.rest else []
