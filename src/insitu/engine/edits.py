"""Lasting changes: a block that every later pass runs, whatever asks for it.

with model.edit() as edited:                # a second wrapper, the first stays as it is
    model.transformer.h[2].output[:, -1] += direction
edited.generate("The Colosseum is in")      # in every step
edited("The Colosseum is in")               # plain calls too

with model.edit(inplace=True): …            # this wrapper itself
model.clear_edits()
"""

import os
import sys
import textwrap
import warnings
from types import TracebackType
from typing import Any

from insitu.engine.capture.bodies import Names, Skip, assign_target, body_of_text, find_body
from insitu.engine.capture.futures import flags_of, names_of
from insitu.engine.capture.needs import needed
from insitu.engine.capture.scope import Body
from insitu.engine.capture.trial import apart
from insitu.engine.interleave import Pass
from insitu.engine.invoke import Bodies
from insitu.engine.lane import Lane
from insitu.errors import InsituWarning, NeverRanError

SCAN = "scan"
"""The kind of a pass on fake tensors."""


class Edit:
    """One captured change, run in every pass of the wrapper it belongs to; printing shows its text.

    print(edited.edits[0])
    """

    def __init__(
        self, root: Any, body: Body, names: Names, place: tuple[str, int] | None = None
    ) -> None:
        self.root = root
        self.body = body
        self.names = names
        self.place = place or (os.path.basename(body.code.co_filename), body.line)
        """The file and the line it was written on."""

    def __repr__(self) -> str:
        file, line = self.place
        text = textwrap.indent(self.body.text.rstrip(), "    ") or "    (its text is not known)"
        return f"edit on line {line} of {file}:\n{text}"

    def run(self, lane: Lane) -> None:
        """Run the body in each step of a pass; one that finds nothing to change says so."""
        step = max(lane.step, 0)
        try:
            while True:
                names = self.names.fresh()
                self.body.run(apart(names) if lane.kind == SCAN else names)
                if lane.trail and all(read[0]._module in lane.root._beside for read in lane.trail):
                    return  # what it changes is called before or after the steps
                step += 1
                if not (lane.run.stepping and lane.advance(step)):
                    return
        except NeverRanError as error:
            warnings.warn(
                f"an edit had no effect in this pass: {error.what}", InsituWarning, stacklevel=2
            )

    def needs(self, text: str) -> tuple[tuple[str, ...], dict[str, Any]]:
        """What its text needs to run elsewhere: future imports, and its names' values, in order.

        Args:
            text: as `text_of(edit.body)` gives it.
        """
        futures = names_of(self.body.code.co_flags)
        alone = body_of_text(text, self.place[0], flags_of(futures))
        names = self.names.given()
        return futures, {name: names[name] for name in sorted(needed(alone.code, names))}

    def name_is_due(self, name: str) -> bool:
        """An edit waits for no other body's names."""
        return True


class Editor:
    """`model.edit()`: captures its block as an edit."""

    def __init__(self, root: Any, target: Any) -> None:
        self._root = root
        self._target = target

    def __enter__(self) -> Any:
        frame = sys._getframe(1)
        self._body = find_body(frame, "model.edit")
        self._names = Names(frame, self._body)
        self._skip = Skip(frame)
        return self._target

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not self._skip.swallow(error):
            return False
        assign_target(self._body, self._names, self._target)
        names = self._names.fresh()  # the caller goes on, and its frame with it
        self._target._edits.append(Edit(self._root, self._body, names))
        return True


def edited(run: Pass) -> Bodies | None:
    """The captured bodies of a pass, with its wrapper's lasting changes as the first; or None."""
    if not run.root._edits and not run.call.pending:
        return None
    bodies = Bodies(run)
    for edit in run.root._edits:
        bodies.lanes.add(edit)
    return bodies
