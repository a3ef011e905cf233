"""A job as text and as HTML without scripts: its phases, how far it is, and the end of its log."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from insitu.engine.cache.table import in_bytes
from insitu.twins import style

LINES_SHOWN = 30

Lines = Sequence[tuple[float, str, tuple[str, ...]]]
"""Each with its time, its text and its tags."""


def job_text(state: Mapping[str, Any], lines: Lines, count: int) -> str:
    """A job in a few lines: `state` as `JobRecord.state()` gives it, the last of `count` lines."""
    shown = lines[-LINES_SHOWN:]
    began = _began(state, lines)
    said = [f"{_offset(when, began)}  {text}{_tags(tags)}" for when, text, tags in shown]
    more = [f"… {count - len(shown):,} lines before"] if count > len(shown) else []
    return "\n".join([_title(state), *_further(state), *more, *said])


def job_html(state: Mapping[str, Any], lines: Lines, count: int) -> str:
    """The same as HTML."""
    shown = lines[-LINES_SHOWN:]
    began = _began(state, lines)
    head = f'<div class="head"><b>{escape(_title(state))}</b></div>'
    facts = "".join(f"<p>{escape(fact)}</p>" for fact in _further(state))
    more = (
        f'<p class="soft">… {count - len(shown):,} lines before</p>' if count > len(shown) else ""
    )
    rows = "".join(
        f'<tr><td align="right"><code>{_offset(when, began)}</code></td>'
        f"<td><code>{escape(text)}</code></td><td>{escape(', '.join(tags))}</td></tr>"
        for when, text, tags in shown
    )
    head_row = (
        "<tr>" + "".join(f'<th scope="col">{n}</th>' for n in ("at", "line", "tags")) + "</tr>"
    )
    table = f"<table><thead>{head_row}</thead><tbody>{rows}</tbody></table>" if rows else ""
    return style.page(style.CARD, f'{head}{facts}{more}<div class="wide">{table}</div>')


def jobs_text(states: Sequence[Mapping[str, Any]]) -> str:
    """Several jobs, one a line."""
    return "\n".join([f"{len(states)} jobs", *("  " + _title(state) for state in states)])


def jobs_html(states: Sequence[Mapping[str, Any]], chosen: str) -> str:
    """Several jobs as a table, and the HTML of the chosen one below."""
    rows = "".join(
        f'<tr><th scope="row" align="left">{escape(state["title"])}</th>'
        f"<td><code>{escape(state['job'])}</code></td><td>{escape(_phase(state))}</td></tr>"
        for state in states
    )
    head = f'<div class="head"><b>{len(states)} jobs</b></div>'
    table = f'<div class="wide"><table><tbody>{rows}</tbody></table></div>' if rows else ""
    return style.page(style.CARD, head + table) + chosen


def stamp(when: float) -> str:
    """A time as ISO 8601, in UTC, to the millisecond."""
    try:
        at = datetime.fromtimestamp(when, UTC)
    except (OverflowError, ValueError, OSError):
        return str(when)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _title(state: Mapping[str, Any]) -> str:
    name = (
        state["title"] if state["title"] == state["job"] else f"{state['title']} ({state['job']})"
    )
    return f"{name}: {_phase(state)}"


def _phase(state: Mapping[str, Any]) -> str:
    phase = state["phases"][-1][0] if state["phases"] else "no word yet"
    if state["queue"]:
        place, length = state["queue"]
        phase += f" ({place:g}" + (f" of {length:g})" if length else ")")
    return phase


def _further(state: Mapping[str, Any]) -> list[str]:
    phases = state["phases"]
    began = phases[0][1] if phases else 0.0
    told = [" → ".join(f"{name} {_offset(at, began)}" for name, at, _ in phases)] if phases else []
    if phases:
        told.append(f"began {stamp(began)}")
    for text, done, of, unit in state["progress"]:
        share = f" ({done / of:.0%})" if of else ""
        whole = "" if of is None else f" of {_amount(of, unit)}"
        told.append(f"{text or 'progress'}: {_amount(done, unit)}{whole}{share}")
    return told


def _amount(value: float, unit: str) -> str:
    if unit == "bytes":
        return in_bytes(int(value))
    return f"{value:,.0f} {unit}".rstrip() if value == int(value) else f"{value:g} {unit}".rstrip()


def _began(state: Mapping[str, Any], lines: Lines) -> float:
    if state["phases"]:
        return float(state["phases"][0][1])
    return lines[0][0] if lines else 0.0


def _offset(when: float, began: float) -> str:
    return f"{when - began:+.3f}s"


def _tags(tags: Sequence[str]) -> str:
    return f"  [{', '.join(tags)}]" if tags else ""
