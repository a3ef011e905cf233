"""`%%trace … --view VIEW`: the widget that a cell ends in, fed by its run.

    shown = made_of("lens", session, names)

A lens and attention patterns are of the run as the cell has changed it: what the cell wrote is put
back in its place by hooks while they are computed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from insitu.engine.cache.activations import ActivationCache
from insitu.errors import UsageError
from insitu.methods.attention_patterns import attention_patterns
from insitu.methods.logit_lens import logit_lens
from insitu.models.language import LanguageModel
from insitu.notebook.forwards import _patch
from insitu.notebook.magics.widgets import made
from insitu.notebook.operands import Operands
from insitu.notebook.recorder import Write
from insitu.notebook.session import Session


def check(view: str, operands: Operands) -> None:
    """Refuse a view that this run cannot have, before it runs.

    Raises:
        UsageError: it needs a generation, one prompt or a language model.
    """
    if view == "generation" and operands.tokens is None:
        raise UsageError(
            "--view generation shows a generation, and this cell runs one forward.",
            "it fills token by token.",
            "add --generate 20.",
        )
    if view in ("lens", "attention") and operands.tokens is not None:
        raise UsageError(
            f"--view {view} shows one forward, and this cell generates.",
            "it is computed again, with what the cell wrote, and the steps wrote different things.",
            "leave --generate out, or choose --view generation.",
        )
    if view in ("lens", "attention", "generation"):
        name = operands.name
        if not isinstance(operands.model, LanguageModel):
            raise UsageError(
                f"--view {view} needs a language model, and {name} is none.",
                f"it wraps {type(operands.model._module).__name__}.",
                "choose --view tree or --view cache.",
            )
        if len(operands.args) != 1 or _several(operands.args[0]):
            raise UsageError(
                f"--view {view} shows one prompt, and this cell has several, or none.",
                "its axes are the tokens of one.",
                "run the cell with one of them.",
            )


def _several(prompt: Any) -> bool:
    is_list = isinstance(prompt, (list, tuple))
    return is_list and len(prompt) != 1 and all(isinstance(it, (str, list)) for it in prompt)


def made_of(view: str, session: Session, names: Mapping[str, Any]) -> Any:
    """The widget of a run that is over."""
    model: Any = session.operands.model
    if view == "tree":
        tree = made("module_tree:ModuleTree", model)
        visits, written = session.recorder.visits, {it.visit for it in session.recorder.writes}
        for number, visit in enumerate(visits):
            node = _node(model, visit.path)
            if node is not None:
                tree.mark(**{"written" if number in written else "read": [node]})
        return tree
    if view == "cache":
        return made("cache_inspector:CacheInspector", _cache(names))
    with replayed(session):
        prompt = session.operands.args[0]
        if view == "lens":
            shown = made("lens_grid:LensGrid", logit_lens(model, prompt))
        else:
            shown = made("attention_view:AttentionView", attention_patterns(model, prompt))
    if left_out := sum(not _can_replay(it) for it in session.recorder.writes):
        shown.title += f", without {left_out} of the writes, which cannot be put back"
    return shown


def _node(model: Any, site: str) -> Any:
    path = site.rpartition(".")[0]
    if ".source." in path or path == "model":
        return model if path == "model" else None
    try:
        return model._at_path(path)
    except AttributeError:
        return None


def _cache(names: Mapping[str, Any]) -> ActivationCache:
    cache = names.get("cache")
    if isinstance(cache, ActivationCache):
        return cache
    raise UsageError(
        "--view cache shows a cache, and this cell kept none.",
        "it looks for the variable `cache`.",
        "add --cache transformer.h.*, or write cache = tracer.cache().",
    )


def _can_replay(write: Write) -> bool:
    """Whether what was written is a module's, and was kept."""
    return write.values is not None and isinstance(write.module, nn.Module)


@contextmanager
def replayed(session: Session) -> Iterator[None]:
    """The model with what a cell wrote put back in its places."""
    handles = [_patch(write) for write in session.recorder.writes if _can_replay(write)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
