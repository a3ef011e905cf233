"""What the linter found in a cell, as HTML without scripts and as text.

findings_html([{"what": …, "why": …, "next": …, "line": 3, "change": [["+", …]]}])
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from insitu.twins import style

Items = Sequence[Mapping[str, Any]]
_SHEET = (
    style.CARD
    + """
& .finding{border-left:3px solid #d9822b;padding:0 0 2px 10px;margin:6px 0}
& .finding p{margin:0}& .finding pre{margin:3px 0;white-space:pre-wrap;\
font:12px/1.5 var(--mono);color:inherit;background:var(--tint);padding:3px 6px}
"""
)


def title(items: Items) -> str:
    """How much was found."""
    return f"{len(items)} finding{'s' * (len(items) != 1)} before the run"


def findings_text(items: Items) -> str:
    """Three lines each, and the change that repairs it."""
    lines = [title(items)]
    for item in items:
        lines += [f"line {item['line']}: {item['what']}", f"  Why: {item['why']}"]
        lines.append(f"  Next: {item['next']}")
        lines += [f"    {sign} {line}" for sign, line in item["change"]]
    return "\n".join(lines)


def findings_html(items: Items) -> str:
    """The same as HTML."""
    head = f'<div class="head"><b>{title(items)}</b></div>'
    return style.page(_SHEET, head + "".join(map(_finding, items)))


def _finding(item: Mapping[str, Any]) -> str:
    lines = "\n".join(escape(f"{sign} {line}") for sign, line in item["change"])
    change = f"<pre>{lines}</pre>" if lines else ""
    return (
        f'<div class="finding"><p><b>line {item["line"]}:</b> {escape(item["what"])}</p>'
        f'<p class="soft">{escape(item["why"])}</p><p>{escape(item["next"])}</p>{change}</div>'
    )
