"""`%load_ext insitu`: everything Insitu adds to an IPython shell, and takes away again.

%load_ext insitu
%unload_ext insitu      # IPython is as it was before
"""

from contextlib import ExitStack
from typing import Any
from weakref import WeakKeyDictionary

from insitu.notebook import complete, display, hint, hover, trace_magic
from insitu.notebook.magics import register as line_magics

_loaded: WeakKeyDictionary[Any, ExitStack] = WeakKeyDictionary()


def load_ipython_extension(ip: Any) -> None:
    """Add the magics, the displays, the completion and the hover; a second call does nothing."""
    if ip in _loaded:
        return
    hint.withdraw(ip)
    with ExitStack() as handles:
        for part in (trace_magic, line_magics, display, complete, hover):
            handles.callback(part.register(ip))
        _loaded[ip] = handles.pop_all()


def unload_ipython_extension(ip: Any) -> None:
    """Take all of it away."""
    handles = _loaded.pop(ip, None)
    if handles is not None:
        handles.close()
