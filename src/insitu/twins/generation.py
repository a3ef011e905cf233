"""A generation and its branches, in HTML and as text: each step's token and what else was likely.

generation_text(record)         # a line a branch, a row a step
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from insitu.twins import style

STEPS_MAX = 60
"""So many steps of a branch are shown."""
PROMPT_MAX = 400
TOP_SHOWN = 3

Rows = list[tuple[int, str, str, str, str]]


def generation_text(record: Any) -> str:
    """The prompt, a line for each branch, and the steps of each as rows."""
    lines = [f"{record.title}: {_told(_prompt(record))}"]
    for branch in record.branches:
        lines.append(f"{_heading(branch)}: {_told(_own(record, branch))}")
        lines += [
            f"  {number:4}  {token:16}  {chance:>6}  {entropy:>8}  {top}"
            for number, token, chance, entropy, top in _rows(branch)
        ]
        lines += _more(branch)
    return "\n".join(lines)


def generation_html(record: Any, further: str = "") -> str:
    """The same as lists and tables; `further` stands below them."""
    body = [f'<div class="head"><b>{escape(record.title)}</b> <code>{_shown(_prompt(record))}']
    body.append("</code></div>")
    for branch in record.branches:
        body.append(
            f'<details class="fold"{" open" if branch.number == 0 else ""}><summary>'
            f"{escape(_heading(branch))}: <code>{_shown(_own(record, branch))}</code></summary>"
            f'<div class="wide"><table>{_head()}<tbody>{_cells(branch)}</tbody></table></div>'
            f"{''.join(f'<p>{escape(line.strip())}</p>' for line in _more(branch))}</details>"
        )
    return style.page(style.CARD, "".join(body) + further)


def _prompt(record: Any) -> str:
    text = "".join(map(str, record.prompt))
    return text if len(text) <= PROMPT_MAX else f"…{text[-PROMPT_MAX:]}"


def _own(record: Any, branch: Any) -> str:
    """A branch's own tokens."""
    return "".join(step.token for step in branch.own[:STEPS_MAX])


def _heading(branch: Any) -> str:
    where = "" if branch.parent is None else f" from step {branch.start} of {branch.parent}"
    state = "" if branch.state == "done" else f" ({branch.state})"
    return f"{branch.number} {branch.why}{where}{state}"


def _rows(branch: Any) -> Rows:
    return [
        (
            branch.start + number,
            _told(step.token) + ("*" if step.is_forced else ""),
            _number(step.chance),
            _number(step.entropy),
            "  ".join(f"{_told(it[0])} {_number(it[2])}" for it in step.top[:TOP_SHOWN]),
        )
        for number, step in enumerate(branch.own[:STEPS_MAX])
    ]  # fmt: skip


def _head() -> str:
    names = ("step", "token", "probability", "entropy (nats)", "likeliest")
    return f"<thead><tr>{''.join(f'<th scope=col>{name}</th>' for name in names)}</tr></thead>"


def _cells(branch: Any) -> str:
    rows = []
    for number, token, chance, entropy, top in _rows(branch):
        mark = ' class="wrote"' if token.endswith("*") else ""
        numbers = "".join(f'<td class="right" align="right">{it}</td>' for it in (chance, entropy))
        rows.append(
            f"<tr{mark}><td>{number}</td><td><code>{escape(token)}</code></td>{numbers}"
            f"<td><code>{escape(top)}</code></td></tr>"
        )
    return "".join(rows)


def _more(branch: Any) -> Sequence[str]:
    left = len(branch.own) - STEPS_MAX
    said = [f"  … and {left} more steps"] if left > 0 else []
    if any(step.is_forced for step in branch.own[:STEPS_MAX]):
        said.append("  * put there by the fork")
    if branch.trouble:
        said.append(f"  {branch.trouble['what']}")
    return said


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _told(text: str) -> str:
    """A text on one line, with what cannot be seen named."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(text: str) -> str:
    return escape(_told(text))
