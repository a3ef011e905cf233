"""What a block read the last time it ran is armed before it asks, in one loop at the first stop.

    with model.trace(x):                    # the second time, all twelve are armed together
        for block in model.transformer.h:
            norms.append(block.output.norm())

Between two stops the model fills the caches with its own work: whatever is done there costs three
times as much. It is a guess and no more: what a block asks for besides is armed when it does, and
what it leaves out this time is passed by. The wrappers are kept, for one pass at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn

from insitu.engine.arming import AtOutput
from insitu.engine.compiled import COMPILED_CALL
from insitu.engine.order import OUTPUT
from insitu.engine.placed import Placed, Plain, lock, put_in
from insitu.engine.stopping import Lease, underneath

_BLOCKS_MAX = 64  # whose reads a model remembers

Near = dict[Any, tuple[nn.Module, int]]
"""Of nodes whose modules are armed and called once: the module, and its place among outputs."""

NOTHING: Near = {}

Trail = tuple[str, int, Any]
"""In which kind of pass a block has read, how much it was, and what was last."""


@dataclass(frozen=True, slots=True)
class Reads:
    """What a block has read, and what stands around that."""

    trail: Trail
    plain: tuple[Plain, ...]
    placed: list[Placed]
    modules: frozenset[nn.Module]
    others: tuple[Any, ...]
    """Nodes of other modules: with hooks of the user's or a forward of their own, or called from
    outside their own tree."""
    near: Near
    lease: Lease


def arm(run: Any) -> None:
    """Arm what the block of a pass that is about to start is likely to ask for."""
    reads, key = run.root._reads, run.block_key
    if run.both or run.outputs or not isinstance(reads.get(key), Reads):
        return
    known = reads.pop(key, None)  # no other pass has it meanwhile
    if not isinstance(known, Reads) or known.trail[0] != run.kind:
        return
    with lock:  # else who leaves meanwhile may put a wrapper back that is given up here
        run.placed, run.lease = known.placed.copy(), known.lease  # before: it may be interrupted
        known.lease.run = run
        if not put_in(known.plain):
            run.unplace()
            return
    run.outputs, run.ahead = set(known.modules), known
    for node in known.others:
        if node._place[1].get(node._place[2]) is node._module not in run.outputs:
            run.arm_output(node, node._module)


def learn(run: Any) -> None:
    """Remember what the block of a pass has read; its modules are as they were again."""
    if not run.trail:
        return
    reads, read = run.root._reads, (run.kind, len(run.trail), run.trail[-1][0])
    known: Reads | Trail | None = run.ahead or reads.pop(run.block_key, None)  # ours alone
    if known is None or known == read:
        known = _reads(run, read)
    elif not isinstance(known, Reads) or known.trail != read:
        known = read  # something else each time is not foreseen, until it comes twice
    if len(reads) >= _BLOCKS_MAX:
        reads.clear()
    reads[run.block_key] = known


def _reads(run: Any, read: Trail) -> Reads:
    nodes: dict[Any, None] = {}
    for node, kind, _, _ in run.trail:
        if kind == OUTPUT and isinstance(node._module, nn.Module):
            nodes.update(dict.fromkeys(_with_those_around(node)))
    lease, plain, others = Lease(), [], []
    for node in nodes:
        place = None if node._module in run.callers else _plain(node, lease)
        if place is not None:
            plain.append(place)
        else:
            others.append(node)
    return Reads(
        read,
        tuple(plain),
        [(namespace, wrapper, None) for _, _, _, namespace, _, wrapper in plain],
        frozenset(place[2] for place in plain),
        tuple(others),
        {
            node: (node._module, run.single[node._module][OUTPUT])
            for node in nodes
            if node._module in run.single
        },
        lease,
    )


def _plain(node: Any, lease: Lease) -> Plain | None:
    """What it takes to arm a module that runs what its class says, and nothing more."""
    _, siblings, name = node._place
    module: nn.Module = node._module
    forward, namespace = getattr(type(module), "forward", None), module.__dict__
    if type(forward) is not FunctionType or namespace["_forward_hooks"]:
        return None
    own = underneath(module.forward)
    if getattr(own, "__func__", None) is not forward or COMPILED_CALL in namespace:
        return None
    return siblings, name, module, namespace, forward, AtOutput((lease, module, own))


def _with_those_around(node: Any) -> Iterator[Any]:
    while node is not None:
        yield node
        node = node._parent
