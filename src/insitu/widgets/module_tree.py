"""The modules of a model as a tree to search and walk, with marks of what a run did.

model.tree()                          # in a notebook
tree = model.tree()
tree.selected                         # the path clicked last
tree.module                           # the wrapped module there
tree.overlay = True                   # what a block can reach, as this backend runs it

While it is open it follows every pass of the model: what ran, what the block read and wrote, and
where a pass held open stands.
"""

import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import traitlets
from torch import nn

from insitu.engine.beside import Watcher
from insitu.engine.edits import SCAN
from insitu.engine.held import standing
from insitu.engine.onlookers import look_at, look_away
from insitu.engine.running import opened
from insitu.engine.source.listing import place
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError
from insitu.twins import style
from insitu.twins.model import model_twins
from insitu.twins.reach import Reach, reach_html, reach_of, reach_text
from insitu.twins.tree import outputs_of
from insitu.widgets.base import Widget
from insitu.widgets.batches import Batches
from insitu.widgets.following import NAMES, Following
from insitu.widgets.standing import layers

MARKED_EVERY_S = 0.1


class ModuleTree(Widget):
    """A model's modules: search, sizes, shapes of the last pass, and what ran or was changed.

    tree = ModuleTree(model)

    Args:
        node: a wrapped model, or a wrapped module of one.

    Attributes:
        selected: the path clicked last, `""` for the root.
        module: the wrapped module at that path.
        overlay: whether it is marked what a block can reach: modules that are compiled, scripted,
            only hold others, are not loaded yet, …
    """

    front_end = "module_tree"
    title = traitlets.Unicode().tag(sync=True)
    nodes = traitlets.Dict().tag(sync=True)
    """Columns, a row a module in the order of `named_modules`: `names` by line, `numbers` (int32:
    of the parents, then of the kinds, then of the outputs), `sizes` (float64); what kinds and
    outputs there are; which rows are `layers`, with their numbers. In bytes, as ipywidgets looks at
    each part of a list: 20 ms for 10,000."""
    marks = traitlets.Dict().tag(sync=True)
    """Rows of each of `ran`, `read`, `written`, `paused`, as firsts and lasts of stretches."""
    selected = traitlets.Unicode().tag(sync=True)
    overlay = traitlets.Bool(False).tag(sync=True)
    """Whether it is shown what a block can reach, as this backend runs the model."""
    reach = traitlets.Dict().tag(sync=True)
    """While it is: `backend`, and `kinds`, each with its `label`, `words` and `rows` as stretches;
    a row of no kind is open to a block in all ways."""
    _node: Callable[[], WrappedModule | None] = staticmethod(lambda: None)

    def __init__(self, node: WrappedModule) -> None:
        if not isinstance(node, WrappedModule):
            raise UsageError(
                f"a tree shows a wrapped model, not {type(node).__name__}.",
                "it names paths that can be read in a trace.",
                "wrap the model first: ModuleTree(NNsight(model)).",
            )
        self._node = weakref.ref(node)
        self._views: set[str] = set()
        self._followed: list[Following] = []
        self._by_hand: dict[str, set[int]] = {}
        self._news = Batches(self._tell, MARKED_EVERY_S)
        self._forget_rows(node)
        super().__init__(title=type(node._module).__name__, nodes=_columns(node))
        self.observe(self._show_reach, "overlay")
        look_at(node._root, self)

    @property
    def module(self) -> WrappedModule:
        """The wrapped module that is selected."""
        node: WrappedModule = self._there()
        for part in self.selected.split(".") if self.selected else ():
            node = getattr(node, part) if not part.isdigit() else node[int(part)]
        return node

    def mark(self, **done: Iterable[Any]) -> None:
        """Mark modules until the next run: `tree.mark(read=[model.transformer.h[2]])`."""
        for name, nodes in done.items():
            modules = (node._module if isinstance(node, WrappedModule) else node for node in nodes)
            rows = {row for it in modules if (row := self._rows.get(it)) is not None}
            self._by_hand[name] = self._by_hand.get(name, set()) | rows
        self._tell()

    def follow(self, run: Any) -> Watcher | None:
        """A pass is about to begin (`insitu.engine.onlookers`): the marks of the last one go."""
        if self.comm is None:
            self.close()
        if self.comm is None or run.kind == SCAN:
            return None
        if run.root._module is not self._whole():
            self._forget_rows(self._there())  # its weights have been loaded since
        following = Following(run, self._rows, self._news.soon)
        if len(self._rows) != self.nodes["names"].count("\n") + 1:  # some were added since
            self.nodes = _columns(self._there())
            self._show_reach()
        self._followed = [it for it in self._followed if not it.is_over] + [following]
        self._by_hand = {}
        self._news.soon()
        return following

    def moved(self, run: Any) -> None:
        """A pass held open stands somewhere else."""
        self._news.soon()

    def close(self) -> None:
        """Show nothing more, and follow no more passes."""
        node = self._node()
        if node is not None:
            look_away(node._root, self)
        super().close()

    def text(self) -> str:
        """The tree, siblings that are alike in one row; below it the overlay, if it is on."""
        return self.twins()[0]

    def html(self) -> str:
        """The same as nested lists that open and close without a script."""
        return self.twins()[1]

    def twins(self) -> tuple[str, str]:
        """Both, of modules that are counted once."""
        node = self._there()
        text, html = model_twins(node)
        if not self.overlay:
            return text, html
        found, paths = self._reached(), [name for name, _ in node._module.named_modules()]
        below = style.page(style.CARD, reach_html(found, paths))
        return f"{text}\n\n{reach_text(found, paths)}", html + below

    def _show_reach(self, _: Any = None) -> None:
        """Show what can be reached, or no more."""
        node = self._node()
        if not self.overlay or node is None:
            self.reach = {}
            return
        found = self._reached()
        kinds = [
            {"label": it.label, "words": it.words, "rows": _stretches(set(it.rows))}
            for it in found.kinds
        ]
        self.reach = {"backend": found.backend, "kinds": kinds}

    def _reached(self) -> Reach:
        node = self._there()
        return reach_of(node._root._module, (module for _, module, _ in _walk(node)))

    def answer_watched(self, given: dict[str, Any]) -> None:
        """A view was opened or is gone; a tree that nobody sees follows no pass."""
        node = self._there()
        if given["open"]:
            self._views.add(given["view"])
            look_at(node._root, self)
        else:
            self._views.discard(given["view"])
            if not self._views:
                look_away(node._root, self)

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
            "source": place(code.co_filename, code.co_firstlineno) if code else "",
            "paused": next((standing(run) for run in opened if run.root is node._root), ""),
        }

    def _forget_rows(self, node: WrappedModule) -> None:
        """Number the modules anew when that is needed next: not for the first view."""
        self._whole = weakref.ref(node._root._module)
        self._numbered: weakref.WeakKeyDictionary[nn.Module, int] | None = None
        self._learned: list[int] = []

    @property
    def _rows(self) -> "weakref.WeakKeyDictionary[nn.Module, int]":
        """The row of each module; the tree keeps none of them alive."""
        rows = self._numbered
        if rows is None:
            walk = enumerate(_walk(self._there()))
            rows = weakref.WeakKeyDictionary((module, row) for row, (_, module, _) in walk)
            self._numbered = rows
        return rows

    def _tell(self) -> None:
        """Show what passes have done by now."""
        marks = {name: set(self._by_hand.get(name, ())) for name in NAMES}
        for following in self._followed:
            for name, rows in following.marks().items():
                marks[name] |= rows
        node = self._node()
        if node is not None:
            learned = [id(order) for order in node._root._orders.values()]
            if learned != self._learned:  # a first pass of its kind has told what modules return
                self._learned = learned
                self.nodes = _columns(node)
                self._show_reach()
        self.marks = {name: _stretches(rows) for name, rows in marks.items() if rows}

    def _there(self) -> WrappedModule:
        node = self._node()
        if node is None:
            raise UsageError(
                "the model of this tree is gone.",
                "the last name for it was deleted, and the tree does not keep it alive.",
                "open the tree of a model that is there: model.tree().",
            )
        return node


