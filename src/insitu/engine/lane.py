"""One captured body beside the model: a coroutine that takes its turns.

    with tracer.invoke("The Eiffel Tower is in"):
        h = model.transformer.h[2].output     # waits here until the model has come so far

A lane looks to its body as a `Pass` looks to a block that runs in place: it is what `find` finds
there.
"""

import contextvars
from collections import deque
from collections.abc import Callable
from sys import _getframe
from typing import Any, Protocol

from torch import nn

from insitu.engine import blame, brought, calls, checks, met, misses
from insitu.engine.ahead import NOTHING
from insitu.engine.arming import Node
from insitu.engine.batch import Rows, begins_a_graph, put, take
from insitu.engine.batch_dims import BatchDims
from insitu.engine.interleave import Pass
from insitu.engine.modes import Modes, swap
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.running import active
from insitu.engine.switch import Exit, Greenlet, Worker, acquire, getcurrent, release
from insitu.errors import TraceError

AT_STEP, AT_RESULT, AT_NAME, AT_BARRIER = 2, 3, 4, 5
"""What a lane may wait for besides a site's output and input (0 and 1)."""


class Body(Protocol):
    """What a lane runs, and whose names others may wait for."""

    root: Any
    """The wrapper whose sites the body names, when that is not the pass's own."""

    def run(self, lane: "Lane") -> None:
        """Run the body; called once, in the lane's own coroutine."""

    def name_is_due(self, name: str) -> bool:
        """Whether a name that an earlier body is to assign has been assigned."""


class Table(Protocol):
    """All lanes of a pass, and whose turn it is."""

    run: Pass
    over: bool
    skips: dict[Any, list[tuple[misses.Read, Any, Any]]]
    standing: tuple[int, Any] | None
    """The site where bodies now have their turn."""

    def dims(self) -> BatchDims:
        """Which tensors hold the batch."""

    def note(self, lane: Any, kind: int, what: Any) -> None:
        """A lane is about to wait."""

    def has_passed(self, key: Any, kind: int) -> bool:
        """Whether, by the order learned, a site does not come again."""

    def is_gone(self, node: Node, kind: int) -> bool:
        """Whether that is certain."""


