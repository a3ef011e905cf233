"""Whose turn it is: all captured bodies of a pass, and what each waits for.

    model (a greenlet, or the caller)          lane 0              lane 1
    ─────────────────────────────────          ──────              ──────
    h[0] returns; both asked for it ── go ───► edits its rows
                                   ◄── asks for h[5].output
                                   ── go ─────────────────────────► reads its rows
                                   ◄──────────────────────── asks for lm_head.output
    goes on with the edited value …

Lanes are served in the order they were written, edits before invokes, and all of them before the
block in place.
"""

from bisect import insort
from collections.abc import Callable
from typing import Any

from insitu.engine import blame, misses
from insitu.engine.arming import Node
from insitu.engine.batch import put, stack
from insitu.engine.batch_dims import BatchDims
from insitu.engine.interleave import Pass
from insitu.engine.lane import AT_BARRIER, AT_NAME, AT_STEP, Body, Lane
from insitu.engine.modes import Modes, current
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.reachable import may_come_again


class Lanes:
    """All lanes of one pass, and whose turn it is."""

    def __init__(self, run: Pass) -> None:
        self.run = run
        self.all: list[Lane] = []
        self.outputs: dict[Any, list[Lane]] = {}
        self.inputs: dict[Any, list[Lane]] = {}
        self.skips: dict[Any, list[tuple[misses.Read, Lane, Any]]] = {}
        self._begun: dict[Any, list[tuple[misses.Read, Lane, Any]]] = {}
        """Those whose call is under way; what is asked for meanwhile is for the next one."""
        self.over = False
        self._parked: list[Lane] = []
        self.standing: tuple[int, Any] | None = None
        self._dims: BatchDims | None = None

    # What lanes ask --------------------------------------------------------------------------

    def add(self, body: Body) -> Lane:
        """One lane more, which begins when the pass does, or now if it has begun."""
        lane = Lane(self, body, len(self.all), None)
        self.all.append(lane)
        if self.run.started:
            self._go(lane, current())
        return lane

    def dims(self) -> BatchDims:
        """Which tensors hold the batch."""
        if self._dims is None:
            prompts = [lane.rows for lane in self.all if lane.rows is not None]
            run = self.run
            self._dims = BatchDims(run.root, run.call, prompts[0].total, prompts, run.sites)
        return self._dims

    def note(self, lane: Lane, kind: int, what: Any) -> None:
        """A lane is about to wait."""
        lane.waits = (kind, what)
        if kind == OUTPUT:
            waiting = self.outputs.setdefault(what, [])
        elif kind == INPUT:
            waiting = self.inputs.setdefault(what, [])
        elif kind in (AT_NAME, AT_BARRIER):
            waiting = self._parked
        else:
            return
        if waiting and waiting[-1].index > lane.index:
            insort(waiting, lane, key=_index)
        else:
            waiting.append(lane)

    def has_passed(self, key: Any, kind: int) -> bool:
        """Whether, by the order learned, a site does not come again."""
        run = self.run
        if self.standing is None or self.standing == (kind, key) or run.stepping:
            return False
        if run.observation is not None:
            seen = run.observation
            return seen.has_entered(key) if kind == INPUT else seen.has_left(key)
        here, there = run.single.get(self.standing[1]), run.single.get(key)
        return here is not None and there is not None and there[kind] < here[self.standing[0]]

    def is_gone(self, node: Node, kind: int) -> bool:
        """Whether that is certain."""
        assert self.standing is not None
        frame = self.run.worker.gr_frame if self.run.worker is not None else None
        return frame is not None and not may_come_again(node, kind, self.standing, frame)

    def at_barrier(self, barrier: Any) -> int:
        """How many lanes wait at a barrier."""
        return sum(lane.waits == (AT_BARRIER, barrier) for lane in self._parked)

    # What the pass tells ---------------------------------------------------------------------

    def begin(self) -> None:
        """Let every lane run until it waits for something; they may add others."""
        modes = current()
        for lane in self.all:
            self._go(lane, modes)

    def at_output(self, key: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """A module has returned: every lane that waits for it has its turn."""
        before, self.standing = self.standing, (OUTPUT, key)
        call, modes = object(), current()
        while (lane := self._next(self.outputs, key, call)) is not None:
            output = lane.stand_at_output(key, args, kwargs, output, modes)
            if self._parked:
                self._let_go(modes)
        self.standing = before
        return output

    def at_input(self, key: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A module is called: every lane that waits for its arguments has its turn."""
        before, self.standing = self.standing, (INPUT, key)
        call, modes = object(), current()
        while (lane := self._next(self.inputs, key, call)) is not None:
            args, kwargs = lane.stand_at_input(key, args, kwargs, modes)
            if self._parked:
                self._let_go(modes)
        self.standing = before
        return args, kwargs

    def _next(self, waiting: dict[Any, list[Lane]], key: Any, call: object) -> Lane | None:
        """The first lane that waits for a site and has not had its turn in this call of it."""
        here = waiting.get(key, [])
        for lane in here:
            if lane.served is not call and not lane.muted:
                lane.served = call
                here.remove(lane)
                if not here:
                    del waiting[key]
                lane.waits = None
                return lane
        return None

    def new_step(self) -> None:
        """The model begins another step: what was waited for in the last one is missed."""
        step, beside = self.run.step, self.run.root._beside
        for lane in self.all:
            kind, site = lane.waits or (None, None)
            if step > 0 and kind in (OUTPUT, INPUT) and site not in beside:
                lane.overrun = True
                self._go(lane, current())
        self._resume(lambda kind, what: kind == AT_STEP and what <= step)

    def end_steps(self) -> None:
        """No step follows: loops over steps end."""
        self._resume(lambda kind, what: kind == AT_STEP)

    def end(self) -> None:
        """The traced call has returned: what a lane still waits for does not come."""
        self.over = True
        for lane in self.all:
            while not lane.ended:
                self._go(lane, current())
        if self.skips:
            raise misses.skip_never_used(next(iter(self.skips.values()))[0][0])
        if self._dims is not None:
            self._dims.tell()

    def close(self) -> None:
        """End all bodies where they stand."""
        for lane in self.all:
            lane.close()

    def skips_all_rows(self, key: Any) -> bool:
        """Whether a module's next call need not be computed at all."""
        now = [skip for skip in self.skips[key] if not skip[1].muted]  # the others are not in it
        if not now:
            return False
        self._begun[key] = now
        lanes = [lane for _, lane, _ in now]
        rows = [lane.rows for lane in lanes]
        whole = None in rows or sum(r.size for r in set(rows) if r) == max(
            r.total for r in rows if r
        )
        for lane in lanes:
            lane.muted = not whole  # it runs for others; these rows see nothing inside
        return whole

    def skipped(self, key: Any, output: Any) -> Any:
        """What a module returns when rows of its call are skipped; None for one not computed."""
        left = self._begun.pop(key, None)
        if left is None:
            return output
        self.run.observation = None  # what would have run inside it is not learned
        self.skips[key] = [it for it in self.skips[key] if all(it is not skip for skip in left)]
        if not self.skips[key]:
            del self.skips[key]
        for _, lane, _ in left:
            lane.muted = False
        parts = {lane.rows: value for _, lane, value in left if lane.rows is not None}
        for read, lane, value in left:
            blame.skipped(self.run, read, value)
            output = value if lane.rows is None else output
        if not parts:
            return output
        is_batch = self.dims().at(key, OUTPUT)
        if output is None:
            return stack(parts, is_batch)
        for rows, value in parts.items():
            output = put(output, value, rows, is_batch)
        return output

    def _resume(self, chosen: Callable[[int, Any], bool]) -> None:
        for lane in self.all:
            if lane.waits is not None and chosen(*lane.waits):
                self._go(lane, current())

    def _go(self, lane: Lane, modes: Modes) -> None:
        if lane.waits is not None:
            self._forget(lane, *lane.waits)
        lane.go(modes)
        if self._parked:
            self._let_go(modes)

    def _forget(self, lane: Lane, kind: int, what: Any) -> None:
        lane.waits = None
        if kind in (OUTPUT, INPUT):
            (self.inputs if kind == INPUT else self.outputs)[what].remove(lane)
        elif kind in (AT_NAME, AT_BARRIER):
            self._parked.remove(lane)

    def _let_go(self, modes: Modes) -> None:
        """Resume lanes whose barrier has opened or whose name has been assigned."""
        while self._parked:
            lane = next(filter(self._may_go, self._parked), None)
            if lane is None:
                return
            self._parked.remove(lane)
            lane.waits = None
            lane.go(modes)

    def _may_go(self, lane: Lane) -> bool:
        assert lane.waits is not None
        kind, what = lane.waits
        if kind == AT_BARRIER:
            return bool(what.is_open)
        return lane.body.name_is_due(what) or all(e.ended for e in self.all[: lane.index])


def _index(lane: Lane) -> int:
    return lane.index
