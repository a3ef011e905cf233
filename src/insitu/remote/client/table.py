"""Rows from a server, as text and as HTML without scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from insitu.twins import style

_ROWS = 200


@dataclass(frozen=True, repr=False)
class Table:
    """A title, columns with names, rows of text, and words below."""

    title: str
    names: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""
    marked: frozenset[int] = frozenset()
    """The rows that are to be noticed."""

    def __repr__(self) -> str:
        shown = [self.names, *self.rows[:_ROWS]] if self.rows else []
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in shown
        ]
        marks = [" ", *("!" if n in self.marked else " " for n in range(_ROWS))]
        body = [f"{mark} {line}".rstrip() for mark, line in zip(marks, lines, strict=False)]
        return "\n".join([self.title, *body, *filter(None, (self._more(), self.note))])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col" align="left">{escape(name)}</th>' for name in self.names)
        body = "".join(self._row(n, row) for n, row in enumerate(self.rows[:_ROWS]))
        table = (
            f'<div class="wide"><table cellpadding="4"><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )
        said = "".join(
            f'<p class="soft">{escape(words)}</p>' for words in (self._more(), self.note) if words
        )
        title = f'<div class="head"><b>{escape(self.title)}</b></div>'
        return style.page(style.CARD, title + (table if self.rows else "") + said)

    def _row(self, number: int, row: tuple[str, ...]) -> str:
        first, *others = (escape(cell) for cell in row)
        open_, shut = ("<b>", "</b>") if number in self.marked else ("", "")
        cells = "".join(f'<td align="left">{open_}{cell}{shut}</td>' for cell in others)
        return f'<tr><th scope="row" align="left"><code>{first}</code></th>{cells}</tr>'

    def _more(self) -> str:
        more = len(self.rows) - _ROWS
        return f"… {more:,} more" if more > 0 else ""
