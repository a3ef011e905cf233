"""A backward pass that stops at every gradient its block asks for.

    with model.trace(x):
        h = model.layer1.output
        h.requires_grad_(True)            # where no parameter requires grad
        with model.output.sum().backward():
            g = h.grad.clone()
            h.grad[:] = 0                 # edits what flows on to everything before h
            h.grad = g * 2                # replaces it

    with insitu.backward(loss):           # the same, outside a trace too

    block                                 backward (a greenlet)
    h5.grad ── resume ──────────────────► runs until the gradient of h5 is complete
            ◄── hand over ─────────────── its hook stands at h5
    h0.grad ── resume ──────────────────► goes on with that gradient, as it was edited …

Nothing starts before the first gradient is asked for. `.grad` is seen by a torch function mode on
the block's side alone (0.9 µs for every other operation there), so no class is patched for it.
Backwards of one thread nest, its tasks' too, for torch's engine keeps one stack of them per thread.
"""

import contextvars
import inspect
import itertools
import sys
from contextlib import suppress
from threading import get_ident, local
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from insitu.engine import block_names
from insitu.engine import gradient_misses as misses
from insitu.engine.gradient_hook import NEVER, alone, place
from insitu.engine.gradient_slices import UNREAD, Slices, origins
from insitu.engine.modes import current, swap
from insitu.engine.switch import Exit, Greenlet, SwitchError, acquire, getcurrent, release
from insitu.engine.tracebacks import prune

_property: Any = torch._C.TensorBase.grad
_get_grad, _set_grad = _property.__get__, _property.__set__
_ACCESS = type(_get_grad)

_to_grad_mode = torch._C._set_grad_enabled
_functions = torch._C._len_torch_function_stack

_SUSPENDS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE

_new_key = itertools.count(-1, -1).__next__  # torch's own hook handles count upwards
Passed = tuple[Tensor, int]
"""A gradient, and its version when it had passed."""


