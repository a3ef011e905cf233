"""One pass: a block of user code and a forward pass taking turns on one thread.

    block                                   model (a greenlet)
    ─────                                   ──────────────────
    model.h[0].output ── resume ──────────► runs …
                                            h[0] returns, its wrapper stops
                      ◄── hand over ─────── stands at h.0.output
    edits the value
    model.h[5].output ── resume ──────────► goes on with the edited value …

The block stays in its own frame; the model is what gets parked. Between a hook and the block there
is as little code as possible: caches are cold between two layers of a real model, so path length is
what a read costs. Over 400 lines: the two sides share one state.
"""

import contextvars
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from sys import _getframe
from threading import get_ident
from types import CodeType
from typing import Any, NoReturn

from torch import nn

from insitu.engine import ahead, blame, brought, calls, checkpoints, checks, met, misses
from insitu.engine.ahead import NOTHING
from insitu.engine.arming import Arming, Node
from insitu.engine.beside import Beside, Watcher
from insitu.engine.compiled import out_of_graphs
from insitu.engine.modes import current, grad_on, swap
from insitu.engine.order import INPUT, OUTPUT, Observation, Order, is_known
from insitu.engine.placed import Placed
from insitu.engine.switch import (
    Exit,
    Greenlet,
    SwitchError,
    Worker,
    acquire,
    getcurrent,
    leave,
)

_NOWHERE: dict[nn.Module, tuple[int, int]] = {}
_NOBODY: dict[nn.Module, tuple[nn.Module, ...]] = {}


