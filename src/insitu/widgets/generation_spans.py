"""Edits that hold in some steps of a generation, and in no others.

    spans_of(record, branch)                        # [Span(edit, first=3, end=5), …]
    changed = edited_in(model, spans, step=lambda: 4)

A branch that is run from the beginning, with the tokens before its step given, has the edits of
those it left in their steps, and its own from its step on.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from insitu.engine.capture.scope import Body, Names
from insitu.engine.edits import Edit
from insitu.models.language import LanguageModel
from insitu.widgets.generation_record import Branch, Record
from insitu.widgets.generation_runs import edited


@dataclass(frozen=True)
class Span:
    """An edit, the first step it holds in, and the one after the last; None for no end."""

    edit: Any
    first: int
    end: int | None


def spans_of(record: Record, branch: Branch) -> list[Span]:
    """The edits on the way to a branch, each with its steps."""
    way = [branch]
    while way[-1].parent is not None:
        way.append(record.branches[way[-1].parent])
    way.reverse()
    found: list[Span] = []
    for one, following in itertools.zip_longest(way, way[1:]):
        end = None if following is None else following.start
        if one.edit is None or end == one.start:
            continue
        first = one.start
        if found and found[-1].edit is one.edit and found[-1].end == first:
            first = found.pop().first
        found.append(Span(one.edit, first, end))
    return found


def edited_in(
    model: LanguageModel, spans: Sequence[Span], step: Callable[[], int]
) -> LanguageModel:
    """The model with edits in their steps alone, as a wrapper of its own; itself for none.

    Args:
        model: the one that is to generate.
        spans: which edit holds when.
        step: tells which step is being run.
    """
    if not spans:
        return model
    changed = cast(LanguageModel, model._twin())
    own = {id(edit) for edit in model._edits}
    for span in spans:
        further = [edit for edit in edited(model, span.edit)._edits if id(edit) not in own]
        changed._edits += [_sometimes(edit, span, step) for edit in further]
    return changed


def _sometimes(edit: Edit, span: Span, step: Callable[[], int]) -> Edit:
    def holds() -> bool:
        return span.first <= step() and (span.end is None or step() < span.end)

    body = cast(Body, _Sometimes(edit.body, holds))
    return Edit(edit.root, body, edit.names, edit.place)


class _Sometimes:
    """A captured body that runs where something holds, and is else what it is."""

    def __init__(self, body: Body, holds: Callable[[], bool]) -> None:
        self._body = body
        self._holds = holds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def run(self, names: Names) -> None:
        """Run the body, in its steps."""
        if self._holds():
            self._body.run(names)
