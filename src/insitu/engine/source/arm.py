"""Arming operations: the rewritten forward, put into an instance for one pass.

    arm(run, operation, OUTPUT)     # from here on the pass can stop at the operation

It goes to the bottom of what stands in the instance's `__dict__`, below the wrappers of this pass
and of others, which are built anew around it; what was there comes back when the pass ends.
"""

from functools import partial
from types import FrameType
from typing import Any

from torch import nn

from insitu.engine import checks, misses
from insitu.engine.order import INPUT
from insitu.engine.reachable import frames, may_still_run, self_of
from insitu.engine.source.chain import COMPILED, underneath
from insitu.engine.source.site import AsWritten, Site
from insitu.engine.switch import getcurrent
from insitu.errors import SourceError, TraceError

_COMPILED_CALL = "_compiled_call_impl"


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
        if module not in arming.outputs:
            module = arming.arm_output(owner, module)
            if module is not operation._around:
                raise _replaced(owner)
        if _has_begun(run, operation):
            return None
        _run_as_written(arming, owner)
        site = Site(arming, source._chain, operations, module)
        site.function(source._chain.function)  # compiled here, not while others wait to arm
        _put_in(arming, site, module)
    else:
        outer = _site(run, operation, owner._in)
        if outer is None:
            return None
        site = Site(arming, source._chain, operations, None)
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
        arming.place(_Slot(module.__dict__, slot), lambda: site.over(module.__dict__[slot]))


class _Slot(dict[str, Any]):
    """An attribute of an instance other than `forward`, where a pass keeps what it puts in."""

    def __init__(self, namespace: dict[str, Any], name: str) -> None:
        super().__init__()
        self._namespace = namespace
        self._name = name
        self._own = underneath(namespace[name])

    def get(self, key: str, default: Any = None) -> Any:
        return self._namespace.get(self._name, default)

    def __setitem__(self, key: str, value: Any) -> None:
        self._namespace[self._name] = value

    def __delitem__(self, key: str) -> None:
        self._namespace[self._name] = self._own


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


def _run_as_written(arming: Any, owner: Any) -> None:
    """Let this pass run a module, and those around it, as they were before `torch.compile`."""
    node = owner
    while node is not None:
        module = node._module
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise SourceError(
                f"the operations of {owner._path} cannot be reached: "
                f"{node._path} runs copies of it on {len(module.device_ids)} devices.",
                "DataParallel calls each copy in a thread of its own, where no pass can stop.",
                "trace the module in it, or give it one device: DataParallel(net, device_ids=[0]).",
            )
        call_is_compiled = module.__dict__.get(_COMPILED_CALL) is not None
        forward_is_compiled = hasattr(underneath(module.forward), COMPILED)
        if (call_is_compiled or forward_is_compiled) and arming.started:
            raise SourceError(
                f"the operations of {owner._path} cannot be reached any more: "
                f"{node._path} is compiled, and runs already.",
                "what torch.compile runs has none of the forward's lines; a pass that is to stop "
                "at operations runs the module uncompiled, from the beginning.",
                f"ask for an operation of {owner._path} before anything else in the trace.",
            )
        if call_is_compiled:
            arming.place(_Slot(module.__dict__, _COMPILED_CALL), lambda: None)
        if forward_is_compiled and node is not owner:
            arming.place(module.__dict__, partial(_as_written, arming, module))
        node = node._parent


def _as_written(arming: Any, module: nn.Module, forward: Any = None) -> Any:
    forward = module.forward if forward is None else forward
    if hasattr(forward, COMPILED):
        return AsWritten((arming, module, forward))
    return type(forward)((forward[0], forward[1], _as_written(arming, module, forward[2])))
