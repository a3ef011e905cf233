"""Lasting changes: a block that every later pass runs, whatever asks for it.

with model.edit() as edited:                # a second wrapper, the first stays as it is
    model.transformer.h[2].output[:, -1] += direction
edited.generate("The Colosseum is in")      # in every step
edited("The Colosseum is in")               # plain calls too, and each call of the module

with model.edit(inplace=True): …            # this wrapper itself
model.clear_edits()
"""

import itertools
import os
import sys
import textwrap
import warnings
from types import TracebackType
from typing import Any

from torch import nn

from insitu.engine import first_row
from insitu.engine.calls import is_beyond
from insitu.engine.capture.bodies import Names, Skip, assign_target, body_of_text, find_body
from insitu.engine.capture.futures import flags_of, names_of
from insitu.engine.capture.needs import needed
from insitu.engine.capture.scope import Body
from insitu.engine.capture.trial import apart
from insitu.engine.interleave import Pass
from insitu.engine.invoke import Bodies
from insitu.engine.lane import Lane
from insitu.errors import InsituError, InsituWarning, NeverRanError, OutOfOrderError

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

    def needs(self, text: str) -> tuple[tuple[str, ...], dict[str, Any]]:
        """What its text needs to run elsewhere: future imports, and its names' values, in order.

        Args:
            text: as `text_of(edit.body)` gives it.
        """
        futures = names_of(self.body.code.co_flags)
        alone = body_of_text(text, self.place[0], flags_of(futures))
        names = self.names.given()
        return futures, {name: names[name] for name in sorted(needed(alone.code, names))}


class Applied:
    """An edit in one pass: it runs in every step, and at each call of what it reads first."""

    walks = False
    """Whether its body goes from step to step itself."""

    def __init__(self, edit: Edit) -> None:
        self.root = edit.root
        self._edit = edit
        self._called: dict[str, int] | None = None
        """The latest steps in which the modules that it reads later were called."""

    def name_is_due(self, name: str) -> bool:
        """An edit waits for no other body's names."""
        return True

    def run(self, lane: Lane) -> None:
        """Run the body wherever it applies; one that finds nothing to change says so."""
        while True:
            asked, step = len(lane.trail), lane.step
            try:
                self._body(lane)
            except (NeverRanError, OutOfOrderError) as error:
                if not self._goes_on(lane, asked, step, error):
                    return
            else:
                step = lane.step
                if self.walks:
                    return
                self._watch(lane, asked)
                self._repeat(lane, asked)
            lane.overrun = False
            following = lane.step if lane.step > step else max(lane.step, 0) + 1
            if not (lane.stepping and lane.advance(following)):
                return

    def _body(self, lane: Lane) -> None:
        names, body = self._edit.names.fresh(), self._edit.body
        try:
            body.run(apart(names) if lane.kind == SCAN else names)
        except Exception as error:
            first_row.note(error, lane)
            raise
        first_row.told_of(body.code, lane)

    def _repeat(self, lane: Lane, asked: int) -> None:
        """Run the body at further calls of what it has read first, until the step ends.

        A body that reads nothing and skips something runs at each call of that, in any step.
        """
        if len(lane.trail) > asked:
            leader = lane.trail[asked][0]
            while lane.to_call(leader, 1):
                try:
                    self._body(lane)
                except (NeverRanError, OutOfOrderError):
                    return  # what it reads later is not called as often
        elif (node := _skipped(lane)) is not None:
            lane.to_call(node, 1)
            while not lane.lanes.over:
                if lane.to_call(node, 1):
                    self._body(lane)

    def _goes_on(self, lane: Lane, asked: int, step: int, error: InsituError) -> bool:
        """Whether to go on to other steps after a body has not found what it asked for.

        What it reads first need not be called in every step: a T5's encoder is called before them,
        an image's tower in the first one alone.
        """
        if is_beyond(lane):
            return False
        if self._called is not None and len(lane.trail) <= asked + 1:
            if step in self._called.values():
                late = next(name for name, last in self._called.items() if last == step)
                self._called = {}
                _warn(
                    f"an edit did nothing in step {step}: it reads {lane.trail[asked][0]._path} "
                    f"first, which the step did not call, though it called {late}; make an edit "
                    "of its own of each"
                )
            return True
        if not isinstance(error, NeverRanError):
            raise error
        _warn(f"an edit had no effect in this pass: {error.what}")
        return False

    def _watch(self, lane: Lane, asked: int) -> None:
        """Note from here on when what the body has read after its first module is called."""
        beside, read = lane.run.root._beside, [it[0] for it in lane.trail[asked:]]
        if lane.run.steps_over and lane.step > 0 and read and read[0]._module not in beside:
            _warn(
                f"an edit ran in one step alone: it went on to {read[-1]._path}, which comes "
                "after the last step; make an edit of its own of that"
            )
        if self._called is not None or not lane.stepping:
            return
        self._called = called = {}
        others = {it._path: it for it in read if isinstance(it._module, nn.Module)}
        for path, node in others.items():
            if node._module is not read[0]._module and node._module not in beside:
                lane.tap_input(node, lambda *_, path=path: called.update({path: lane.step}))


def _skipped(lane: Lane) -> Any:
    """The module that a body has left a value for, and not read."""
    left = itertools.chain(*lane.lanes.skips.values())
    return next((read[0] for read, by, _ in left if by is lane), None)


def _warn(what: str) -> None:
    warnings.warn(what, InsituWarning, stacklevel=3)


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
        bodies.lanes.add(Applied(edit))
    return bodies
