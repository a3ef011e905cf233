"""Recording: what each call of a module took and returned, as the block left it.

    recorder = Recorder(nodes, Plan(inputs=True))
    recorder.listen(run)                # a tap on every node, and `finish` when the pass is over
    recorder.records["model.lm_head"]   # its calls so far

The tap runs on the model's side, once for each call of each module, so it does little: it detaches,
notes torch's version counter, and appends. What a later in-place operation has changed shows in
that counter when the pass ends: the value is lost, the user is told, and the wrapped model
remembers to copy that module's values the next time.
"""

import os
import sys
import warnings
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from insitu.engine.cache.news import News
from insitu.engine.cache.values import CHANGED, NotKept, mapped
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InsituWarning

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_NAMED_MAX = 4

Callback = Callable[[tuple[Any, ...], dict[str, Any], Any], None]
InputCallback = Callable[[tuple[Any, ...], dict[str, Any]], None]
_TensorMarks = list[tuple[Tensor, int]]
Marks = int | _TensorMarks
Call = tuple[int, Any, Any, Marks]
"""Step, output, `(args, kwargs)`, and the versions that tell whether they were changed since.

In the common case, an output that is one tensor, that is its version alone; -1 never changes.
"""
STEP: Final = 0
OUTPUT: Final = 1
INPUTS: Final = 2
MARKS: Final = 3


class Taps(Protocol):
    """What recording needs of a pass."""

    step: int

    @property
    def arming(self) -> "Ending":
        """The whole pass, where this is a body's part in it."""

    def tap(self, node: Any, callback: Callback) -> None:
        """Call back whenever a module returns, with what it took and returned in the end."""

    def tap_input(self, node: Any, callback: InputCallback) -> None:
        """Call back whenever a module is called, with what it is called with in the end."""


class Ending(Protocol):
    """A pass that tells when it is over."""

    def at_end(self, callback: Callable[[bool], None]) -> None:
        """Call back when nothing more of the pass or its block runs; True when one failed."""


class Keeper(Protocol):
    """Where calls are put, when not simply in memory."""

    def place(self, path: str, call: Call, records: Mapping[str, "Record"]) -> Call:
        """Take a call in; gives it as it is to be kept."""

    def finish(self, failed: bool, records: Mapping[str, "Record"]) -> None:
        """The pass is over."""


@dataclass(frozen=True)
class Plan:
    """What is kept of each call, and how."""

    outputs: bool = True
    inputs: bool = False
    detach: bool = True
    clone: bool = False
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    steps: Container[int] | None = None

    def keep(self, tensor: Tensor, marks: _TensorMarks, clone: bool) -> Tensor:
        """The tensor as the cache keeps it; one that shares the model's memory is marked."""
        kept = tensor.detach() if self.detach else tensor
        if self.dtype is not None or self.device is not None:
            dtype = self.dtype if kept.is_floating_point() else None
            moved = kept.to(device=self.device, dtype=dtype)
            if moved is not kept:
                return moved
        if clone:
            return kept.clone()
        try:
            marks.append((kept, kept._version))
        except RuntimeError:  # tensors of inference mode have no version
            kept = kept.clone()
        return kept


class Record:
    """The calls of one module."""

    __slots__ = ("calls", "lost", "news", "sealed")

    def __init__(
        self, calls: Iterable[Call] = (), sealed: bool = False, news: News | None = None
    ) -> None:
        self.calls = list(calls)
        self.news = news
        """Tells of further calls, where it is being filled."""
        self.lost = False
        """Whether a value was changed in place."""
        self.sealed = sealed
        """The pass is over: what is changed from now on, the user changes."""

    def current(self) -> list[Call]:
        """The calls, with a stand-in for every tensor that was changed in place."""
        if not self.sealed:
            self.give_up_changed()
        return self.calls

    def give_up_changed(self) -> None:
        """Let go of values that were changed in place."""
        for index, call in enumerate(self.calls):
            marks = call[MARKS]
            if isinstance(marks, int):
                if marks >= 0 and call[OUTPUT]._version != marks:
                    self.calls[index] = (call[STEP], CHANGED, None, -1)
                    self.lost = True
            elif any(kept._version != version for kept, version in marks):
                self.calls[index] = _without_changed(call, marks)
                self.lost = True


