"""The run card as HTML: real tables with captions, no script, nothing fetched.

    page(card)      # a fragment for text/html

Everything that comes from the user or a tokenizer is escaped: tokens are data.
"""

from collections.abc import Iterable, Sequence
from html import escape

from insitu.notebook import style
from insitu.notebook.card_facts import (
    Card,
    amount,
    columns_used,
    is_nothing,
    moved,
    moved_by,
    nans,
    of_prompt,
    percent,
    prompt_lines,
    shape,
    time_line,
    title,
    token,
)
from insitu.notebook.effects import Candidate, Change, StepChange
from insitu.notebook.recorder import Visit

_OPEN_MAX = 24  # rows shown before the fold
_ROWS_MAX = 300
_LONGER = {"moved by": "moved next-token<br>probabilities by"}
_NUMBERS = ("line", "step", "norm", "NaN")


def page(card: Card) -> str:
    """The whole card."""
    parts = [_head(card), _prompts(card), _sites(card)]
    if card.effects.steps:
        parts.append(_steps(card))
    if card.effects.change is not None:
        parts.append(_next_token(card, card.effects.change))
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
        f'<span class="soft">{escape(counts + where)}</span></div>'
    )


def _prompts(card: Card) -> str:
    lines = [
        '<div class="tokens">' + "".join(f"<code>{_token(text)}</code>" for text in line) + "</div>"
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
        html += f"<details><summary>{len(rows) - cut} more sites</summary>{more}</details>"
    if len(card.visits) > len(rows):
        html += f'<p class="soft">… and {len(card.visits) - len(rows)} more, not shown</p>'
    return html


def _site_head(names: Sequence[str]) -> str:
    return "".join(
        f'<th scope="col"{" class=num" * (name in _NUMBERS)}>{_LONGER.get(name, name)}</th>'
        for name in names
    )


def _site(card: Card, index: int, head: Sequence[str]) -> str:
    visit = card.visits[index]
    path, _, side = visit.path.rpartition(".")
    stats = visit.arrived
    tensors = f' <span class="soft">1 of {visit.parts}</span>' if visit.parts > 1 else ""
    bad = nans(visit)
    cells = {
        "line": _number(str(visit.line)),
        "step": _number(str(visit.step)),
        "shape": f"<td>{escape(shape(stats) or visit.kind)}{tensors}</td>",
        "dtype": f"<td>{stats.dtype if stats else ''}</td>",
        "device": f"<td>{stats.device if stats else ''}</td>",
        "norm": _number(_norms(visit)),
        "NaN": _number(f'<span class="flag">{bad} NaN</span>' if bad else ""),
        "act": f"<td>{visit.written}</td>" if visit.written else '<td class="soft">read</td>',
        "moved by": _moved(card.moved_by(index)),
    }
    site = f'<th scope="row"><code>{escape(path)}<span class="soft">.{side}</span></code></th>'
    row = "wrote" if visit.written else "read"
    return f'<tr class="{row}">{site}{"".join(cells[name] for name in head[1:])}</tr>'


def _norms(visit: Visit) -> str:
    arrived = amount(visit.arrived.norm) if visit.arrived else ""
    left = amount(visit.left.norm) if visit.left else arrived
    return arrived if left == arrived else f'<span class="soft">{arrived} →</span> {left}'


def _moved(by: float | None) -> str:
    if by is None:
        return "<td></td>"
    flag = ' <span class="flag">no effect</span>' if is_nothing(by) else ""
    return f'<td class="moved">{moved(by)} TV{_bar(by)}{flag}</td>'


# The next token ------------------------------------------------------------------------------


def _next_token(card: Card, change: Change) -> str:
    if not change.before or not change.after:
        return "<p>The logits hold NaN, so there is no distribution over next tokens.</p>"
    if not card.written and is_nothing(change.moved):
        if card.effects.steps:
            return ""
        rows = [f"<tr>{''.join(_candidate(c, ''))}</tr>" for c in change.after]
        return _table("Likeliest next tokens", _pair_head("token"), rows)
    rows = [
        f"<tr>{''.join(_candidate(before, 'out'))}{''.join(_candidate(after, 'with'))}</tr>"
        for before, after in zip(change.before, change.after, strict=True)
    ]
    caption = f"{escape(moved_by(change) + of_prompt(card, change))}{_at_step(card)}"
    return _table(caption, _pair_head("before") + _pair_head("after"), rows)


def _at_step(card: Card) -> str:
    steps = [step.step for step in card.effects.steps if step.change is card.effects.change]
    return f" at step {steps[0]}, most of all steps" if steps else ""


def _pair_head(name: str) -> str:
    return f'<th scope="col">{name}</th><th scope="col">probability</th>'


def _candidate(candidate: Candidate, kind: str) -> Iterable[str]:
    chance = candidate.probability
    yield f"<td><code>{_token(candidate.text)}</code></td>"
    yield f'<td class="num {kind}">{percent(chance)}{_bar(chance)}</td>'


def _steps(card: Card) -> str:
    names = ("step", "before", "after", "chosen", "moved by, TV")
    head = "".join(
        f'<th scope="col"{" class=num" * (name == "step")}>{name}</th>' for name in names
    )
    rows = [_step(step) for step in card.effects.steps[:_ROWS_MAX]]
    return _table("Likeliest token at each step, on the tokens generated", head, rows)


def _step(step: StepChange) -> str:
    change = step.change
    cells = "".join(f"<td>{_first(side)}</td>" for side in (change.before, change.after))
    return (
        f'<tr><th scope="row" class="num">{step.step}</th>{cells}'
        f"<td><code>{_token(step.chosen) if step.chosen else ''}</code></td>"
        f'<td class="num moved">{moved(change.moved)}{_bar(change.moved)}</td></tr>'
    )


def _first(candidates: Sequence[Candidate]) -> str:
    if not candidates:
        return '<span class="flag">NaN</span>'
    first = candidates[0]
    share = f'<span class="soft">{percent(first.probability)}</span>'
    return f"<code>{_token(first.text)}</code> {share}"


# Pieces --------------------------------------------------------------------------------------


def _table(caption: str, head: str, rows: Sequence[str]) -> str:
    return (
        f'<div class="wide"><table><caption>{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _token(text: str) -> str:
    return escape(token(text))


def _number(html: str) -> str:
    return f'<td class="num">{html}</td>'


def _bar(share: float) -> str:
    if share != share:  # NaN
        return ""
    width = round(100 * share)
    return f'<span class="track" aria-hidden="true"><i style="width:{width}%"></i></span>'
