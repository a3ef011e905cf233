"""Writes that do not fit what a module returns: a tuple where a tensor is meant, and the reverse.

of_tuple(block), first_prompt(block)
"""

import ast
from collections.abc import Iterator

from insitu.notebook.lint.blocks import Block, Site
from insitu.notebook.lint.finding import Change, Finding


def of_tuple(block: Block) -> Iterator[Finding]:
    """`attn.output[:] = 0` and `attn.output *= 2`, where the output is a tuple."""
    for node in (it for part in block.body for it in ast.walk(part)):
        if isinstance(node, ast.AugAssign) and (site := _tuple(block, node.target)):
            end = block.cell.end(node.target)
            yield _of_tuple(block, node.target, site, (Change(end, end, "[0][:]"),), "[0][:]")
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            yield from _part(block, node)


def _part(block: Block, node: ast.Subscript) -> Iterator[Finding]:
    """A part of a tuple that is assigned: `attn.output[0] = x`, or an index meant for a tensor."""
    site = _tuple(block, node.value)
    if site is not None and _is_number(node.slice):
        end = block.cell.end(node)
        said = f"[{block.cell.said(node.slice)}][:]"
        yield _of_tuple(block, node, site, (Change(end, end, "[:]"),), said)
    elif site is not None:
        end = block.cell.end(node.value)
        yield _of_tuple(block, node, site, (Change(end, end, "[0]"),), "[0][…]")


def _tuple(block: Block, node: ast.expr) -> Site | None:
    """The site that a node is, where its output is known to be a tuple."""
    site = block.site(node)
    if site is None or site.side != "output":
        return None
    return site if block.output_of(site.module).startswith("(") else None


def _is_number(index: ast.expr) -> bool:
    inner = index.operand if isinstance(index, ast.UnaryOp) else index
    return isinstance(inner, ast.Constant) and isinstance(inner.value, int)


def _of_tuple(
    block: Block, node: ast.AST, site: Site, changes: tuple[Change, ...], index: str
) -> Finding:
    return Finding(
        "tuple-output",
        node.lineno,  # type: ignore[attr-defined]
        block.cell.column(node),
        f"{site.path}.output is a tuple, and its parts cannot be assigned.",
        f"the last run has shown {block.output_of(site.module)}.",
        f"write into the tensor inside it: {site.path}.output{index} = …",
        changes,
    )


def first_prompt(block: Block) -> Iterator[Finding]:
    """`block.output[0][:] = 0` where the output is a tensor and there are several prompts."""
    if len(block.prompts) < 2:
        return
    for node in (it for part in block.body for it in ast.walk(part)):
        if not (isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)):
            continue
        row = node.value
        if not (isinstance(row, ast.Subscript) and _is_zero(row.slice)):
            continue
        site = block.site(row.value)
        output = block.output_of(site.module) if site is not None else ""
        if site is not None and site.side == "output" and output and output[0] not in "([":
            yield Finding(
                "first-prompt-only",
                node.lineno,
                block.cell.column(node),
                f"{site.path}.output[0] is the first of {len(block.prompts)} prompts, "
                "and only it is written.",
                f"the output is no tuple: the last run has shown {output}.",
                f"leave [0] out for all prompts, or write {site.path}.output[0, …].",
                (Change(block.cell.end(row.value), block.cell.end(row), ""),),
            )


def _is_zero(index: ast.expr) -> bool:
    return isinstance(index, ast.Constant) and index.value == 0 and index.value is not False
