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
from insitu.engine.held import Run
from insitu.engine.source.operations import Source
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InputTypeError
from insitu.events import Job
from insitu.methods.result import Result
from insitu.models.diffusion import DiffusionModel
from insitu.models.language import LanguageModel
from insitu.twins.ledger import Ledger
from insitu.widgets.attention_view import AttentionView
from insitu.widgets.base import Widget
from insitu.widgets.cache_inspector import CacheInspector
from insitu.widgets.denoising_view import watch_denoising
from insitu.widgets.generation_view import watch_generation
from insitu.widgets.job_dock import JobDock
from insitu.widgets.lens_grid import LensGrid
from insitu.widgets.module_tree import ModuleTree
from insitu.widgets.remote_log import RemoteLog
from insitu.widgets.run_ledger import RunLedger
from insitu.widgets.source_browser import SourceBrowser
from insitu.widgets.stepper import Stepper


def tree(node: WrappedModule) -> ModuleTree:
    """The modules of a model, to search and walk."""
    return ModuleTree(node)


def view(cache: ActivationCache, other: Any = None) -> CacheInspector:
    """What a cache holds; with another one, how far they are apart."""
    return CacheInspector(cache, other)


def stepper(run: Run) -> Stepper:
    """A pass held open, to look at, edit and go on with."""
    return Stepper(run)


def show(thing: Any, **settings: Any) -> Widget:
    """The view that suits a thing.

        insitu.show(model)                          # its modules
        insitu.show(model, generate="Once upon a")  # as it is generated, or drawn
        insitu.show(model.transformer.h[0].attn.source)
        insitu.show(cache)                          # its tensors; other=… compares
        insitu.show(logit_lens(model, prompt))      # a grid
        insitu.show(attention_patterns(model, prompt))
        insitu.show(run)                            # a pass held open, with buttons to go on
        insitu.show(insitu.widgets.ledger)          # what %%trace has run
        insitu.show(job)                            # its log; a list of jobs is a dock
        insitu.show({"before": a, "after": b})      # any tensors

    Raises:
        InputTypeError: there is no view of such a thing.
    """
    if "generate" in settings:
        return _watch(thing, **settings)
    if isinstance(thing, WrappedModule):
        return tree(thing)
    if isinstance(thing, Run):
        return stepper(thing)
    if isinstance(thing, Ledger):
        return RunLedger(thing)
    if isinstance(thing, Job):
        return RemoteLog(thing, **settings)
    if isinstance(thing, Sequence) and thing and all(isinstance(it, Job) for it in thing):
        return JobDock(*thing)
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


def _watch(model: Any, generate: Any, **settings: Any) -> Widget:
    """What a model makes of a prompt, as it is made."""
    if isinstance(model, DiffusionModel):
        return watch_denoising(model, generate, **settings)
    if isinstance(model, LanguageModel):
        return watch_generation(model, generate, **settings)
    raise InputTypeError(
        f"{type(model).__name__} was to generate.",
        "what language models and diffusion pipelines generate can be watched.",
        "leave generate= out, or wrap the model: LanguageModel(model, tokenizer=tokenizer).",
    )
