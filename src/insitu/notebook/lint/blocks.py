"""The blocks of a cell: bodies that run inside a pass, and what is known of their models.

for block in blocks(cell, ip.user_ns):
    block.kind, block.node, block.body      # "trace", the wrapped model, statements

Looks names up among the notebook's variables; nothing is called, and no property is read.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from insitu.engine.order import Order
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError
from insitu.models.language import LanguageModel
from insitu.notebook import request
from insitu.notebook.lint.text import Cell
from insitu.notebook.spoken import PATH, resolve

KINDS = ("trace", "generate", "edit", "scan")
SIDES = ("output", "input", "inputs")
_PATH = re.compile(PATH)


@dataclass(frozen=True)
class Site:
    """A place in a model as a cell names it: `model.transformer.h[2].output`."""

    node: ast.Attribute
    path: str
    """As it is written, without the side."""
    side: str
    module: WrappedModule | None
    """None where the path cannot be told from the text, as in `h[i]`."""

    def is_other(self, other: "Site") -> bool:
        """Whether the two are known to be different places."""
        return (self.path, self.side) != (other.path, other.side)


@dataclass(frozen=True)
class Block:
    """A body, the model it is inside of, and the call that begins it."""

    cell: Cell
    kind: str
    model: str
    """As it is written."""
    root: WrappedModule | None
    body: Sequence[ast.stmt]
    tracer: str
    call: ast.Call | None = None
    """None for the body of a `%%trace` cell."""
    prompts: tuple[int, ...] = ()
    """How many tokens each of several prompts has; empty where that is not known."""
    invokes: bool = False
    names: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def order(self) -> Order | None:
        """The order of the model's modules, as a pass of this kind has shown it."""
        kind = "generate" if self.kind == "generate" else "trace"
        found = self.root._root._orders.get(kind) if self.root is not None else None
        return found if found is not None and found.complete else None

    def output_of(self, module: WrappedModule | None) -> str:
        """The kind of what a module returned when it was seen: `float32[1, 8, 96]`."""
        if module is None:
            return ""
        for order in module._root._orders.values():
            if (seen := order.called.get(module._module)) is not None and seen.output:
                return str(seen.output)
        return ""

    def module(self, path: ast.expr) -> WrappedModule | None:
        """The module that an expression such as `model.transformer.h[2]` names."""
        root = _root_name(path)
        if root is None or (root in self.cell.stored and root not in self._aliases):
            return None
        text = ast.unparse(path)
        if root in self._aliases:
            text = self._aliases[root] + text.removeprefix(root)
        return _resolved(text, self.names)

    def site(self, node: ast.AST) -> Site | None:
        """The site that an expression is; None where it is none, or of something else."""
        if not (isinstance(node, ast.Attribute) and node.attr in SIDES):
            return None
        root = _root_name(node.value)
        if root is None:
            return None
        module = self.module(node.value)
        if module is None and root != self.model.partition(".")[0].partition("[")[0]:
            return None
        return Site(node, ast.unparse(node.value), node.attr, module)

    @cached_property
    def _aliases(self) -> dict[str, str]:
        """Names given once in the cell to a module: `block = model.transformer.h[3]`."""
        found: dict[str, str] = {}
        for node in ast.walk(self.cell.tree):
            if not (isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)):
                continue
            name, root = node.targets[0].id, _root_name(node.value)
            if self.cell.stored.get(name) != 1 or root is None or root in self.cell.stored:
                continue
            text = ast.unparse(node.value)
            if _resolved(text, self.names) is not None:
                found[name] = text
        return found


def blocks(cell: Cell, names: Mapping[str, Any]) -> Iterator[Block]:
    """Every block of a cell, in its order; of a `%%trace` cell its body is the only one."""
    if cell.line is not None:
        if (found := _of_magic(cell, names)) is not None:
            yield found
        return
    for node in ast.walk(cell.tree):
        if isinstance(node, ast.With):
            for item in node.items:
                if (block := _of_with(cell, node, item, names)) is not None:
                    yield block


def _of_magic(cell: Cell, names: Mapping[str, Any]) -> Block | None:
    try:
        asked = request.parse(cell.line or "")
    except UsageError:
        return None
    root = _resolved(asked.model, names)
    kind = "edit" if asked.edit and not asked.prompt else "scan" if asked.scan else "trace"
    return Block(
        cell,
        "generate" if asked.generate else kind,
        asked.model,
        root,
        cell.tree.body,
        "tracer",
        prompts=lengths(root, _strings(_parsed(asked.prompt), names)),
        invokes=_has_invokes(cell.tree.body),
        names=names,
    )


def _of_with(
    cell: Cell, node: ast.With, item: ast.withitem, names: Mapping[str, Any]
) -> Block | None:
    call = item.context_expr
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
        return None
    kind, model = call.func.attr, call.func.value
    if kind not in KINDS or _root_name(model) is None:
        return None
    written = ast.unparse(model)
    is_ours = _root_name(model) not in cell.stored
    root = _resolved(written, names) if is_ours else None
    given = call.args[0] if call.args else None
    known = {k: v for k, v in names.items() if k not in cell.stored}
    tracer = item.optional_vars
    return Block(
        cell,
        kind,
        written,
        root,
        node.body,
        tracer.id if isinstance(tracer, ast.Name) else "",
        call,
        lengths(root, _strings(given, known)),
        _has_invokes(node.body),
        names,
    )


def _parsed(text: str) -> ast.expr | None:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        return None


def _has_invokes(body: Sequence[ast.stmt]) -> bool:
    calls = (it for statement in body for it in ast.walk(statement) if isinstance(it, ast.Call))
    return any(isinstance(it.func, ast.Attribute) and it.func.attr == "invoke" for it in calls)


def _strings(given: ast.expr | None, names: Mapping[str, Any]) -> list[str]:
    """The prompts that an expression stands for, where it is plain: a list, or a name of one."""
    if isinstance(given, ast.Name):
        value = names.get(given.id)
    else:
        try:
            value = ast.literal_eval(given) if given is not None else None
        except (ValueError, TypeError, SyntaxError):
            return []
    value = [value] if isinstance(value, str) else value
    if not (isinstance(value, (list, tuple)) and 0 < len(value) <= 64):
        return []
    return list(value) if all(isinstance(it, str) and len(it) < 20_000 for it in value) else []


def lengths(root: WrappedModule | None, prompts: list[str]) -> tuple[int, ...]:
    """How many tokens each prompt has."""
    tokenizer = root.tokenizer if isinstance(root, LanguageModel) else None
    if tokenizer is None or not prompts:
        return (0,) * len(prompts)
    return tuple(len(tokenizer(text)["input_ids"]) for text in prompts)


def _root_name(node: ast.expr) -> str | None:
    """The variable at the beginning of `a.b[0].c`; None where something else is there."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _resolved(text: str, names: Mapping[str, Any]) -> WrappedModule | None:
    """The module that a path written in code names."""
    found = _PATH.fullmatch(text)
    return None if found is None else resolve(found[1], found[2], names)
