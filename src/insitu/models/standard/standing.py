"""What is known of a model whose standard names have been looked up.

standing(node).family, standing(node).dims
"""

from dataclasses import dataclass
from typing import Any

from insitu.models.standard.dims import Dims
from insitu.models.standard.families import Family


@dataclass(frozen=True)
class Standing:
    """A verified description of one model."""

    family: Family
    dims: Dims
    places: dict[str, str]
    """The path of each standard name at the root; those the model has nothing for are left out."""


def standing(node: Any) -> Standing:
    """What is known of the model that a wrapped module is part of; it has been looked up."""
    found: Standing = node._root.__dict__["_standing"]
    return found


def at(node: Any, path: str) -> Any:
    """The wrapped module at a path of a description, which may count from the end: `layer.-1`."""
    for part in path.split(".") if path else ():
        node = node[int(part)] if part.lstrip("-").isdigit() else node._at_path(part)
    return node


def module_at(module: Any, path: str) -> Any:
    """The module at a path of a description; None where there is none."""
    for part in path.split(".") if path else ():
        if part.lstrip("-").isdigit():
            try:
                module = module[int(part)]
            except (IndexError, TypeError):
                return None
        else:
            module = module._modules.get(part)
        if module is None:
            return None
    return module
