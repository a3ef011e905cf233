"""What a call in a forward calls, found out without running it.

    value_of(call.func, scope)      # sdpa_attention_forward

A callee is looked up among the function's parameters that are known (`self`), its closure, its
module's names and builtins; a local name that is assigned once is what its right side says:
`attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, …)`.
Nothing is called in this but methods and functions named `get…`, `getattr` and `functools.partial`.
"""

import ast
import builtins
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

_DEEP_MAX = 16
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Is: lambda a, b: a is b,
    ast.IsNot: lambda a, b: a is not b,
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


class UnknownError(Exception):
    """An expression whose value only a run can tell; the text says why."""


@dataclass(frozen=True)
class Scope:
    """A function, what its local names are assigned, and which of its parameters are known."""

    function: FunctionType
    assigned: Mapping[str, Sequence[ast.expr | None]]
    known: Mapping[str, Any]


def value_of(node: ast.expr, scope: Scope, depth: int = 0) -> Any:
    """The value of an expression, as far as it is the same for every input.

    Raises:
        UnknownError: it hangs on what the forward is called with.
    """
    if depth > _DEEP_MAX:
        raise UnknownError("it is defined by itself")
    read = _READERS.get(type(node))
    if read is None:
        raise UnknownError(f"`{ast.unparse(node)}` is computed in the forward")
    value = read(node, scope, depth + 1)
    if isinstance(value, torch.Tensor):
        raise UnknownError(f"`{ast.unparse(node)}` is a tensor")
    return value


def _name(node: ast.Name, scope: Scope, depth: int) -> Any:
    name, code = node.id, scope.function.__code__
    if name in scope.known and name not in scope.assigned:
        return scope.known[name]
    if name in code.co_varnames or name in code.co_cellvars:
        return value_of(_only_value_of(name, scope), scope, depth)
    if name in code.co_freevars:
        cell = (scope.function.__closure__ or ())[code.co_freevars.index(name)]
        return cell.cell_contents
    for names in (scope.function.__globals__, vars(builtins)):
        if name in names:
            return names[name]
    raise UnknownError(f"`{name}` is not defined yet")


def _only_value_of(name: str, scope: Scope) -> ast.expr:
    """The right side of the one assignment to a local name."""
    values = scope.assigned.get(name)
    if values is None:
        raise UnknownError(f"`{name}` is an argument")
    if len(values) != 1 or values[0] is None:
        raise UnknownError(f"`{name}` is assigned in a loop, with others, or more than once")
    return values[0]


def _attribute(node: ast.Attribute, scope: Scope, depth: int) -> Any:
    if _is_super(node.value):
        if "__class__" not in scope.function.__code__.co_freevars or not scope.known:
            raise UnknownError("`super()` is known for methods alone")
        around = _name(ast.Name("__class__", ast.Load()), scope, depth)
        return getattr(super(around, next(iter(scope.known.values()))), node.attr)
    holder = value_of(node.value, scope, depth)
    try:
        return getattr(holder, node.attr)
    except AttributeError:
        raise UnknownError(f"`{ast.unparse(node)}` is not there yet") from None


def _is_super(node: ast.expr) -> bool:
    if not isinstance(node, ast.Call) or node.args or node.keywords:
        return False
    return isinstance(node.func, ast.Name) and node.func.id == "super"


def _subscript(node: ast.Subscript, scope: Scope, depth: int) -> Any:
    holder, key = value_of(node.value, scope, depth), value_of(node.slice, scope, depth)
    try:
        return holder[key]
    except (LookupError, TypeError):
        raise UnknownError(f"`{ast.unparse(node)}` is not there yet") from None


def _call(node: ast.Call, scope: Scope, depth: int) -> Any:
    callee = value_of(node.func, scope, depth)
    name = getattr(callee, "__name__", "")
    is_module = isinstance(getattr(callee, "__self__", callee), torch.nn.Module)
    only_gets = callee is functools.partial or (name.startswith("get") and not is_module)
    if not only_gets or any(isinstance(part, ast.Starred) for part in node.args):
        raise UnknownError(f"`{ast.unparse(node)}` is called first")
    given = [value_of(part, scope, depth) for part in node.args]
    named = {k.arg: value_of(k.value, scope, depth) for k in node.keywords if k.arg}
    if len(named) != len(node.keywords):
        raise UnknownError(f"`{ast.unparse(node)}` is called first")
    try:
        return callee(*given, **named)
    except Exception as error:
        raise UnknownError(f"`{ast.unparse(node)}` fails: {error}") from error


def _choice(node: ast.IfExp, scope: Scope, depth: int) -> Any:
    chosen = node.body if value_of(node.test, scope, depth) else node.orelse
    return value_of(chosen, scope, depth)


def _logic(node: ast.BoolOp, scope: Scope, depth: int) -> Any:
    stops_at = isinstance(node.op, ast.Or)
    value = None
    for part in node.values:
        value = value_of(part, scope, depth)
        if bool(value) is stops_at:
            break
    return value


def _negation(node: ast.UnaryOp, scope: Scope, depth: int) -> Any:
    value = value_of(node.operand, scope, depth)
    if isinstance(node.op, ast.Not):
        return not value
    if isinstance(node.op, ast.USub) and isinstance(value, int):
        return -value
    raise UnknownError(f"`{ast.unparse(node)}` is computed in the forward")


def _comparison(node: ast.Compare, scope: Scope, depth: int) -> Any:
    compare = _COMPARISONS.get(type(node.ops[0])) if len(node.ops) == 1 else None
    if compare is None:
        raise UnknownError(f"`{ast.unparse(node)}` is computed in the forward")
    return compare(value_of(node.left, scope, depth), value_of(node.comparators[0], scope, depth))


def _constant(node: ast.Constant, scope: Scope, depth: int) -> Any:
    return node.value


_READERS: dict[type[ast.expr], Callable[[Any, Scope, int], Any]] = {
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.Subscript: _subscript,
    ast.Call: _call,
    ast.IfExp: _choice,
    ast.BoolOp: _logic,
    ast.UnaryOp: _negation,
    ast.Compare: _comparison,
    ast.Constant: _constant,
}


def arguments_known(
    call: ast.Call, callee: FunctionType, bound: Any, scope: Scope
) -> dict[str, Any]:
    """Which parameters of a callee are known from how it is called."""
    names = callee.__code__.co_varnames[: callee.__code__.co_argcount]
    known = {} if bound is None or not names else {names[0]: bound}
    for name, part in zip(names[len(known) :], call.args, strict=False):
        if isinstance(part, ast.Starred):
            break
        if isinstance(part, ast.Name) and part.id in scope.known:
            known[name] = scope.known[part.id]
    return known
