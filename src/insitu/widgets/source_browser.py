"""The text of a forward, each operation named beside its line, and the way into those it calls.

insitu.show(model.transformer.h[0].attn.source)
browser = SourceBrowser(model.transformer.h[0].attn)
browser.selected                    # "attention_interface_0.source.softmax_0", clicked last
browser.operation                   # that operation, ready for a block: .output, .input
"""

import weakref
from typing import Any

import traitlets

from insitu.engine.source.listing import place, rows
from insitu.engine.source.operations import Operation, Source
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError
from insitu.twins.source import source_html
from insitu.widgets.base import Widget


class SourceBrowser(Widget):
    """The operations inside a module's forward: read them, go into them, take their path.

    SourceBrowser(model.transformer.h[0].attn)

    Args:
        given: a wrapped module, or its `.source`.

    Attributes:
        selected: the operation clicked last, as it is written behind `.source.`.
        operation: that operation.
    """

    front_end = "source_browser"
    title = traitlets.Unicode().tag(sync=True)
    """The path of the module."""
    listing = traitlets.Dict().tag(sync=True)
    """The first function: where it is, its lines, the operations of each."""
    selected = traitlets.Unicode().tag(sync=True)

    def __init__(self, given: WrappedModule | Source) -> None:
        source = given.source if isinstance(given, WrappedModule) else given
        if not isinstance(source, Source):
            raise UsageError(
                f"there is no forward to browse in {type(given).__name__}.",
                "the operations inside a wrapped module's forward can be browsed.",
                "give the module: SourceBrowser(model.transformer.h[0].attn).",
            )
        self._owner = weakref.ref(source._owner)
        title = source._path if source._owner._parent is not None else "source"
        super().__init__(title=title, listing=listed(source))

    @property
    def operation(self) -> Operation | None:
        """The operation clicked last; None before."""
        return self._operation(self.selected.split(".source.")) if self.selected else None

    def text(self) -> str:
        """The function with the names of its operations."""
        return repr(self._source([]))

    def html(self) -> str:
        """The same as a table."""
        return source_html(self._source([]))

    def answer_into(self, given: dict[str, Any]) -> dict[str, Any]:
        """The function an operation calls; `trail` are the names on the way."""
        return listed(self._source(given["trail"]))

    def _operation(self, trail: list[str]) -> Operation:
        return self._source(trail[:-1])[trail[-1]]

    def _source(self, trail: list[str]) -> Source:
        owner = self._owner()
        if owner is None:
            raise UsageError(
                "the model of this browser is gone.",
                "the last name for it was deleted, and the browser does not keep it alive.",
                "open the source of a model that is there.",
            )
        source: Source = owner.source
        for name in trail:
            source = source[name].source
        return source


def listed(source: Source) -> dict[str, Any]:
    """A function as the view shows it."""
    definition = source._plan.definition
    return {
        "path": source._path,
        "function": source._chain.function.__qualname__,
        "file": place(definition.file, definition.first),
        "lines": [[row.number, row.text, list(row.names)] for row in rows(source._plan)],
    }
