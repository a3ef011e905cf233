"""Edits that do not reach the model: a name given another value, a copy changed, a part lost.

    h = model.transformer.h[2].output
    h = h * 2                                   # another tensor of the same name

rebound(block), copied(block), lost(block)
"""

import ast
from collections.abc import Iterator, Sequence

from insitu.notebook.lint.blocks import Block
from insitu.notebook.lint.finding import Change, Finding
from insitu.notebook.lint.flow import Event, Held, flows, held, is_basic, statement_lists

_FILLS = ("zeros_like", "ones_like", "randn_like", "rand_like", "full_like")


def rebound(block: Block) -> Iterator[Finding]:
    """A name that held a site's value and is given another, which nothing reads."""
    for body in statement_lists(block.body):
        for number, statement in enumerate(body):
            name = _single(statement)
            if name is None:
                continue
            site = _bound_before(block, body[:number], name)
            if site is None or block.cell.is_read_after(name, statement):
                continue
            if _is_meant_as_edit(block, statement, name):
                yield _rebound(block, statement, name, site)


def _single(statement: ast.stmt) -> str | None:
    """The one name that a statement assigns."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        return target.id if isinstance(target, ast.Name) else None
    return None


def _bound_before(block: Block, before: Sequence[ast.stmt], name: str) -> Held | None:
    """What the latest assignment of a name gave it, if that is a site's value and no copy."""
    for statement in reversed(before):
        if _single(statement) == name and isinstance(statement, ast.Assign):
            found = held(block, statement.value)
            return None if found is None or found.copy or found.site.side == "inputs" else found
        if any(isinstance(it, ast.Name) and it.id == name for it in ast.walk(statement)):
            return None  # used, or changed in place, in between
    return None


def _is_meant_as_edit(block: Block, statement: ast.stmt, name: str) -> bool:
    assert isinstance(statement, ast.Assign)
    value = statement.value
    if isinstance(value, ast.UnaryOp):
        value = value.operand
    if isinstance(value, ast.Constant):
        return isinstance(value.value, (int, float)) and not isinstance(value.value, bool)
    if isinstance(value, ast.Call):
        func = value.func
        is_fill = isinstance(func, ast.Attribute) and func.attr in _FILLS
        return is_fill and _mentions(value, name) == 1 and _asks_later(block, statement)
    if not _is_arithmetic(value, name):
        return False
    return block.kind == "edit" or _asks_later(block, statement)  # else it is a computation


def _is_arithmetic(value: ast.expr, name: str) -> bool:
    """Whether it is the name itself with something added or multiplied that is none of it."""
    if isinstance(value, ast.Name):
        return value.id == name
    if not isinstance(value, ast.BinOp):
        return False
    sides = [side for side in (value.left, value.right) if _mentions(side, name)]
    return len(sides) == 1 and _is_arithmetic(sides[0], name)


def _mentions(node: ast.AST, name: str) -> int:
    return sum(isinstance(it, ast.Name) and it.id == name for it in ast.walk(node))


def _asks_later(block: Block, statement: ast.stmt) -> bool:
    """Whether a site is asked for further down: what is read there was to be changed."""
    end = block.cell.end(statement)
    nodes = (it for part in block.body for it in ast.walk(part))
    return any(block.site(it) is not None and block.cell.start(it) >= end for it in nodes)


def _rebound(block: Block, statement: ast.stmt, name: str, given: Held) -> Finding:
    cell = block.cell
    said, place = cell.said(statement), cell.start(statement) + len(name)
    change = (Change(place, place, "[:]"),) if said.startswith(name) else ()
    return Finding(
        "rebound-site",
        statement.lineno,
        cell.column(statement),
        f"{said} gives the name {name} another value; the model goes on unchanged.",
        f"{name} was {given.site.path}.{given.site.side}; an assignment to a name never reaches "
        "the model, and nothing reads the new value.",
        f"write into it: {name}[:]{said[len(name) :]}",
        change,
    )


def copied(block: Block) -> Iterator[Finding]:
    """A clone of a site's value that is changed and then forgotten."""
    told: set[str] = set()
    for events in () if block.kind == "scan" else flows(block):
        binds = [it for it in events if it.act == "bind" and it.held and it.held.copy]
        for bind in binds:
            writes = [it for it in events if it.act == "write" and it.name == bind.name]
            if not writes or bind.name in told or block.cell.stored[bind.name] > 1:
                continue
            if not _is_read_elsewhere(block, bind, writes):
                told.add(bind.name)
                yield _copied(block, bind, writes[0])


def _is_read_elsewhere(block: Block, bind: Event, writes: list[Event]) -> bool:
    cell = block.cell
    spans = [(cell.start(it.statement), cell.end(it.statement)) for it in writes]
    reads = [cell.start(it) for it in cell.loaded if it.id == bind.name]
    return any(not any(a <= at < b for a, b in spans) for at in reads)


def _copied(block: Block, bind: Event, write: Event) -> Finding:
    cell, held = block.cell, bind.held
    assert held is not None
    assert held.copy is not None
    assert isinstance(held.copy.func, ast.Attribute)
    place = f"{held.site.path}.{held.site.side}"
    change = Change(cell.end(held.copy.func.value), cell.end(held.copy), "")
    return Finding(
        "edited-copy",
        write.statement.lineno,
        cell.column(write.statement),
        f"{bind.name} is a copy of {place}; changing it changes nothing in the model.",
        f"clone() on line {bind.statement.lineno} made another tensor, and nothing reads it.",
        f"leave .clone() out, or write it back: {place} = {bind.name}.",
        (change,),
    )


def lost(block: Block) -> Iterator[Finding]:
    """Writes into a copy without a name: `x.output[[0]][:, 0] = 0`, `x.output.clone()[0] = 0`."""
    for node in (it for part in block.body for it in ast.walk(part)):
        if not (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)):
            continue
        inner = node.value
        while isinstance(inner, ast.Subscript) and is_basic(inner.slice):
            inner = inner.value
        copy = _copy_of_site(block, inner)
        if copy:
            yield Finding(
                "edited-copy",
                node.lineno,
                block.cell.column(node),
                f"{block.cell.said(node)} is part of a copy; writing there changes nothing.",
                f"{copy} makes another tensor, which is dropped at once.",
                "write with a single index, or to the site itself.",
                _without_clone(block, inner),
            )


def _copy_of_site(block: Block, node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        is_copy = isinstance(node.slice, (ast.List, ast.Compare))
        return (
            f"the index [{block.cell.said(node.slice)}]"
            if is_copy and held(block, node.value)
            else ""
        )
    is_clone = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    if is_clone and node.func.attr == "clone" and held(block, node) is not None:  # type: ignore[attr-defined]
        return "clone()"
    return ""


def _without_clone(block: Block, node: ast.expr) -> tuple[Change, ...]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return (Change(block.cell.end(node.func.value), block.cell.end(node), ""),)
    return ()
