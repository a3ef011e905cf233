"""Blocks that are to run elsewhere: `remote=True` leads to whoever has said that he takes them.

if elsewhere.wanted(kwargs):
    return elsewhere.begin(self, "trace", args, kwargs, sys._getframe(1))

elsewhere.register("insitu.remote.client.tracer:begin")     # once, by the package
"""

import contextvars
import importlib
from types import FrameType
from typing import Any

from insitu.errors import UsageError

_place: list[str] = []

already_there: contextvars.ContextVar[bool] = contextvars.ContextVar("insitu_there", default=False)
"""Whether this code is itself the part that runs elsewhere; `remote=` then means nothing more."""


def register(place: str) -> None:
    """Say where the function is that begins a block elsewhere: `module:function`."""
    _place[:] = [place]


def wanted(settings: dict[str, Any]) -> bool:
    """Whether a call's settings send it elsewhere; takes `remote` out where they do not.

    Raises:
        UsageError: `blocking=` was given, and nothing runs elsewhere.
    """
    if not settings:
        return False
    if settings.get("remote") and not already_there.get():
        return True
    settings.pop("remote", None)
    if "blocking" in settings and not already_there.get():
        raise UsageError(
            "blocking= was given without remote=.",
            "a block in this process is over when its `with` is; only a job elsewhere can go on.",
            "add remote=True, or leave blocking= out.",
        )
    settings.pop("blocking", None)
    return False


def refuse(method: str, settings: dict[str, Any]) -> None:
    """Raise if a call is to be sent elsewhere that only makes sense here."""
    if wanted(settings):
        raise UsageError(
            f"{method}() was given remote=.",
            "it works on this machine alone: with shapes, or in a pass that stays open here.",
            "leave remote= out; model.trace(..., remote=True) runs a block on a server.",
        )


def begin(
    model: Any, kind: str, args: tuple[Any, ...], settings: dict[str, Any], frame: FrameType
) -> Any:
    """A tracer, or a session, whose block runs elsewhere; without a `with`, what the call returns.

    Args:
        model: the wrapper here.
        kind: the method that was called: `trace`, `generate` or `session`.
        args, settings: what it was given, with `remote` and `blocking`.
        frame: its caller.
    """
    module, _, function = _place[0].partition(":")
    return getattr(importlib.import_module(module), function)(model, kind, args, settings, frame)
