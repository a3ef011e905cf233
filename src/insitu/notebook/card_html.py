"""The run card as HTML: real tables with captions, no script, nothing fetched.

    page(card)      # a fragment for text/html

Everything that comes from the user or a tokenizer is escaped: tokens are data.
"""

from collections.abc import Iterable, Sequence
from html import escape

from insitu.notebook.card_facts import (
    TV,
    Card,
    amount,
    columns_used,
    is_nothing,
    most_moved,
    moved,
    moved_by,
    nans,
    of_prompt,
    percent,
    prompt_lines,
    shape,
    steps_shown,
    time_line,
    title,
    token,
    unmoved,
)
from insitu.notebook.effects import Candidate, Change, StepChange
from insitu.notebook.recorder import Visit
from insitu.twins import style

_OPEN_MAX = 24  # rows shown before the fold
_ROWS_MAX = 300
_LONGER = {
    "moved by": "moved next-token<br>probabilities by",
    "step moved by": "its step moved next-<br>token probabilities by",
}
_NUMBERS = ("line", "step", "norm", "NaN")
_LEFT = 'align="left" style="text-align:left"'
_RIGHT = 'align="right" style="text-align:right"'
_TABLE = 'cellpadding="4" style="margin:0;border-collapse:collapse"'
_TRACK = "display:inline-block;width:84px;height:8px;margin-left:8px"


def page(card: Card) -> str:
    """The whole card."""
    parts = [_head(card), _prompts(card), _sites(card)]
    if card.effects.steps:
        parts.append(_steps(card))
    if card.effects.change is not None:
        parts.append(_next_token(card, card.effects.change))
    if card.tells_distances:
        parts.append(f'<p class="soft"><small>{TV}</small></p>')
    if card.timing is not None:
        parts.append(f'<p class="soft">{escape(time_line(card.timing))}</p>')
    parts.extend(f"<p>{escape(note)}</p>" for note in card.notes)
    return style.page(style.CARD, "".join(parts))


def _head(card: Card) -> str:
    sites = len(card.visits)
    counts = f"{sites} site{'s' * (sites != 1)} met, {len(card.written)} written"
    where = "" if card.device in ("", "cpu") else f", on {card.device}"
    return (
        f'<div class="head"><b>{escape(title(card))}</b>'
        f'<span class="soft"> · {escape(counts + where)}</span></div>'
    )


def _prompts(card: Card) -> str:
    lines = [
        '<div class="tokens">'
        + " ".join(f"<code>{_token(text)}</code>" for text in line)
        + "</div>"
        for line in prompt_lines(card)
    ]
    if card.given:
        lines.append(f'<div class="tokens"><code>{escape(card.given)}</code></div>')
    return "".join(lines)


# Sites ---------------------------------------------------------------------------------------


def _sites(card: Card) -> str:
    if not card.visits:
        return "<p>No site was met: the cell read and wrote nothing inside the model.</p>"
    head = columns_used(card)
    rows = [_site(card, index, head) for index in range(min(len(card.visits), _ROWS_MAX))]
    cut = len(rows) if len(rows) <= _OPEN_MAX + 4 else _OPEN_MAX
    html = _table("Sites in the order the model ran them", _site_head(head), rows[:cut])
    if len(rows) > cut:
        more = _table("Further sites", _site_head(head), rows[cut:])
        html += _fold(f"{len(rows) - cut} more sites", more)
    if len(card.visits) > len(rows):
        html += f'<p class="soft">… and {len(card.visits) - len(rows)} more, not shown</p>'
    return html


def _site_head(names: Sequence[str]) -> str:
    return "".join(_column(_LONGER.get(name, name), is_number=name in _NUMBERS) for name in names)


def _site(card: Card, index: int, head: Sequence[str]) -> str:
    visit = card.visits[index]
    path, _, side = visit.path.rpartition(".")
    stats = visit.arrived or visit.left
    tensors = f' <span class="soft">1 of {visit.parts}</span>' if visit.parts > 1 else ""
    bad = nans(visit)
    cells = {
        "line": _number(str(visit.line)),
        "step": _number(str(visit.step)),
        "shape": _words(escape(shape(stats) or visit.kind) + tensors),
        "dtype": _words(stats.dtype if stats else ""),
        "device": _words(stats.device if stats else ""),
        "norm": _number(_norms(visit)),
        "NaN": _number(f'<span class="flag">{bad} NaN</span>' if bad else ""),
        "act": _words(visit.written or '<span class="soft">read</span>'),
        "moved by": _words(_moved(card.moved_by(index))),
        "step moved by": _words(_distance(card.step_moved_by(index))),
    }
    site = (
        f'<th scope="row" {_LEFT}><code>{escape(path)}<span class="soft">.{side}</span></code></th>'
    )
    row = "wrote" if visit.written else "read"
    return f'<tr class="{row}">{site}{"".join(cells[name] for name in head[1:])}</tr>'


