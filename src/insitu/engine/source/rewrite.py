"""A forward with a stop at each of its operations: the same text, compiled once more.

    self.c_proj(attn_output)        becomes     __insitu_call__(36, self.c_proj)(attn_output)
    scores = query @ key            becomes     scores = __insitu_value__(29, query @ key)

The callee is still evaluated before the arguments, the call still stands where it stood (line and
column), and an operation that nobody asks for costs the call of `__insitu_call__`, which gives the
callee back. The names put in are free variables: neither the function's locals nor its module's
globals change.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import CellType, CodeType, FunctionType
from typing import Any, TypeVar

from insitu.engine.source.names import CALL, UPDATE, Named, Plan
from insitu.engine.source.text import compiled

Node = TypeVar("Node", bound=ast.expr | ast.stmt)

ON_CALL, ON_VALUE, WANTED, WITHOUT_US = HELPERS = (
    "__insitu_call__", "__insitu_value__", "__insitu_wanted__", "__insitu_without_us__",
)  # fmt: skip
"""What a rewritten function calls: with an index and a callee or value, an index, or names."""


def rewritten(plan: Plan, code: CodeType) -> CodeType:
    """The code of a function, with its operations handed to the helpers."""
    with plan.lock, _changed(plan):
        return compiled(plan.definition.tree, code, HELPERS)


def instance(
    function: FunctionType, code: CodeType, helpers: Mapping[str, Callable[..., Any]]
) -> FunctionType:
    """A function like this one, running rewritten code: the same globals, cells and defaults."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells.update((name, CellType(helper)) for name, helper in helpers.items())
    closure = tuple(cells[name] for name in code.co_freevars)
    made = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, closure
    )
    made.__kwdefaults__ = function.__kwdefaults__
    made.__qualname__ = function.__qualname__
    if function.__dict__:
        made.__dict__.update(function.__dict__)
    return made


def without_us(names: Any) -> Any:
    """What `locals()`, `vars()` or `dir()` gave, without the names that were put in."""
    if isinstance(names, list):
        return [name for name in names if name not in HELPERS]
    for name in HELPERS:
        names.pop(name, None)
    return names


@contextmanager
def _changed(plan: Plan) -> Iterator[None]:
    """The plan's tree while it is rewritten: copying it would cost more than all the rest."""
    undo: list[Callable[[], None]] = []
    try:
        for operation in plan.operations:
            undo.append(_change(operation))
        for call in plan.listing_calls:
            undo.append(_change_listing(call))
        yield
    finally:
        for step in reversed(undo):
            step()


def _change(operation: Named) -> Callable[[], None]:
    node, index = operation.node, operation.index
    if operation.kind == UPDATE:
        return _add_update(operation)
    field = "func" if operation.kind == CALL else "value"
    before = getattr(node, field)
    helper = ON_CALL if operation.kind == CALL else ON_VALUE
    setattr(node, field, _call(helper, before, _constant(index, before), before))
    return lambda: setattr(node, field, before)


def _add_update(operation: Named) -> Callable[[], None]:
    """After `x += y`, `x = __insitu_value__(k, x)`; any target but a name only if it is wanted."""
    target, index, siblings = operation.node.target, operation.index, operation.siblings
    read = _in_context(target, ast.Load())
    value = _call(ON_VALUE, target, _constant(index, target), read)
    after: ast.stmt = _at(target, ast.Assign([_in_context(target, ast.Store())], value))
    if not isinstance(target, ast.Name):
        after = _at(target, ast.If(_call(WANTED, target, _constant(index, target)), [after], []))
    siblings.insert(siblings.index(operation.statement) + 1, after)
    return lambda: siblings.remove(after)


def _change_listing(call: ast.Call) -> Callable[[], None]:
    before = call.func
    call.func = _at(before, ast.Name(WITHOUT_US, ast.Load()))
    call.args = [_call_of(before)]

    def undo() -> None:
        call.func, call.args = before, []

    return undo


def _in_context(target: ast.expr, context: ast.expr_context) -> ast.expr:
    """A target as it is read or written; the parts of it are shared."""
    parts = {name: getattr(target, name) for name in target._fields}
    made: ast.expr = type(target)(**{**parts, "ctx": context})
    return _at(target, made)


def _call(helper: str, place: ast.AST, *given: ast.expr) -> ast.Call:
    callee = _at(place, ast.Name(helper, ast.Load()))
    return _at(place, ast.Call(callee, list(given), []))


def _call_of(callee: ast.expr) -> ast.Call:
    return _at(callee, ast.Call(callee, [], []))


def _constant(value: int, place: ast.AST) -> ast.Constant:
    return _at(place, ast.Constant(value))


def _at(place: Any, node: Node) -> Node:
    node.lineno, node.col_offset = place.lineno, place.col_offset
    node.end_lineno, node.end_col_offset = place.end_lineno, place.end_col_offset
    return node
