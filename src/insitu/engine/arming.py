"""Arming modules: a wrapper around `forward`, put into the instance and taken out again.

    run.arm_output(node, node._module)   # the pass can stop at what the module returns
    run.arm_input(node)                  # … at its arguments too, and its call can be skipped
    run.disarm()

Why not torch's forward hooks: a module that has any takes the long way through
`nn.Module.__call__` (0.8 µs), and registering one builds a handle with weak references (1 µs). An
entry in the instance's `__dict__` costs 0.3 µs in all, so that reading a module is no dearer than a
raw hook although two coroutines change places for it. It also sees modules whose `.forward` is
called directly. Modules that carry forward hooks of the user's are armed with a hook after those,
since what they return is the last hook's word.

A running module was looked up when it was entered, so a module's ancestors are armed with it: one
asked for later, while it is already running, still answers.
"""

import itertools
from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

from insitu.engine import hot
from insitu.engine.compiled import out_of_graphs, run_as_written
from insitu.engine.modes import swap
from insitu.engine.opaque import reached, refuse
from insitu.engine.placed import Placed, lock, take_out, take_out_one
from insitu.engine.stopping import OVER, Forward, Lease, Stopping
from insitu.engine.switch import getcurrent

_new_key = itertools.count(-1, -1).__next__  # torch's own hook handles count upwards


class Node(Protocol):
    """What the engine needs to know of a wrapped module."""

    _module: nn.Module
    _parent: Any
    _name: str
    _root: Any
    _whole: nn.Module
    _place: tuple[nn.Module | None, dict[str, Any], str]
    _extras: dict[str, nn.Module]

    @property
    def _path(self) -> str: ...
    def _refresh(self) -> None: ...


@hot.called_in_c
class AtOutput(Stopping):
    """Stops, when wanted, at what the forward returned: `(lease, module, forward)`."""

    __slots__ = ()

    @out_of_graphs
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward, and let the block have what it returns."""
        lease, module, forward = self
        output = forward(*args, **kwargs)
        run = lease.run
        if run.want_output is not module or getcurrent() is not run.worker:
            return output
        run.want_output = None
        run.at_output = module
        run.args = args
        run.kwargs = kwargs
        run.value = output
        run.model_modes = swap(run.block_modes)
        run.to_block()  # a pass that is closed throws Exit here
        return run.value


class AtBothSides(Stopping):
    """Stops at the input and the output, can be skipped, and may be observed."""

    __slots__ = ()

    @out_of_graphs
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward, or not, with the block's arguments and for the block's output."""
        run, module, forward = self
        if getcurrent() is not run.worker:
            return forward(*args, **kwargs)
        args, kwargs = run.enter(module, args, kwargs)
        if run.sites is not None and module in run.sites:
            forward = run.sites[module].under_way(forward)  # rewritten while it stood at its input
        skipped = run.is_skipped(module)
        output = run.take_skip(module) if skipped else forward(*args, **kwargs)
        return run.leave(module, args, kwargs, output)