class Pass(Arming):
    """A forward pass that stops wherever its block asks it to."""

    __slots__ = (
        "__weakref__", "ahead", "args", "at_input", "at_output", "base_modes", "block", "block_key",
        "block_modes", "call", "calls_over", "checkpointed", "cleared", "closed", "count", "ended",
        "ends", "entered", "error", "failure", "halts", "here", "kind", "kwargs", "lanes",
        "model_modes", "near", "observation", "order", "outer", "overrun", "prepare", "result",
        "root", "single", "skips", "started", "step", "stepped", "stepping", "steps_over", "taps",
        "taps_before", "thread", "to_block", "to_model", "told", "trail", "unbound", "value",
        "want_any", "want_input", "want_output", "want_step", "watch", "whole", "worker", "writes",
    )  # fmt: skip

    armed_around: nn.Module | None
    hooked: dict[nn.Module, tuple[Any, Any] | None] | None
    prepare: Callable[["Pass"], None] | None
    lanes: Beside | None
    taps: dict[Any, list[Callable[..., None]]] | None
    taps_before: dict[Any, list[Callable[..., None]]] | None
    told: dict[Any, met.Called] | None
    ends: list[Callable[[bool], None]] | None
    ahead: ahead.Reads | None
    entered: tuple[CodeType, int] | None
    error: BaseException | None
    failure: BaseException | None
    count: calls.Count | None
    halts: Callable[[Any, int], bool] | None
    """Where else a pass that goes from module to module stops: of a site, and its side."""
    worker: Greenlet | None
    block: Greenlet | None
    outer: Any
    watch: Watcher | None
    writes: deque[blame.Write] | None
    observation: Observation | None
    at_output: nn.Module | None
    at_input: nn.Module | None
    want_output: nn.Module | None
    want_input: nn.Module | None
    want_step: int | None
    value: Any
    args: Any
    kwargs: Any
    result: Any
    to_model: Any  # switches to the model's greenlet, while there is one

    def __init__(self, root: Any, call: Any, kind: str, stepping: bool) -> None:
        order: Order | None = root._orders.get(kind)
        self.order = order
        if order is None:
            self.single, self.callers = _NOWHERE, _NOBODY
        else:
            self.single, self.callers = order.single, order.callers
        self.outputs: set[nn.Module] = set()
        self.inputs: set[nn.Module] = set()
        self.placed: list[Placed] = []
        self.hook_key = 0
        self.both = order is None
        self.root = root
        self.whole: nn.Module = root._module
        self.stepped: nn.Module = root._module
        self.call = call
        self.kind = kind
        self.stepping = stepping
        self.thread = get_ident()
        self.base_modes = self.model_modes = self.block_modes = current()
        self.trail: list[misses.Read] = []
        self.skips: dict[nn.Module, tuple[misses.Read, Any]] = {}
        self.near = NOTHING
        self.lease = self.ahead = None
        self.here = self.step = -1
        self.calls_over = self.block_key = 0
        self.want_any = self.started = self.ended = self.closed = self.cleared = False
        self.overrun = self.steps_over = self.unbound = self.checkpointed = False
        self.armed_around = self.hooked = self.sites = self.prepare = self.lanes = None
        self.taps = self.taps_before = self.told = self.ends = self.entered = None
        self.error = self.failure = self.worker = self.block = self.outer = self.watch = None
        self.observation = self.at_output = self.at_input = self.want_output = None
        self.want_input = self.want_step = self.value = self.args = self.kwargs = None
        self.result = self.writes = self.halts = self.count = self.to_model = None

    # The block's side ------------------------------------------------------------------------

    def read_output(self, node: Node, module: nn.Module, depth: int = 2) -> Any:
        """Run the model up to what a module returns; `reading` has a shorter way for most reads."""
        if self.told is not None and (called := met.told(self, module)) is not None:
            return called[3]
        self.foresee()
        if module not in self.outputs:
            checks.still_open(self, node, OUTPUT)
            module = self.arm_output(node, module)
        self._go_forward(node, module)
        frame = _getframe(depth)
        self.trail.append((node, OUTPUT, frame.f_code, frame.f_lasti))
        if self.count is not None and calls.asked(self, node, OUTPUT, noted=True):
            return self.value
        if self.observation is not None and self.observation.has_left(module):
            checks.may_come(self, node, OUTPUT)
        self._run_to(module, OUTPUT)
        if self.at_output is not module:
            raise checks.missed(self, node, OUTPUT)
        if self.order is not None:
            self.order.note(module)
        if self.watch is not None:
            self.watch.arrived(
                node, OUTPUT, self.value, misses.line(self.trail[-1]), max(self.step, 0)
            )
        return self.value

    def foresee(self) -> None:
        """Before the first module is armed: arm what the block is likely to ask for."""
        if not (self.started or self.cleared):
            ahead.arm(self)

    def arm_input(self, node: Node) -> nn.Module:
        """Let the pass stop at a module's arguments, or skip its call."""
        self.foresee()
        return super().arm_input(node)

    def _go_forward(self, node: Node, module: nn.Module) -> None:
        """Note where an output stands in the order; raise if it is known not to come any more."""
        place = self.single.get(module)
        if place is not None:
            if place[OUTPUT] < self.here:
                checks.may_come(self, node, OUTPUT)
            self.here = place[OUTPUT]

    def read_inputs(self, node: Node, depth: int = 2) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments; they stay readable while the pass stands at the module's output."""
        module = node._module
        stands = module is self.at_input or module is self.at_output
        if stands if self.count is None else calls.asked(self, node, INPUT):
            self.args, self.kwargs = brought.whole((self.args, self.kwargs))
            return self.args, self.kwargs
        if module not in self.inputs:
            checks.still_open(self, node, INPUT)
            module = self.arm_input(node)
        place = self.single.get(module)
        observed = self.observation is not None and self.observation.has_entered(module)
        if observed or (place is not None and place[1] < self.here):
            checks.may_come(self, node, INPUT)
        frame = _getframe(depth)
        self.trail.append((node, INPUT, frame.f_code, frame.f_lasti))
        self._run_to(module, INPUT)
        if self.at_input is not module or self.overrun:  # that of the next step is not meant
            raise checks.missed(self, node, INPUT)
        if place is not None:
            self.here = place[1]
        if self.watch is not None:
            value = self.args, self.kwargs
            self.watch.arrived(node, INPUT, value, misses.line(self.trail[-1]), max(self.step, 0))
        return self.args, self.kwargs

    def write_inputs(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call the module with other arguments."""
        if node._module is self.at_output:
            raise misses.too_late_to_write_input(node)
        self.read_inputs(node, 3)
        self.args, self.kwargs = args, kwargs

    def skip(self, node: Node, value: Any) -> None:
        """Let the module's next call return `value` without computing."""
        module = node._module
        checks.may_skip(self, node, module)
        value = checks.fitting_skip(value, node, self.order)
        if module not in self.inputs:
            module = self.arm_input(node)
        frame = _getframe(2)
        self.skips[module] = ((node, INPUT, frame.f_code, frame.f_lasti), value)

    def _run_to(self, module: nn.Module, kind: int) -> None:
        """Run to a module's next call, or, in a loop that began later, to one beyond it."""
        over, self.calls_over = self.calls_over, 0
        for _ in range(over + 1):
            if kind == OUTPUT:
                self.want_output = module
            else:
                self.want_input = module
            self.resume()
            if self.ended:
                return
        self._come_near()

    def to_call(self, node: Node, count: int) -> bool:
        """Run to the arguments of a module's next call but `count - 1`; False if there is none."""
        module = node._module
        if module not in self.inputs and not self.ended:
            module = self.arm_input(node)
        for _ in range(count):
            if self.ended:
                return False
            self._run_to(module, INPUT)
        self.want_input = None
        return self.at_input is module

    def resume(self) -> None:
        """Let the model run until it stands where it is wanted, or ends."""
        if self.closed or self.ended:
            raise misses.pass_is_over(self)
        if self.thread != get_ident():
            raise checks.in_another_thread(self)
        if self.watch is not None:
            self._tell_leaving()
        here = getcurrent()
        if here is self.worker:
            raise misses.asked_by_the_model(self)
        self.at_output = self.at_input = None
        if self.count is not None:
            self.count.hidden = None
        if here is not self.block:
            self.block = here
            self.to_block = here.switch
        self.block_modes = swap(self.model_modes)
        if self.started:
            self.to_model()
        else:
            self._start()
        if self.ended:
            self.settle()

    def advance(self, step: int) -> bool:
        """Run to the beginning of a step; False when the run has no such step."""
        if step == self.step and not self.steps_over:
            return True
        if step < self.step:
            raise misses.step_has_passed(self, step)
        if self.steps_over or self.ended:
            return False
        self.take_steps()
        self.want_step = step
        self.resume()
        self.want_step = None
        return not (self.steps_over or self.ended)

    def take_steps(self) -> None:
        """Count the model's steps from here on."""
        if not self.stepping:
            self.stepping = True
            if self.started:
                self.step = 0

    def tap(self, node: Node, callback: Callable[..., None]) -> None:
        """Have `callback(args, kwargs, output)` told of every call of a module.

        It is told last, after the block has had its turn, with what the module then returns.
        """
        checks.still_open(self, node, OUTPUT)
        self.taps = self.taps if self.taps is not None else {}
        self.taps.setdefault(self.arm_input(node), []).append(callback)

    def tap_input(self, node: Node, callback: Callable[..., None]) -> None:
        """Have `callback(args, kwargs)` told what each call of a module is made with."""
        checks.still_open(self, node, INPUT)
        self.taps_before = self.taps_before if self.taps_before is not None else {}
        self.taps_before.setdefault(self.arm_input(node), []).append(callback)

    def at_end(self, callback: Callable[[bool], None]) -> None:
        """Have `callback(failed)` called when nothing of the pass is left."""
        self.ends = [*(self.ends or ()), callback]

    @property
    def arming(self) -> "Pass":
        """Where modules are armed: what a lane shares with its pass."""
        return self

    def fail(self, error: BaseException) -> NoReturn:
        """On the model's side: a body beside the block failed, so the pass ends here."""
        self.failure = error
        raise Exit

    def to_next_module(self) -> nn.Module | None:
        """Run until any armed module has finished; None when the pass has ended instead."""
        self.want_any = True
        try:
            self.resume()
        finally:
            self.want_any = False
        module = self.at_output
        if module is not None and module in self.single:
            self.here = self.single[module][OUTPUT]
        return module

    def around(self) -> Any:
        """The innermost pass around this one that still runs."""
        outer = self.outer
        while outer is not None and outer.closed:
            outer = outer.outer
        return outer

    def run_out(self) -> Any:
        """Run the pass to its end and return what the traced call returned."""
        if not self.ended:
            self.resume()
        self.result = brought.whole(self.result)
        return self.result

    def finish(self) -> Any:
        """The block is over: run what is left of the pass."""
        if not (self.closed or self.ended):
            if self.started:
                self.resume()
            else:
                self._run_inline()
        if self.skips:
            raise misses.skip_never_used(next(iter(self.skips.values()))[0])
        return self.result

    def close(self, failed: bool = False) -> None:
        """End the pass where it stands and leave no trace of it. Safe to call twice."""
        if self.closed and self.cleared and self.to_model is None:
            return
        self.closed = True
        self.near = NOTHING
        try:
            if self.started and not self.ended and self.worker is not None:
                self.block = here = getcurrent()
                self.to_block = here.switch
                self.block_modes = swap(self.model_modes)
                try:
                    with suppress(SwitchError):  # another thread's: it unwinds there
                        self.worker.throw(Exit)
                finally:
                    swap(self.block_modes)
        finally:
            self.error = None
            if failed:
                self.root._seen.clear()  # it may not have been what its module does
            if self.lanes is not None:
                self.lanes.close()
            if not self.cleared or self.worker is not None or self.to_model is not None:
                self._clear()
        if self.ends is not None:
            self._tell_ends(failed)

    def _tell_ends(self, failed: bool) -> None:
        """Tell everyone, also when one of them fails: a cache may find its disk full."""
        while self.ends:
            tell = self.ends.pop(0)
            try:
                tell(failed)
            except BaseException:
                self._tell_ends(failed)
                raise

    # The model's side ------------------------------------------------------------------------

    def _start(self) -> None:
        self._make_ready()
        worker = acquire()
        self.worker = worker
        self.to_model = worker.switch
        self.started = True
        worker.begin(self._run, contextvars.copy_context())

    def _make_ready(self) -> None:
        if self.order is None and not is_known(self):
            self.observation = Observation(self.root, self.kind)
            self.arm_every(self.root._module)
        order = self.order
        if order is None or ((order.checkpoints or self.whole.training) and grad_on()):
            checkpoints.begin(self)
        if self.prepare is not None:
            prepare, self.prepare = self.prepare, None
            try:
                prepare(self)
            except Exit:
                self._raise_failure()
        if self.stepping:
            self.stepped = self.arm_input(self.root._step_node)

    def _raise_failure(self) -> NoReturn:
        """Raise what a body beside the block failed with, or the Exit being handled."""
        if self.failure is None:
            raise
        failure, self.failure = self.failure, None
        raise failure from None

    def _call(self) -> None:
        self.result = self.call.make(self)
        if self.lanes is not None:
            if self.observation is not None:
                self.observation.finish()  # bodies that wait in vain are told what did run
            self.lanes.end()

    def _run(self) -> Greenlet:
        try:
            self._call()
            self.ended = True
        except Exit as error:
            if self.block is None:
                raise  # closed by another thread: this is the end of the greenlet
            if not self.closed:
                self.error, self.ended = self.failure or error, True
        except BaseException as error:
            self.error, self.ended = error, True
            blame.add_note(self, error)
        self.near = NOTHING
        self.at_output = self.at_input = None
        if grad_on() is not self.block_modes or type(self.base_modes) is not bool:
            swap(self.block_modes)  # else all is as it was: the model has left what it entered
        assert self.block is not None
        return self.block

    def _run_inline(self) -> None:
        """Nobody stopped the pass anywhere: run it here, without a greenlet."""
        self._make_ready()
        block_modes = current()
        try:
            self.worker, self.started = getcurrent(), True
            swap(self.model_modes)
            self._call()
        except Exit:
            self._raise_failure()
        except BaseException as error:
            blame.add_note(self, error)
            raise
        finally:
            self.worker, self.ended = None, True  # first, or `close` ends this very greenlet
            if block_modes is not self.model_modes:
                swap(block_modes)
            self._clear()
        if self.observation is not None:
            self._learn()

    @out_of_graphs
    def after_hooks(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
        """Stop after the last of the user's own forward hooks; None says 'no change' to torch."""
        if getcurrent() is not self.worker:
            return None
        if self.hooked and (call := self.hooked[module]) is not None:
            (args, kwargs), self.hooked[module] = call, None  # torch tells what was there before
        value = self._offer(module, args, kwargs, output)
        return None if value is output else value

    def _offer(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Let everyone who asked have what a module returned, in turn; give what they leave."""
        if self.lanes is not None and module in self.lanes.outputs:
            output = self.lanes.at_output(module, args, kwargs, output)
        if self.want_output is module or self.want_any:
            output = self.stand(module, args, kwargs, output)
        if self.taps is not None:
            for tell in self.taps.get(module, ()):
                tell(args, kwargs, output)
        return output

    def stand(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Hand what a module returned to the block; give what the block leaves there."""
        self.want_output = None
        self.at_output = module
        self.args = args
        self.kwargs = kwargs
        self.value = output
        self._hand_over()
        return self.value

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """A module armed on both sides is called; give the arguments to call it with."""
        if self.closed:
            raise Exit
        if self.observation is not None:
            self.observation.enter(module)
            if self.observation.order.complete:
                self._learn()  # a second step has begun
        if self.stepping and module is self.stepped:
            self.args, self.kwargs = args, kwargs
            self._new_step()
            args, kwargs = self.args, self.kwargs
        if self.lanes is not None and module in self.lanes.inputs:
            args, kwargs = self.lanes.at_input(module, args, kwargs)
        if self.want_input is module or (self.halts is not None and self.halts(module, INPUT)):
            self.args, self.kwargs = args, kwargs
            self._stand_at_input(module)
            args, kwargs = self.args, self.kwargs
        if self.taps_before is not None:
            for tell in self.taps_before.get(module, ()):
                tell(args, kwargs)
        return args, kwargs

    def is_skipped(self, module: nn.Module) -> bool:
        """Whether a module that is called need not run."""
        return module in self.skips or (
            self.lanes is not None
            and module in self.lanes.skips
            and self.lanes.skips_all_rows(module)
        )

    def leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """A module armed on both sides has returned; give what it is to return."""
        if self.closed:
            raise Exit
        if self.observation is not None:
            self.observation.leave(module, output)
        if self.lanes is not None and module in self.lanes.skips:
            output = self.lanes.skipped(module, output)
        if self.hooked and module in self.hooked:
            self.hooked[module] = args, kwargs
            return output
        return self._offer(module, args, kwargs, output)

    def take_skip(self, module: nn.Module) -> Any:
        """The value left for a module that is not to run."""
        self.observation = None  # what would have run inside it is not learned: observe the next
        if module not in self.skips:
            return None  # of all rows: `leave` puts together what was left for them
        read, value = self.skips.pop(module)
        blame.skipped(self, read, value)
        if self.watch is not None:
            self.watch.skipped(read[0], value, misses.line(read), max(self.step, 0))
        return value

    def _new_step(self) -> None:
        wanted = self.want_input if self.want_output is None else self.want_output
        bound = wanted is not None and wanted not in self.root._beside  # those outlast a step
        self.overrun = bound and self.step >= 0 and not self.unbound
        self.step += 1
        self.here = -1
        if self.lanes is not None:
            self.lanes.new_step()
        if self.overrun:
            self.want_output = None
            self._stand_at_input(self.stepped)
        elif self.want_step is not None and self.step >= self.want_step:
            self.trail.clear()
            self._stand_at_input(self.stepped)

    def _stand_at_input(self, module: nn.Module) -> None:
        self.want_input = self.at_output = None
        self.at_input = module
        self.near = NOTHING
        self._hand_over()

    def _hand_over(self) -> None:
        self.model_modes = swap(self.block_modes)
        self.to_block()

    def end_steps(self) -> None:
        """The traced call says that no step follows: a loop over steps ends here."""
        self.steps_over = True
        if self.lanes is not None:
            self.lanes.end_steps()
        if self.want_step is not None:
            self._hand_over()

    def _come_near(self) -> None:
        """Let reads be made the short way, where nobody else has a say in them."""
        simple = self.watch is None and self.observation is None and self.count is None
        if simple and not self.ended and self.at_input is None:
            self.near = NOTHING if self.ahead is None else self.ahead.near

    # Bookkeeping -----------------------------------------------------------------------------

    def _learn(self) -> None:
        assert self.observation is not None
        self.observation.finish()
        self.order = order = self.observation.order
        self.root._orders[self.kind] = order
        self.single, self.callers = order.single, order.callers
        self.observation = None
        self._come_near()

    def settle(self) -> None:
        """The model has run to its end: take away all that it needed."""
        if self.error is None and self.observation is not None:
            self._learn()
        elif self.order is None:
            self.root._seen.clear()  # passes do run to their end: the next one is observed
        self._clear()
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _clear(self) -> None:
        try:
            if not self.cleared:
                self.disarm()
                ahead.learn(self)
        finally:
            worker, self.worker = self.worker, None
            if isinstance(worker, Worker):
                leave(worker, self.model_modes)
            if self.checkpointed:
                checkpoints.end(self)
        self.block = self.to_block = self.to_model = self.taps = self.taps_before = None
        self.value = self.args = self.kwargs = None

    def _tell_leaving(self) -> None:
        assert self.watch is not None
        if self.at_output is not None:
            self.watch.leaving(self.value)
        elif self.at_input is not None:
            self.watch.leaving((self.args, self.kwargs))
