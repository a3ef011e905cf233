"""Work asked for by a view, done on the kernel's main thread between cells.

    main_thread.call(run_the_patches)          # now, or when the running cell has ended

A message of a view may arrive on another thread while a cell runs; a model is only ever run, and a
pass held open only ever stepped, on the thread of the cells.
"""

import asyncio
import threading
from collections.abc import Callable
from typing import Any


def call(work: Callable[[], Any]) -> None:
    """Do it on the main thread: at once where that is this one, else when its loop is free."""
    loop = _main_loop()
    if loop is None or (threading.current_thread() is threading.main_thread()):
        work()
    else:
        loop.call_soon_threadsafe(work)


def _main_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of the kernel's main thread; None outside a kernel."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return None
    kernel = getattr(get_ipython(), "kernel", None)
    loop = getattr(kernel, "io_loop", None)
    return getattr(loop, "asyncio_loop", None)
