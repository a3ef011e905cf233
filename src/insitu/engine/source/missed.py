"""Why a block did not get the operation it asked for.

A site counts what ran in its forward, so it is known whether the operation was passed, its line was
not reached, or the forward was already running when it was asked for.
"""

from typing import Any

from torch import nn

from insitu.engine import misses
from insitu.engine.order import INPUT
from insitu.errors import NeverRanError, OutOfOrderError, TraceError


def explain(operation: Any, run: Any, kind: int, overrun: bool) -> TraceError:
    """The error for an operation that did not come."""
    owner = operation._in._owner
    site = (run.arming.sites or {}).get(owner._module)
    name = misses.site(operation, kind)
    if site is None or not site.entered:
        return _not_entered(operation, run, site, name)
    if site.seen[operation._named.index]:
        by = _passed_by(operation, run, kind, site.seen[operation._named.index])
        when = f" in step {run.step - overrun}" if run.step > 0 or overrun else ""
        return OutOfOrderError(
            f"{name} was asked for, but the model has already passed it{when}.",
            f"a block meets operations in the order they run; {_asked(by)}.",
            f"{_above(name, by)}, or open a second trace.",
        )
    definition, line = operation._in._plan.definition, operation._named.line
    return NeverRanError(
        f"{name} was asked for, but the model did not come to it.",
        f"{owner._path} ran, but not its line {line}: {definition.line(line).strip()}",
        f"print({owner._path}.source) shows the branches around it; read what did run.",
    )


def _not_entered(operation: Any, run: Any, site: Any, name: str) -> TraceError:
    """The rewritten function did not run."""
    owner = operation._in._owner
    order = run.order or (run.observation.order if run.observation else None)
    if not isinstance(owner._module, nn.Module):
        return _inner_not_entered(owner, run, site, name)
    if order is not None and order.calls(owner._module) == 0:
        return NeverRanError(
            f"{name} was asked for, but {owner._path} did not run in this pass.",
            f"the model did not call {type(owner._module).__name__} {owner._path}.",
            "read an operation of a module that runs.",
        )
    by = misses.ran_past(run, owner, INPUT, order)
    return OutOfOrderError(
        f"{name} was asked for, but the model has already passed it.",
        f"{owner._path} had begun when it was asked for, and a forward that runs is left as it is; "
        f"{_asked(by)}.",
        f"{_above(name, by)}, or open a second trace.",
    )


def _inner_not_entered(owner: Any, run: Any, site: Any, name: str) -> TraceError:
    outer = (run.arming.sites or {}).get(owner._in._owner._module)
    if site is not None and site.called_instead:
        return NeverRanError(
            f"{name} was asked for, but {owner._name} called another function.",
            f"it called {site.called_instead}, not {site.chain.function.__qualname__}, "
            "whose operations these are.",
            f"print({owner._path}.source) shows what it calls as the model is now.",
        )
    if outer is None or not outer.entered or outer.seen[owner._named.index] == 0:
        return NeverRanError(
            f"{name} was asked for, but {owner._path} was not called.",
            f"the model did not come to it, or had begun {owner._in._owner._path} before.",
            "ask for it above what runs later, or read what did run.",
        )
    by = _passed_by(owner, run, INPUT, outer.seen[owner._named.index])
    return OutOfOrderError(
        f"{name} was asked for, but the model has already passed it.",
        f"{owner._path} had been called before it was asked for; {_asked(by)}.",
        f"{_above(name, by)}, or open a second trace.",
    )


def _passed_by(operation: Any, run: Any, kind: int, served: int) -> misses.Read | None:
    """The request that the model was on its way to when it ran past the operation."""
    trail = run.trail[:-1]
    since = trail[max(served - 2, 0) :] if run is run.arming else []
    ahead = [read for read in since if read[0] is not operation or read[1] == INPUT]
    others = [read for read in trail if not (read[0] is operation and read[1] == kind)]
    return ahead[0] if ahead else (others[-1] if others else None)


def _asked(by: misses.Read | None) -> str:
    if by is None:
        return "this one asked for it when the model was already beyond it"
    return f"this one had read {misses.site(by[0], by[1])} (line {misses.line(by)}) first"


def _above(name: str, by: misses.Read | None) -> str:
    if by is None:
        return f"ask for {name} before anything that runs later"
    return f"ask for {name} above line {misses.line(by)}"
