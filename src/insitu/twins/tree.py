"""A model's modules as a tree of few rows: blocks that are alike are told once.

    grow(model)     # Branch(name="model", kind="GPT2LMHeadModel", children=(…))

Siblings of the same class, parameters and submodules fold into one: `(0-11): 12 × GPT2Block`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import nn

from insitu.engine.wrapped import WrappedModule


@dataclass(frozen=True)
class Branch:
    """A module, or several alike, of which the first is shown."""

    name: str
    kind: str
    count: int
    parameters: int
    """Those of one, with its submodules."""
    output: str
    """What it returned in the first pass, when there was one."""
    children: tuple["Branch", ...]


class _Measure(NamedTuple):
    likeness: int
    parameters: int


def grow(node: WrappedModule) -> Branch:
    """The tree below a module; parameters used twice count once in its sum. Runs nothing."""
    root = node._module
    measures, total = _measured(root)
    return replace(_branch([(node._path, root)], measures, outputs_of(node)), parameters=total)


def outputs_of(node: WrappedModule) -> dict[nn.Module, str]:
    """What each module of the whole model returned, in the first kind of pass that called it."""
    outputs: dict[nn.Module, str] = {}
    for order in reversed(node._root._orders.values()):
        outputs.update((module, seen.output) for module, seen in order.called.items())
    return outputs


def _measured(root: nn.Module) -> tuple[dict[nn.Module, _Measure], int]:
    """Each module's size and likeness (a number shared by those alike), and the whole's size."""
    sizes: dict[int, int] = {}
    numbers: dict[Any, int] = {}
    measures: dict[nn.Module, _Measure] = {}

    def measure(module: nn.Module) -> _Measure:
        known = measures.get(module)
        if known is not None:
            return known
        look: list[Any] = [type(module)]
        count = 0
        for name, part in module._modules.items():
            if part is not None:
                found = measure(part)
                count += found.parameters
                look += name, found.likeness
        for name, parameter in module._parameters.items():
            if parameter is not None:
                sizes[id(parameter)] = size = parameter.numel()
                count += size
                look += name, parameter.shape
        measured = _Measure(numbers.setdefault(tuple(look), len(numbers)), count)
        measures[module] = measured
        return measured

    measure(root)
    return measures, sum(sizes.values())


def _branch(
    alike: list[tuple[str, nn.Module]],
    measures: dict[nn.Module, _Measure],
    outputs: dict[nn.Module, str],
) -> Branch:
    name, module = alike[0]
    label = name if len(alike) == 1 else f"{name}-{alike[-1][0]}"
    children = (_branch(group, measures, outputs) for group in _folded(module, measures))
    return Branch(
        label,
        type(module).__name__,
        len(alike),
        measures[module].parameters,
        outputs.get(module, ""),
        tuple(children),
    )


def _folded(
    module: nn.Module, measures: dict[nn.Module, _Measure]
) -> Iterator[list[tuple[str, nn.Module]]]:
    """Submodules, neighbours in a numbered list together when they are alike."""
    group: list[tuple[str, nn.Module]] = []
    for name, child in module._modules.items():
        if child is None:
            continue
        numbered = name.isdigit() and group and group[-1][0].isdigit()
        if numbered and measures[group[-1][1]].likeness == measures[child].likeness:
            group.append((name, child))
            continue
        if group:
            yield group
        group = [(name, child)]
    if group:
        yield group
