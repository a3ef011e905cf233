"""Widgets: live views of a model's insides, each fed by data.

from insitu.widgets import CacheInspector, LensGrid, ModuleTree
"""

from insitu.events import JobEvent
from insitu.twins.ledger import ledger
from insitu.widgets.attention_view import AttentionView
from insitu.widgets.cache_inspector import CacheInspector
from insitu.widgets.denoising_view import DenoisingView, watch_denoising
from insitu.widgets.generation_view import GenerationView, watch_generation
from insitu.widgets.job_dock import JobDock
from insitu.widgets.lens_grid import LensGrid
from insitu.widgets.local_job import LocalJob
from insitu.widgets.module_tree import ModuleTree
from insitu.widgets.patch_map import PatchMap, patch_map
from insitu.widgets.recording import Recording
from insitu.widgets.remote_log import RemoteLog
from insitu.widgets.run_ledger import RunLedger
from insitu.widgets.source_browser import SourceBrowser
from insitu.widgets.stepper import Stepper

__all__ = [
    "AttentionView",
    "CacheInspector",
    "DenoisingView",
    "GenerationView",
    "JobDock",
    "JobEvent",
    "LensGrid",
    "LocalJob",
    "ModuleTree",
    "PatchMap",
    "Recording",
    "RemoteLog",
    "RunLedger",
    "SourceBrowser",
    "Stepper",
    "ledger",
    "patch_map",
    "watch_denoising",
    "watch_generation",
]