def _walk(node: WrappedModule) -> Iterator[tuple[str, nn.Module, int]]:
    """The modules in their order, each with its name and the row of what it is in.

    As `named_modules()`, without building 10,000 paths; the first has its whole path.
    """
    seen: set[nn.Module] = set()
    left = [("" if node._parent is None else node._path, node._module, -1)]
    while left:
        found = left.pop()
        module = found[1]
        if module not in seen:
            row = len(seen)
            seen.add(module)
            yield found
            if module._modules:
                below = reversed(module._modules.items())
                left += [(name, it, row) for name, it in below if it is not None]


def _stretches(rows: set[int]) -> list[int]:
    """Rows as the firsts and lasts of stretches: a run of a large model marks nearly all."""
    found: list[int] = []
    for row in sorted(rows):
        if found and row == found[-1] + 1:
            found[-1] = row
        else:
            found += [row, row]
    return found


def _columns(node: WrappedModule) -> dict[str, Any]:
    """The rows of the tree as columns; a kind and an output are told once and numbered."""
    shown = outputs_of(node)
    names: list[str] = []
    parents, of_kind, with_output = array("i"), array("i"), array("i")
    sizes = array("d")
    kinds: dict[str, int] = {}
    outputs: dict[str, int] = {"": 0}
    counted: set[int] = set()  # a weight that is used twice counts where it is met first
    blocks, rows_of_blocks = layers(node._root._module), []
    for row, (name, module, parent) in enumerate(_walk(node)):
        if module in blocks:
            rows_of_blocks.append([row, blocks[module]])
        names.append(name)
        parents.append(parent)
        of_kind.append(kinds.setdefault(type(module).__name__, len(kinds)))
        output = shown.get(module, "")
        with_output.append(outputs.setdefault(output, len(outputs)))
        own = 0
        if module._parameters:
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) not in counted:
                    counted.add(id(parameter))
                    own += parameter.numel()
        sizes.append(own)
    for row in range(len(names) - 1, 0, -1):
        sizes[parents[row]] += sizes[row]
    if any("\n" in name for name in names):
        names = [name.replace("\n", "\N{SYMBOL FOR NEWLINE}") for name in names]
    return {
        "names": "\n".join(names),
        "numbers": (parents + of_kind + with_output).tobytes(),
        "sizes": sizes.tobytes(),
        "kinds": list(kinds),
        "outputs": list(outputs),
        "layers": rows_of_blocks,
    }
