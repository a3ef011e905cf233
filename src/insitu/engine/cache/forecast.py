"""How many bytes a cache will take, before the model runs: the same call on fake tensors.

    forecast(net, lambda: net(x), nodes, Plan(dtype=torch.bfloat16))
    # Forecast: 57 modules, 1.2 MB …

Fake tensors have shapes and no memory, so a scan takes milliseconds for a model of any size. The
scan records with the very recorder a cache uses. It knows what each call of the model would keep;
a model whose shape depends on its numbers (a generation, experts chosen by a router) cannot be
forecast, and its cache counts bytes while it runs.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from insitu.engine.cache import table as cache_table
from insitu.engine.cache.record import Callback, InputCallback, Plan, Recorder
from insitu.engine.cache.table import Row
from insitu.engine.fakes import fake_tensors
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError


@dataclass(frozen=True)
class Forecast:
    """The bytes a cache will take, in all and for each module."""

    size_bytes: int
    modules: Mapping[str, int]
    """Bytes by module; where two modules return one tensor, the total counts it once."""
    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        return cache_table.text(self.title, list(self.rows))

    @property
    def title(self) -> str:
        """What is expected, in a line."""
        modules = cache_table.counted(len(self.modules), "module")
        return f"Forecast of a cache: {modules}, {cache_table.in_bytes(self.size_bytes)}"

    @property
    def largest(self) -> str:
        """The largest rows in words, for an error's text."""
        found = sorted(self.rows, key=lambda row: -row.size_bytes)[:3]
        return ", ".join(f"{row.path} {cache_table.in_bytes(row.size_bytes)}" for row in found)


def forecast(
    root: nn.Module,
    call: Callable[[], Any],
    nodes: Mapping[str, WrappedModule],
    plan: Plan | None = None,
) -> Forecast:
    """Make a call on fake tensors and tell what a cache of it would hold.

    Args:
        root: the module that is called; its state is as before when this returns.
        call: makes the call.
        nodes: the modules to cache, by key.
        plan: what is kept of each.

    Raises:
        UsageError: the call cannot be made without numbers.
    """
    recorder = Recorder(nodes, plan or Plan())
    hooks = _Hooks()
    try:
        fakes = fake_tensors(root)
        with torch.random.fork_rng(devices=[]), fakes as fake, torch.no_grad(), hooks:
            hooks.give_fakes(root, fake)
            recorder.listen(hooks)
            call()
    except Exception as error:
        raise _cannot(error) from error
    records = recorder.records
    single = cache_table.rows(records, fold=False)
    return Forecast(
        cache_table.total_bytes(records),
        {row.path: row.size_bytes for row in single},
        tuple(cache_table.rows(records)),
    )


def may_be_forecast(root: nn.Module, given: Any) -> bool:
    """Whether a call can be made twice: hooks of the user's, or objects given, would notice."""
    hooks = [
        hook
        for module in root.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    return all(map(_is_transformers_own, hooks)) and _is_plain(given)


def _is_transformers_own(hook: Any) -> bool:
    """Whether a hook is one that transformers leaves on a model asked for its hidden states."""
    return (getattr(hook, "__module__", None) or "").partition(".")[0] == "transformers"


class _Hooks:
    """A pass for a recorder, made of torch's own hooks."""

    step = 0

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._handles: list[Any] = []

    @property
    def arming(self) -> "_Hooks":
        """A scan is whole."""
        return self

    def tap(self, node: Any, callback: Callback) -> None:
        """Hook a module; another thread that runs it meanwhile is not listened to."""

        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if threading.get_ident() == self._thread:
                callback(args, kwargs, output)

        self._handles.append(node._module.register_forward_hook(hook, with_kwargs=True))

    def tap_input(self, node: Any, callback: InputCallback) -> None:
        """Hook a module's call."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if threading.get_ident() == self._thread:
                callback(args, kwargs)

        self._handles.append(node._module.register_forward_pre_hook(hook, with_kwargs=True))

    def give_fakes(self, root: nn.Module, fake: Callable[[Any], Any]) -> None:
        """Call the root with fakes of what it is given."""

        def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return fake((args, kwargs)) if threading.get_ident() == self._thread else None

        self._handles.append(root.register_forward_pre_hook(hook, with_kwargs=True))

    def at_end(self, callback: Callable[[bool], None]) -> None:
        """A scan has no end to tell of: its values hold no numbers."""

    def __enter__(self) -> "_Hooks":
        return self

    def __exit__(self, *failed: object) -> None:
        for handle in self._handles:
            handle.remove()


def _is_plain(value: Any) -> bool:
    """Whether a value has no state that a forward could change, tensors aside."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    plain = (torch.Tensor, bool, int, float, complex, str, bytes, type(None))
    return isinstance(value, (*plain, torch.dtype, torch.device, torch.Size))


def _cannot(error: Exception) -> UsageError:
    said = str(error).strip().partition("\n")[0][:120] or "no reason given"
    return UsageError(
        "this call cannot be forecast.",
        f"on fake tensors, which have shapes and no numbers, it fails: "
        f"{type(error).__name__}: {said}",
        "give tracer.cache() a budget instead: it counts bytes while the model runs.",
    )
