"""Captured bodies beside the model: invokes and edits, each a coroutine that takes its turns.

    model (a greenlet, or the caller)          lane 0              lane 1
    ─────────────────────────────────          ──────              ──────
    h[0] returns; both asked for it ── go ───► edits its rows
                                   ◄── asks for h[5].output
                                   ── go ─────────────────────────► reads its rows
                                   ◄──────────────────────── asks for lm_head.output
    goes on with the edited value …

A lane looks to its body as a `Pass` looks to a block that runs in place: it is what `find` finds
there. Lanes are served in the order they were written, edits before invokes, and all of them before
the block in place.
"""

import contextvars
from bisect import insort
from collections.abc import Callable
from sys import _getframe
from typing import Any, Protocol

from torch import nn

from insitu.engine import checks, met, misses
from insitu.engine.arming import Node
from insitu.engine.batch import Rows, put, stack, take
from insitu.engine.batch_dims import BatchDims
from insitu.engine.interleave import Pass
from insitu.engine.modes import swap
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.reachable import may_still_run
from insitu.engine.running import active
from insitu.engine.switch import Exit, Greenlet, Worker, acquire, getcurrent, release
from insitu.errors import TraceError

_AT_STEP, _AT_RESULT, _AT_NAME, _AT_BARRIER = 2, 3, 4, 5
"""What a lane may wait for besides a site's output and input (0 and 1)."""


class Body(Protocol):
    """What a lane runs, and whose names others may wait for."""

    root: Any
    """The wrapper whose sites the body names, when that is not the pass's own."""

    def run(self, lane: "Lane") -> None:
        """Run the body; called once, in the lane's own coroutine."""

    def name_is_due(self, name: str) -> bool:
        """Whether a name that an earlier body is to assign has been assigned."""


