"""What a block read the last time it ran is armed before it asks, in one loop at the first stop.

    with model.trace(x):                    # the second time, all twelve are armed together
        for block in model.transformer.h:
            norms.append(block.output.norm())

Between two stops the model fills the caches with its own work: whatever is done there costs three
times as much. It is a guess and no more: what a block asks for besides is armed when it does, and
what it leaves out this time is passed by.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from insitu.engine.arming import AtOutput
from insitu.engine.compiled import COMPILED_CALL
from insitu.engine.order import OUTPUT

_BLOCKS_MAX = 64  # whose reads a model remembers

Near = dict[Any, tuple[nn.Module, int]]
"""Of nodes whose modules are armed and called once: the module, and its place among outputs."""

NOTHING: Near = {}


@dataclass(frozen=True, slots=True)
class Reads:
    """What a block has read."""

    count: int
    last: Any
    places: tuple[tuple[dict[str, Any], str, nn.Module, dict[str, Any]], ...]
    """Where the modules stand, under which names, they themselves and their `__dict__`s; those
    around others before them."""
    modules: frozenset[nn.Module]
    near: Near


def arm(run: Any) -> None:
    """Arm what the block of a pass that is about to start is likely to ask for."""
    known: Reads | None = run.root._reads.get(run.block_key)
    if known is None or run.both or run.outputs:
        return
    placed = run.placed
    for siblings, name, module, namespace in known.places:
        wrapper = AtOutput((run, module, module.forward))
        if (
            siblings.get(name) is not module
            or namespace["_forward_hooks"]
            or COMPILED_CALL in namespace
            or namespace.setdefault("forward", wrapper) is not wrapper
        ):
            run.root._reads.pop(run.block_key, None)  # no longer as it was, or in another's hands
            run.outputs.update(it[1][1] for it in placed)
            return
        placed.append((namespace, wrapper, None))
    run.outputs.update(known.modules)
    run.ahead = known.near


def learn(run: Any) -> None:
    """Remember what the block of a pass that is over has read."""
    trail, reads = run.trail, run.root._reads
    known: Reads | None = reads.get(run.block_key)
    if not trail or (known and known.count == len(trail) and known.last is trail[-1][0]):
        return
    nodes: dict[Any, None] = {}
    for node, kind, _, _ in trail:
        module = node._module
        if kind == OUTPUT and isinstance(module, nn.Module) and module not in run.callers:
            nodes.update(dict.fromkeys(reversed(list(_around(node)))))
    if len(reads) >= _BLOCKS_MAX:
        reads.clear()
    single = run.single
    reads[run.block_key] = Reads(
        len(trail),
        trail[-1][0],
        tuple((*node._place[1:], node._module, node._module.__dict__) for node in nodes),
        frozenset(node._module for node in nodes),
        {node: (m, single[m][OUTPUT]) for node in nodes if (m := node._module) in single},
    )


def _around(node: Any) -> Any:
    while node is not None:
        yield node
        node = node._parent