class Recorder:
    """Listens to a pass and fills the records of a cache."""

    def __init__(
        self, nodes: Mapping[str, WrappedModule], plan: Plan, keeper: Keeper | None = None
    ) -> None:
        self.nodes = nodes
        self.plan = plan
        self.keeper = keeper
        self._of_module: dict[nn.Module, tuple[str, Record]] = {}
        self.records: dict[str, Record] = {}
        self.news = News()
        for path, node in nodes.items():  # a module that stands in two places has one record
            made = path, Record(news=self.news)
            _, record = self._of_module.setdefault(node._module, made)
            self.records[path] = record

    def listen(self, run: Taps) -> None:
        """Record what passes by from now on."""
        if not self.nodes:
            return
        copied = _copied(next(iter(self.nodes.values()))._root)
        run.arming.at_end(self.finish)
        is_default = self.plan == Plan() and self.keeper is None
        for path, record in self._of_module.values():
            node = self.nodes[path]
            clone = self.plan.clone or node._module in copied
            if is_default and not clone:
                run.tap(node, _tap_output(run, record, self.news, self.plan))
            else:
                self._tap_all(run, path, clone)

    def finish(self, failed: bool) -> None:
        """The pass is over: let go of what was changed in place, and say so."""
        lost = []
        for path, record in self._of_module.values():
            record.give_up_changed()
            record.sealed = True
            if record.lost:
                lost.append(path)
        try:
            if self.keeper is not None:
                self.keeper.finish(failed, self.records)
        finally:
            self.news.tell(None)
        if lost:
            nodes = [self.nodes[path] for path in lost]
            _copied(nodes[0]._root).update(node._module for node in nodes)
            if not failed:
                _tell_lost(lost)

    def _tap_all(self, run: Taps, path: str, clone: bool) -> None:
        """Listen to both sides of a module; its inputs are taken as it is called, unchanged yet."""
        plan, keeper, steps = self.plan, self.keeper, self.plan.steps
        node, record, news = self.nodes[path], self.records[path], self.news
        calls, ears = record.calls, news.ears
        begun: list[tuple[Any, _TensorMarks]] = []

        def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            marks: _TensorMarks = []
            wanted = steps is None or max(run.step, 0) in steps
            leaf = _keeping(plan, marks, clone)
            begun.append((mapped((args, kwargs), leaf) if wanted else None, marks))

        def leave(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if plan.inputs and not begun:
                enter(args, kwargs)  # it was running when the cache began
            inputs, marks = begun.pop() if plan.inputs else (None, [])
            if steps is not None and max(run.step, 0) not in steps:
                return
            kept = mapped(output, _keeping(plan, marks, clone)) if plan.outputs else None
            call: Call = run.step, kept, inputs, marks
            if keeper is not None:
                call = keeper.place(path, call, self.records)
            calls.append(call)
            if ears:
                news.tell(record)

        if plan.inputs:
            run.tap_input(node, enter)
        run.tap(node, leave)


def _tap_output(run: Taps, record: Record, news: News, plan: Plan) -> Callback:
    """The default, and so the fast one: outputs alone, detached, of every step."""
    append, ears = record.calls.append, news.ears

    def take(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if type(output) is Tensor:
            kept = output.detach()
            try:
                append((run.step, kept, None, kept._version))
            except RuntimeError:  # tensors of inference mode have no version
                append((run.step, kept.clone(), None, -1))
        else:
            marks: _TensorMarks = []
            append((run.step, mapped(output, _keeping(plan, marks, False)), None, marks))
        if ears:
            news.tell(record)

    return take


def _keeping(plan: Plan, marks: _TensorMarks, clone: bool) -> Callable[[Any], Any]:
    def leaf(part: Any) -> Any:
        if isinstance(part, Tensor):
            return plan.keep(part, marks, clone)
        return NotKept(type(part).__name__)

    return leaf


def _without_changed(call: Call, marks: _TensorMarks) -> Call:
    changed = {id(kept) for kept, version in marks if kept._version != version}

    def leaf(part: Any) -> Any:
        return CHANGED if id(part) in changed else part

    left = [mark for mark in marks if id(mark[0]) not in changed]
    return call[STEP], mapped(call[OUTPUT], leaf), mapped(call[INPUTS], leaf), left


def _copied(root: Any) -> set[nn.Module]:
    """Modules of a wrapped model whose values are copied, since once they were changed in place."""
    modules: set[nn.Module] = root.__dict__.setdefault("_copied_by_cache", set())
    return modules


def _tell_lost(paths: list[str]) -> None:
    more = f" and {len(paths) - _NAMED_MAX} more" if len(paths) > _NAMED_MAX else ""
    named = ", ".join(path.removeprefix("model.") for path in paths[:_NAMED_MAX])
    warnings.warn(
        f"values of {named}{more} were changed in place after they were cached, and are lost. "
        "The next cache of this model copies them; tracer.cache(clone=True) copies every value.",
        InsituWarning,
        stacklevel=_stacklevel(),
    )


def _stacklevel() -> int:
    """How far up the first frame outside this package is, for the caller's `warn`."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    return level
