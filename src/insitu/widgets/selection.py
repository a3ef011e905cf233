"""The one selection that all views share with Python: a token, a layer, a head, a step.

insitu.selection.layer = 3          # every open view follows
insitu.selection.token              # what was clicked last, in any of them
"""

from typing import Any

import traitlets

NAMES = ("token", "layer", "head", "step")


class Selection(traitlets.HasTraits):  # type: ignore[misc]
    """What is selected; None where nothing is."""

    token = traitlets.Int(None, allow_none=True)
    layer = traitlets.Int(None, allow_none=True)
    head = traitlets.Int(None, allow_none=True)
    step = traitlets.Int(None, allow_none=True)

    def as_dict(self) -> dict[str, int | None]:
        """All four."""
        return {name: getattr(self, name) for name in NAMES}

    def clear(self) -> None:
        """Select nothing."""
        with self.hold_trait_notifications():
            for name in NAMES:
                setattr(self, name, None)

    def __repr__(self) -> str:
        chosen = [f"{name} {value}" for name, value in self.as_dict().items() if value is not None]
        return f"Selection({', '.join(chosen) or 'nothing'})"


selection = Selection()


def link(widget: Any) -> None:
    """Keep a widget's selection and the shared one equal, until the widget is closed.

    A page tells which of the four it `named`, for of the rest it may not have heard the latest, and
    the `serial` of its choice; it holds on to what it chose until it is told that this was `heard`.
    """
    heard: str | None = None

    def wanted() -> dict[str, Any]:
        return selection.as_dict() if heard is None else {**selection.as_dict(), "heard": heard}

    def outwards(change: Any) -> None:
        nonlocal heard
        new = change["new"]
        heard = new.get("serial", heard)
        named = new.get("named", NAMES)
        given = {name: new.get(name) for name in NAMES if name in named}
        with selection.hold_trait_notifications():
            for name, value in given.items():
                setattr(selection, name, value if isinstance(value, int) else None)
        if widget.selection != wanted():
            widget.selection = wanted()

    def inwards(_: Any) -> None:
        if widget.comm is None:  # closed
            selection.unobserve(inwards)
        elif widget.selection != wanted():
            widget.selection = wanted()

    widget.selection = selection.as_dict()
    widget.observe(outwards, "selection")
    selection.observe(inwards)
