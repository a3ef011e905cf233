"""Which values of a call hold the batch's rows: the model is run once on fake tensors.

    known = scan(call, total=4, sizes=frozenset({7, 5}), sites={})
    known[module, OUTPUT].rows                # {(0,): 0}: the first of what it returns

The batch gets a number of rows that occurs nowhere else: the dimension that then has it is the
batch, be it the first or, as in an LSTM's states, another.
"""

import copy
import enum
import itertools
import numbers
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules import module as module_hooks

from insitu.engine.arming import is_recorder
from insitu.engine.batch import Path, tensors
from insitu.engine.cache.values import mapped
from insitu.engine.fakes import fake_tensors
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.row_dims import FIRST, RowDims
from insitu.engine.switch import getcurrent

_SMALLEST = 37
"""Fewer rows than these are sizes that occur in code: of layers, heads, positions."""
_ATOMS = (
    str, bytes, numbers.Number, enum.Enum, type(None), nn.Module,
    torch.dtype, torch.device, torch.Generator,
)  # fmt: skip
"""What a forward is given as it is."""


class NoScanError(Exception):
    """The model cannot run on fake tensors; says why, and what that means."""


class Seen(NamedTuple):
    """What a scan saw on one side of a module: where its value holds tensors."""

    rows: Mapping[Path, int]
    """Those that hold the batch, and in which dimension."""
    all: frozenset[Path]


Known = dict[tuple[Any, int], Seen]
"""For each side of each module and operation, what a scan saw there."""


