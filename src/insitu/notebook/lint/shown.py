"""Findings above the run card, and above ordinary cells that trace; a finding has a Fix button.

show(ip, cell)              # nothing is displayed where nothing is found
before_cell(ip, info)       # of a cell without %%trace

A cell says `--no-lint`, or in a comment `# no-lint`, where they are not wanted. Whatever goes
wrong here, the cell runs.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from IPython.display import display

from insitu.errors import MissingPackageError
from insitu.notebook.lint.check import findings
from insitu.notebook.lint.finding import Finding, fixed
from insitu.notebook.magics.widgets import made
from insitu.twins.findings import findings_html, findings_text

_TRACES = re.compile(r"^\s*(async\s+)?with\b.*\.(trace|generate|edit|scan)\(", re.MULTILINE)
_OFF = re.compile(r"#\s*(insitu:\s*)?no-lint\b")


def before_cell(ip: Any, info: Any) -> None:
    """Look at a cell that is about to run, unless it is a magic's, or a program's."""
    text = info.raw_cell or ""
    if text.lstrip().startswith("%%") or getattr(info, "silent", False):
        return
    if _TRACES.search(text):
        show(ip, text)


def show(ip: Any, text: str) -> None:
    """Display what is found in a cell."""
    if _OFF.search(text):
        return
    try:
        found = findings(text, ip.user_ns)
        shown = _view(ip, text, found) if found else None
    except Exception:  # a linter must not keep a cell from running
        return
    if shown is not None:
        display(shown)


def _view(ip: Any, text: str, found: Sequence[Finding]) -> Any:
    """The widget where there is a front end; elsewhere its twins."""
    items = [_item(text, it) for it in found]
    if getattr(ip, "kernel", None) is None:
        return Findings(items)
    try:
        return made("lint_fixes:LintFixes", items, text)
    except MissingPackageError:
        return Findings(items)


def _item(text: str, finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "line": finding.line,
        "column": finding.column,
        "what": finding.what,
        "why": finding.why,
        "next": finding.next,
        "fixed": fixed(text, finding) if finding.changes else "",
        "change": change(text, fixed(text, finding)) if finding.changes else [],
    }


def change(before: str, after: str) -> list[list[str]]:
    """What differs between two texts: signs and lines, and little of what is between them."""
    old, new = before.splitlines(), after.splitlines()
    parts = difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes()
    told: list[list[str]] = []
    for number, (act, first, end, start, stop) in enumerate(parts):
        if act == "equal":
            if 0 < number < len(parts) - 1:
                kept = old[first:end]
                told += [[" ", line] for line in (kept if len(kept) <= 3 else [kept[0], "…"])]
            continue
        told += [["−", line] for line in old[first:end]] + [["+", it] for it in new[start:stop]]
    margin = min((len(it) - len(it.lstrip()) for _, it in told if it.strip(" …")), default=0)
    return [[sign, line[margin:] if line != "…" else line] for sign, line in told]


class Findings:
    """Findings as text and as HTML."""

    def __init__(self, items: Sequence[dict[str, Any]]) -> None:
        self.items = items

    def __repr__(self) -> str:
        return findings_text(self.items)

    def _repr_html_(self) -> str:
        return findings_html(self.items)
