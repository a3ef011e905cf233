"""A model's modules as a collapsible list and as indented text; a pass held open as one line.

    model_html(model), model_text(model)
    model_twins(model)                      # both, text first, for one look at the modules
    run_html(run)

Runs nothing, and reads no value beyond its shape.
"""

from collections.abc import Iterator
from html import escape

from insitu.engine.held import Run
from insitu.engine.values import describe
from insitu.engine.wrapped import WrappedModule
from insitu.twins import style
from insitu.twins.tree import Branch, grow

ROWS_MAX = 600
"""Rows drawn; a larger tree says how many it leaves out."""
OPEN_MAX = 60
"""Rows of a tree that is opened down to what its first repeated block holds."""

_SHEET = """
& details,& li{margin:0}
& summary{cursor:pointer;padding:1px 0}& summary::marker{color:var(--soft)}
& ul ul{border-left:1px solid var(--rule)}
& .leaf{padding-top:1px;padding-bottom:1px}
& .head{margin:0 0 4px}& .head b{font-weight:600}
"""
# Inline, for they hold the tree's form also where the sheet is taken out (see style.py).
_LIST = 'style="list-style-type:none;margin:0 0 0 7px;padding-left:13px"'
_ROOT = 'style="list-style-type:none;margin:0;padding-left:0"'
_LEAF = 'class="leaf" style="padding-left:14px"'


def model_twins(node: WrappedModule) -> tuple[str, str]:
    """The tree as text and as HTML."""
    tree = grow(node)
    return _as_text(node, tree), _as_html(node, tree)


def model_html(node: WrappedModule) -> str:
    """A collapsible tree; the first levels are open, those of a small one to its first block."""
    return _as_html(node, grow(node))


def model_text(node: WrappedModule) -> str:
    """The same tree as indented text."""
    return _as_text(node, grow(node))


def _as_html(node: WrappedModule, tree: Branch) -> str:
    size = f'<span class="soft"> · {_count(tree.parameters)}</span>'
    head = f'<div class="head"><b>{escape(tree.kind)}</b>{size}</div>'
    is_small = sum(1 for _ in zip(_below(tree), range(OPEN_MAX + 1), strict=False)) <= OPEN_MAX
    to_first_block = _to_first_block(tree) if is_small else []
    opened = {id(branch) for branch in to_first_block}
    left = [ROWS_MAX]
    body = "".join(_html(child, 1, left, opened) for child in tree.children)
    if left[0] < 0:
        body += f"<li {_LEAF}>… and {-left[0]:,} rows more: name a module to see it</li>"
    more = escape(node._more_lines().strip())
    told = f'<div class="soft">{more}</div>' if more else ""
    return style.page(_SHEET, (f"{head}<ul {_ROOT}>{body}</ul>" if body else head) + told)


def _html(branch: Branch, depth: int, left: list[int], opened: set[int]) -> str:
    left[0] -= 1
    if left[0] < 0:
        left[0] -= sum(1 for _ in _below(branch))
        return ""
    row = f"<code>{escape(_name(branch))}</code> {escape(_kind(branch))}"
    details = f" · {_count(branch.parameters)}" if branch.parameters else ""
    if branch.output:
        details += f" → {escape(branch.output)}"
    if details:
        row += f'<span class="soft">{details}</span>'
    if not branch.children:
        return f"<li {_LEAF}>{row}</li>"
    inside = "".join(_html(child, depth + 1, left, opened) for child in branch.children)
    is_open = " open" * (depth < 3 or id(branch) in opened)
    return f"<li><details{is_open}><summary>{row}</summary><ul {_LIST}>{inside}</ul></details></li>"


def _to_first_block(branch: Branch) -> list[Branch]:
    """The way from a branch to the first below it that stands for several; empty without one."""
    if branch.count > 1 and branch.children:
        return [branch]
    for child in branch.children:
        if way := _to_first_block(child):
            return [branch, *way]
    return []


def _below(branch: Branch) -> Iterator[Branch]:
    for child in branch.children:
        yield child
        yield from _below(child)


def _as_text(node: WrappedModule, tree: Branch) -> str:
    lines = [f"{tree.kind}  {_count(tree.parameters)}"]
    rows = _text(tree, 1)
    lines.extend(line for line, _ in zip(rows, range(ROWS_MAX), strict=False))
    more = sum(1 for _ in rows)
    return "\n".join([*lines, f"… and {more:,} rows more"] if more else lines) + node._more_lines()


def _text(branch: Branch, depth: int) -> Iterator[str]:
    for child in branch.children:
        parts = [f"{'  ' * depth}{_name(child)}: {_kind(child)}"]
        if child.parameters:
            parts.append(_count(child.parameters))
        if child.output:
            parts.append(f"→ {child.output}")
        yield "  ".join(parts)
        yield from _text(child, depth + 1)


def _name(branch: Branch) -> str:
    return f"({branch.name})" if branch.name[:1].isdigit() else branch.name


def _kind(branch: Branch) -> str:
    return f"{branch.count} × {branch.kind}" if branch.count > 1 else branch.kind


def _count(parameters: int) -> str:
    return f"{parameters:,} parameter{'s' * (parameters != 1)}"


def run_html(run: Run) -> str:
    """Where a pass stands, and the kind of what is there."""
    head = f'<div class="head"><b>A pass at <code>{escape(run.where)}</code></b></div>'
    kind = run_value(run)
    return style.page(_SHEET, head + (f'<code class="soft">{escape(kind)}</code>' if kind else ""))


def run_value(run: Run) -> str:
    """The kind of the value at the site where a pass stands; empty when it stands at none."""
    value = run.value
    return "" if value is None else describe(value)
