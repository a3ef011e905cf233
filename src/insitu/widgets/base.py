"""What every widget is: a view in the page, its state, questions it may ask, and static twins.

    class ModuleTree(Widget):
        front_end = "module_tree"                  # bundles/module_tree.js
        def text(self): ...                        # the twin as text
        def html(self): ...                        # the twin as HTML without scripts
        def answer_about(self, given): ...         # answers the view's question "about"

The view asks with a number, and an answer or a trouble comes back with it; an error is a value and
reaches the view, never its console. JupyterLab 4.6 with ipykernel 7 delivers messages on a thread
of its own while a cell runs: an answer reads data it holds, and work on a model goes through
`main_thread`.
"""

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import anywidget
import traitlets

from insitu.errors import InsituError
from insitu.widgets.selection import link

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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "front_end" in cls.__dict__:  # anywidget makes further classes, with traits added
            bundle = BUNDLES / f"{cls.front_end}.js"
            cls._esm = bundle.read_text() if bundle.exists() else _NOT_BUILT
        super().__init_subclass__(**kwargs)

    def __init__(self, **state: Any) -> None:
        super().__init__(**state)
        link(self)
        self.on_msg(self._heard)

    # Twins -----------------------------------------------------------------------------------

    def text(self) -> str:
        """What the view shows, as text."""
        raise NotImplementedError

    def html(self) -> str:
        """What the view shows, as HTML without scripts, for where no widget lives."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]] | None:
        shown = super()._repr_mimebundle_(**kwargs)
        if shown is None:
            return None
        data, metadata = shown if isinstance(shown, tuple) else (shown, {})
        return {**data, "text/plain": self.text(), "text/html": self.html()}, metadata

    def __repr__(self) -> str:
        return self.text()

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
            self.send({"answer": content["ask"], "trouble": _trouble(error)})
        else:
            self.send({"answer": content["ask"], "value": value}, parts)


def _with_buffers(answer: Any) -> tuple[Any, Buffers]:
    """An answer may be a value, or a value and buffers."""
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], list):
        return answer
    return answer, []


def _trouble(error: Exception) -> dict[str, str]:
    """An error as the view shows it: what, why and what next."""
    if isinstance(error, InsituError):
        what, why, further = (*str(error).splitlines(), "", "", "")[:3]
        return {"what": what, "why": why.strip(), "next": further.strip()}
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f"{Path(last[0].filename).name}, line {last[0].lineno}" if last else ""
    return {"what": f"{type(error).__name__}: {error}", "why": where, "next": ""}
