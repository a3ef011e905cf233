"""Means over positions that take padding in: prompts of unequal length in one batch.

averaged(block)
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from insitu.models.language import LanguageModel
from insitu.notebook.lint.blocks import Block, _strings, lengths
from insitu.notebook.lint.finding import Change, Finding
from insitu.notebook.lint.flow import held

_POSITIONS = (1, -2)


def averaged(block: Block) -> Iterator[Finding]:
    """`model.transformer.h[2].output.mean(1)` of prompts that differ in length."""
    if not isinstance(block.root, LanguageModel) or block.kind not in ("trace", "edit"):
        return
    if len(set(block.prompts)) > 1:
        yield from _in(block, block.body, block.prompts)
    invokes = [it for part in block.body for it in ast.walk(part) if _prompt(it) is not None]
    each = [lengths(block.root, _strings(_prompt(it), _known(block))) for it in invokes]
    counts = tuple(count for several in each for count in several)
    if len(set(counts)) > 1:
        for invoke, own in zip(invokes, each, strict=True):
            if own and min(own) < max(counts):
                assert isinstance(invoke, ast.With)
                yield from _in(block, invoke.body, counts)


def _known(block: Block) -> Mapping[str, Any]:
    return {name: it for name, it in block.names.items() if name not in block.cell.stored}


def _prompt(node: ast.AST) -> ast.expr | None:
    """The prompt of a `with tracer.invoke("…"):`."""
    if not isinstance(node, ast.With):
        return None
    call = node.items[0].context_expr
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
        return None
    return call.args[0] if call.func.attr == "invoke" and call.args else None


def _in(block: Block, body: list[ast.stmt] | Any, counts: tuple[int, ...]) -> Iterator[Finding]:
    of_sites = {
        target.id: it.value
        for part in body
        for it in ast.walk(part)
        if isinstance(it, ast.Assign) and held(block, it.value) is not None
        for target in it.targets
        if isinstance(target, ast.Name)
    }
    for node in (it for part in body for it in ast.walk(part)):
        if isinstance(node, ast.Call) and (given := _mean(node)) is not None:
            value = of_sites.get(given.id, given) if isinstance(given, ast.Name) else given
            found = held(block, value)
            if found is not None and _dims(block, found.site.module, value) == 3:
                yield _finding(block, body, node, given, counts)


def _mean(call: ast.Call) -> ast.expr | None:
    """What a call averages over positions: of `x.mean(1)`, `x.mean(dim=1)`, `torch.mean(x, 1)`."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "mean"):
        return None
    is_torch = isinstance(call.func.value, ast.Name) and call.func.value.id == "torch"
    args = call.args[1:] if is_torch else call.args
    dims = [*args[:1], *(it.value for it in call.keywords if it.arg in ("dim", "axis"))]
    if len(dims) != 1 or (is_torch and not call.args):
        return None
    try:
        dim = ast.literal_eval(dims[0])
    except ValueError:
        return None
    is_over_positions = dim in _POSITIONS if isinstance(dim, int) else False
    if not is_over_positions:
        return None
    return call.args[0] if is_torch else call.func.value


def _dims(block: Block, module: Any, value: ast.expr) -> int:
    """How many dimensions a site's value has; 0 where that is not known, or where it is indexed."""
    output = block.output_of(module)
    if isinstance(value, ast.Subscript):
        is_first = isinstance(value.slice, ast.Constant) and value.slice.value == 0
        if not (output.startswith("(") and is_first):
            return 0
    shape = output.lstrip("(").partition("[")[2].partition("]")[0]
    return len(shape.split(",")) if shape else 0


def _finding(
    block: Block, body: list[ast.stmt], node: ast.Call, given: ast.expr, counts: tuple[int, ...]
) -> Finding:
    cell = block.cell
    said = cell.said(given)
    told = ", ".join(map(str, counts[:6])) + (", …" if len(counts) > 6 else "")
    kept = any(it.arg == "keepdim" for it in node.keywords)
    mean = f"(({said} * mask).sum(1) / mask.sum(1))"
    place = cell.lines_from(body[0].lineno)
    line = cell.text[place : cell.start(body[0])]
    first = f'{line}mask = {block.model}.inputs[1]["attention_mask"][..., None]\n'
    can = not kept and not line.strip() and "mask" not in cell.stored
    return Finding(
        "padding-averaged",
        node.lineno,
        cell.column(node),
        f"{cell.said(node)} averages over padding too.",
        f"the prompts have {told} tokens, and the shorter ones are padded to the longest.",
        "weigh positions by the attention mask: (h * mask).sum(1) / mask.sum(1).",
        (Change(place, place, first), cell.instead(node, mean)) if can else (),
    )