class Lane:
    """One captured body and where it stands."""

    __slots__ = (
        "args", "at_input", "at_output", "back", "body", "calls_over", "closed", "count", "ended",
        "error", "index", "kwargs", "lanes", "modes", "muted", "outer", "overrun", "root", "rows",
        "run", "served", "sliced", "told", "trail", "value", "waits", "worker", "writes",
    )  # fmt: skip

    def __init__(self, lanes: Table, body: Body, index: int, rows: Rows | None) -> None:
        self.lanes = lanes
        self.run = run = lanes.run
        self.body = body
        self.root = body.root or run.root
        self.index = index
        self.rows = rows
        self.modes = run.base_modes
        self.outer = run.outer
        self.worker: Worker | None = None
        self.back: Greenlet | None = None
        self.waits: tuple[int, Any] | None = None
        self.at_output: Any = None
        self.at_input: Any = None
        self.value: Any = None
        self.args: Any = None
        self.kwargs: Any = None
        self.trail: list[misses.Read] = []
        self.told: dict[Any, met.Called] | None = None
        self.writes: deque[blame.Write] | None = None
        self.error: BaseException | None = None
        self.calls_over = 0
        self.count: calls.Count | None = None
        self.served: object = None
        self.closed = self.ended = self.muted = self.overrun = self.sliced = False

    near = NOTHING

    # What a body sees, as it would see a Pass ------------------------------------------------

    @property
    def whole(self) -> nn.Module:
        """The module whose pass this is."""
        return self.run.whole

    @property
    def arming(self) -> Pass:
        """Where modules are armed."""
        return self.run

    @property
    def kind(self) -> str:
        """What is run: `trace` or `generate`."""
        return self.run.kind

    @property
    def stepping(self) -> bool:
        """Whether steps are the model's own calls."""
        return self.run.stepping

    @property
    def step(self) -> int:
        """The model's step; -1 before the first call."""
        return self.run.step

    @property
    def order(self) -> Any:
        """The learned order of modules."""
        return self.run.order

    @property
    def observation(self) -> Any:
        """What this pass learns, when it is the first of its kind."""
        return self.run.observation

    def read_output(self, node: Node, key: Any, depth: int = 2) -> Any:
        """Wait for what a module returns: these rows of it."""
        if self.told is not None and (called := met.told(self, key)) is not None:
            return called[3]
        if self.count is not None and calls.asked(self, node, OUTPUT):
            return self.value
        if key not in self.run.inputs:
            key = self._arm(node)
        self._ask(node, key, OUTPUT, depth)
        if self.at_output is not key:
            raise self._missed(node, OUTPUT)
        return self.value

    def read_inputs(self, node: Node, depth: int = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Wait for a call's arguments; they stay readable at the module's output."""
        key = node._module
        stands = key is self.at_input or key is self.at_output
        if not (stands if self.count is None else calls.asked(self, node, INPUT)):
            if key not in self.run.inputs:
                key = self._arm(node)
            self._ask(node, key, INPUT, depth)
            if self.at_input is not key:
                raise self._missed(node, INPUT)
        elif not self.sliced:
            self.sliced = True
            call = brought.whole((self.args, self.kwargs))
            self.args, self.kwargs = self._mine(call, key, INPUT)
        return self.args, self.kwargs

    def write_inputs(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the module with other arguments in these rows."""
        if node._module is self.at_output:
            raise misses.too_late_to_write_input(node)
        self.read_inputs(node, 3)
        self.args, self.kwargs = args, kwargs

    def skip(self, node: Node, value: Any) -> None:
        """Let the module's next call return `value` in these rows without computing them."""
        key = node._module if node._module in self.run.inputs else self._arm(node)
        passed = key is not self.at_input and self.lanes.has_passed(key, INPUT)
        if passed and self.lanes.is_gone(node, INPUT):
            raise misses.skipped_too_late(node)
        value = checks.fitting_skip(value, node, self.run.order)
        self._find_out(key)
        frame = _getframe(2)
        read = (node, INPUT, frame.f_code, frame.f_lasti)
        self.lanes.skips.setdefault(key, []).append((read, self, value))

    def advance(self, step: int) -> bool:
        """Wait for the beginning of a step; False when the run has no such step."""
        run = self.run
        if step == run.step and not run.steps_over:
            return True
        if step < run.step:
            raise misses.step_has_passed(run, step)
        if run.steps_over or self.lanes.over:
            return False
        run.take_steps()
        self._wait(AT_STEP, step)
        return run.step >= step and not (run.steps_over or self.lanes.over)

    def run_out(self) -> Any:
        """Wait for what the traced call returns."""
        if not self.lanes.over:
            self._wait(AT_RESULT, None)
        result = self.run.result = brought.whole(self.run.result)
        if self.rows is None:
            return result
        if (result_of := getattr(self.run.call, "result_of", None)) is not None:
            return result_of(result, self.rows)
        return self._mine(result, None if self.kind == "generate" else self.run.whole, OUTPUT)

    def tap(self, node: Node, callback: Callable[..., None]) -> None:
        """Have a callback told of every call of a module, with these rows of it."""
        self.run.tap(
            node,
            lambda args, kwargs, output: callback(
                *self._mine((args, kwargs), node._module, INPUT),
                self._mine(output, node._module, OUTPUT),
            ),
        )

    def tap_input(self, node: Node, callback: Callable[..., None]) -> None:
        """Have a callback told what each call of a module is made with in these rows."""
        self.run.tap_input(
            node, lambda args, kwargs: callback(*self._mine((args, kwargs), node._module, INPUT))
        )

    def _mine(self, value: Any, key: Any, kind: int) -> Any:
        """These rows of what a site holds."""
        if self.rows is None:
            return value
        return take(value, self.rows, self.lanes.dims().at(key, kind))

    def _find_out(self, key: Any) -> None:
        """Know where an operation that has just been armed holds rows, before it runs."""
        if self.rows is not None and not isinstance(key, nn.Module) and self.run.sites:
            self.lanes.dims().learn(self.run.sites)

    def wait_for_name(self, name: str) -> None:
        """Wait until an earlier body has assigned a name, or can no longer do so."""
        if not self.lanes.over:
            self._wait(AT_NAME, name)

    def wait_at(self, barrier: Any) -> None:
        """Wait until a barrier opens."""
        if not self.lanes.over:
            self._wait(AT_BARRIER, barrier)

    def _arm(self, node: Node) -> Any:
        if self.run.closed:
            raise misses.pass_is_over(self.run)
        return self.run.arm_input(node)

    def _ask(self, node: Node, key: Any, kind: int, depth: int) -> None:
        frame = _getframe(depth + 1)
        self.trail.append((node, kind, frame.f_code, frame.f_lasti))
        self._find_out(key)
        lanes = self.lanes
        if lanes.over:
            self.at_output = self.at_input = None
            return
        if lanes.standing and lanes.has_passed(key, kind) and lanes.is_gone(node, kind):
            raise self._missed(node, kind)
        while self.calls_over:
            self.calls_over -= 1
            self._wait(kind, key)
        self._wait(kind, key)

    def to_call(self, node: Node, count: int) -> bool:
        """Wait for the arguments of a module's next call but `count - 1`; False without one."""
        key = node._module if node._module in self.run.inputs else self._arm(node)
        self._find_out(key)
        for _ in range(count):
            if self.lanes.over:
                return False
            self._wait(INPUT, key)
        return self.at_input is key and not self.lanes.over

    def _wait(self, kind: int, what: Any) -> None:
        if self.closed:
            raise Exit  # it asks for more on its way out: in a `finally`, say
        if self.count is not None:
            self.count.hidden = None
        self.lanes.note(self, kind, what)
        assert self.back is not None
        self.back.switch()

    def _missed(self, node: Node, kind: int) -> TraceError:
        overrun, self.overrun = self.overrun, False
        return misses.missed(self, node, kind, overrun)

    # The model's side ------------------------------------------------------------------------

    def stand_at_output(self, key: Any, args: Any, kwargs: Any, output: Any, modes: Modes) -> Any:
        """Let the body have what a module returned; give what it leaves there."""
        rows = self.rows
        if rows is None:
            return self._left_at_output(key, args, kwargs, output, modes)
        dims = self.lanes.dims()
        is_batch = dims.at(key, OUTPUT)
        given = take(output, rows, is_batch)
        value = self._left_at_output(key, args, kwargs, given, modes)
        if value is given and not dims.in_pieces and not begins_a_graph(given, output):
            return output
        return put(output, value, rows, is_batch, (), given)

    def _left_at_output(self, key: Any, args: Any, kwargs: Any, value: Any, modes: Modes) -> Any:
        self.at_output = key
        self.args, self.kwargs, self.sliced = args, kwargs, False
        self.value = value
        if self.run.watch is not None:
            self._tell(OUTPUT, value)
        self.go(modes)
        value, self.value = self.value, None
        self.at_output = self.args = self.kwargs = None
        return value

    def stand_at_input(self, key: Any, args: Any, kwargs: Any, modes: Modes) -> tuple[Any, Any]:
        """Let the body have a call's arguments; give those to call with."""
        call, rows = (args, kwargs), self.rows
        given = self._mine(call, key, INPUT)
        self.at_input, (self.args, self.kwargs) = key, given
        self.sliced = True
        if self.run.watch is not None:
            self._tell(INPUT, given)
        self.go(modes)
        left, self.args, self.kwargs, self.at_input = (self.args, self.kwargs), None, None, None
        if rows is None:
            return left
        dims = self.lanes.dims()
        if left[0] is given[0] and left[1] is given[1] and not dims.in_pieces:
            return call
        changed: tuple[Any, Any] = put(call, left, rows, dims.at(key, INPUT), (), given)
        return changed

    def _tell(self, kind: int, value: Any) -> None:
        watch = self.run.watch
        if watch is not None and self.trail:
            node, line = self.trail[-1][0], misses.line(self.trail[-1])
            watch.arrived(node, kind, value, line, max(self.run.step, 0))

    def go(self, modes: Modes) -> None:
        """Let the body run until it waits for something, or ends.

        Args:
            modes: those in force, which are so again afterwards.
        """
        if self.modes is not modes:
            swap(self.modes)
        self.back = getcurrent()
        try:
            if self.worker is None:
                self.worker = worker = acquire()
                worker.begin(self._live, contextvars.copy_context())
            else:
                self.worker.switch()
        finally:
            self.modes = swap(modes)
        watch = self.run.watch
        if watch is not None and (self.at_output is not None or self.at_input is not None):
            watch.leaving(self.value if self.at_output is not None else (self.args, self.kwargs))
        if self.ended:
            self._retire()
            if self.error is not None and not self.closed:
                error, self.error = self.error, None
                self.run.fail(error)

    def _live(self) -> Greenlet:
        active.set(self)
        try:
            self.body.run(self)
        except Exit as error:
            self.error = None if self.closed else error
        except BaseException as error:
            self.error = error
        self.ended = True
        assert self.back is not None
        return self.back

    def _retire(self) -> None:
        worker, self.worker, self.back = self.worker, None, None
        if worker is not None:
            release(worker)

    def close(self) -> None:
        """End the body where it stands. Safe to call twice."""
        self.closed = True
        if self.worker is not None and not self.ended:
            self.back = getcurrent()
            modes = swap(self.modes)
            try:
                self.worker.throw(Exit)
            finally:
                swap(modes)
                self._retire()
        self.ended = True
        self.error = None
