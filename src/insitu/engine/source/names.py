"""The operations of a forward: which calls and assignments there are, and what each is called.

    plan = named(define(GPT2Attention.forward))
    plan.operations[0].name, plan.operations[0].line        # "isinstance_0", 154
    plan.by_name["attention_interface_0"].line              # 208

A call is named by its callee and counted among those of the same callee, as one reads:
`self.c_proj(x)` is `self_c_proj_0`, `torch.nn.functional.softmax(s)` is
`torch_nn_functional_softmax_0`. Dots and brackets turn into underscores; what is called before the
callee is left out, so `x.view(a).transpose(1, 2)` has `x_view_0` and `transpose_0`. An assignment
whose right side is not itself a call is `assign_<target>_<n>`; that of `x += y` is the value of `x`
after it.

Calls in comprehensions are named, those in nested functions and lambdas are not: these may run when
the forward is over. Neither are calls that look at the frame they are made from, nor what a `raise`
or an `assert` says.
"""

import ast
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

from insitu.engine.source.text import Definition

CALL, VALUE, UPDATE = range(3)
"""A call, an assignment's right side, and what an augmented assignment leaves in its target."""

_OWN_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_SILENT = {*_OWN_SCOPE, ast.Raise, ast.Assert, ast.JoinedStr, ast.Constant, ast.Name}
_GENERATORS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_MAY_STOP = {ast.Call, ast.Await, ast.Yield, ast.YieldFrom, *_GENERATORS}
_INNER = (ast.expr, ast.comprehension, ast.keyword)
_LOOKS_AT_ITS_CALLER = frozenset(
    ("super", "locals", "vars", "dir", "globals", "eval", "exec", "breakpoint", "__import__")
    + ("sys._getframe", "inspect.currentframe", "inspect.stack", "pdb.set_trace")
    + ("warnings.warn", "torch._dynamo.graph_break")
)
_LOGS = re.compile(
    r"(self\.)?_?(log|logger|logging)\.(log|debug|info|warn(ing)?|error|exception|critical)(_once)?$",
    re.IGNORECASE,
)
_NO_EXPRESSION = ("ctx", "op", "ops", "attr", "arg", "is_async", "conversion")
_FIELDS: dict[type[ast.AST], tuple[str, ...]] = {}
_NOT_ITS_OWN = ("annotation", "body", "orelse", "finalbody", "type_comment", "op")
_LISTS_NAMES = ("locals", "vars", "dir")
_not_a_word = re.compile(r"\W+")


@dataclass(frozen=True, eq=False)
class Named:
    """One operation."""

    index: int
    name: str
    line: int
    """Where it is read: the line of the callee's last word, or of the assignment."""
    kind: int
    statement: ast.stmt
    node: Any
    """The call, or the assignment."""
    siblings: list[ast.stmt]
    """The statements among which this one stands."""
    is_leaf: bool
    """Nothing else is called between the evaluation of the callee and the call."""


@dataclass(frozen=True, eq=False)
class Plan:
    """The operations of one function, as one reads them."""

    definition: Definition
    operations: tuple[Named, ...]
    by_name: dict[str, Named]
    listing_calls: tuple[ast.Call, ...]
    """`locals()` and its like, from which the names put in by us have to be taken out."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while the tree is changed for compiling, and while it is read."""

    @cached_property
    def assigned(self) -> dict[str, list[ast.expr | None]]:
        """What each local name is assigned; None where that is not simply an expression."""
        found: dict[str, list[ast.expr | None]] = {}
        simple: dict[int, ast.expr | None] = {}
        for node in ast.walk(self.definition.tree):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                simple[id(node.targets[0])] = node.value
            elif isinstance(node, ast.AnnAssign):
                simple[id(node.target)] = node.value
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                found.setdefault(node.id, []).append(simple.get(id(node)))
        return found


_Found = tuple[tuple[int, int], str, tuple[Any, ...]]
"""Where an operation is read, its name without the number, and the rest of a `Named`."""


def named(definition: Definition) -> Plan:
    """Find and name the operations of a function."""
    collector = _Collector()
    collector.statements(definition.tree.body)
    counts: Counter[str] = Counter()
    operations = []
    in_order = sorted(collector.found, key=itemgetter(0))
    for index, ((line, _), base, rest) in enumerate(in_order):
        operations.append(Named(index, f"{base}_{counts[base]}", line, *rest))
        counts[base] += 1
    by_name = {operation.name: operation for operation in operations}
    return Plan(definition, tuple(operations), by_name, tuple(collector.listing_calls))


def base_of(name: str) -> str:
    """An operation's name without its number."""
    return name.rpartition("_")[0]


