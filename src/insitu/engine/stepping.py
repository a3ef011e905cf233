"""Further ways for a pass held open to go on, and where in a forward's text it stands.

    run.move(to_next_operation)            # the next that finishes, in whatever forward
    run.move(to_next_of(blocks))           # the next output of a layer, or of the whole model
    run.move(to_input_of(node))            # where that module is called next
    source_of_standing(run)                # the function whose text shows where it is, and the line

An operation can be stopped at in a forward that begins from here on: one that is under way runs as
it was entered.
"""

from collections.abc import Callable, Collection
from types import CodeType, FrameType
from typing import Any

from torch import Tensor, nn

from insitu.engine.cache.values import leaves
from insitu.engine.interleave import Pass
from insitu.engine.order import INPUT
from insitu.engine.reachable import frames, self_of
from insitu.engine.source.arm import arm
from insitu.engine.source.operations import Operation, Source
from insitu.errors import SourceError, TraceError


def to_next_of(modules: Collection[nn.Module]) -> Callable[[Pass], None]:
    """A way on: until one of these modules has finished, or the whole model, whichever is first."""

    def move(run: Pass) -> None:
        while (module := run.to_next_module()) is not None:
            if module in modules or module is run.whole:
                return

    return move


def to_input_of(node: Any) -> Callable[[Pass], None]:
    """A way on: up to the next call of a module or an operation, in a later step if need be."""

    def move(run: Pass) -> None:
        run.unbound = True
        try:
            run.read_inputs(node)
        finally:
            run.unbound = False

    return move


def to_next_operation(run: Pass) -> None:
    """Go on until an operation has finished that gives a tensor, or the whole model has.

    One that hands on what a module, or an operation in it, has just returned is passed over.
    """
    given: Any = run.value
    if run.at_input is not None:
        _arm_all(run, run.at_input)
    run.halts = lambda key, kind: kind != INPUT or isinstance(key, nn.Module)
    try:
        while True:
            run.to_next_module()
            if run.at_input is not None:
                _arm_all(run, run.at_input)
            elif _is_over(run) or (isinstance(run.at_output, Operation) and _is_new(run, given)):
                return
            else:
                given = run.value
    finally:
        run.halts = None


def source_of_standing(run: Pass) -> tuple[Source, int] | None:
    """The function whose text shows where a pass stands, and the line; None before it begins.

    At an operation it is the function that this one is in, at the input of a module its forward,
    at an output the forward that called the module.
    """
    if isinstance(run.at_output, Operation):
        return run.at_output._in, run.at_output._named.line
    if isinstance(run.at_input, Operation):
        return run.at_input._in, run.at_input._named.line
    if run.at_input is not None:
        found = _source(run, run.at_input)
        return None if found is None else (found, found._plan.definition.first)
    for frame in frames(parked_frame(run)):
        if (found := _source_in(run, frame)) is not None:
            return found, frame.f_lineno
    return None


def parked_frame(run: Pass) -> FrameType | None:
    """The innermost frame of a model that is parked."""
    worker = run.worker
    return None if worker is None else getattr(worker, "gr_frame", None)


def node_of(run: Pass, module: nn.Module | None) -> Any:
    """The wrapped module of a pass's model that stands for a module; None if it is no part."""
    return next((it for it in run.root._nodes() if it._module is module), None)


def _is_over(run: Pass) -> bool:
    return run.at_output is None or run.at_output is run.whole


def _is_new(run: Pass, given: Any) -> bool:
    """Whether the value where a pass stands holds a tensor, and is not what was there before."""
    return run.value is not given and any(isinstance(it, Tensor) for it in leaves(run.value))


def _source_in(run: Pass, frame: FrameType) -> Source | None:
    """The source of the forward that a frame runs; None if it runs none of a module that is left.

    What runs is the forward's own code, or its rewritten one.
    """
    module = self_of(frame)
    if not isinstance(module, nn.Module) or module is run.at_output:
        return None
    source = _source(run, module)
    return source if source is not None and frame.f_code in _codes(run, source) else None


def _codes(run: Pass, source: Source) -> tuple[CodeType, ...]:
    made = source._chain.function.__code__
    site = None if run.sites is None else run.sites.get(source._owner._module)
    again = None if site is None or site.made is None else site.made[1].__code__
    return (made,) if again is None else (made, again)


def _source(run: Pass, module: Any) -> Source | None:
    node = node_of(run, module)
    try:
        return None if node is None else node.source
    except SourceError:
        return None


def _arm_all(run: Pass, module: Any) -> None:
    """Let the pass stop at each operation of a module that is called, where that can be had."""
    source = _source(run, module)
    try:
        for operation in source or ():
            arm(run, operation, INPUT)
    except (SourceError, TraceError):
        return