def _norms(visit: Visit) -> str:
    left = amount(visit.left.norm) if visit.left else ""
    arrived = amount(visit.arrived.norm) if visit.arrived else left
    left = left or arrived
    return arrived if left == arrived else f'<span class="soft">{arrived} →</span> {left}'


def _moved(by: float | None) -> str:
    if by is not None and is_nothing(by):
        return f'{moved(by)} TV <span class="flag">no effect</span>'
    return _distance(by)


def _distance(by: float | None) -> str:
    return "" if by is None else f"{moved(by)} TV{_bar(by, style.ORANGE)}"


# The next token ------------------------------------------------------------------------------


def _next_token(card: Card, change: Change) -> str:
    if not change.before or not change.after:
        return "<p>The logits hold NaN, so there is no distribution over next tokens.</p>"
    if not card.written and is_nothing(change.moved):
        if card.effects.steps:
            return ""
        rows = [f"<tr>{''.join(_candidate(c, style.BLUE))}</tr>" for c in change.after]
        return _table("Likeliest next tokens", _pair_head("token"), rows)
    said = most_moved(card, change) if card.effects.steps else moved_by(change)
    if card.effects.steps and is_nothing(change.moved):
        return f"<p>{escape(said)}</p>"
    rows = [
        f"<tr>{''.join((*_candidate(before, style.BLUE), *_candidate(after, style.ORANGE)))}</tr>"
        for before, after in zip(change.before, change.after, strict=True)
    ]
    caption = escape(said + of_prompt(card, change))
    return _table(caption, _pair_head("before") + _pair_head("after"), rows)


def _pair_head(name: str) -> str:
    return _column(name) + _column("probability")


def _candidate(candidate: Candidate, colour: str) -> Iterable[str]:
    chance = candidate.probability
    yield _words(f"<code>{_token(candidate.text)}</code>")
    yield _number(percent(chance) + _bar(chance, colour))


def _steps(card: Card) -> str:
    names = ("step", "before", "after", "chosen", "moved by, TV")
    head = "".join(_column(name, is_number=name == "step") for name in names)
    told, others = steps_shown(card)
    rows = [_step(step) for step in told[:_ROWS_MAX]]
    html = _table("Likeliest token at each step, on the tokens generated", head, rows)
    if others:
        rest = _table("Steps unmoved", head, [_step(step) for step in others[:_ROWS_MAX]])
        html += _fold(unmoved(len(others)), rest)
    return html


def _step(step: StepChange) -> str:
    change = step.change
    chosen = f"<code>{_token(step.chosen)}</code>" if step.chosen else ""
    cells = (_words(html) for html in (_first(change.before), _first(change.after), chosen))
    by = _number(moved(change.moved) + _bar(change.moved, style.ORANGE))
    return f'<tr><th scope="row" {_RIGHT}>{step.step}</th>{"".join(cells)}{by}</tr>'


def _first(candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return '<span class="flag">NaN</span>'
    first = candidates[0]
    share = f'<span class="soft">{percent(first.probability)}</span>'
    return f"<code>{_token(first.text)}</code> {share}"


# Pieces --------------------------------------------------------------------------------------


def _table(caption: str, head: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="wide"><table {_TABLE}>'
        f'<caption style="caption-side:top"><div {_LEFT}>{caption}</div></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _fold(words: str, html: str) -> str:
    return f'<details class="fold"><summary>{words}</summary>{html}</details>'


def _token(text: str) -> str:
    return escape(token(text))


def _column(html: str, *, is_number: bool = False) -> str:
    return f'<th scope="col" {_RIGHT if is_number else _LEFT}>{html}</th>'


def _words(html: str) -> str:
    return f'<td style="text-align:left">{html}</td>'


def _number(html: str) -> str:
    return f"<td {_RIGHT}>{html}</td>"


def _bar(share: float, colour: str) -> str:
    if share != share:  # NaN
        return ""
    filled = f"display:block;height:8px;width:{round(100 * share)}%;background-color:{colour}"
    return (
        f'<span class="track" aria-hidden="true" style="{_TRACK}"><i style="{filled}"></i></span>'
    )
