"""Rich displays of models, modules and passes held open, as HTML and as text.

    model                       # a tree with sizes, and shapes once a pass has run
    model.transformer.h[0]
    run                         # where a pass held open stands

A display never runs the model, reads no value beyond its shape, and never raises.
"""

import functools
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from insitu.engine.held import Run
from insitu.engine.values import describe
from insitu.engine.wrapped import WrappedModule
from insitu.notebook import style
from insitu.notebook.tree import Branch, grow

ROWS_MAX = 600
"""Rows drawn; a larger tree says how many it leaves out."""

_SHEET = """
& details{margin:0}& summary{cursor:pointer;padding:1px 0}& summary::marker{color:var(--soft)}
& .in{margin:0 0 0 7px;padding:0 0 0 13px;border-left:1px solid var(--rule)}
& .leaf{padding:1px 0 1px 14px}
& .row{display:inline-flex;flex-wrap:wrap;gap:0 12px;align-items:baseline}
& .head{font-weight:600;margin:0 0 4px}
"""


def model_html(node: WrappedModule) -> str:
    """A collapsible tree; the first levels are open."""
    tree = grow(node)
    size = f'<span class="soft">{_count(tree.parameters)}</span>'
    head = f'<div class="head">{escape(tree.kind)} {size}</div>'
    left = [ROWS_MAX]
    body = "".join(_html(child, 1, left) for child in tree.children)
    if left[0] < 0:
        body += (
            f'<div class="leaf soft">… and {-left[0]:,} rows more: name a module to see it</div>'
        )
    return style.page(_SHEET, head + body)


def _html(branch: Branch, depth: int, left: list[int]) -> str:
    left[0] -= 1
    if left[0] < 0:
        left[0] -= sum(1 for _ in _below(branch))
        return ""
    row = f'<span class="row"><code>{escape(_name(branch))}</code>{escape(_kind(branch))}'
    details = [_count(branch.parameters)] if branch.parameters else []
    if branch.output:
        details.append(f"→ {escape(branch.output)}")
    row += "".join(f'<span class="soft">{text}</span>' for text in details) + "</span>"
    if not branch.children:
        return f'<div class="leaf">{row}</div>'
    inside = "".join(_html(child, depth + 1, left) for child in branch.children)
    is_open = " open" if depth < 3 else ""
    return f'<details{is_open}><summary>{row}</summary><div class="in">{inside}</div></details>'


def _below(branch: Branch) -> Iterator[Branch]:
    for child in branch.children:
        yield child
        yield from _below(child)


def model_text(node: WrappedModule) -> str:
    """The same tree as indented text."""
    tree = grow(node)
    lines = [f"{tree.kind}  {_count(tree.parameters)}"]
    rows = _text(tree, 1)
    lines.extend(line for line, _ in zip(rows, range(ROWS_MAX), strict=False))
    more = sum(1 for _ in rows)
    return "\n".join([*lines, f"… and {more:,} rows more"] if more else lines)


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
    head = f'<div class="head">A pass at <code>{escape(run.where)}</code></div>'
    kind = run_value(run)
    return style.page(_SHEET, head + (f'<code class="soft">{escape(kind)}</code>' if kind else ""))


def run_value(run: Run) -> str:
    """The kind of the value at the site where a pass stands; empty when it stands at none."""
    value = run.value
    return "" if value is None else describe(value)


def register(ip: Any) -> Callable[[], None]:
    """Add the displays to a shell; gives what takes them away again."""
    html = ip.display_formatter.formatters["text/html"]
    text = ip.display_formatter.formatters["text/plain"]
    ours = (
        (html, WrappedModule, _careful(model_html)),
        (text, WrappedModule, _printer(_careful(model_text))),
        (html, Run, _careful(run_html)),
    )
    before = [formatter.for_type(kind, draw) for formatter, kind, draw in ours]

    def unregister() -> None:
        for (formatter, kind, _), earlier in zip(ours, before, strict=True):
            if earlier is None:
                formatter.pop(kind, None)
            else:
                formatter.for_type(kind, earlier)

    return unregister


def _careful(draw: Callable[[Any], str]) -> Callable[[Any], str]:
    """A display that falls back to the plain repr rather than raise."""

    @functools.wraps(draw)
    def drawn(value: Any) -> str:
        try:
            return draw(value)
        except Exception as error:
            return (
                f"{type(value).__name__}, not shown: {escape(f'{type(error).__name__}: {error}')}"
            )

    return drawn


def _printer(draw: Callable[[Any], str]) -> Callable[[Any, Any, bool], None]:
    """In the form of IPython's pretty printer."""

    def pretty(value: Any, printer: Any, cycle: bool) -> None:
        printer.text(draw(value))

    return pretty
