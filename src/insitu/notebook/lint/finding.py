"""What the linter says of a cell: what, why, what to write instead, and the change of text.

finding.what            # "h = h * 2 gives the name h another value; the model goes on unchanged."
fixed(text, finding)    # the cell with its change made
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """Text from `start` to `end` of a cell, counted in characters, that becomes `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Finding:
    """One mistake, in the three lines of an error, and the changes that repair it."""

    rule: str
    line: int
    """Counted from 1, in the whole cell."""
    column: int
    """Counted from 0, in characters."""
    what: str
    why: str
    next: str
    changes: tuple[Change, ...] = ()
    """Empty where only the user can know what is meant."""
    replacement: str = ""
    """The lines as they read once repaired."""


def changed(text: str, changes: tuple[Change, ...]) -> str:
    """A text with changes made, the last first, so that places before them stay."""
    for change in sorted(changes, key=lambda it: (it.start, it.end), reverse=True):
        text = text[: change.start] + change.text + text[change.end :]
    return text


def fixed(text: str, finding: Finding) -> str:
    """A cell with one finding repaired."""
    return changed(text, finding.changes)
