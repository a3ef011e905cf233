"""Named tensors as a table, in HTML and as text: names, shapes, kinds and sizes, no values."""

from collections.abc import Sequence
from html import escape
from typing import Protocol

from insitu.engine.cache.table import in_bytes
from insitu.twins import style

ROWS_MAX = 100


class Told(Protocol):
    """What is told of a tensor."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def kind(self) -> str:
        """Its type of numbers."""

    @property
    def size_bytes(self) -> int:
        """Its size."""


def tensors_text(title: str, found: Sequence[Told]) -> str:
    """One line a tensor."""
    total = in_bytes(sum(it.size_bytes for it in found))
    rows = [f"{it.name}  {it.kind}{list(it.shape)}  {in_bytes(it.size_bytes)}" for it in found]
    more = [f"… and {len(rows) - ROWS_MAX} more"] if len(rows) > ROWS_MAX else []
    return "\n".join([f"{title}: {len(found)} tensors, {total}", *rows[:ROWS_MAX], *more])


def tensors_html(title: str, found: Sequence[Told]) -> str:
    """One row a tensor."""
    size = f"{len(found)} tensors, {in_bytes(sum(it.size_bytes for it in found))}"
    head = f'<div class="head"><b>{escape(title)}</b> <span class="soft">· {size}</span></div>'
    rows = "".join(
        f'<tr><th scope="row" align="left"><code>{escape(it.name)}</code></th>'
        f"<td><code>{escape(f'{it.kind}{list(it.shape)}')}</code></td>"
        f'<td align="right">{in_bytes(it.size_bytes)}</td></tr>'
        for it in found[:ROWS_MAX]
    )
    more = (
        f'<p class="soft">… and {len(found) - ROWS_MAX} more</p>' if len(found) > ROWS_MAX else ""
    )
    table = f'<div class="wide"><table><tbody>{rows}</tbody></table></div>' if rows else ""
    return style.page(style.CARD, head + table + more)
