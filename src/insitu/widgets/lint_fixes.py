"""What the linter found in a cell, each with a button that repairs the cell.

LintFixes([{"what": …, "fixed": "h[:] = h * 2", …}], cell="h = h * 2")
fixes.fixed(0)                  # the cell with one finding repaired, as text

The view changes the cell in the page, if it still reads as it did; where the host lets it not, the
repaired cell goes to the clipboard. Python cannot do it: what `set_next_input` asks for is sent
when a cell ends, and would then replace the wrong one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets

from insitu.twins.findings import findings_html, findings_text
from insitu.widgets.base import Widget


class LintFixes(Widget):
    """Findings of one cell.

    LintFixes(items, cell)

    Args:
        items: for each `rule`, `line`, `what`, `why`, `next`; `change`, the lines that go and come
            with their signs; and `fixed`, the whole cell as it is to be. Both are empty where
            there is no repair.
        cell: the cell they were found in.
    """

    front_end = "lint_fixes"
    items = traitlets.List().tag(sync=True)
    cell = traitlets.Unicode().tag(sync=True)

    def __init__(self, items: Sequence[Mapping[str, Any]], cell: str) -> None:
        super().__init__(items=[dict(item) for item in items], cell=cell)

    def fixed(self, number: int = 0) -> str:
        """The cell with one finding repaired; as it is where there is no repair."""
        text: str = self.items[number]["fixed"]
        return text or str(self.cell)

    def text(self) -> str:
        """The findings, three lines each."""
        return findings_text(self.items)

    def html(self) -> str:
        """The same as HTML without scripts."""
        return findings_html(self.items)
