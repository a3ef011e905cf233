"""The same forward again, without the block: what a run is compared with.

    bare = Bare.of(model.trace(prompt))     # before the run, on copies of its inputs
    bare.run()                              # what the model returns when left alone
    bare.run(recorder.writes)               # … with written values put back in their places

A bare forward leaves the model as it was: no gradients, the random state of the run's beginning and
then the caller's own again, and buffers that training mode moves (batch norm's) put back.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from insitu.engine.trace import Tracer
from insitu.engine.written import Leaf
from insitu.models.generation import Generation
from insitu.models.joining import Forward
from insitu.notebook.recorder import Write


class CannotRepeatError(Exception):
    """The run cannot be repeated without its block; the text says why."""


@dataclass(frozen=True)
class Random:
    """The state of torch's random generators."""

    cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]

    @staticmethod
    def now() -> "Random":
        """The state they are in."""
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        cuda = torch.cuda.get_rng_state_all() if in_use else ()
        return Random(torch.get_rng_state(), tuple(cuda))

    def restore(self) -> None:
        """Put them back into this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(list(self.cuda))


@dataclass(frozen=True)
class Bare:
    """A forward, or a generation, as it would be without the block."""

    module: nn.Module
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random: Random

    @staticmethod
    def of(tracer: Tracer) -> "Bare":
        """The forward that a tracer, not yet entered, is about to run.

        Raises:
            CannotRepeatError: its inputs carry state.
        """
        call = tracer.give_call()
        if isinstance(call, Generation):
            args: tuple[Any, ...] = ()
            run, kwargs = call.module.generate, {**call.kwargs, **call.settings}
        elif isinstance(call, Forward):
            run, args, kwargs = call.module, call.args, call.kwargs
        else:
            raise CannotRepeatError("this kind of run cannot be repeated without its block")
        args, kwargs = copied(args), copied(kwargs)
        return Bare(call.module, run, args, kwargs, Random.now())

    def with_inputs(self, **inputs: Any) -> "Bare":
        """The same forward on other inputs."""
        return replace(self, kwargs={**self.kwargs, **inputs})

    def run(self, writes: Sequence[Write] = ()) -> Any:
        """Run it, with the values that these writes left put in their places."""
        with _as_it_was(self.module), torch.no_grad(), ExitStack() as hooks:
            self.random.restore()
            for write in writes:
                hooks.callback(_patch(write).remove)
            return self.call(*self.args, **self.kwargs)

    def times_s(self, most: int, patience_s: float) -> list[float]:
        """How long it takes, up to `most` times over and no longer than `patience_s`."""
        times: list[float] = []
        with _as_it_was(self.module), torch.no_grad():
            while len(times) < most and sum(times) < patience_s:
                began = time.perf_counter()
                self.call(*self.args, **self.kwargs)
                synchronize()
                times.append(time.perf_counter() - began)
        return times


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Put back the random state, and the buffers that a forward in training mode moves."""
    random = Random.now()
    moving = [
        buffer
        for part in module.modules()
        if part.training
        for buffer in part.buffers(recurse=False)
    ]
    before = [buffer.clone() for buffer in moving]
    try:
        yield
    finally:
        random.restore()
        with torch.no_grad():
            for buffer, value in zip(moving, before, strict=True):
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def _patch(write: Write) -> Any:
    values = write.values or {}
    if write.is_input:

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return put((args, kwargs), values)

        return write.module.register_forward_pre_hook(before, with_kwargs=True)

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        return put(output, values)

    return write.module.register_forward_hook(after)


def put(value: Any, values: Mapping[Leaf, torch.Tensor], above: Leaf = ()) -> Any:
    """A nested value with some of its tensors replaced."""
    if above in values:
        return values[above].clone()  # the model may go on to change it
    if not any(leaf[: len(above)] == above for leaf in values):
        return value
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value)
        for key, part in value.items():
            changed[key] = put(part, values, (*above, key))
        return changed
    parts = [put(part, values, (*above, index)) for index, part in enumerate(value)]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def copied(value: Any) -> Any:
    """Inputs that a block's edits cannot reach.

    Raises:
        CannotRepeatError: something among them is neither a tensor nor plain data.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return type(value)(map(copied, value))
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CannotRepeatError(
        f"the input holds {type(value).__name__}, which may change while the model runs"
    )


def synchronize() -> None:
    """Wait for the accelerator, so that a clock tells the truth."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
