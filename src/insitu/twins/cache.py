"""A cache, and what one is expected to take, as HTML: one table, siblings that are alike in a row.

    cache                   # 57 modules, 1.2 MB; path, modules, kind, calls, bytes
    cache.forecast

Shapes alone are looked at: no value is read from a file or brought from a GPU.
"""

from collections.abc import Sequence
from html import escape

from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.forecast import Forecast
from insitu.engine.cache.table import Row, columns, rows
from insitu.twins import style

_OPEN_MAX = 24  # rows shown before the fold
_ROWS_MAX = 300
_HEAD = ("path", "modules", "kind", "calls", "bytes")
_RIGHT = ("bytes",)
_TABLE = 'cellpadding="4" style="margin:0;border-collapse:collapse"'


def cache_html(cache: ActivationCache) -> str:
    """The table of a cache."""
    return _page(cache.title, rows(cache.records), "Cached modules")


def forecast_html(forecast: Forecast) -> str:
    """The table of a forecast."""
    return _page(forecast.title, forecast.rows, "Modules to be cached")


def _page(title: str, found: Sequence[Row], caption: str) -> str:
    name, _, counts = title.partition(": ")
    head = f'<b>{escape(name)}</b><span class="soft"> · {escape(counts)}</span>'
    parts = [f'<div class="head">{head}</div>']
    cut = len(found) if len(found) <= _OPEN_MAX + 4 else _OPEN_MAX
    if found:
        parts.append(_table(caption, found[:cut]))
    if len(found) > cut:
        more = _table("Further modules", found[cut:_ROWS_MAX])
        fold = f"<summary>{len(found) - cut} more rows</summary>{more}"
        parts.append(f'<details class="fold">{fold}</details>')
    if len(found) > _ROWS_MAX:
        parts.append(f'<p class="soft">… and {len(found) - _ROWS_MAX} more, not shown</p>')
    return style.page(style.CARD, "".join(parts))


def _table(caption: str, found: Sequence[Row]) -> str:
    cells = [columns(row) for row in found]
    used = [n for n, name in enumerate(_HEAD) if name == "path" or any(row[n] for row in cells)]
    head = "".join(f'<th scope="col" {_side(n)}>{_HEAD[n]}</th>' for n in used)
    body = "".join(f"<tr>{''.join(_cell(n, row[n]) for n in used)}</tr>" for row in cells)
    return (
        f'<div class="wide"><table {_TABLE}>'
        f'<caption style="caption-side:top"><div {_side(0)}>{caption}</div></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(column: int, text: str) -> str:
    name = _HEAD[column]
    words = f"<code>{escape(text)}</code>" if name in ("path", "kind") else escape(text)
    if name == "path":
        return f'<th scope="row" {_side(column)}>{words}</th>'
    return f"<td {_side(column)}>{words}</td>"


def _side(column: int) -> str:
    side = "right" if _HEAD[column] in _RIGHT else "left"
    return f'align="{side}" style="text-align:{side}"'
