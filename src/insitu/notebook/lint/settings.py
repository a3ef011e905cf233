"""Words and loops of a generation where they have no say.

generation_settings(block), fixed_step(block)
"""

import ast
from collections.abc import Iterator, Sequence

from insitu.models.language import LanguageModel
from insitu.notebook.lint.blocks import Block
from insitu.notebook.lint.finding import Change, Finding
from insitu.notebook.lint.flow import goes_over_steps, statement_lists

SETTINGS = frozenset({
    "max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_k", "top_p", "min_p",
    "num_beams", "num_return_sequences", "repetition_penalty", "no_repeat_ngram_size",
    "penalty_alpha", "early_stopping", "num_beam_groups",
})  # fmt: skip
"""What `generate` takes and a single forward has no use for."""


def generation_settings(block: Block) -> Iterator[Finding]:
    """`model.trace(prompt, max_new_tokens=3)`, of a language model."""
    if block.call is None or block.kind != "trace" or not isinstance(block.root, LanguageModel):
        return
    given = [it for it in block.call.keywords if it.arg in SETTINGS]
    if not given:
        return
    names = ", ".join(str(it.arg) for it in given)
    func = block.call.func
    assert isinstance(func, ast.Attribute)
    end = block.cell.end(func)
    yield Finding(
        "generation-settings",
        given[0].value.lineno,
        block.cell.column(block.call),
        f"{names} has no meaning for {block.model}.trace(), which runs one forward.",
        "it is a setting of generate(), where the block is run inside every step.",
        f"write with {block.model}.generate(…), or leave {names} out.",
        (Change(end - len(func.attr), end, "generate"),),
    )


def fixed_step(block: Block) -> Iterator[Finding]:
    """A loop that counts and reads the same step again and again."""
    if block.kind != "generate":
        return
    for body in statement_lists(block.body):
        for statement in body:
            if isinstance(statement, ast.For) and isinstance(statement.target, ast.Name):
                yield from _counted(block, statement, statement.target.id)


def _counted(block: Block, loop: ast.For, name: str) -> Iterator[Finding]:
    call = loop.iter
    is_range = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    if not is_range or call.func.id != "range" or not call.args:  # type: ignore[attr-defined]
        return
    assert isinstance(call, ast.Call)
    fixed = [it for it in _steps(block, loop.body) if not _mentions(it, name)]
    if fixed:
        index = block.cell.said(fixed[0].slice)
        yield _same_step(block, loop, f"step {index}", name, (block.cell.instead(
            fixed[0].slice, name),))  # fmt: skip
        return
    if _goes_on(block, loop.body) or _mentions_any(loop.body, name):
        return
    sites = [it for part in loop.body for it in ast.walk(part) if block.site(it) is not None]
    if sites and _is_outermost(block, loop) and block.tracer:
        bounds = ":".join(block.cell.said(it) for it in call.args[:2])
        bounds = bounds if len(call.args) > 1 else f":{bounds}"
        over = f"{block.tracer}.iter[{bounds}]"
        yield _same_step(block, loop, "one and the same step", name, (
            (block.cell.instead(call, over),) if len(call.args) < 3 else ()))  # fmt: skip


def _steps(block: Block, body: Sequence[ast.stmt]) -> list[ast.Subscript]:
    """`tracer.iter[2]` of a single step, in these statements."""
    found = [it for part in body for it in ast.walk(part) if isinstance(it, ast.Subscript)]
    return [it for it in found if goes_over_steps(it, block) and isinstance(it.slice, ast.Constant)]


def _goes_on(block: Block, body: Sequence[ast.stmt]) -> bool:
    """Whether something in a body goes to another step, or may do so."""
    for node in (it for part in body for it in ast.walk(part)):
        if isinstance(node, ast.Attribute) and node.attr in ("next", "iter", "all"):
            return True
        if isinstance(node, ast.Call) and any(
            isinstance(it, ast.Name) and it.id == block.tracer for it in node.args
        ):
            return True
    return False


def _is_outermost(block: Block, loop: ast.For) -> bool:
    """Whether a loop stands in the block itself, and not inside steps or an invoke."""
    return any(it is loop for it in block.body)


def _mentions(node: ast.AST, name: str) -> bool:
    return any(isinstance(it, ast.Name) and it.id == name for it in ast.walk(node))


def _mentions_any(body: Sequence[ast.stmt], name: str) -> bool:
    """Whether a loop's variable is used as an index of the model, or at all."""
    return any(_mentions(it, name) for it in body)


def _same_step(
    block: Block, loop: ast.For, which: str, name: str, changes: tuple[Change, ...]
) -> Finding:
    counted = block.cell.said(loop.iter)
    return Finding(
        "fixed-step",
        loop.lineno,
        block.cell.column(loop),
        f"for {name} in {counted} reads {which} each time.",
        "a loop of Python's does not lead the model from step to step.",
        f"write for {name} in {block.tracer or 'tracer'}.iter[…]: …",
        changes,
    )