def arguments(call: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What one forward of a call is made with."""
    one = getattr(call, "one_forward", None)
    return call.args, call.kwargs if one is None else one()


def row_dims(call: Any) -> RowDims:
    """Where the rows of a call's arguments are."""
    dims: RowDims = getattr(call, "dims", FIRST)
    return dims


def armed(sites: Mapping[Any, Any]) -> set[Any]:
    """The operations that a pass has been asked for."""
    return {name_of(it) for site in sites.values() for it in site.armed if it is not None}


def name_of(key: Any) -> Any:
    """What a site is known by in later passes: an operation may be made anew for each."""
    return key if isinstance(key, nn.Module) or key is None else (key._around, key._path)


def scan(call: Any, total: int, sizes: frozenset[int], sites: Mapping[Any, Any]) -> Known:
    """What every module, and every operation asked for, holds of the batch.

    Args:
        call: what is run; its tensors may be real.
        total: the rows of its batch.
        sizes: those that occur in the model.
        sites: the rewritten forwards of the pass.

    Raises:
        NoScanError: the model cannot run on fake tensors.
    """
    apart = getattr(call, "apart", None)
    left_out = apart.inputs if apart is not None else frozenset[str]()
    args, kwargs = arguments(call)
    given = args, {name: value for name, value in kwargs.items() if name not in left_out}
    taken = sizes | {size for _, tensor in tensors(given) for size in tensor.shape}
    rows = next(n for n in itertools.count(max(total + 1, _SMALLEST)) if _fits(n, taken))
    failure: Exception | None = None
    for grad in (False, True):  # some compute gradients in their forward, and cannot without
        notes = _Notes(call.module, sites, rows)
        try:
            notes.begin()
            _run(call.module, _Resized(given, total, rows, row_dims(call)), grad)
            return notes.known
        except Exception as error:
            failure = error
            if not torch.is_grad_enabled():
                break
        finally:
            try:
                notes.end()
            except KeyboardInterrupt:
                notes.end()
                raise
    raise NoScanError(
        f"{type(call.module).__name__} cannot run on fake tensors ({failure}), so tensors with "
        f"{total} rows are taken to hold the batch's, though that size occurs elsewhere too."
    )


def _fits(number: int, taken: frozenset[int]) -> bool:
    """Whether a number of rows is no size that occurs, and no product of others."""
    return number not in taken and all(number % n for n in range(2, int(number**0.5) + 1))


def _run(module: nn.Module, resized: "_Resized", grad: bool) -> None:
    with fake_tensors(module), nullcontext() if grad else torch.no_grad():
        args, kwargs = resized.fakes()
        module(*args, **kwargs)


class _Notes:
    """Notes what a scan comes to. To rewritten forwards it looks like a pass."""

    lanes, trail = (), ()
    taps = halts = want_output = None
    want_any = cleared = False

    def __init__(self, module: nn.Module, sites: Mapping[Any, Any], rows: int) -> None:
        self.known: Known = {}
        self.worker = getcurrent()
        self._module = module
        self._sites = sites
        self._before: list[tuple[Any, ...]] = []
        self._rows = rows

    def begin(self) -> None:
        """Be told of every module, and of every operation asked for."""
        for part, names in self._hooked():
            for name in names:
                hooks = getattr(part, name)
                for key, own in tuple(hooks.items()):
                    if not is_recorder(own):
                        hooks[key] = _Hook(self, None, own)
        for part in self._module.modules():
            part.register_forward_pre_hook(_Hook(self, INPUT, None), with_kwargs=True)
            part.register_forward_hook(_Hook(self, OUTPUT, None))
        for site in self._sites.values():
            told = site.entered, site.called_instead
            self._before.append((site, site.run, list(site.seen), *told))
            site.run = self

    def end(self) -> None:
        """Be told of nothing any more; may be called again where that was interrupted."""
        for site, run, seen, entered, instead in self._before:
            site.run, site.seen[:] = run, seen
            site.entered, site.called_instead = entered, instead
        for part, names in self._hooked():
            for name in names:
                for key, hook in tuple(getattr(part, name).items()):
                    if type(hook) is _Hook and hook.notes is self:
                        _take_out(part, name, key, hook)

    def _hooked(self) -> Iterator[tuple[Any, tuple[str, str]]]:
        yield module_hooks, ("_global_forward_hooks", "_global_forward_pre_hooks")
        for part in self._module.modules():
            yield part, ("_forward_hooks", "_forward_pre_hooks")

    def note(self, key: Any, side: int, value: Any) -> None:
        """Note where a value holds the batch."""
        held = {path: tuple(tensor.shape) for path, tensor in tensors(value) if tensor.dim()}
        rows, everything = self.known.get((key, side), _NOTHING)
        now = {path: shape.index(self._rows) for path, shape in held.items() if self._rows in shape}
        self.known[key, side] = Seen({**rows, **now}, everything | held.keys())

    def enter(self, operation: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """An operation is called."""
        self.note(name_of(operation), INPUT, (args, kwargs))
        return args, kwargs

    def is_skipped(self, operation: Any) -> bool:
        """None is."""
        return False

    def leave(self, operation: Any, args: Any, kwargs: Any, output: Any) -> Any:
        """An operation has returned."""
        self.note(name_of(operation), OUTPUT, output)
        return output


class _Hook:
    """What stands in a module while it is scanned; other threads' passes do not notice.

    In the place of a hook of the user's it keeps that from the scan, which has no real tensors.
    """

    __slots__ = ("notes", "own", "side")

    def __init__(self, notes: _Notes, side: int | None, own: Any) -> None:
        self.notes = notes
        self.side = side
        self.own = own

    def __call__(self, module: nn.Module, *given: Any) -> Any:
        """Note what a module is given or returns."""
        is_scan = getcurrent() is self.notes.worker
        if self.own is not None:
            return None if is_scan else self.own(module, *given)
        if is_scan:
            self.notes.note(module, self.side or 0, given if self.side == INPUT else given[-1])
        return None


def _take_out(part: Any, name: str, key: int, hook: _Hook) -> None:
    if hook.own is not None:
        getattr(part, name)[key] = hook.own
        return
    part._forward_pre_hooks_with_kwargs.pop(key, None)
    getattr(part, name).pop(key, None)  # last: where it stands, an interrupted end begins again


_NOTHING = Seen({}, frozenset())


class _Resized:
    """The same arguments as fakes, the batch having another number of rows.

    Of objects that hold tensors, such as caches, a copy is given: a forward may write into them.
    """

    def __init__(self, given: Any, total: int, rows: int, dims: RowDims) -> None:
        self._given = given
        self._total = total
        self._rows = rows
        self._dims = dims
        self._at = {id(tensor): dims.of(path[1:], tensor) for path, tensor in tensors(given)}
        self._made: dict[int, Any] = {}

    def fakes(self) -> Any:
        """What a scan calls the module with."""
        return mapped(self._given, self._fake)

    def _fake(self, part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return torch.empty(
                self._shape(part),
                dtype=part.dtype,
                device=part.device,
                requires_grad=part.requires_grad,
            )
        if isinstance(part, _ATOMS) or callable(part):
            return part
        made = self._made
        if id(part) not in made:
            made[id(part)] = own = copy.copy(part)
            for name, held in getattr(own, "__dict__", {}).items():
                own.__dict__[name] = mapped(held, self._fake)
        return made[id(part)]

    def _shape(self, tensor: torch.Tensor) -> tuple[int, ...]:
        shape = list(tensor.shape)
        dim = self._at.get(id(tensor), self._dims.of((), tensor))
        if shape and shape[dim] == self._total:
            shape[dim] = self._rows
        return tuple(shape)
