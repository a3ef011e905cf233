"""Widgets: live views of a model's insides, each fed by data.

from insitu.widgets import CacheInspector, LensGrid, ModuleTree
"""

from insitu.widgets.attention_view import AttentionView
from insitu.widgets.cache_inspector import CacheInspector
from insitu.widgets.lens_grid import LensGrid
from insitu.widgets.module_tree import ModuleTree
from insitu.widgets.patch_map import PatchMap, patch_map
from insitu.widgets.source_browser import SourceBrowser

__all__ = [
    "AttentionView",
    "CacheInspector",
    "LensGrid",
    "ModuleTree",
    "PatchMap",
    "SourceBrowser",
    "patch_map",
]