class Lane:
    """One captured body and where it stands."""

    __slots__ = (
        "args", "at_input", "at_output", "back", "body", "calls_over", "closed", "ended", "error",
        "index", "kwargs", "lanes", "modes", "outer", "overrun", "root", "rows", "run", "served",
        "sliced",        "told", "trail", "value", "waits", "worker",
    )  # fmt: skip

    def __init__(self, lanes: "Lanes", body: Body, index: int, rows: Rows | None) -> None:
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
        self.error: BaseException | None = None
        self.calls_over = 0
        self.served: object = None
        self.closed = self.ended = self.overrun = self.sliced = False

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
        key = self._armed(node, key)
        self._ask(node, key, OUTPUT, depth)
        if self.at_output is not key:
            raise self._missed(node, OUTPUT)
        return self.value

    def read_inputs(self, node: Node, depth: int = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Wait for a call's arguments; they stay readable at the module's output."""
        key = node._module
        if key is not self.at_input and key is not self.at_output:
            key = self._armed(node, key)
            self._ask(node, key, INPUT, depth)
            if self.at_input is not key:
                raise self._missed(node, INPUT)
        elif not self.sliced and self.rows is not None:
            self.sliced = True
            call = take((self.args, self.kwargs), self.rows, self._dims().at(key, INPUT))
            self.args, self.kwargs = call
        return self.args, self.kwargs

    def write_inputs(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the module with other arguments in these rows."""
        if node._module is self.at_output:
            raise misses.too_late_to_write_input(node)
        self.read_inputs(node, 3)
        self.args, self.kwargs = args, kwargs

    def skip(self, node: Node, value: Any) -> None:
        """Let the module's next call return `value` in these rows without computing them."""
        key = self._armed(node, node._module)
        if key is not self.at_input and self.lanes.has_passed(key, INPUT):
            raise misses.skipped_too_late(node)
        value = checks.fitting_skip(value, node, self.run.order)
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
        self._wait(_AT_STEP, step)
        return run.step >= step and not (run.steps_over or self.lanes.over)

    def run_out(self) -> Any:
        """Wait for what the traced call returns."""
        if not self.lanes.over:
            self._wait(_AT_RESULT, None)
        if self.rows is None:
            return self.run.result
        return take(self.run.result, self.rows, self._dims().at(self.run.whole, OUTPUT))

    def tap(self, node: Node, callback: Callable[..., None]) -> None:
        """Have a callback told of every call of a module, with these rows of it."""
        self.run.tap(
            node,
            lambda args, kwargs, output: callback(
                *self._mine((args, kwargs), node, INPUT), self._mine(output, node, OUTPUT)
            ),
        )

    def tap_input(self, node: Node, callback: Callable[..., None]) -> None:
        """Have a callback told what each call of a module is made with in these rows."""
        self.run.tap_input(
            node, lambda args, kwargs: callback(*self._mine((args, kwargs), node, INPUT))
        )

    def _mine(self, value: Any, node: Node, kind: int) -> Any:
        if self.rows is None:
            return value
        return take(value, self.rows, self._dims().at(node._module, kind))

    def wait_for_name(self, name: str) -> None:
        """Wait until an earlier body has assigned a name, or can no longer do so."""
        if not self.lanes.over:
            self._wait(_AT_NAME, name)

    def wait_at(self, barrier: Any) -> None:
        """Wait until a barrier opens."""
        if not self.lanes.over:
            self._wait(_AT_BARRIER, barrier)

    def _dims(self) -> BatchDims:
        return self.lanes.dims()

    def _armed(self, node: Node, key: Any) -> Any:
        if self.run.closed:
            raise misses.pass_is_over(self.run)
        return key if key in self.run.inputs else self.run.arm_input(node)

    def _ask(self, node: Node, key: Any, kind: int, depth: int) -> None:
        frame = _getframe(depth + 1)
        self.trail.append((node, kind, frame.f_code, frame.f_lasti))
        if self.lanes.over:
            self.at_output = self.at_input = None
            return
        if self.lanes.has_passed(key, kind) and self.lanes.is_gone(node):
            raise self._missed(node, kind)
        over, self.calls_over = self.calls_over, 0
        for _ in range(over + 1):
            self._wait(kind, key)

    def pass_over(self, calls: int) -> None:
        """Let the next read be of a call beyond so many others."""
        self.calls_over = calls

    def to_call(self, node: Node, count: int) -> bool:
        """Wait for the arguments of a module's next call but `count - 1`; False without one."""
        key = self._armed(node, node._module)
        for _ in range(count):
            if self.lanes.over:
                return False
            self._wait(INPUT, key)
        return self.at_input is key and not self.lanes.over

    def _wait(self, kind: int, what: Any) -> None:
        self.lanes.note(self, kind, what)
        assert self.back is not None
        self.back.switch()
        if self.closed:
            raise Exit

    def _missed(self, node: Node, kind: int) -> TraceError:
        overrun, self.overrun = self.overrun, False
        return misses.missed(self, node, kind, overrun)

    # The model's side ------------------------------------------------------------------------

    def stand_at_output(self, key: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """Let the body have what a module returned; give what it leaves there."""
        rows = self.rows
        given = output if rows is None else take(output, rows, self._dims().at(key, OUTPUT))
        self.at_output, self.args, self.kwargs, self.value = key, args, kwargs, given
        self.sliced = False
        self._tell(OUTPUT, given)
        self.go()
        value, self.value = self.value, None
        self.at_output = self.args = self.kwargs = None
        if value is given:
            return output
        return value if rows is None else put(output, value, rows, self._dims().at(key, OUTPUT))

    def stand_at_input(self, key: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Let the body have a call's arguments; give those to call with."""
        rows, call = self.rows, (args, kwargs)
        given = call if rows is None else take(call, rows, self._dims().at(key, INPUT))
        self.at_input, (self.args, self.kwargs) = key, given
        self._tell(INPUT, given)
        self.go()
        left, self.args, self.kwargs, self.at_input = (self.args, self.kwargs), None, None, None
        if left[0] is given[0] and left[1] is given[1]:
            return call
        return left if rows is None else put(call, left, rows, self._dims().at(key, INPUT))

    def _tell(self, kind: int, value: Any) -> None:
        watch = self.run.watch
        if watch is not None and self.trail:
            node, line = self.trail[-1][0], misses.line(self.trail[-1])
            watch.arrived(node, kind, value, line, max(self.run.step, 0))

    def go(self) -> None:
        """Let the body run until it waits for something, or ends."""
        back_modes = swap(self.modes)
        self.back = getcurrent()
        try:
            if self.worker is None:
                self.worker = worker = acquire()
                context = contextvars.copy_context()
                context.run(active.set, self)
                worker.begin(self._live, context)
            else:
                self.worker.switch()
        finally:
            self.modes = swap(back_modes)
        watch = self.run.watch
        if watch is not None and (self.at_output is not None or self.at_input is not None):
            watch.leaving(self.value if self.at_output is not None else (self.args, self.kwargs))
        if self.ended:
            self._retire()
            if self.error is not None and not self.closed:
                error, self.error = self.error, None
                self.run.fail(error)

    def _live(self) -> Greenlet:
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


class Lanes:
    """All lanes of one pass, and whose turn it is."""

    def __init__(self, run: Pass) -> None:
        self.run = run
        self.all: list[Lane] = []
        self.outputs: dict[Any, list[Lane]] = {}
        self.inputs: dict[Any, list[Lane]] = {}
        self.skips: dict[Any, list[tuple[misses.Read, Lane, Any]]] = {}
        self.over = False
        self._parked: list[Lane] = []
        self._standing: tuple[int, Any] | None = None
        self._dims: BatchDims | None = None

    # What lanes ask --------------------------------------------------------------------------

    def add(self, body: Body) -> Lane:
        """One lane more, which begins when the pass does, or now if it has begun."""
        lane = Lane(self, body, len(self.all), None)
        self.all.append(lane)
        if self.run.started:
            self._go(lane)
        return lane

    def dims(self) -> BatchDims:
        """Which tensors hold the batch."""
        if self._dims is None:
            total = next(lane.rows.total for lane in self.all if lane.rows is not None)
            self._dims = BatchDims(self.run.root, self.run.call, total)
        return self._dims

    def note(self, lane: Lane, kind: int, what: Any) -> None:
        """A lane is about to wait."""
        lane.waits = (kind, what)
        if kind in (OUTPUT, INPUT):
            waiting = (self.inputs if kind == INPUT else self.outputs).setdefault(what, [])
            insort(waiting, lane, key=_index)
        elif kind in (_AT_NAME, _AT_BARRIER):
            insort(self._parked, lane, key=_index)

    def has_passed(self, key: Any, kind: int) -> bool:
        """Whether, by the order learned, a site does not come again."""
        run = self.run
        if self._standing is None or self._standing == (kind, key) or run.stepping:
            return False
        if run.observation is not None:
            seen = run.observation
            return seen.has_entered(key) if kind == INPUT else seen.has_left(key)
        here, there = run.single.get(self._standing[1]), run.single.get(key)
        return here is not None and there is not None and there[kind] < here[self._standing[0]]

    def is_gone(self, node: Node) -> bool:
        """Whether that is certain."""
        assert self._standing is not None
        frame = self.run.worker.gr_frame if self.run.worker is not None else None
        return frame is not None and not may_still_run(node, self._standing[1], frame)

    def at_barrier(self, barrier: Any) -> int:
        """How many lanes wait at a barrier."""
        return sum(lane.waits == (_AT_BARRIER, barrier) for lane in self._parked)

    # What the pass tells ---------------------------------------------------------------------

    def begin(self) -> None:
        """Let every lane run until it waits for something; they may add others."""
        for lane in self.all:
            if lane.worker is None and not lane.ended:
                self._go(lane)

    def at_output(self, key: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """A module has returned: every lane that waits for it has its turn."""
        before, self._standing = self._standing, (OUTPUT, key)
        call = object()
        while (lane := self._next(self.outputs, key, call)) is not None:
            output = lane.stand_at_output(key, args, kwargs, output)
            self._let_go()
        self._standing = before
        return output

    def at_input(self, key: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A module is called: every lane that waits for its arguments has its turn."""
        before, self._standing = self._standing, (INPUT, key)
        call = object()
        while (lane := self._next(self.inputs, key, call)) is not None:
            args, kwargs = lane.stand_at_input(key, args, kwargs)
            self._let_go()
        self._standing = before
        return args, kwargs

    def _next(self, waiting: dict[Any, list[Lane]], key: Any, call: object) -> Lane | None:
        """The first lane that waits for a site and has not had its turn in this call of it."""
        for lane in waiting.get(key, ()):
            if lane.served is not call:
                lane.served = call
                waiting[key].remove(lane)
                if not waiting[key]:
                    del waiting[key]
                lane.waits = None
                return lane
        return None

    def new_step(self) -> None:
        """The model begins another step: what was waited for in the last one is missed."""
        step, beside = self.run.step, self.run.root._beside
        for lane in self.all:
            if step > 0 and lane.waits is not None and lane.waits[0] in (OUTPUT, INPUT):
                if lane.waits[1] not in beside:
                    lane.overrun = True
                    self._go(lane)
        self._resume(lambda kind, what: kind == _AT_STEP and what <= step)

    def end_steps(self) -> None:
        """No step follows: loops over steps end."""
        self._resume(lambda kind, what: kind == _AT_STEP)

    def end(self) -> None:
        """The traced call has returned: what a lane still waits for does not come."""
        self.over = True
        for lane in self.all:
            while not lane.ended:
                self._go(lane)
        if self.skips:
            raise misses.skip_never_used(next(iter(self.skips.values()))[0][0])

    def close(self) -> None:
        """End all bodies where they stand."""
        for lane in self.all:
            lane.close()

    def skips_all_rows(self, key: Any) -> bool:
        """Whether a module's next call need not be computed at all."""
        rows = [lane.rows for _, lane, _ in self.skips.get(key, ())]
        if not rows:
            return False
        whole = None in rows
        return whole or sum(r.size for r in set(rows) if r) == max(r.total for r in rows if r)

    def skipped(self, key: Any, output: Any) -> Any:
        """What a module returns when rows of its call are skipped; None for one not computed."""
        self.run.observation = None  # what would have run inside it is not learned
        left = self.skips.pop(key)
        parts = {lane.rows: value for _, lane, value in left if lane.rows is not None}
        for _, lane, value in left:
            output = value if lane.rows is None else output
        if output is None:
            return stack([parts[rows] for rows in sorted(parts, key=lambda rows: rows.start)])
        for rows, value in parts.items():
            output = put(output, value, rows, self.dims().at(key, OUTPUT))
        return output

    def _resume(self, chosen: Callable[[int, Any], bool]) -> None:
        for lane in self.all:
            if lane.waits is not None and chosen(*lane.waits):
                self._go(lane)

    def _go(self, lane: Lane) -> None:
        if lane.waits is not None:
            self._forget(lane, *lane.waits)
        lane.go()
        self._let_go()

    def _forget(self, lane: Lane, kind: int, what: Any) -> None:
        lane.waits = None
        if kind in (OUTPUT, INPUT):
            (self.inputs if kind == INPUT else self.outputs)[what].remove(lane)
        elif kind in (_AT_NAME, _AT_BARRIER):
            self._parked.remove(lane)

    def _let_go(self) -> None:
        """Resume lanes whose barrier has opened or whose name has been assigned."""
        while self._parked:
            lane = next(filter(self._may_go, self._parked), None)
            if lane is None:
                return
            self._parked.remove(lane)
            lane.waits = None
            lane.go()

    def _may_go(self, lane: Lane) -> bool:
        assert lane.waits is not None
        kind, what = lane.waits
        if kind == _AT_BARRIER:
            return bool(what.is_open)
        return lane.body.name_is_due(what) or all(e.ended for e in self.all[: lane.index])


def _index(lane: Lane) -> int:
    return lane.index