class Backward(TorchFunctionMode):
    """One backward and its block. It is the mode that sees the block's `.grad`."""

    __slots__ = (
        "alone", "arguments", "around", "at", "backward_modes", "before", "block", "block_modes",
        "closed", "ended", "entered_at", "error", "frame", "hooks", "inputs", "inside", "key",
        "light", "mounted", "passed", "plain", "slices", "started", "tensors", "thread",
        "to_backward", "to_block", "unshared", "value", "want", "worker",
    )  # fmt: skip

    hooks: dict[int, tuple[Tensor, dict[int, Any], bool]]
    """The tensors it may stop at, the dicts their hooks are in, and whether it had begun before."""
    passed: dict[int, Passed]
    want: Tensor | None
    at: Tensor | None
    slices: Slices | None
    before: "Backward | None"
    """What was the innermost one of this context before."""
    around: "Backward | None"
    inside: "Backward | None"
    """The backward begun last before this one in its thread, and after it, while they run."""
    error: BaseException | None
    frame: Any
    value: Any
    worker: Any
    block: Any
    to_block: Any
    to_backward: Any
    block_modes: Any
    backward_modes: Any

    def __init__(
        self,
        tensors: Any,
        gradient: Any = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> None:
        self.tensors = tensors
        self.arguments = (gradient, retain_graph, create_graph)
        self.inputs = inputs
        self.alone = NEVER if create_graph else alone()
        self.hooks = {}
        self.passed = {}
        self.frame = self.want = self.at = self.value = self.slices = self.error = None
        self.before = self.around = self.inside = None
        self.worker = self.block = self.to_block = self.to_backward = None
        self.block_modes = self.backward_modes = True
        self.mounted = self.started = self.ended = self.closed = False
        self.unshared = self.plain = self.light = False
        self.entered_at = self.thread = self.key = 0

    def __enter__(self) -> "Backward":
        if self.closed or self.frame is not None:
            raise misses.used_twice()
        self.frame = frame = sys._getframe(1)
        self.entered_at = frame.f_lasti
        self.unshared = not frame.f_code.co_flags & _SUSPENDS
        try:
            if not self.unshared:
                self.before = _innermost.get()
                _innermost.set(self)
            self.mounted = True
            torch._C._push_on_torch_function_stack(self)
        except BaseException:  # Ctrl-C, just then
            self._unmount()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._unmount()
            if error is None:
                self._finish()
            else:
                prune(traceback)
        except BaseException as failed:
            prune(failed.__traceback__)
            raise
        finally:
            try:
                self.close()
            except KeyboardInterrupt:
                self.close()
                raise

    # The block's side ------------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if type(func) is _ACCESS and (self.unshared or _innermost.get() is self):
            if func == _get_grad:
                tensor = args[0]
                return self.value if tensor is self.at else self._read(tensor)
            if func == _set_grad:
                return self._write(*args)
        return func(*args, **kwargs) if kwargs else func(*args)

    def _read(self, tensor: Tensor) -> Tensor:
        """Run the backward up to the gradient of a tensor, or look it up."""
        key = id(tensor)
        if key in self.passed:
            return self._late(key)
        if self.slices is not None and (part := self.slices.read(tensor)) is not None:
            return part
        if not self.started:
            self._start(tensor)
        elif not self.ended:
            if key not in self.hooks:
                misses.require_grad(self, tensor)
                self._hook(tensor)
            self.want = tensor
            self._resume()
        if self.at is not tensor:
            raise misses.missed(self, tensor)
        return self.value  # type: ignore[no-any-return]

    def _late(self, key: int) -> Tensor:
        """A gradient that has passed, for reading: a copy, since others may hold its memory."""
        value, version = self.passed[key]
        if version == UNREAD:
            value = value.clone()
            self.passed[key] = (value, value._version)
        return value

    def _write(self, tensor: Tensor, value: Any) -> None:
        """`t.grad = value`: what flows on from t."""
        if value is None and tensor.is_leaf:
            tensor.grad = None  # as in `optimizer.zero_grad()`: what was accumulated before
            return
        if tensor is not self.at:
            if id(tensor) in self.passed:
                raise misses.too_late(self, tensor)
            self._read(tensor)
            if tensor is not self.at:
                raise misses.too_late(self, tensor)
        value = misses.fitting(self, tensor, value, self.value)
        if self.slices is not None and self.slices.here is not None:
            self.value.copy_(value)
        else:
            self.value = value

    def _start(self, tensor: Tensor) -> None:
        if not (tensor.requires_grad and getattr(self.tensors, "requires_grad", True)):
            misses.require_grad(self, tensor)
            misses.require_grad_of_loss(self, tensor)
        self.key = _new_key()
        self._hook(tensor)
        for named in block_names.tensors(self.frame, self.entered_at):
            if named.requires_grad and id(named) not in self.hooks:
                self._hook(named)
        self.want = tensor
        self.block = here = getcurrent()
        self.to_block = here.switch
        self.block_modes = modes = current()
        self.plain = self.light = type(modes) is bool
        self.worker = worker = acquire()
        self.to_backward = worker.switch
        self.started = True
        self._nest()
        worker.begin(self._run, contextvars.copy_context())
        if self.ended:
            self._settle()

    def _resume(self) -> None:
        """Let the backward run until it stands where it is wanted, or ends."""
        if self.inside is not None:
            raise misses.not_innermost(self)
        last, value = self.at, self.value
        self.at = None
        here = getcurrent()
        if here is not self.block:
            self.block = here
            self.to_block = here.switch
        self.block_modes = modes = current()
        self.light = self.plain and type(modes) is bool
        try:
            if self.light:
                _to_grad_mode(self.backward_modes)
            else:
                swap(self.backward_modes)
            self.to_backward()
        except SwitchError as error:
            swap(modes)
            self.at = last
            raise misses.other_thread() from error
        except BaseException:
            swap(modes)
            raise
        if last is not None:
            self.passed[id(last)] = (value, value._version)
        if self.ended:
            self._settle()

    def _finish(self) -> None:
        """The block is over: run what is left of the backward."""
        if not self.started:
            self.call()
            return
        if not self.ended:
            self.want = None
            self._resume()
        misses.check_end(self)

    def close(self) -> None:
        """End the backward where it stands, and leave no trace of it. Safe to call twice."""
        if self.closed and not self.key:
            return
        self.closed = True
        try:
            if self.mounted:
                self._unmount()
            if self.started and not self.ended:
                self._throw()
        finally:
            self._clear()

    def _throw(self) -> None:
        """Unwind the backward, after those that were begun inside it and are still parked."""
        while (inner := self.inside) is not None:
            inner.close()
            inner.error = misses.closed_with_outer()
        self.block = here = getcurrent()
        self.to_block = here.switch
        self.block_modes = modes = current()
        try:
            swap(self.backward_modes)
            with suppress(SwitchError):  # another thread's: it unwinds there when it is collected
                self.worker.throw(Exit)
        finally:
            swap(modes)

    def _unmount(self) -> None:
        """Take this mode off the stack, even from under one that was left on it."""
        if not self.unshared and _innermost.get() is self:
            _innermost.set(self.before)
        above = []
        while self.mounted and _functions():
            mode = torch._C._pop_torch_function_stack()
            self.mounted = mode is not self
            if self.mounted:
                above.append(mode)
        for mode in reversed(above):
            torch._C._push_on_torch_function_stack(mode)

    # The backward's side ---------------------------------------------------------------------

    def call(self) -> None:
        """Torch's own backward, in full."""
        torch.autograd.backward(self.tensors, *self.arguments, inputs=self.inputs)

    def _run(self) -> Greenlet:
        threads = torch._C._is_multithreading_enabled()
        try:
            # CUDA's hooks would come from threads of the engine, which cannot be parked.
            torch._C._set_multithreading_enabled(False)
            self.call()
        except Exit as error:
            if self.block is None:
                raise  # dropped by another thread: this is the end of the greenlet
            if not self.closed:
                self.error = error
        except BaseException as error:
            self.error = error
        finally:
            torch._C._set_multithreading_enabled(threads)
        self.ended = True
        if not self.light or torch.is_grad_enabled() is not self.block_modes:
            swap(self.block_modes)
        return self.block

    def stand(self, tensor: Tensor, value: Tensor) -> None:
        """Hand the gradient of a tensor to the block; come back when it goes on."""
        self.want, self.at, self.value = None, tensor, value
        self.backward_modes = swap(self.block_modes)
        self.to_block()

    def keep(self, tensor: Tensor, grad: Tensor | None) -> None:
        """A gradient passes that nobody waits for now: the block may ask for it later."""
        if getcurrent() is self.worker:  # else it is another backward's, through the same tensor
            if self.closed:
                raise Exit
            if grad is not None:
                self.passed[id(tensor)] = (grad, UNREAD)

    # Bookkeeping -----------------------------------------------------------------------------

    def _hook(self, tensor: Tensor) -> None:
        self.hooks[id(tensor)] = (tensor, place(self, tensor), self.started)
        if tensor._is_view() and (found := origins(tensor)):
            self.slices = self.slices or Slices(self)
            self.slices.add(tensor, found)

    def _nest(self) -> None:
        """This backward begins inside those of its thread that have begun and not ended."""
        self.thread = get_ident()
        self.around = around = getattr(_running, "last", None)
        if around is not None:
            around.inside = self
        _running.last = self

    def _settle(self) -> None:
        """The backward has run to its end, or is given up: take away all that it needed."""
        if not self.key:
            return
        for _, hooks, _ in self.hooks.values():
            hooks.pop(self.key, None)
        if self.slices is not None:
            self.slices.remove()
        if self.thread == get_ident():
            _running.last = self.around
            worker, self.worker = self.worker, None
            if worker is not None:
                release(worker)
        if self.around is not None:
            self.around.inside = None
        self.block = self.to_block = self.to_backward = self.around = self.worker = None
        self.key = 0  # last: what interrupts this has it begin again
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _clear(self) -> None:
        self.error = None
        self._settle()
        self.tensors = self.inputs = self.frame = self.want = self.at = self.value = None
        self.arguments, self.hooks, self.passed = (None, None, False), {}, {}
        self.slices = self.inside = None
        self.started = self.ended = True


_innermost = contextvars.ContextVar[Backward | None]("insitu_backward", default=None)
"""Whose block this context is in, for those that can be suspended: a mode is the thread's."""

_running = local()
"""`last` is the backward that was begun last in this thread and has not ended."""
