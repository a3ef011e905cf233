"""Rich displays of models, modules and passes held open, as HTML and as text.

    model                       # a tree with sizes, and shapes once a pass has run
    model.transformer.h[0]
    run                         # where a pass held open stands

A display never runs the model, reads no value beyond its shape, and never raises.
"""

import functools
from collections.abc import Callable
from html import escape
from typing import Any

from insitu.engine.cache.activations import ActivationCache
from insitu.engine.cache.forecast import Forecast
from insitu.engine.held import Run
from insitu.engine.source.operations import Operation, Source
from insitu.engine.wrapped import WrappedModule
from insitu.models import generation
from insitu.models.language import LanguageModel
from insitu.twins import cache as cache_twin
from insitu.twins import model as model_twin
from insitu.twins import source as source_twin


def register(ip: Any) -> Callable[[], None]:
    """Add the displays to a shell; gives what takes them away again."""
    html = ip.display_formatter.formatters["text/html"]
    text = ip.display_formatter.formatters["text/plain"]
    ours = (
        (html, WrappedModule, _careful(model_twin.model_html)),
        (text, WrappedModule, _printer(_careful(model_twin.model_text))),
        (text, LanguageModel, _printer(_careful(_language_text))),  # it has a __repr__ of its own
        (html, Run, _careful(model_twin.run_html)),
        (html, Source, _careful(source_twin.source_html)),
        (html, Operation, _careful(source_twin.operation_html)),
        (html, ActivationCache, _careful(cache_twin.cache_html)),
        (html, Forecast, _careful(cache_twin.forecast_html)),
    )
    before = [formatter.for_type(kind, draw) for formatter, kind, draw in ours]

    def unregister() -> None:
        for (formatter, kind, _), earlier in zip(ours, before, strict=True):
            if earlier is None:
                formatter.pop(kind, None)
            else:
                formatter.for_type(kind, earlier)

    return unregister


def _language_text(model: LanguageModel) -> str:
    settings = generation.told(model.generation_settings)
    return model_twin.model_text(model) + (f"\nGeneration: {settings}" if settings else "")


def _careful(draw: Callable[[Any], str]) -> Callable[[Any], str]:
    """A display that falls back to the plain repr rather than raise."""

    @functools.wraps(draw)
    def drawn(value: Any) -> str:
        try:
            return draw(value)
        except Exception as error:
            return (
                f"{type(value).__name__}, not shown: {escape(f'{type(error).__name__}: {error}')}"
            )

    return drawn


def _printer(draw: Callable[[Any], str]) -> Callable[[Any, Any, bool], None]:
    """In the form of IPython's pretty printer."""

    def pretty(value: Any, printer: Any, cycle: bool) -> None:
        printer.text(draw(value))

    return pretty
