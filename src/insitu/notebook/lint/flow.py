"""What a block does in the order it does it, as far as its text is sure.

for events in flows(block):
    for event in events: ...        # asks for sites, names bound to them, writes in place

Each list is one way through the block: the statements before a branch or a loop, and those in it.
What runs once a step, in an invoke or later begins anew.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from insitu.engine.wrapped import WrappedModule
from insitu.notebook.lint.blocks import KINDS, Block, Site

_NO_DATA = {"requires_grad_", "retain_grad_", "share_memory_"}
_LATER = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_SHARES = ("save", "detach", "requires_grad_", "view", "squeeze", "unsqueeze")


@dataclass(frozen=True)
class Held:
    """What a name was given: a site's value, part of it, or a copy of it."""

    site: Site
    copy: ast.Call | None = None
    """The call of `clone()` that made it another tensor."""


@dataclass(frozen=True)
class Event:
    """One act of a block."""

    act: str
    """`ask`, `skip`, `bind`, `write` or `step`."""
    statement: ast.stmt
    body: Sequence[ast.stmt]
    node: ast.AST
    site: Site | None = None
    module: WrappedModule | None = None
    name: str = ""
    held: Held | None = None


def flows(block: Block) -> list[list[Event]]:
    """Every way through a block that its text tells."""
    walk = _Walk(block)
    first = walk.through(block.body, [])
    return [*walk.found, first]


def held(block: Block, node: ast.expr) -> Held | None:
    """The site whose value an expression is; None where it computes something."""
    copy: ast.Call | None = None
    while True:
        if isinstance(node, ast.Subscript) and is_basic(node.slice):
            node = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr == "clone":
                copy = node
            elif node.func.attr not in _SHARES:
                return None
            node = node.func.value
        else:
            site = block.site(node)
            return None if site is None else Held(site, copy)


def is_basic(index: ast.expr) -> bool:
    """Whether an index gives a view of a tensor, and no copy."""
    if isinstance(index, ast.Tuple):
        return all(map(is_basic, index.elts))
    if isinstance(index, ast.UnaryOp):
        return is_basic(index.operand)
    return isinstance(index, (ast.Constant, ast.Slice))


def statement_lists(body: Sequence[ast.stmt]) -> Iterator[Sequence[ast.stmt]]:
    """A body and every body inside it, but for definitions and blocks of other passes."""
    yield body
    for statement in body:
        if isinstance(statement, _DEFINITIONS) or is_pass(statement):
            continue
        for name in ("body", "orelse", "finalbody"):
            if inner := getattr(statement, name, None):
                yield from statement_lists(inner)
        for handler in getattr(statement, "handlers", ()):
            yield from statement_lists(handler.body)


def is_pass(statement: ast.stmt) -> bool:
    """Whether a statement is a `with` that begins another pass."""
    return isinstance(statement, ast.With) and any(_entered(it) in KINDS for it in statement.items)


