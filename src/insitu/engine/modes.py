"""torch's thread-local modes, kept apart for two coroutines on one thread.

    model_modes = swap(block_modes)   # leaving the model: remember its modes, put back the block's

Grad mode, inference mode, autocast and the function and dispatch mode stacks belong to the thread.
Without this, `with torch.no_grad():` in a block would switch gradients off in the model.
The common case, nothing but grad mode on either side, is five calls and a comparison (0.2 µs).
"""

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils import _python_dispatch as dispatch

grad_on = torch.is_grad_enabled
inference_on = torch.is_inference_mode_enabled
autocast_on = torch._C._is_any_autocast_enabled
functions_on = torch._C._len_torch_function_stack
dispatches_on = torch._C._len_torch_dispatch_stack

_DEVICES = tuple(d for d in ("cpu", "cuda", "mps", "xpu") if torch._C._is_autocast_available(d))


@dataclass(frozen=True)
class Special:
    """Modes of which at least one is unusual, in full."""

    grad: bool
    inference: bool
    autocast: tuple[tuple[str, bool, torch.dtype], ...]
    autocast_cache: bool
    functions: tuple[Any, ...]
    dispatches: tuple[Any, ...]


Modes = bool | Special
"""Grad mode alone when nothing else is unusual, or everything."""


def current() -> Modes:
    """The thread's modes."""
    if inference_on() or autocast_on() or functions_on() or dispatches_on():
        return _full()
    return grad_on()


def swap(to: Modes) -> Modes:
    """Put `to` in force and return what was."""
    special = inference_on() or autocast_on() or functions_on() or dispatches_on()
    left = _full() if special else grad_on()
    if left is not to and left != to:
        _install(left, to)
    return left


def _full() -> Special:
    return Special(
        grad_on(),
        inference_on(),
        tuple((d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES),
        torch.is_autocast_cache_enabled(),
        tuple(_get_current_function_mode_stack()),  # type: ignore[no-untyped-call]
        tuple(dispatch._get_current_dispatch_mode_stack()),
    )


def _install(left: Modes, to: Modes) -> None:
    if isinstance(left, Special) or isinstance(to, Special):
        _clear()
    inference = isinstance(to, Special) and to.inference
    if inference_on() != inference:
        _set_inference(inference)
    grad = to.grad if isinstance(to, Special) else to
    if grad_on() != grad:
        torch._C._set_grad_enabled(grad)
    if isinstance(to, Special):
        _add(to)


def _clear() -> None:
    """Take away every mode but grad and inference; a guard remembers what it was entered in."""
    for _ in range(functions_on()):
        _pop_mode()  # type: ignore[no-untyped-call]
    for _ in range(dispatches_on()):
        dispatch._pop_mode()
    for device in _DEVICES:
        torch.set_autocast_enabled(device, False)


def _add(to: Special) -> None:
    for device, enabled, dtype in to.autocast:
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    torch.set_autocast_cache_enabled(to.autocast_cache)
    for mode in to.functions:
        _push_mode(mode)  # type: ignore[no-untyped-call]
    for mode in to.dispatches:
        dispatch._push_mode(mode)


class _Guards(threading.local):
    def __init__(self) -> None:
        self.entered: list[Any] = []


_guards = _Guards()


def _set_inference(on: bool) -> None:
    """Inference mode has no setter, only guards: leave the last of ours, or enter another."""
    if _guards.entered:
        _guards.entered.pop().__exit__(None, None, None)
        if inference_on() == on:
            return
    guard = torch._C._InferenceMode(on)
    guard.__enter__()  # type: ignore[no-untyped-call]
    _guards.entered.append(guard)
