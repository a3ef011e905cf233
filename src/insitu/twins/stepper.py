"""Where a pass held open stands, the modules about it and the value there: as text and as HTML.

    stepper_text(place, rows, value, source)
    stepper_html(place, rows, value, source)

Of what a view of it shows, which is data: nothing is read from the pass.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from insitu.twins import style
from insitu.twins.grid import WIDE, cut

_SIGNS = {"here": "▶", "inside": "▷", "ran": "✓", "written": "●"}
_ABOUT = 2
"""Lines of text shown on either side of where it stands."""
_SAID = {
    "ready": "A pass that has not begun",
    "finished": "A pass that has finished",
    "failed": "A pass that failed",
    "closed": "A pass that was closed",
}


def stepper_text(
    place: dict[str, Any], rows: Sequence[Any], value: dict[str, Any], source: dict[str, Any]
) -> str:
    """Where it stands, the modules about it, the lines of text that run, and the value there."""
    lines = [_head(place)]
    for _, name, kind, depth, state, *_ in rows:
        lines.append(f"{_SIGNS.get(state, ' ')} {'  ' * depth}{name} {kind}".rstrip())
    text = [cut(line, WIDE) for line in _text(source)]
    return "\n".join([*lines, *_legend(rows), *text, *_numbers(value)])


def stepper_html(
    place: dict[str, Any], rows: Sequence[Any], value: dict[str, Any], source: dict[str, Any]
) -> str:
    """The same, in one fragment."""
    said = f'<div class="head"><b>{escape(_head(place))}</b></div>'
    tree = "\n".join(
        f"{_SIGNS.get(state, ' ')} {'  ' * depth}{escape(name)} "
        f'<span class="soft">{escape(kind)}</span>'
        for _, name, kind, depth, state, *_ in rows
    )
    where, *lines = _text(source) or [""]
    text = "\n".join(map(escape, lines))
    shown = f"<p>{escape(where)}</p><pre><code>{text}</code></pre>" if source else ""
    told = "".join(f"<p>{escape(line)}</p>" for line in [*_legend(rows), *_numbers(value)])
    return style.page(style.CARD, f"{said}<pre><code>{tree}</code></pre>{shown}{told}")


def _head(place: dict[str, Any]) -> str:
    said = _SAID.get(place.get("state", ""), "")
    return said or f"A pass at {place.get('where', '')}"


def _legend(rows: Sequence[Any]) -> list[str]:
    """What a sign means that not everybody guesses."""
    return ["● has run, and was written"] if any(row[4] == "written" for row in rows) else []


def _text(source: dict[str, Any]) -> list[str]:
    """The function it stands in, and the line it is at with those about it."""
    if not source:
        return []
    number, stands, told = source["line"], source["stands"], []
    for line, text, names in source["lines"]:
        if number is not None and abs(line - number) <= _ABOUT:
            named = f"    # {', '.join(names)}" if line == number and names else ""
            told.append(f"{'▶' if line == number else ' '} {line:>4}  {text}{named}".rstrip())
    where = ", ".join(filter(None, [source["file"], stands and f"at {stands}"]))
    return [f"in {source['function']}, {where}", *told]


def _numbers(value: dict[str, Any]) -> list[str]:
    if not value.get("parts"):
        return []
    found = value["numbers"]
    told = [
        f"{name} {found[name]:.4g}"
        for name in ("mean", "std", "min", "max")
        if found[name] is not None
    ]
    bad = [
        f"{found[name]} {word}"
        for name, word in (("nan", "NaN"), ("inf", "infinite"))
        if found[name]
    ]
    part = f"{value['parts'][value['number']]} " if value["parts"][value["number"]] else ""
    lines = [f"{part}{value['kind']}: {', '.join([*told, *bad])}"]
    if value["top"]:
        likely = ", ".join(f"{token!r} {chance:.1%}" for token, chance in value["top"])
        lines.append(f"next token: {likely}")
    return lines
