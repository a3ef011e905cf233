"""One line from Python to the view of a thing.

insitu.show(x)              # a model, a cache, a result, tensors
model.tree()
cache.view()
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.entry import Entry
from insitu.engine.held import Run
from insitu.engine.source.operations import Source
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InputTypeError, UsageError
from insitu.events import Job
from insitu.methods.axes import Axis
from insitu.methods.result import Result
from insitu.models.base import NNsight
from insitu.models.diffusion import DiffusionModel
from insitu.models.language import LanguageModel
from insitu.twins.ledger import Ledger
from insitu.widgets import tensors
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
        UsageError: its view takes no such setting.
    """
    opener = _watch if "generate" in settings else _opener(thing)
    if opener is None:
        raise InputTypeError(
            f"there is no view of {type(thing).__name__}{_without(thing)}.",
            "models, caches, tensors and what methods return can be shown.",
            "give one of those, or name a view: insitu.widgets.LensGrid.of(values, tokens=…).",
        )
    if opener is not _watch and (unknown := settings.keys() - _settings_of(opener)):
        raise UsageError(
            f"show() was given {', '.join(sorted(unknown))}, which a {type(thing).__name__} "
            "does not take.",
            f"it takes {', '.join(sorted(_settings_of(opener))) or 'nothing more'}.",
            "leave it out, or name the view: insitu.widgets.",
        )
    return opener(thing, **settings)


def _opener(thing: Any) -> Callable[..., Widget] | None:
    if isinstance(thing, Sequence) and not isinstance(thing, (str, bytes)):
        if thing and all(isinstance(it, Job) for it in thing):
            return _dock
        return CacheInspector if not thing or tensors.of(thing) else None
    if hasattr(thing, "__array_interface__"):  # numpy's
        return CacheInspector
    return next((opener for kinds, opener in _OPENERS if isinstance(thing, kinds)), None)


def _without(thing: Any) -> str:
    return " without a tensor in it" if isinstance(thing, (list, tuple)) else ""


def _settings_of(opener: Callable[..., Widget]) -> set[str]:
    return set(list(inspect.signature(opener).parameters)[1:])


def _dock(jobs: Sequence[Job]) -> JobDock:
    return JobDock(*jobs)


def _module(module: nn.Module) -> ModuleTree:
    return tree(NNsight(module))


def _result(result: Result) -> Widget:
    """A grid; one axis is one row of it."""
    if len(result.axes) == 1:
        row = Axis("", [result.quantity])
        result = replace(result, values=result.values[None], axes=(row, *result.axes), further={})
    is_attention = result.names[-2:] == ("query_pos", "key_pos") and len(result.names) > 2
    return AttentionView(result) if is_attention else LensGrid(result)


_OPENERS: tuple[tuple[Any, Callable[..., Widget]], ...] = (
    (WrappedModule, tree),
    (nn.Module, _module),
    (Run, stepper),
    (Ledger, RunLedger),
    (Job, RemoteLog),
    (Source, SourceBrowser),
    (Result, _result),
    ((ActivationCache, Entry, Tensor, Mapping), CacheInspector),
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
