"""What every widget is: a view in the page, its state, questions it may ask, and static twins.

    class ModuleTree(Widget):
        front_end = "module_tree"                  # bundles/module_tree.js
        def text(self): ...                        # the twin as text
        def html(self): ...                        # the twin as HTML without scripts
        def answer_about(self, given): ...         # answers the view's question "about"

The view asks with a number, and an answer or a trouble comes back with it; an error is a value and
reaches the view, never its console. JupyterLab 4.6 with ipykernel 7 delivers messages on a thread
of its own while a cell runs, and every widget sees to it that its own do: an answer reads data it
holds, and work on a model goes through `main_thread`.
"""

from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from insitu.errors import InsituError
from insitu.widgets import showing
from insitu.widgets.selection import link
from insitu.widgets.trouble import trouble_of
from insitu.widgets.words import readable

BUNDLES = Path(__file__).parent / "bundles"

_NOT_BUILT = """
export default { render({ el }) {
  el.textContent = "This view is not built: run `make widgets` in the clone (it needs node), "
    + "or install a released wheel. The same as text: print(widget.text())";
} };
"""

Buffers = list[bytes | memoryview]


class Widget(anywidget.AnyWidget):
    """A view of data, live in a notebook; text and HTML without scripts elsewhere."""

    front_end: ClassVar[str] = ""
    """The name of its bundle."""
    selection = traitlets.Dict().tag(sync=True)
    _shown_in: int | None = None
    """The cell in whose output it stands already."""
    _output: Any = None
    """The handle of that output."""
    _text_told: str | None = None
    """Its text, while it is being displayed: anywidget asks for that too."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "front_end" in cls.__dict__:  # anywidget makes further classes, with traits added
            bundle = BUNDLES / f"{cls.front_end}.js"
            cls._esm = bundle.read_text() if bundle.exists() else _NOT_BUILT
        super().__init_subclass__(**kwargs)

    def __init__(self, **state: Any) -> None:
        super().__init__(**state)
        showing.hear_while_busy(self.comm)
        link(self)
        self.on_msg(self._heard)

    # Twins -----------------------------------------------------------------------------------

    def text(self) -> str:
        """What the view shows, as text."""
        raise NotImplementedError

    def html(self) -> str:
        """What the view shows, as HTML without scripts, for where no widget lives."""
        raise NotImplementedError

    def twins(self) -> tuple[str, str]:
        """Both, text first."""
        return self.text(), self.html()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        try:
            text, html = self.twins()
        except InsituError as error:  # what it shows is gone: the view stays as it was
            text, html = str(error), f"<pre>{escape(str(error))}</pre>"
        self._text_told = readable(text)
        try:
            shown = super()._repr_mimebundle_(**kwargs)
        finally:
            self._text_told = None
        if shown is None:
            return None
        data, metadata = shown if isinstance(shown, tuple) else (shown, {})
        return {**data, "text/plain": readable(text), "text/html": readable(html)}, metadata

    def __repr__(self) -> str:
        if self._text_told is not None:
            return self._text_told
        try:
            return readable(self.text())
        except InsituError as error:
            return str(error)

    # Showing ---------------------------------------------------------------------------------

    def show_now(self) -> None:
        """Show it above what the running cell gives, before anything has filled it."""
        self._output = showing.now(self)
        self._shown_in = showing.cell_number()

    def show_twins(self) -> None:
        """Put the twins as they are now into the output it stands in, for the saved notebook."""
        if self._output is not None and self._stands_above:
            data, metadata = self._repr_mimebundle_() or ({}, {})
            self._output.update(data, raw=True, metadata=metadata)

    @property
    def _stands_above(self) -> bool:
        return self._shown_in is not None and self._shown_in == showing.cell_number()

    def _ipython_display_(self) -> None:
        if self._stands_above:
            return  # and has filled there
        raise NotImplementedError  # IPython then shows it as it shows any widget

    def _send(self, msg: Any, buffers: Any = None) -> None:  # all that ipywidgets sends goes here
        super()._send(msg, buffers)
        showing.hear_while_busy(self.comm)

    # Questions -------------------------------------------------------------------------------

    def _heard(self, _: Any, content: Any, buffers: Iterable[memoryview]) -> None:
        if not isinstance(content, dict) or "ask" not in content:
            return
        try:
            answer = getattr(self, f"answer_{content['name']}", None)
            if answer is None:
                raise LookupError(f"{type(self).__name__} answers no {content['name']!r}")
            value, parts = _with_buffers(answer(content.get("given") or {}))
        except Exception as error:
            self.send({"answer": content["ask"], "trouble": trouble_of(error)})
        else:
            self.send({"answer": content["ask"], "value": value}, parts)


def _with_buffers(answer: Any) -> tuple[Any, Buffers]:
    """An answer may be a value, or a value and buffers."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], list):
        return answer
    return answer, []
