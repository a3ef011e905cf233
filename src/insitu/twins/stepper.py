"""Where a pass held open stands, the modules about it and the value there: as text and as HTML.

    stepper_text(place, rows, value)
    stepper_html(place, rows, value)

Of what a view of it shows, which is data: nothing is read from the pass.
"""

from collections.abc import Sequence
from html import escape
from typing import Any

from insitu.twins import style

_SIGNS = {"here": "▶", "inside": "▷", "ran": "✓"}
_SAID = {
    "ready": "A pass that has not begun",
    "finished": "A pass that has finished",
    "failed": "A pass that failed",
    "closed": "A pass that was closed",
}


def stepper_text(place: dict[str, Any], rows: Sequence[Any], value: dict[str, Any]) -> str:
    """Where it stands, the modules about it, and the value there."""
    lines = [_head(place)]
    for _, name, kind, depth, state, *_ in rows:
        lines.append(f"{_SIGNS.get(state, ' ')} {'  ' * depth}{name} {kind}".rstrip())
    return "\n".join([*lines, *_numbers(value)])


def stepper_html(place: dict[str, Any], rows: Sequence[Any], value: dict[str, Any]) -> str:
    """The same, in one fragment."""
    said = f'<div class="head"><b>{escape(_head(place))}</b></div>'
    tree = "\n".join(
        f"{_SIGNS.get(state, ' ')} {'  ' * depth}{escape(name)} "
        f'<span class="soft">{escape(kind)}</span>'
        for _, name, kind, depth, state, *_ in rows
    )
    told = "".join(f"<p>{escape(line)}</p>" for line in _numbers(value))
    return style.page(style.CARD, f"{said}<div><code>{tree}</code></div>{told}")


def _head(place: dict[str, Any]) -> str:
    said = _SAID.get(place.get("state", ""), "")
    return said or f"A pass at {place.get('where', '')}"


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
