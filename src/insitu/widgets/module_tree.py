"""The modules of a model as a tree to search and walk, with marks of what a run did.

model.tree()                          # in a notebook
tree = model.tree()
tree.selected                         # the path clicked last
tree.module                           # the wrapped module there
"""

import weakref
from collections.abc import Iterator
from typing import Any

import traitlets
from torch import nn

from insitu.engine.held import standing
from insitu.engine.running import opened
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError
from insitu.twins.model import model_html, model_text
from insitu.widgets.base import Widget


class ModuleTree(Widget):
    """A model's modules: search, sizes, shapes of the last pass, and what ran or was changed.

    tree = ModuleTree(model)

    Args:
        node: a wrapped model, or a wrapped module of one.

    Attributes:
        selected: the path clicked last, `""` for the root.
        module: the wrapped module at that path.
    """

    front_end = "module_tree"
    title = traitlets.Unicode().tag(sync=True)
    nodes = traitlets.Dict().tag(sync=True)
    """Columns, a row a module in the order of `named_modules`: name, parent, kind, size, output."""
    marks = traitlets.Dict().tag(sync=True)
    """By row: what the last run did there, of `ran`, `read`, `written`, `paused`."""
    selected = traitlets.Unicode().tag(sync=True)

    def __init__(self, node: WrappedModule) -> None:
        if not isinstance(node, WrappedModule):
            raise UsageError(
                f"a tree shows a wrapped model, not {type(node).__name__}.",
                "it names paths that can be read in a trace.",
                "wrap the model first: ModuleTree(NNsight(model)).",
            )
        self._node = weakref.ref(node)
        self._rows = {module: row for row, module in enumerate(_modules(node._module))}
        super().__init__(title=type(node._module).__name__, nodes=_columns(node))

    @property
    def module(self) -> WrappedModule:
        """The wrapped module that is selected."""
        node: WrappedModule = self._there()
        for part in self.selected.split(".") if self.selected else ():
            node = getattr(node, part) if not part.isdigit() else node[int(part)]
        return node

    def mark(self, **done: Any) -> None:
        """Mark modules: `tree.mark(read=[model.transformer.h[2]])`."""
        marks: dict[str, list[str]] = {row: list(was) for row, was in self.marks.items()}
        for name, nodes in done.items():
            for node in nodes:
                row = self._rows.get(node._module if isinstance(node, WrappedModule) else node)
                if row is not None and name not in marks.setdefault(str(row), []):
                    marks[str(row)].append(name)
        self.marks = marks

    def text(self) -> str:
        """The tree, siblings that are alike in one row."""
        return model_text(self._there())

    def html(self) -> str:
        """The same as nested lists that open and close without a script."""
        return model_html(self._there())

    def answer_about(self, given: dict[str, Any]) -> dict[str, Any]:
        """More of one module, for the pane beside the tree."""
        node = self._there()
        module = next((m for m, row in self._rows.items() if row == given["row"]), None)
        if module is None:
            raise LookupError("the tree has no such row")
        code = type(module).forward.__code__ if hasattr(type(module).forward, "__code__") else None
        shapes = {name: list(p.shape) for name, p in module.named_parameters(recurse=False)}
        return {
            "class": f"{type(module).__module__}.{type(module).__qualname__}",
            "extra": module.extra_repr()[:400],
            "parameters": shapes,
            "devices": sorted({str(p.device) for p in module.parameters(recurse=False)}),
            "source": f"{code.co_filename}:{code.co_firstlineno}" if code else "",
            "paused": next((standing(run) for run in opened if run.root is node._root), ""),
        }

    def _there(self) -> WrappedModule:
        node = self._node()
        if node is None:
            raise UsageError(
                "the model of this tree is gone.",
                "the last name for it was deleted, and the tree does not keep it alive.",
                "open the tree of a model that is there: model.tree().",
            )
        return node


def _modules(root: nn.Module) -> Iterator[nn.Module]:
    return root.modules()


def _columns(node: WrappedModule) -> dict[str, Any]:
    """The rows of the tree as columns; a kind and an output are told once and numbered."""
    outputs: dict[nn.Module, str] = {}
    for order in reversed(node._root._orders.values()):
        outputs.update((module, seen.output) for module, seen in order.called.items())
    kinds: dict[str, int] = {}
    shapes: dict[str, int] = {"": 0}
    rows: dict[nn.Module, int] = {}
    columns: dict[str, list[Any]] = {n: [] for n in ("name", "parent", "kind", "size", "output")}

    counted: set[int] = set()  # a weight that is used twice counts where it is met first

    def add(name: str, module: nn.Module, parent: int) -> None:
        rows[module] = row = len(rows)
        parameters = [p for p in module._parameters.values() if p is not None]
        own = sum(p.numel() for p in parameters if id(p) not in counted)
        counted.update(map(id, parameters))
        kind = kinds.setdefault(type(module).__name__, len(kinds))
        shape = shapes.setdefault(outputs.get(module, ""), len(shapes))
        for column, value in zip(columns.values(), (name, parent, kind, own, shape), strict=True):
            column.append(value)
        for further, child in module._modules.items():
            if child is not None and child not in rows:
                add(further, child, row)

    add("" if node._parent is None else node._path, node._module, -1)
    for row in range(len(rows) - 1, 0, -1):
        columns["size"][columns["parent"][row]] += columns["size"][row]
    return {**columns, "kinds": list(kinds), "outputs": list(shapes)}
