"""All rules over a cell: what is found, in the order of its lines.

cell = "%%trace model 'Hello'\\nh = model.h[0].output\\nh = h * 2\\nout = model.output"
for finding in findings(cell, ip.user_ns):
    print(finding.what)

Pure: the cell is parsed, names are looked up, nothing runs. A repair is offered only if the cell
reads better with it: it parses, and has fewer findings.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from insitu.notebook.lint import containers, gradients, order, outputs, padding, rebinding, settings
from insitu.notebook.lint.blocks import Block, blocks
from insitu.notebook.lint.finding import Finding, fixed
from insitu.notebook.lint.text import parsed

RULES: tuple[Callable[[Block], Iterator[Finding]], ...] = (
    order.out_of_order,
    order.late_writes,
    rebinding.rebound,
    rebinding.copied,
    rebinding.lost,
    settings.generation_settings,
    settings.fixed_step,
    gradients.outside_backward,
    containers.saved_elements,
    outputs.of_tuple,
    outputs.first_prompt,
    padding.averaged,
)
FINDINGS_MAX = 12
LONGEST = 20_000
"""A cell of more characters is data rather than code."""


def findings(text: str, names: Mapping[str, Any]) -> list[Finding]:
    """What the linter says of a cell.

    Args:
        text: the cell as it is written, its `%%trace` line too.
        names: the notebook's variables.
    """
    found = _found(text, names)
    return [_checked(text, names, it, len(found)) for it in found[:FINDINGS_MAX]]


def _found(text: str, names: Mapping[str, Any]) -> list[Finding]:
    cell = parsed(text) if len(text) <= LONGEST else None
    if cell is None:
        return []
    every = [it for block in blocks(cell, names) for rule in RULES for it in rule(block)]
    unique = {(it.rule, it.line, it.column): it for it in every}
    return sorted(unique.values(), key=lambda it: (it.line, it.column))


def _checked(text: str, names: Mapping[str, Any], finding: Finding, count: int) -> Finding:
    """A finding with its repair, if that is one."""
    if not finding.changes:
        return finding
    better = fixed(text, finding)
    if parsed(better) is None or len(_found(better, names)) >= count:
        return replace(finding, changes=())
    return replace(finding, replacement=_lines_changed(text, better))


def _lines_changed(text: str, better: str) -> str:
    """The lines that are there only after a repair, or stand elsewhere."""
    before, after = text.splitlines(), better.splitlines()
    first = next(
        (n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(before)
    )
    last = next(
        (n for n, (a, b) in enumerate(zip(before[::-1], after[::-1], strict=False)) if a != b), 0
    )
    return "\n".join(after[first : max(len(after) - last, first + 1)])
