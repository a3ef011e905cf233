"""A block's own call of a module with its sites met: `block.sae(h, hook=True)`.

    with model.edit(inplace=True):
        block.output = block.sae(block.output, hook=True)
    with model.trace(x):
        features = block.sae.encoder.output       # handed over while the edit's call runs

A block's own calls meet no sites, or `model.lm_head(h)` would answer for the model's own. With
`hook=True` whoever waits for one is given it while the call runs, and may change it. The caller
cannot wait for what it runs itself: it finds an attached module's sites afterwards, to be read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from insitu.engine.attached import is_attached
from insitu.engine.switch import getcurrent

Called = tuple[int, tuple[Any, ...], dict[str, Any], Any]
"""One call: the step it was made in, its arguments and what it returned."""


def call(here: Any, node: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call a module from a block or a captured body, with its sites met.

    Args:
        here: the pass, or the lane, that the caller runs in.
        node: the wrapped module.
        args, kwargs: what it is called with.
    """
    module = node._module
    if getattr(here, "rows", None) is not None:  # others see other rows
        with _remembered(here, node):
            return module(*args, **kwargs)
    with _served(here.arming, module), _remembered(here, node):
        return module(*args, **kwargs)


def told(here: Any, module: Any) -> Called | None:
    """What the caller's own call of an attached module gave, in this step."""
    called: Called | None = here.told.get(module)
    return called if called is not None and called[0] == here.step else None


@contextmanager
def _served(run: Any, module: nn.Module) -> Iterator[None]:
    """Let the modules below one stop where they are waited for: the caller acts as the model."""
    before = run.worker, run.to_model, run.observation
    caller = getcurrent()
    run.arm_every(module)
    run.worker, run.to_model, run.observation = caller, caller.switch, None
    try:
        yield
    finally:
        if run.cleared:
            run.disarm()
        else:
            run.worker, run.to_model, run.observation = before


@contextmanager
def _remembered(here: Any, node: Any) -> Iterator[None]:
    """Keep what an attached module and those below it are given and return."""
    if not is_attached(node):
        yield  # its sites are those of the model's own call
        return
    seen = here.told = {} if here.told is None else here.told

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen[module] = here.step, args, kwargs, output

    handles = [it.register_forward_hook(note, with_kwargs=True) for it in node._module.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
