"""Gradients asked for where there are none: `.grad` outside a backward.

outside_backward(block)
"""

import ast
from collections.abc import Iterator, Sequence

from insitu.notebook.lint.blocks import Block
from insitu.notebook.lint.finding import Change, Finding
from insitu.notebook.lint.flow import held, statement_lists


def outside_backward(block: Block) -> Iterator[Finding]:
    """`h.grad`, of a site's value, with no backward around it and none called before it."""
    of_sites = _names_of_sites(block)
    backwards = [it for body in statement_lists(block.body) for it in body if _is_backward(it)]
    inside = [(block.cell.start(it), block.cell.end(it)) for it in backwards]
    called = [block.cell.start(it) for it in _calls(block) if not _in(block.cell.start(it), inside)]
    for node in (it for part in block.body for it in ast.walk(part)):
        if not (isinstance(node, ast.Attribute) and node.attr == "grad"):
            continue
        at = block.cell.start(node)
        is_site = block.site(node.value) is not None or (
            isinstance(node.value, ast.Name) and node.value.id in of_sites
        )
        if is_site and not _in(at, inside) and not any(it < at for it in called):
            yield _finding(block, node, backwards)


def _names_of_sites(block: Block) -> set[str]:
    found: set[str] = set()
    for node in (it for part in block.body for it in ast.walk(part)):
        if isinstance(node, ast.Assign) and held(block, node.value) is not None:
            found.update(it.id for it in node.targets if isinstance(it, ast.Name))
    return found


def _is_backward(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.With):
        return False
    calls = (it.context_expr for it in statement.items)
    return any(isinstance(it, ast.Call) and _name(it) == "backward" for it in calls)


def _calls(block: Block) -> list[ast.Call]:
    """Calls that compute gradients, or may do so: `loss.backward()`, `torch.autograd.grad(…)`."""
    nodes = (it for part in block.body for it in ast.walk(part))
    return [it for it in nodes if isinstance(it, ast.Call) and _name(it) in ("backward", "grad")]


def _name(call: ast.Call) -> str:
    func = call.func
    if isinstance(func, ast.Attribute):
        return func.attr
    return func.id if isinstance(func, ast.Name) else ""


def _in(at: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(start <= at < end for start, end in spans)


def _finding(block: Block, node: ast.Attribute, backwards: Sequence[ast.stmt]) -> Finding:
    cell = block.cell
    return Finding(
        "grad-outside-backward",
        node.lineno,
        cell.column(node),
        f"{cell.said(node)} is asked for outside a backward, where there is no gradient.",
        "gradients are there while a backward runs, and come in the order it makes them.",
        f"write with loss.backward(): …  and read {cell.said(node)} inside it.",
        _changes(block, node, backwards),
    )


def _changes(
    block: Block, node: ast.Attribute, backwards: Sequence[ast.stmt]
) -> tuple[Change, ...]:
    """Into the backward that is there, or into one of `loss`, where the line stands alone."""
    cell = block.cell
    place = _line_of(block, node)
    if place is None:
        return ()
    body, statement = place
    first = cell.lines_from(statement.lineno)
    last = cell.lines_from(statement.lineno + 1)
    line = cell.text[first:last]
    indent = line[: len(line) - len(line.lstrip())]
    whole = line.rstrip("\n") + "\n"
    beside = [it for it in backwards if any(it is part for part in body)]
    if len(beside) == 1 and isinstance(beside[0], ast.With):
        end = cell.lines_from((beside[0].end_lineno or 0) + 1)
        start = "" if cell.text[:end].endswith("\n") else "\n"
        moved = f"{start}{' ' * beside[0].body[0].col_offset}{whole.lstrip()}"
        return Change(end, end, moved), Change(first, last, "")
    has_loss = any(
        isinstance(it, ast.Name) and it.id == "loss" and isinstance(it.ctx, ast.Store)
        for part in block.body
        if part.lineno < statement.lineno
        for it in ast.walk(part)
    )
    if beside or not has_loss:
        return ()
    return (Change(first, last, f"{indent}with loss.backward():\n    {indent}{whole.lstrip()}"),)


def _line_of(block: Block, node: ast.AST) -> tuple[Sequence[ast.stmt], ast.stmt] | None:
    """The statement of one line that a node is in, and the body it stands in."""
    for body in statement_lists(block.body):
        for statement in body:
            is_line = statement.lineno == statement.end_lineno and not hasattr(statement, "body")
            if is_line and any(it is node for it in ast.walk(statement)):
                return body, statement
    return None
