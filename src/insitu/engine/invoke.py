"""Several prompts in one pass, each with a body of its own.

    with model.trace() as tracer:
        with tracer.invoke("The Eiffel Tower is in"):
            embeddings = model.transformer.wte.output
        with tracer.invoke("_ _ _ _ _ _"):
            model.transformer.wte.output = embeddings     # waits until it has been assigned
            logits = model.lm_head.output                 # these rows alone

Bodies are captured, for no one can run before the inputs of all are known; they begin when the
trace's own block ends, or asks for something.
"""

import sys
from types import TracebackType
from typing import Any, Literal, Protocol

from insitu.engine import first_row
from insitu.engine.batch import Call, Rows
from insitu.engine.capture.bodies import Names, Skip, find_body
from insitu.engine.capture.scope import close, write_back
from insitu.engine.interleave import Pass
from insitu.engine.lane import Lane
from insitu.engine.lanes import Lanes
from insitu.engine.running import active
from insitu.errors import InputError, TraceError, UsageError

_SPENT = "backward through the graph a second time"
_ONE_GRAPH = (
    "Insitu: the prompts of a trace are rows of one batch and share its graph. Give every backward "
    "but the last retain_graph=True, or go backward once, outside the invokes, from their sum."
)


class Pending(Protocol):
    """The call of a trace that was given no input: its invokes bring it."""

    pending: Literal[True]

    def join(self, calls: list[Call]) -> tuple[Any, tuple[Rows, ...]]:
        """One call made of several, and whose rows are where."""

    def alone(self) -> Any:
        """The call without any input, if the model can do without."""


class Bodies:
    """The captured bodies of one trace, and the inputs they bring."""

    def __init__(self, run: Pass) -> None:
        self.run = run
        self.lanes = Lanes(run)
        self.latest: Names | None = None
        """The names of the body that was written last; those inside other bodies do not count."""
        self._names: list[Names] = []
        self._nested: list[Names] = []
        self._given: list[tuple[Lane, Call]] = []
        self._pending: Pending | None = run.call if run.call.pending else None
        run.lanes, run.both = self.lanes, True
        run.prepare = self._prepare

    def refuse(self) -> None:
        """Raise if no invoke with an input can be taken any more."""
        if self._pending is None:
            raise InputError(
                "invoke() was given an input, and so was the trace around it.",
                "the inputs of invokes are joined into one batch, and this trace has its own.",
                "leave the trace's input out: with model.trace() as tracer: …",
            )
        if self.run.prepare is None and self.run.call is not self._pending:
            raise InputError(
                "invoke() was given an input after the pass had begun.",
                "the inputs of all invokes are joined when the first value is asked for.",
                "write every invoke before, and outside, code that asks for a value.",
            )

    def take(self, body: "Invoke", names: Names, call: Call) -> None:
        """One invoke more."""
        if isinstance(active.get(), Lane):
            self._nested.append(names)
        else:
            self._names.append(names)
            self.latest = names
        lane = self.lanes.add(body)
        if call[0] or call[1]:
            self._given.append((lane, call))

    def write_back(self) -> None:
        """Assign in the callers' frames what the bodies assigned."""
        write_back((*reversed(self._nested), *self._names))

    def close(self) -> None:
        """The bodies have run for the last time."""
        close((*self._nested, *self._names))
        self.latest = None  # their values are the caller's now
        self._nested.clear()
        self._names.clear()

    def _prepare(self, run: Pass) -> None:
        self.lanes.begin()
        if self._pending is None:
            return
        if not self._given:
            run.call = self._pending.alone()
            return
        run.call, rows = self._pending.join([call for _, call in self._given])
        for (lane, _), own in zip(self._given, rows, strict=True):
            lane.rows = None if own.are_all else own
        if len(rows) > 1:
            self.lanes.dims()  # may have to run the model on fake tensors: now, before it runs


class Invoke:
    """`tracer.invoke(...)`: one prompt, or several, and the body that sees their rows."""

    root: Any = None

    def __init__(self, bodies: Bodies, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._bodies = bodies
        self._call = (args, kwargs)

    def __enter__(self) -> "Invoke":
        frame = sys._getframe(1)
        bodies = self._bodies
        if self._call[0] or self._call[1]:
            bodies.refuse()
        self._body = body = find_body(frame, "tracer.invoke")
        self._names = Names(frame, body, bodies.latest)
        self._skip = Skip(frame)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        if not self._skip.swallow(error):
            return False
        if self._body.target is not None:
            self._names[self._body.target] = self
        self._bodies.take(self, self._names, self._call)
        return True

    def run(self, lane: Lane) -> None:
        """Run the body, waiting for names that earlier bodies assign."""
        self._names.wait = lane.wait_for_name
        try:
            self._body.run(self._names)
        except Exception as error:
            first_row.note(error, lane)
            if lane.rows is not None and isinstance(error, RuntimeError) and _SPENT in str(error):
                error.add_note(_ONE_GRAPH)
            raise
        finally:
            del self._names

    def name_is_due(self, name: str) -> bool:
        """Whether a name that an earlier body is to assign has been assigned."""
        return self._names.is_due(name)


class Barrier:
    """`tracer.barrier(n)`: the bodies that call it go on when n of them have come."""

    def __init__(self, lanes: Lanes, count: int) -> None:
        if count < 1:
            raise UsageError(
                f"a barrier of {count} was asked for.",
                "it opens when that many invokes have come to it.",
                "count the invokes that call it: barrier = tracer.barrier(2).",
            )
        self._lanes = lanes
        self._count = count
        self._turn = Turn()

    def __call__(self) -> None:
        """Wait here for the others."""
        lane = active.get()
        if not isinstance(lane, Lane) or lane.lanes is not self._lanes:
            raise UsageError(
                "a barrier was called outside the invokes of its trace.",
                "it lines up captured bodies; what stands in the trace itself runs at once.",
                "call it inside `with tracer.invoke(...):`.",
            )
        turn = self._turn
        if self._lanes.at_barrier(turn) + 1 >= self._count:
            turn.is_open, self._turn = True, Turn()
        lane.wait_at(turn)
        if not turn.is_open:
            raise TraceError(
                f"a barrier of {self._count} never opened.",
                "the pass ended before that many invokes had called it.",
                f"call it in {self._count} invokes, or count fewer: tracer.barrier(n).",
            )


class Turn:
    """One opening of a barrier."""

    is_open = False