def goes_over_steps(node: ast.expr, block: Block) -> bool:
    """Whether an expression is `tracer.iter[…]`, `tracer.all()` or the model's own."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute) and node.value.attr == "iter"
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    return is_call and node.func.attr in ("all", "stream") and not node.args  # type: ignore[attr-defined]


def _entered(item: ast.withitem) -> str:
    call = item.context_expr
    func = call.func if isinstance(call, ast.Call) else None
    return func.attr if isinstance(func, ast.Attribute) else ""


class _Walk:
    """Walks through bodies and notes what they do."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.found: list[list[Event]] = []
        self.events: list[Event] = []
        self.body: Sequence[ast.stmt] = ()
        self.statement: ast.stmt = ast.Pass()

    def through(self, body: Sequence[ast.stmt], before: list[Event]) -> list[Event]:
        """The events of a body, after those before it."""
        outside = self.events, self.body, self.statement
        self.events, self.body = before, body
        for statement in body:
            self.statement = statement
            self._take(statement)
        events = self.events
        self.events, self.body, self.statement = outside
        return events

    def _take(self, statement: ast.stmt) -> None:
        if isinstance(statement, _DEFINITIONS):
            return
        if isinstance(statement, ast.With):
            self._with(statement)
        elif isinstance(statement, (ast.For, ast.AsyncFor)):
            self._loop(statement)
        elif inner := [it for it in _bodies(statement) if it]:
            if isinstance(statement, (ast.If, ast.While)):
                self._see(statement.test)
            for body in inner:
                self.found.append(self.through(body, list(self.events)))
        else:
            self._simple(statement)

    def _with(self, statement: ast.With) -> None:
        entered = [_entered(it) for it in statement.items]
        if any(it in KINDS or it == "backward" for it in entered):
            return
        steps = any(goes_over_steps(it.context_expr, self.block) for it in statement.items)
        if "invoke" in entered or steps:
            self.found.append(self.through(statement.body, []))
            self._note("step", statement)
            return
        for item in statement.items:
            self._see(item.context_expr)
        self.events = self.through(statement.body, self.events)

    def _loop(self, statement: ast.For | ast.AsyncFor) -> None:
        if goes_over_steps(statement.iter, self.block):
            self.found.append(self.through(statement.body, []))
            self._note("step", statement)
            return
        self._see(statement.iter)
        self.found.append(self.through(statement.body, list(self.events)))

    def _simple(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign):
            self._see(statement.value)
            for target in statement.targets:
                self._write(target, statement.value)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._see(statement.value)
            self._write(statement.target, statement.value)
        elif isinstance(statement, ast.AugAssign):
            self._read_target(statement.target)
            self._see(statement.value)
            self._write(statement.target, None, again=True)
        else:
            self._see(statement)

    def _read_target(self, target: ast.expr) -> None:
        site = self.block.site(target)
        if site is not None:
            self._note("ask", target, site=site, module=site.module)

    def _write(self, target: ast.expr, value: ast.expr | None, again: bool = False) -> None:
        site = self.block.site(target)
        if site is not None:
            self._note("ask", target, site=site, module=site.module)
        elif isinstance(target, ast.Name) and again:
            self._note("write", target, name=target.id)
        elif isinstance(target, ast.Name):
            given = None if value is None else held(self.block, value)
            self._note("bind", target, name=target.id, held=given)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self._write(part, None)
        elif isinstance(target, ast.Subscript):
            self._see(target.value)
            self._see(target.slice)
            inside: ast.expr = target
            while isinstance(inside, ast.Subscript) and is_basic_or_last(inside, target):
                inside = inside.value
            if isinstance(inside, ast.Name):
                self._note("write", target, name=inside.id)
        elif isinstance(target, ast.Attribute):
            self._see(target.value)

    def _see(self, node: ast.AST) -> None:
        """The events of an expression, in the order Python evaluates it."""
        if isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, ast.IfExp):
            self._see(node.test)
        elif isinstance(node, ast.BoolOp):
            self._see(node.values[0])
        elif not isinstance(node, _LATER):
            for child in ast.iter_child_nodes(node):
                self._see(child)
            if isinstance(node, ast.Attribute) and (site := self.block.site(node)) is not None:
                self._note("ask", node, site=site, module=site.module)

    def _call(self, node: ast.Call) -> None:
        func = node.func
        method = func.attr if isinstance(func, ast.Attribute) else ""
        self._see(func)
        for part in (*node.args, *(it.value for it in node.keywords)):
            self._see(part)
        given = [it.id for it in node.args if isinstance(it, ast.Name)]
        if method == "next" or (self.block.tracer and self.block.tracer in given):
            self._note("step", node)
        elif method == "skip" and isinstance(func, ast.Attribute):
            self._note("skip", node, module=self.block.module(func.value))
        elif method.endswith("_") and not method.endswith("__") and method not in _NO_DATA:
            inside = func.value if isinstance(func, ast.Attribute) else func
            while isinstance(inside, ast.Subscript) and is_basic(inside.slice):
                inside = inside.value
            if isinstance(inside, ast.Name):
                self._note("write", node, name=inside.id)

    def _note(
        self,
        act: str,
        node: ast.AST,
        site: Site | None = None,
        module: WrappedModule | None = None,
        name: str = "",
        held: Held | None = None,
    ) -> None:
        event = Event(act, self.statement, self.body, node, site, module, name, held)
        self.events.append(event)


def is_basic_or_last(part: ast.Subscript, target: ast.Subscript) -> bool:
    """Whether a write through this index reaches the tensor before it."""
    return part is target or is_basic(part.slice)


def _bodies(statement: ast.stmt) -> list[list[ast.stmt]]:
    inner = [getattr(statement, name, None) or [] for name in ("body", "orelse", "finalbody")]
    inner += [it.body for it in getattr(statement, "handlers", ())]
    return inner + [it.body for it in getattr(statement, "cases", ())]