class _Collector:
    """Walks a function's statements and gathers what can be named."""

    def __init__(self) -> None:
        self.found: list[_Found] = []
        self.listing_calls: list[ast.Call] = []

    def statements(self, body: list[ast.stmt]) -> None:
        for statement in body:
            if type(statement) in _SILENT:
                continue
            self._assignment(statement, statement, body)
            for part in _parts(statement):
                self._expression(part, statement, body)
            for inner in _bodies(statement):
                self.statements(inner)

    def _expression(self, node: ast.AST, statement: ast.stmt, body: list[ast.stmt]) -> bool:
        """Gather from an expression; whether anything in it may be called."""
        kind = type(node)
        if kind in _SILENT:
            return False
        may_stop = kind in _MAY_STOP
        if isinstance(node, ast.Call):
            self._expression(node.func, statement, body)
            given = [self._expression(part, statement, body) for part in _given(node)]
            self._call(node, statement, body, not any(given))
            return True
        if isinstance(node, ast.NamedExpr):
            self._assignment(node, statement, body)
        for name in _FIELDS.get(kind) or _fields(kind):
            value = getattr(node, name)
            for part in value if type(value) is list else (value,):
                if type(part) in _SILENT or not isinstance(part, _INNER):
                    continue
                if self._expression(part, statement, body):
                    may_stop = True
        return may_stop

    def _call(
        self, node: ast.Call, statement: ast.stmt, body: list[ast.stmt], is_leaf: bool
    ) -> None:
        words = _dotted(node.func)
        if words in _LISTS_NAMES and not node.args and not node.keywords:
            self.listing_calls.append(node)
        if words and _stays_as_it_is(words, node):
            return
        place = (node.func.end_lineno or 0, node.func.end_col_offset or 0)
        base = _words(node.func) or "call"
        self.found.append((place, base, (CALL, statement, node, body, is_leaf)))

    def _assignment(self, node: ast.AST, statement: ast.stmt, body: list[ast.stmt]) -> None:
        targets: list[ast.expr]
        kind = VALUE
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            targets = [node.target]
        elif isinstance(node, ast.AugAssign) and _can_be_read_again(node.target):
            targets, kind = [node.target], UPDATE
        else:
            return
        if node.value is None or (kind == VALUE and isinstance(node.value, ast.Call)):
            return
        place = (node.lineno, node.col_offset)
        base = "assign_" + "_".join(filter(None, map(_target_words, targets)))
        self.found.append((place, base, (kind, statement, node, body, False)))


def _fields(kind: type[ast.AST]) -> tuple[str, ...]:
    """The fields of a kind of expression that may hold others."""
    _FIELDS[kind] = tuple(name for name in kind._fields if name not in _NO_EXPRESSION)
    return _FIELDS[kind]


def _parts(statement: ast.stmt) -> Iterator[ast.expr]:
    """A statement's own expressions, without those of the statements in it."""
    for name in statement._fields:
        value = None if name in _NOT_ITS_OWN else getattr(statement, name)
        for part in value if isinstance(value, list) else (value,):
            if isinstance(part, ast.expr):
                yield part
            elif isinstance(part, ast.withitem):
                yield part.context_expr
            elif isinstance(part, ast.match_case) and part.guard is not None:
                yield part.guard
            elif isinstance(part, ast.ExceptHandler) and part.type is not None:
                yield part.type


def _bodies(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for name in statement._fields:
        if name in ("body", "orelse", "finalbody"):
            yield getattr(statement, name)
        elif name in ("handlers", "cases"):
            yield from (part.body for part in getattr(statement, name))


def _given(call: ast.Call) -> Iterator[ast.expr]:
    yield from call.args
    yield from (keyword.value for keyword in call.keywords)


def _dotted(node: ast.expr) -> str:
    """`self.act.fn` as it is written; empty for anything but names and dots."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def _stays_as_it_is(words: str, node: ast.Call) -> bool:
    if words in ("super", *_LISTS_NAMES):
        return not node.args and not node.keywords
    return words in _LOOKS_AT_ITS_CALLER or _LOGS.match(words) is not None


def _words(node: ast.expr) -> str:
    """A callee or target in words; what comes before a call or an operator in it is left out."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        before = _words(node.value)
        return f"{before}_{node.attr}" if before else node.attr
    if isinstance(node, ast.Subscript):
        before, key = _words(node.value), _key_words(node.slice)
        return f"{before}_{key}" if before and key else before
    return ""


def _key_words(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return _not_a_word.sub("_", str(node.value)).strip("_")
    if isinstance(node, ast.UnaryOp):
        return _key_words(node.operand)
    return _words(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def _target_words(node: ast.expr) -> str:
    if isinstance(node, (ast.Tuple, ast.List)):
        return "_".join(filter(None, map(_target_words, node.elts)))
    if isinstance(node, ast.Starred):
        return _target_words(node.value)
    return _words(node.value) if isinstance(node, ast.Subscript) else _words(node)


def _can_be_read_again(node: ast.expr) -> bool:
    """Whether a target can be evaluated twice: nothing is called in it."""
    if isinstance(node, (ast.Name, ast.Constant)):
        return True
    if isinstance(node, (ast.Attribute, ast.Subscript, ast.Slice, ast.Tuple, ast.UnaryOp)):
        return all(
            _can_be_read_again(part)
            for part in ast.iter_child_nodes(node)
            if isinstance(part, ast.expr)
        )
    return False
