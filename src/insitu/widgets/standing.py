"""Where a pass held open stands, as rows and words for a view.

    around(run, opened)          # the modules above, beside and below where it stands
    layers(model)                # the blocks of its repeated stacks, by module
    tokens(run)                  # what the model was called with, where those are token ids

Nothing here moves the pass.
"""

import threading
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn

from insitu.engine import held
from insitu.engine.interleave import Pass
from insitu.engine.order import OUTPUT
from insitu.engine.reachable import frames
from insitu.engine.source.operations import Operation
from insitu.engine.stepping import parked_frame, source_of_standing
from insitu.widgets.source_browser import listed

BESIDE = 4
"""Siblings shown on either side of where the pass stands, in a long list of them."""
SHOWN_MAX = 24
"""A list of siblings up to so long is shown whole."""

OVER = {"finished": "has finished", "failed": "failed", "closed": "was closed"}

Row = tuple[str, str, str, int, str, bool, bool]
"""Path, name, class, depth, state, whether modules are below it, and whether they are shown."""


def state_of(run: Pass) -> str:
    """`ready`, `stands`, `finished`, `failed` or `closed`."""
    if run.ended:
        return "failed" if run.result is None else "finished"
    if run.closed:
        return "closed"
    return "stands" if run.at_output is not None or run.at_input is not None else "ready"


def site_of(run: Pass) -> tuple[Any, nn.Module | None, str]:
    """The module or operation where a pass stands, the module around it, and the side."""
    at, side = (run.at_output, "output") if run.at_output is not None else (run.at_input, "input")
    if isinstance(at, Operation):
        return at, at._around, side
    return at, at, side if at is not None else ""


def told(run: Pass, blocks: dict[nn.Module, int]) -> dict[str, Any]:
    """Where it stands: in words, as the path of a module or an operation, its layer and step."""
    site, module, side = site_of(run)
    above = _way_to(run.whole, module) if module is not None else []
    return {
        "where": held.standing(run),
        "side": side,
        "step": max(run.step, 0),
        "steps": run.kind == "generate",
        "path": _path(run, module),
        "operation": site._path if isinstance(site, Operation) else "",
        "elsewhere": run.thread != threading.main_thread().ident,
        "layer": next((blocks[it] for it in above if it in blocks), None),
    }


def layers(root: nn.Module) -> dict[nn.Module, int]:
    """The blocks of the outermost repeated stacks, each with its number in its stack."""
    found = dict(_layers(root, True))
    return found or dict(_layers(root, False))


def _layers(module: nn.Module, composite: bool) -> Iterator[tuple[nn.Module, int]]:
    children = {n: child for n, child in module._modules.items() if child is not None}
    stacked = [child for name, child in children.items() if name.isdigit()]
    if sum(bool(child._modules) or not composite for child in stacked) > 1:
        yield from zip(stacked, range(len(stacked)), strict=True)
        return
    for child in children.values():
        yield from _layers(child, composite)


def around(run: Pass, opened: Collection[str]) -> list[Row]:
    """The tree about where a pass stands: what is on the way there, and what lies beside that."""
    _, here, _ = site_of(run)
    above = _way_to(run.whole, here) if here is not None else _way_to_blocks(run.whole)
    written = {write[0]._module for write in run.writes or () if write[1] != "skip"}
    shown: list[Row] = []

    def add(module: nn.Module, path: str, name: str, depth: int) -> None:
        children = [(n, child) for n, child in module._modules.items() if child is not None]
        is_open = bool(children) and (module in above or path in opened)
        state = "here" if module is here else "inside" if module in above and here else ""
        if not state and _has_run(run, module):
            state = "written" if module in written else "ran"
        kind = type(module).__name__
        shown.append((path, name, kind, depth, state, bool(children), is_open))
        if not is_open:
            return
        keep = _kept(children, above, f"{path}:all" in opened)
        for index, (further, child) in enumerate(children):
            if index in keep:
                add(child, f"{path}.{further}" if path else further, further, depth + 1)
            elif index - 1 in keep:
                left = next((i for i in keep if i > index), len(children)) - index
                shown.append((f"{path}:all", f"… {left} more", "", depth + 1, "gap", False, False))

    add(run.whole, "", "model", 0)
    return shown


def _kept(children: list[Any], above: list[nn.Module], whole: bool) -> list[int]:
    """Which of many siblings are shown: the first, the last, and those about the pass."""
    count = len(children)
    if count <= SHOWN_MAX or whole:
        return list(range(count))
    at = next((i for i, (_, child) in enumerate(children) if child in above), 0)
    near = range(max(at - BESIDE, 0), min(at + BESIDE + 1, count))
    return sorted({0, 1, count - 2, count - 1, *near})


def _way_to(root: nn.Module, module: nn.Module) -> list[nn.Module]:
    """The modules from the root down to one, both with them."""
    if root is module:
        return [root]
    for child in root._modules.values():
        if child is not None and (way := _way_to(child, module)):
            return [root, *way]
    return []


def _way_to_blocks(root: nn.Module) -> list[nn.Module]:
    """The modules from the root down to what holds the first repeated blocks."""
    return _way_to(root, next(iter(layers(root)), root))[:-1] or [root]


def _has_run(run: Pass, module: nn.Module) -> bool:
    """Whether a module is known to have finished in this pass, or in this step of it."""
    if run.ended:
        return True
    if run.observation is not None:
        return run.observation.has_left(module)
    place = run.single.get(module)
    return place is not None and place[OUTPUT] <= run.here


def listing(run: Pass) -> dict[str, Any]:
    """The text of the function that a pass stands in, its operations, and the line it is at."""
    found = None if run.closed or run.ended else source_of_standing(run)
    if found is None:
        return {}
    source, line = found
    at, _, _ = site_of(run)
    is_here = isinstance(at, Operation) and at._in._path == source._path
    owner = source._owner
    within: list[str] = []
    while isinstance(owner, Operation):
        within.insert(0, owner._name)
        owner = owner._in._owner
    return {
        **listed(source),
        "module": _path(run, owner._module),
        "within": within,
        "stands": at._name if is_here else "",
        "line": line,
    }


def source_along(run: Pass, trail: list[str]) -> dict[str, Any]:
    """The text of a function that the one in sight calls."""
    found = source_of_standing(run)
    if found is None:
        raise LookupError("the pass stands in no text that can be shown")
    source = found[0]
    for name in trail:
        source = source[name].source
    return listed(source)


def _path(run: Pass, module: nn.Module | None) -> str:
    return next((name for name, it in run.whole.named_modules() if it is module), "")


def tokens(run: Pass) -> list[str]:
    """The tokens of the first prompt in the forward that is under way; none where it has none."""
    tokenizer = getattr(run.root, "tokenizer", None)
    for frame in frames(parked_frame(run)):
        ids = frame.f_locals.get("input_ids")
        if isinstance(ids, Tensor) and ids.dim() == 2 and tokenizer is not None and ids.numel():
            return [str(tokenizer.decode([token])) for token in ids[0].tolist()]
    return []
