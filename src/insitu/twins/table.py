"""A table: HTML and text, no script; its rows are plain data.

Table("What can be read", ("site", "shape"), [("lm_head.output", "float32[1, 5, 330]")])
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from insitu.twins import style

ROWS_MAX = 400


@dataclass(frozen=True, repr=False)
class Table:
    """Rows under names; those that are numbers stand on the right."""

    title: str
    names: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    numbers: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    """Further lines below."""
    marked: frozenset[int] = frozenset()
    """The rows that are to be noticed."""

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        shown = [self.names, *self.rows[:ROWS_MAX]]
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = [self.title]
        for number, row in enumerate(shown if self.rows else (), start=-1):
            cells = [
                cell.rjust(width) if name in self.numbers else cell.ljust(width)
                for name, cell, width in zip(self.names, row, widths, strict=True)
            ]
            mark = "! " if number in self.marked else "  "
            lines.append((mark + "  ".join(cells)).rstrip())
        return "\n".join([*lines, *filter(None, (self._more(), self.note, *self.notes))])

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col" {self._side(name)}>{escape(name)}</th>' for name in self.names
        )
        body = "".join(self._row(n, row) for n, row in enumerate(self.rows[:ROWS_MAX]))
        table = (
            '<div class="wide"><table cellpadding="4" style="margin:0;border-collapse:collapse">'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )
        said = "".join(
            f'<p class="soft">{escape(words)}</p>'
            for words in (self._more(), self.note, *self.notes)
            if words
        )
        title = f'<div class="head"><b>{escape(self.title)}</b></div>'
        return style.page(style.CARD, title + (table if self.rows else "") + said)

    def _row(self, number: int, row: tuple[str, ...]) -> str:
        open_, shut = ("<b>", "</b>") if number in self.marked else ("", "")
        first, *others = zip(self.names, row, strict=True)
        cells = [f'<th scope="row" {self._side(first[0])}><code>{escape(first[1])}</code></th>']
        for name, cell in others:
            words = escape(cell) if name in self.numbers else f"<code>{escape(cell)}</code>"
            cells.append(f"<td {self._side(name)}>{open_}{words}{shut}</td>")
        return f"<tr>{''.join(cells)}</tr>"

    def _side(self, name: str) -> str:
        side = "right" if name in self.numbers else "left"
        return f'align="{side}" style="text-align:{side}"'

    def _more(self) -> str:
        return f"… and {len(self.rows) - ROWS_MAX:,} more" if len(self.rows) > ROWS_MAX else ""
