"""One line from Python to the view of a thing: `model.tree()`, `insitu.show(x)`."""

from typing import Any

from insitu.engine.wrapped import WrappedModule
from insitu.widgets.module_tree import ModuleTree


def tree(node: WrappedModule) -> ModuleTree:
    """The modules of a model, to search and walk."""
    return ModuleTree(node)


def show(value: Any) -> Any:
    """The view that suits a thing."""
    if isinstance(value, WrappedModule):
        return tree(value)
    raise NotImplementedError
