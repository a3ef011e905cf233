"""One module that stands several times in a list: each of its places is a call of its own.

    self.layers = nn.ModuleList([block] * 3)        # or nn.Sequential(a, act, b, act)
    with model.trace(x):
        first = model.layers[0].attn.output         # in the first call of the list's one block
        third = model.layers[2].output              # what its third call returns

The module's calls are counted from the first time that a pass is asked for one of them: what it had
done before is known from the order learned. Where it is called more often than it stands in its
list, the list begins anew. In a loop over calls (`tracer.iter` of a model that takes no steps)
every place is the loop's own call.
"""

import os
import weakref
from collections import Counter
from sys import _getframe
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from insitu.engine import checks, met, misses
from insitu.engine.interleave import Pass
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.running import find

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class Calls:
    """How often a pass has called a module, and how often that has returned, in its step."""

    def __init__(self, asking: Any, node: Any) -> None:
        run = asking.arming
        self._run = weakref.ref(run)
        self._step = max(run.step, 0)
        begun, over = _before(run, node._module)
        self._entered = begun - (asking.at_input is node._module)  # of this one we are yet told
        self._left = over - (asking.at_output is node._module)
        run.tap_input(node, self._enter)
        run.tap(node, self._leave)

    def _enter(self, *_: Any) -> None:
        self._begin_step()
        self._entered += 1

    def _leave(self, *_: Any) -> None:
        self._left += 1

    def _begin_step(self) -> None:
        run = self._run()
        if run is not None and run.step > self._step:
            self._step, self._entered, self._left = run.step, 0, 0

    def under_way(self, run: Any, module: nn.Module) -> tuple[int, bool]:
        """The number of the last call begun, -1 before the first, and whether it is still open.

        Args:
            run: the pass, or the lane, that may stand at the module's input: nobody was told yet.
            module: the one that is counted.
        """
        self._begin_step()
        begun = self._entered + (run.at_input is module)
        return begun - 1, begun > self._left


_calls: WeakKeyDictionary[Pass, dict[nn.Module, Calls]] = WeakKeyDictionary()
_often: WeakKeyDictionary[nn.Module, tuple[int, set[int]]] = WeakKeyDictionary()
"""Of a list: how long it was, and the ids of the modules that it held several times."""


def stands_often(node: Any, module: nn.Module) -> bool:
    """Whether a wrapped list holds a module several times."""
    held = node._module
    if not isinstance(held, (nn.ModuleList, nn.Sequential)):
        return False
    known = _often.get(held)
    if known is None or known[0] != len(held._modules):
        counts = Counter(map(id, held._modules.values()))
        often = {it for it, count in counts.items() if count > 1}
        known = _often[held] = len(held._modules), often
    return id(module) in known[1]


def read_output(node: Any) -> Any:
    """What a module returned in the call that its place is."""
    run, module = find(node), node._module
    if run.told is not None and (called := met.told(run, module)) is not None:
        return called[3]
    come(run, node, OUTPUT)
    value = run.value if run.at_output is module else run.read_output(node, module, 3)
    _require(run, node, OUTPUT)
    return value


def read_inputs(node: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a module was called with there."""
    run = find(node)
    if run.told is not None and (called := met.told(run, node._module)) is not None:
        return called[1], called[2]
    come(run, node, INPUT)
    call: tuple[tuple[Any, ...], dict[str, Any]] = run.read_inputs(node, 4)
    _require(run, node, INPUT)
    return call


def come(run: Any, node: Any, kind: int) -> None:
    """Run a pass to the call that is meant by a node.

    Raises:
        OutOfOrderError: that call is over.
        NeverRanError: there is none.
    """
    if run.count is None or run.count.over:
        for place in _places(node):
            _come_to(run, node, place, kind)


def _require(run: Any, node: Any, kind: int) -> None:
    """Raise if a pass has gone on to another call, for lack of a site in the one that was meant."""
    if run.count is not None and not run.count.over:
        return
    for place in _places(node):
        number, count = _number(place)
        if _calls[run.arming][place._module].under_way(run, place._module)[0] % count != number:
            raise _missed(run, node, kind)


def _come_to(run: Any, node: Any, place: Any, kind: int) -> None:
    module = place._module
    if run.arming.cleared:
        raise _missed(run, node, kind)
    of_run = _calls.setdefault(run.arming, {})
    if module not in of_run:
        of_run[module] = Calls(run, place)
    last, is_open = of_run[module].under_way(run, module)
    number, count = _number(place)
    if is_open and last % count == number and not _is_past(run, node, module, kind):
        return
    further = (number - last - 1) % count + 1
    frame = _getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    run.trail.append((node, kind, frame.f_code, frame.f_lasti))
    if not run.to_call(place, further):
        raise _missed(run, node, kind)


def _missed(run: Any, node: Any, kind: int) -> Exception:
    if run.arming is run:
        return checks.missed(run, node, kind)
    overrun, run.overrun = run.overrun, False
    return misses.missed(run, node, kind, overrun)


def _is_past(run: Any, node: Any, module: nn.Module, kind: int) -> bool:
    """Whether a call that is open has come beyond a site."""
    if node._module is module:
        return kind == INPUT and run.at_input is not module and run.at_output is not module
    return run.at_output is module


def _places(node: Any) -> list[Any]:
    """The places in lists, from the outermost in, that a node is at or below."""
    places: list[Any] = []
    while node._parent is not None:
        if stands_often(node._parent, node._module):
            places.insert(0, node)
        node = node._parent
    return places


def _number(place: Any) -> tuple[int, int]:
    """Which of the places of its module one is, and how many there are."""
    held = place._parent._module._modules
    names = [name for name, module in held.items() if module is place._module]
    return names.index(place._name), len(names)


def _before(run: Pass, module: nn.Module) -> tuple[int, int]:
    """How many calls of a module have begun, and have returned, where a pass stands now."""
    if run.observation is not None:
        seen = run.observation.order.called.get(module)
        return (len(seen.starts), len(seen.ends)) if seen is not None else (0, 0)
    seen = run.order.called.get(module) if run.order is not None else None
    if seen is None:
        return 0, 0
    here = _here(run)
    return sum(at <= here for at in seen.starts), sum(at <= here for at in seen.ends)


def _here(run: Pass) -> int:
    """The event of the learned order at which a pass stands."""
    standing: Any = (OUTPUT, run.at_output) if run.at_output is not None else (INPUT, run.at_input)
    standing = getattr(run.lanes, "standing", None) or standing
    place = run.single.get(standing[1])
    return place[standing[0]] if place is not None else run.here
