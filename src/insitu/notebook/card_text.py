"""The run card as text, for terminals, logs and diffs."""

from collections.abc import Iterator, Sequence

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
from insitu.notebook.effects import Candidate, Change
from insitu.notebook.recorder import Visit

ROWS_MAX = 60


def page(card: Card) -> str:
    """The whole card."""
    return "\n".join(_lines(card))


def _lines(card: Card) -> Iterator[str]:
    yield title(card)
    for prompt in prompt_lines(card):
        yield "  " + " ".join(token(text) for text in prompt)
    if card.given:
        yield f"  {card.given}"
    yield ""
    yield from _sites(card)
    if card.effects.steps:
        yield ""
        yield from _steps(card)
        if card.effects.change is not None and card.tells_distances:
            change = card.effects.change
            yield f"{most_moved(card, change)}{of_prompt(card, change)}"
    elif card.effects.change is not None:
        yield ""
        yield from _next_token(card, card.effects.change)
    if card.tells_distances:
        yield TV
    if card.timing is not None:
        yield ""
        yield time_line(card.timing)
    if card.notes:
        yield ""
        yield from card.notes


def _sites(card: Card) -> Iterator[str]:
    if not card.visits:
        yield "No site was met: the cell read and wrote nothing inside the model."
        return
    head, rows = columns_used(card), []
    for index, visit in enumerate(card.visits[:ROWS_MAX]):
        stats = visit.arrived or visit.left
        cells = {
            "site": visit.path,
            "line": str(visit.line),
            "step": str(visit.step),
            "shape": shape(stats) or visit.kind,
            "dtype": stats.dtype if stats else "",
            "device": stats.device if stats else "",
            "norm": _norms(visit),
            "NaN": str(nans(visit) or ""),
            "act": visit.written or "read",
            "moved by": _moved(card, index),
            "step moved by": _step_moved(card, index),
        }
        rows.append([cells[name] for name in head])
    yield from _table([list(head), *rows], right={"line", "step", "norm", "NaN"})
    if len(card.visits) > ROWS_MAX:
        yield f"… and {len(card.visits) - ROWS_MAX} more"


def _norms(visit: Visit) -> str:
    left = amount(visit.left.norm) if visit.left else ""
    arrived = amount(visit.arrived.norm) if visit.arrived else left
    left = left or arrived
    return arrived if left == arrived else f"{arrived} → {left}"


def _moved(card: Card, index: int) -> str:
    by = card.moved_by(index)
    if by is None:
        return ""
    return f"{moved(by)} TV" + ", no effect" * is_nothing(by)


def _step_moved(card: Card, index: int) -> str:
    by = card.step_moved_by(index)
    return "" if by is None else f"{moved(by)} TV"


def _next_token(card: Card, change: Change) -> Iterator[str]:
    if not card.written and is_nothing(change.moved):
        yield "Next token"
        yield from _table([[token(c.text), _share(c)] for c in change.after], right={1})
        return
    yield f"{moved_by(change)}{of_prompt(card, change)}"
    rows = [["before", "", "after", ""]]
    for before, after in zip(change.before, change.after, strict=False):
        rows.append([token(before.text), _share(before), token(after.text), _share(after)])
    if len(rows) > 1:
        yield from _table(rows, right={1, 3})
    else:
        yield "The logits hold NaN; there is no distribution."


def _steps(card: Card) -> Iterator[str]:
    told, others = steps_shown(card)
    rows = [["step", "before", "", "after", "", "chosen", "moved"]]
    for step in told:
        before, after = step.change.before[:1], step.change.after[:1]
        rows.append(
            [
                str(step.step),
                *(token(before[0].text) if before else "NaN", _share(*before)),
                *(token(after[0].text) if after else "NaN", _share(*after)),
                token(step.chosen) if step.chosen else "",
                moved(step.change.moved),
            ]
        )
    yield from _table(rows, right={0, 2, 4, 6})
    if others:
        yield f"  {unmoved(len(others))}"


def _share(*candidate: Candidate) -> str:
    return percent(candidate[0].probability) if candidate else ""


def _table(rows: Sequence[Sequence[str]], right: set[int] | set[str]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ends = {index for index, name in enumerate(rows[0]) if index in right or name in right}
    for row in rows:
        cells = (
            text.rjust(width) if index in ends else text.ljust(width)
            for index, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join(cells).rstrip()
