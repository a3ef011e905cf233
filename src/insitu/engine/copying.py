"""Copies of a wrapper, and wrappers in files: `copy.deepcopy(model)`, `pickle.dumps(model)`.

twin = copy.deepcopy(model)         # wraps a copy of the module, under the same names
twin[0].weight.data.zero_()         # the first one's is as it was

What a wrapper has learned of its module is not copied: it is learned again. A part of a model is
copied with the whole.
"""

from typing import Any
from weakref import WeakSet

from torch import nn

from insitu.errors import UsageError

_PLACE = ("_module", "_parent", "_name", "_root", "_whole", "_place", "_children")


def nothing_learned(node: Any) -> dict[str, Any]:
    """What the root of a model keeps of its module and of those who use it, at its beginning."""
    return {
        "_orders": {}, "_seen": {}, "_batched": {}, "_reads": {}, "_sizes": None,
        "_family": WeakSet((node,)), "_onlookers": None,
    }  # fmt: skip


def parts(node: Any, base: type[Any]) -> tuple[Any, ...]:
    """What `copy` and `pickle` make another wrapper of; `base` is the class of all nodes.

    Raises:
        UsageError: it has edits: their text names this wrapper.
    """
    if node._parent is not None:
        return _part, (node._root, node._path)
    if node._edits:
        raise UsageError(
            "a wrapper with edits cannot be copied or pickled.",
            "the text of an edit names the wrapper it was written for.",
            "copy the one without them, and bring them over: save_edits(file), load_edits(file).",
        )
    anew = {*nothing_learned(node), *_PLACE}
    own = {
        name: it
        for name, it in node.__dict__.items()
        if name not in anew and not isinstance(it, base)
    }
    return _whole, (base, type(node), node._module), own


def _part(root: Any, path: str) -> Any:
    return root._at_path(path)


def _whole(base: Any, kind: type[Any], module: nn.Module) -> Any:
    node: Any = object.__new__(kind)
    base.__init__(node, module, None, "")
    node.__dict__.update(nothing_learned(node))
    return node