class Arming:
    """The modules a pass can stop at. Abstract: `Pass` adds what happens there."""

    __slots__ = (
        "armed_around", "both", "callers", "hook_key", "hooked", "inputs", "lease", "outputs",
        "placed", "sites",
    )  # fmt: skip

    callers: dict[nn.Module, tuple[nn.Module, ...]]
    """For modules called from outside their own tree: who calls them."""
    outputs: set[nn.Module]
    inputs: set[nn.Module]
    placed: list[Placed]
    hooked: dict[nn.Module, tuple[Any, Any] | None] | None
    """Modules armed with a hook, and what a call whose hooks now run was made with."""
    hook_key: int
    sites: dict[Any, Any] | None
    """The rewritten forwards of this pass (see `source`), by the module whose forward it is."""
    lease: Lease | None
    """What its wrappers at outputs say whose they are by."""
    both: bool
    """Whether modules are armed on both sides: bodies beside the block come before it there."""
    cleared: bool
    """Whether nothing is armed any more, nor will be."""
    armed_around: nn.Module | None
    """The module around the one armed last: it and those around it are armed too."""

    def arm_output(self, node: Node, module: nn.Module) -> nn.Module:
        """Let the pass stop at what a module returns. Gives the module that is there now."""
        around, siblings, name = node._place
        if around is not self.armed_around or siblings.get(name) is not module:
            module = self._around(node)
        if self.callers and module in self.callers:
            self._arm_callers(module)
        if self.both:
            self._arm_both(module)
        elif module._forward_hooks:
            run_as_written(self, module)
            self._hook(module)
        else:
            self._place_over(module, AtOutput)
        return module

    def arm_input(self, node: Node) -> nn.Module:
        """Let the pass stop at a module's arguments, or skip its call."""
        if not isinstance(node._module, nn.Module):
            return node._arm(self)  # an operation of a forward
        both, self.both = self.both, True
        try:
            module = self.arm_output(node, node._module)
        finally:
            self.both = both
        return module

    def arm_every(self, root: nn.Module) -> None:
        """Both sides of every module of a tree, for a pass that is observed or stepped."""
        for module in reached(root):
            self._arm_both(module)

    def place(self, namespace: dict[str, Any], make: Callable[[], Any]) -> None:
        """Put what `make` builds around the forward that is there in its place."""
        with lock:
            before, wrapper = namespace.get("forward"), make()
            self.placed.append((namespace, wrapper, before))
            namespace["forward"] = wrapper

    def disarm(self) -> None:
        """Put every module's own forward back; when interrupted, all the same."""
        try:
            self._take_out()
        except KeyboardInterrupt:
            self._take_out()
            raise

    def _take_out(self) -> None:
        with lock:
            self.cleared = True  # type: ignore[misc]  # the slot is the pass's
            self.unplace()
        for module in self.hooked or ():
            module._forward_hooks.pop(self.hook_key, None)
            module._forward_hooks_with_kwargs.pop(self.hook_key, None)
        for site in (self.sites or {}).values():
            site.close()
        self.hooked = None
        self.outputs.clear()
        self.inputs.clear()

    def unplace(self) -> None:
        """Take out what has been put in; the caller holds the lock."""
        take_out(self.placed, take_out_one)
        if self.lease is not None:
            self.lease.run = OVER
        self.placed, self.lease = [], None

    def _around(self, node: Node) -> nn.Module:
        """Arm the modules around one, and look it up again if the user has replaced it."""
        parent = node._parent
        if parent is None:
            return node._module
        refuse(parent)
        if parent._module not in self.outputs:
            self.arm_output(parent, parent._module)
        self.armed_around = parent._module
        around, siblings, name = node._place
        stale = around is not parent._module or siblings.get(name) is not node._module
        if stale and name not in parent._extras:
            node._refresh()
        return node._module

    def _arm_callers(self, module: nn.Module) -> None:
        for caller in self.callers[module]:
            if self.both:
                self._arm_both(caller)
            elif caller not in self.outputs:
                self._place_over(caller, AtOutput)

    def _arm_both(self, module: nn.Module) -> None:
        if module in self.inputs:
            return
        self.inputs.add(module)
        if module._forward_hooks:
            self._hook(module)
        self._place_over(module, AtBothSides)

    def _place_over(self, module: nn.Module, kind: type[Stopping]) -> None:
        """Wrap what is there: the class's forward, or one of the instance's own (accelerate's)."""
        self.outputs.add(module)
        run_as_written(self, module)
        whose = (self.lease or self._take_lease()) if kind is AtOutput else self
        self.place(module.__dict__, lambda: kind((whose, module, self._forward_of(module))))

    def _take_lease(self) -> Lease:
        self.lease = lease = Lease(self)
        return lease

    def _forward_of(self, module: nn.Module) -> Forward:
        """What a module's call runs, without a wrapper that would stop this pass there twice."""
        forward: Forward = module.forward
        return forward[2] if isinstance(forward, AtOutput) and forward.run is self else forward

    def _hook(self, module: nn.Module) -> None:
        self.outputs.add(module)
        self.hooked = self.hooked or {}
        if module not in self.hooked:
            self.hook_key = self.hook_key or _new_key()
            self.hooked[module] = None
            hooks = tuple(module._forward_hooks.values())  # those of other threads' passes may go
            only_recorders = all(map(is_recorder, hooks))
            module._forward_hooks_with_kwargs[self.hook_key] = True
            module._forward_hooks[self.hook_key] = self.after_hooks
            if only_recorders:  # they are to see what the block leaves
                ordered: Any = module._forward_hooks
                ordered.move_to_end(self.hook_key, last=False)

    def after_hooks(self, module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> Any:
        """Stop after the last of the user's own forward hooks."""
        raise NotImplementedError


def is_recorder(hook: Any) -> bool:
    """Whether a hook only notes hidden states down, for transformers to return or to go on with.

    LLaVA takes its image features from there (transformers 5.19).
    """
    return getattr(hook, "__module__", None) == "transformers.utils.output_capturing"
