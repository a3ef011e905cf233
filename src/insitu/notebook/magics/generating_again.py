"""A cell's body, kept with the names it began with, to be run again beside the notebook's own.

    kept = Kept(ip.user_ns, body, model)        # before the body has run
    kept.why_not                                # "the cell calls input(), …", or ""
    with tracer:
        kept.run(tracer, model)

A run stores its names in a dictionary of its own. Lists, dicts, sets and tensors that the body
names are copies, and functions of the notebook that it calls see the same names; nothing it prints
is shown. Objects of other kinds are the notebook's own, and what the body does to them it does
again.
"""

import builtins
import copy
import dis
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

import torch

from insitu.engine.capture.needs import needed
from insitu.models.base import NNsight
from insitu.notebook.cell import Body
from insitu.twins import randomness

KEPT_BYTES_MAX = 256 * 2**20
"""Tensors that a body names are kept as they were; one that names more is not run again."""

_DICTS = (dict, OrderedDict, defaultdict, Counter)
_ROWS = (list, deque)
_NAMING = ("_NAME", "_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
_SHOWING = ("print", "display")
_TEXT = "runs code that it is given as text, and what that names cannot be told"
_REACHING = "reaches into the notebook's names"
_REFUSED = {
    "input": "asks for an answer",
    "breakpoint": "stops in a debugger",
    "eval": _TEXT,
    "exec": _TEXT,
    "globals": _REACHING,
    "locals": _REACHING,
}
_OURS = ("tracer", "__builtins__")


class Kept:
    """A body and the names it began with.

    Args:
        names: the notebook's, before the body has run.
        body: the compiled cell.
        model: what the cell runs; it is not kept alive under its own names.
        cache: the name under which a run finds its cache, `""` for none.

    Attributes:
        why_not: why it cannot be run again; empty where it can.
        is_empty: it does nothing, so a run needs no body.
    """

    def __init__(self, names: dict[str, Any], body: Body, model: NNsight, cache: str = "") -> None:
        self._body = body
        self._notebook = names
        self._random = randomness.now()
        named, given = _used(body, names)
        self.is_empty = not any(_does(piece) for piece in body.pieces)
        self.why_not = _refusal(named, names)
        self._model_names = [name for name in named if names.get(name) is model]
        held = {it: names[it] for it in given if it in names and it not in (*_OURS, cache)}
        held = {name: value for name, value in held.items() if value is not model}
        unkept = (_unkept(name, value) for name, value in held.items())
        self.why_not = self.why_not or next(filter(None, unkept), "")
        self._held: dict[str, Any] = {}
        copier = _Copier()
        if not self.why_not:
            self._held = {name: copier.copy(value) for name, value in held.items()}
        if copier.bytes > KEPT_BYTES_MAX:
            self._held = {}
            self.why_not = (
                f"the cell names {copier.bytes / 2**20:.0f} MiB of tensors, which would have to "
                f"be kept as they were before it ran; {KEPT_BYTES_MAX // 2**20} are"
            )

    def run(self, tracer: Any, model: NNsight, **further: Any) -> None:
        """Run the body once more, in the pass of a tracer; further names are the machinery's."""
        __tracebackhide__ = True
        names: dict[str, Any] = {"__name__": "__main__", "__builtins__": builtins}
        copier = _Copier(self._notebook, names)
        names |= {name: copier.copy(value) for name, value in self._held.items()}
        names |= {name: _silent for name in _SHOWING if name not in names}
        names |= dict.fromkeys(self._model_names, model)
        names |= {"tracer": tracer, **further}
        with _undisplayed():
            for piece in self._body.pieces:
                exec(piece, names)

    @contextmanager
    def same_chances(self) -> Iterator[None]:
        """Random numbers are those of the first run here, and go on as they were after."""
        before = randomness.now()
        randomness.restore(self._random)
        try:
            yield
        finally:
            randomness.restore(before)


# Which names -------------------------------------------------------------------------------------


def _used(body: Body, names: dict[str, Any]) -> tuple[set[str], set[str]]:
    """All that a body and the notebook's functions it calls name; and what it is to be given."""
    named: set[str] = set()
    given: set[str] = set()
    stored: set[str] = set()
    left: list[CodeType] = []
    for piece in body.pieces:
        mentioned = set(_named(piece))
        named |= mentioned
        given |= needed(piece, mentioned - stored)
        stored |= {it.argval for it in dis.get_instructions(piece) if it.opname == "STORE_NAME"}
        left.append(piece)
    seen: set[CodeType] = set()
    while left:
        code = left.pop()
        seen.add(code)
        mentioned = set(_named(code))
        named |= mentioned
        if code not in body.pieces:
            given |= mentioned
        called = (names.get(name) for name in mentioned)
        functions = (it for it in called if isinstance(it, FunctionType))
        further = [it.__code__ for it in functions if it.__globals__ is names]
        left += [it for it in further if it not in seen]
    return named, given


def _named(code: CodeType) -> Iterator[str]:
    """Names that are looked up or stored in a code, and in functions within it."""
    for step in dis.get_instructions(code):
        if step.opname.endswith(_NAMING) and isinstance(step.argval, str):
            yield step.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _named(inner)


def _does(code: CodeType) -> bool:
    """Whether a piece of a cell does more than `pass`."""
    idle = ("RESUME", "NOP", "LOAD_CONST", "RETURN_VALUE", "RETURN_CONST", "CACHE", "POP_TOP")
    return any(step.opname not in idle for step in dis.get_instructions(code))


def _refusal(used: set[str], names: dict[str, Any]) -> str:
    """Why a body that uses such names cannot be run again; empty where it can."""
    if "get_ipython" in used:
        return "the cell runs a magic or a shell command, which would be run once more"
    for name in sorted(used):
        if name in _REFUSED and name not in names:
            return f"the cell calls {name}(), which {_REFUSED[name]}"
    return ""


def _unkept(name: str, value: Any) -> str:
    """Why a value cannot be had again as it was; empty where it can."""
    if isinstance(value, Iterator):
        kind = type(value).__name__
        return f"the cell uses {name}, a {kind}, which goes on and cannot be turned back"
    return ""


# Copies ------------------------------------------------------------------------------------------


class _Copier:
    """Copies of what a body could change; of one value always the same.

    Args:
        before: the notebook's names.
        after: those that its functions see in the copies; None leaves them as they are.
    """

    def __init__(
        self, before: dict[str, Any] | None = None, after: dict[str, Any] | None = None
    ) -> None:
        self._before = before
        self._after = after
        self._copies: dict[int, Any] = {}
        self.bytes = 0

    def copy(self, value: Any) -> Any:
        """The value itself, or a copy if the body could change it."""
        if id(value) in self._copies:
            return self._copies[id(value)]
        kind = type(value)
        made: Any
        if kind is tuple:
            parts = [self.copy(part) for part in value]
            made = value if all(a is b for a, b in zip(parts, value, strict=True)) else tuple(parts)
        elif kind in (*_DICTS, *_ROWS, set):
            self._copies[id(value)] = made = copy.copy(
                value
            )  # before its parts: it may hold itself
            if kind is not set:
                for key, part in list(made.items() if kind in _DICTS else enumerate(made)):
                    made[key] = self.copy(part)
        else:
            made = self._leaf(value)
        self._copies[id(value)] = made
        return made

    def _leaf(self, value: Any) -> Any:
        if type(value) is torch.Tensor:
            self.bytes += value.nbytes
            is_much = self.bytes > KEPT_BYTES_MAX
            return value if is_much else value.detach().clone().requires_grad_(value.requires_grad)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, torch.Generator):
            made = torch.Generator(value.device)
            made.set_state(value.get_state())
            return made
        is_data = isinstance(value, random.Random) or type(value).__module__.startswith("numpy")
        return copy.deepcopy(value) if is_data else value

    def _function(self, value: FunctionType) -> FunctionType:
        """One of the notebook's, that sees the names of a run."""
        if self._after is None or value.__globals__ is not self._before:
            return value
        made = FunctionType(
            value.__code__, self._after, value.__name__, value.__defaults__, value.__closure__
        )
        made.__kwdefaults__, made.__dict__ = value.__kwdefaults__, dict(value.__dict__)
        return made


def _silent(*values: Any, **settings: Any) -> None:
    """Show nothing: what the cell shows, it has shown."""


@contextmanager
def _undisplayed() -> Iterator[None]:
    """Expressions that stand alone show nothing, and leave no `_`."""
    before = sys.displayhook
    sys.displayhook = _silent
    try:
        yield
    finally:
        sys.displayhook = before
