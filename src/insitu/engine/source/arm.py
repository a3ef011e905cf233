"""Arming operations: the rewritten forward, put into an instance for one pass.

    arm(run, operation, OUTPUT)     # from here on the pass can stop at the operation

It goes to the bottom of what stands in the instance's `__dict__`, below the wrappers of this pass
and of others, which are built anew around it; what was there comes back when the pass ends.
"""

from types import FrameType
from typing import Any

from torch import nn

from insitu.engine import checks, misses
from insitu.engine.compiled import Slot
from insitu.engine.order import INPUT
from insitu.engine.reachable import frames, may_still_run, self_of
from insitu.engine.source.site import Site
from insitu.engine.switch import getcurrent
from insitu.errors import SourceError, TraceError


def arm(run: Any, operation: Any, kind: int) -> Any:
    """Let a pass stop at an operation. Gives the one that stands for it in this pass.

    That is another for a module that is reached by two names, or through two wrappers.

    Raises:
        OutOfOrderError: its forward has begun without a stop there, and does not begin again.
        SourceError: what stands around the forward cannot be built anew.
    """
    arming, index = run.arming, operation._index
    if arming.cleared:
        checks.still_open(arming, operation, kind)
    site = None if arming.sites is None else arming.sites.get(operation._within)
    if site is None:
        site = _site(run, operation, operation._in)
        if site is None:
            raise _begun(run, operation, kind)
    if site.armed[index] is None:
        site.armed[index] = operation
        site.plain[index] = False
        arming.outputs.add(operation)
    key = site.armed[index]
    if site.both[index] is None and (kind == INPUT or arming.both):
        site.both[index] = key
        arming.inputs.add(key)
    return key


def prepare(run: Any, operation: Any) -> None:
    """Rewrite the forward around an operation, which may be asked for later on, if it can be."""
    if not (run.arming.cleared or run.arming.closed):
        _site(run, operation, operation._in)


def _site(run: Any, operation: Any, source: Any) -> Site | None:
    """The site of the operations of one function, made when a pass first needs it.

    None if the forward runs, or has run, without a stop at its operations, and comes no more.
    """
    arming, owner = run.arming, source._owner
    if arming.sites is None:
        arming.sites = {}
    site: Site | None = arming.sites.get(owner._module)
    if site is not None:
        return site
    operations = source._plan.operations
    if isinstance(owner._module, nn.Module):
        module = owner._module
        arming.foresee()
        if module not in arming.outputs:
            module = arming.arm_output(owner, module)
            if module is not operation._around:
                raise _replaced(owner)
        if _has_begun(run, operation):
            return None
        site = Site(arming, source._chain, operations, module)
        site.function(source._chain.function)  # compiled here, not while others wait to arm
        _put_in(arming, site, module)
    else:
        outer = _site(run, operation, owner._in)
        if outer is None:
            return None
        site = Site(arming, source._chain, operations, None)
        site.stands_in = source._stands_in
        outer.inner[owner._named.index] = site
        outer.plain[owner._named.index] = False
    arming.sites[owner._module] = site
    return site


def _replaced(owner: Any) -> SourceError:
    return SourceError(
        f"{owner._path} is another module now than when its source was asked for.",
        "it was replaced in the model, and its operations may be others.",
        f"ask for {owner._path}.source again, by its path from the model.",
    )


def _put_in(arming: Any, site: Site, module: nn.Module) -> None:
    slot = site.chain.slot
    if slot == "forward":
        arming.place(module.__dict__, lambda: site.over(module.forward))
    else:
        arming.place(Slot(module.__dict__, slot), lambda: site.over(module.__dict__[slot]))


def _has_begun(run: Any, operation: Any) -> bool:
    """Whether the forward runs, or has run, as it is, and is not called again for certain."""
    arming, owner = run.arming, operation._outermost
    standing = run.at_output if run.at_output is not None else run.at_input
    if standing is None or (arming.unbound and arming.stepping):
        return False
    module, frame = owner._module, _parked(arming.worker)
    place = arming.single.get(module)
    chain = operation._outermost_chain
    begun = any(
        it.f_code is chain.function.__code__ and (chain.bound is None or self_of(it) is chain.bound)
        for it in frames(frame)
    )
    if run.at_input is not module:
        begun = begun or (place is not None and place[INPUT] < arming.here)
        begun = begun or (arming.observation is not None and arming.observation.has_entered(module))
    return begun and not may_still_run(owner, standing, frame)


def _begun(run: Any, operation: Any, kind: int) -> TraceError:
    if run is run.arming:
        return checks.missed(run, operation, kind)
    return misses.missed(run, operation, kind, False)


def _parked(worker: Any) -> FrameType | None:
    """The innermost frame of a model that is parked."""
    return None if worker is None or worker is getcurrent() else worker.gr_frame
