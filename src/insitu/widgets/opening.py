"""One line from Python to the view of a thing.

insitu.show(x)              # a model, a cache, a result, tensors
model.tree()
cache.view()
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.entry import Entry
from insitu.engine.source.operations import Source
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InputTypeError
from insitu.methods.result import Result
from insitu.widgets.attention_view import AttentionView
from insitu.widgets.base import Widget
from insitu.widgets.cache_inspector import CacheInspector
from insitu.widgets.lens_grid import LensGrid
from insitu.widgets.module_tree import ModuleTree
from insitu.widgets.source_browser import SourceBrowser


def tree(node: WrappedModule) -> ModuleTree:
    """The modules of a model, to search and walk."""
    return ModuleTree(node)


def view(cache: ActivationCache, other: Any = None) -> CacheInspector:
    """What a cache holds; with another one, how far they are apart."""
    return CacheInspector(cache, other)


def show(thing: Any, **settings: Any) -> Widget:
    """The view that suits a thing.

        insitu.show(model)                          # its modules
        insitu.show(model.transformer.h[0].attn.source)
        insitu.show(cache)                          # its tensors; other=… compares
        insitu.show(logit_lens(model, prompt))      # a grid
        insitu.show(attention_patterns(model, prompt))
        insitu.show({"before": a, "after": b})      # any tensors

    Raises:
        InputTypeError: there is no view of such a thing.
    """
    if isinstance(thing, WrappedModule):
        return tree(thing)
    if isinstance(thing, Source):
        return SourceBrowser(thing)
    if isinstance(thing, Result):
        is_attention = thing.names[-2:] == ("query_pos", "key_pos") and len(thing.names) > 2
        return AttentionView(thing) if is_attention else LensGrid(thing)
    if isinstance(thing, (ActivationCache, Entry, Tensor, Mapping, Sequence)):
        return CacheInspector(thing, **settings)
    raise InputTypeError(
        f"there is no view of {type(thing).__name__}.",
        "models, caches, tensors and what methods return can be shown.",
        "give one of those, or name a view: insitu.widgets.LensGrid.of(values, tokens=…).",
    )
