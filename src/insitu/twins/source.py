"""The text of a forward with its operations named beside it, as a table.

    model.transformer.h[0].attn.source                      # names, line numbers, the text
    model.transformer.h[0].attn.source.attention_interface_0    # its statement

A name stands in the row of its line; where a line has several, they follow as one reads.
"""

from collections.abc import Iterable
from html import escape

from insitu.engine.source.listing import Row, marked, place, rows
from insitu.engine.source.operations import Operation, Source
from insitu.twins import style

_SHEET = """
& .head{margin:0 0 6px}& .head b{font-weight:600}
& .wide{overflow-x:auto}
& table{color:inherit;font:inherit;border-collapse:collapse;border:0;margin:0;width:auto;\
table-layout:auto}
& tr,& tr:nth-child(odd),& tr:hover{background:none}
& td{border:0;padding:0 14px 0 0;vertical-align:top;text-align:left;background:none;color:inherit;\
line-height:1.45}
& td.right{text-align:right}
& .named td:first-child code{font-weight:600}
"""


def source_html(source: Source) -> str:
    """The whole function, each line with the names of its operations."""
    definition = source._plan.definition
    where = place(definition.file, definition.first)
    head = (
        f'<div class="head"><b>{escape(source._path)}</b> '
        f"<span>{escape(source._chain.function.__qualname__)}</span> "
        f'<span class="soft">{escape(where)}</span></div>'
    )
    return style.page(_SHEET, head + _table(rows(source._plan)))


def operation_html(operation: Operation) -> str:
    """The statement of one operation."""
    function = operation._in._chain.function.__qualname__
    head = (
        f'<div class="head"><b>{escape(operation._path)}</b> '
        f'<span class="soft">line {operation._named.line} of {escape(function)}</span></div>'
    )
    shown = marked(operation._in._plan, operation._named)
    return style.page(_SHEET, head + _table(row for row, _ in shown))


def _table(shown: Iterable[Row]) -> str:
    body = "".join(map(_row, shown))
    return f'<div class="wide"><table><tbody>{body}</tbody></table></div>'


def _row(row: Row) -> str:
    names = "<br>".join(f"<code>{escape(name)}</code>" for name in row.names)
    kind = ' class="named"' if row.names else ""
    return (
        f"<tr{kind}><td>{names}</td>"
        f'<td class="right soft" align="right">{row.number}</td>'
        f"<td><code>{escape(row.text)}</code></td></tr>"
    )
