"""Work asked for by a view, done on the kernel's main thread between cells.

    main_thread.call(run_the_patches, failed)  # now, or when the running cell has ended
    main_thread.after_each_cell(self.refresh)  # as long as that object lives

A message of a view may arrive on another thread while a cell runs; a model is only ever run, and a
pass held open only ever stepped, on the thread of the cells.
"""

import asyncio
import contextlib
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any


def call(work: Callable[[], Any], failed: Callable[[BaseException], Any]) -> None:
    """Do it on the main thread: at once where that is this one, else when its loop is free.

    Args:
        work: the kernel's interrupt ends it, as it ends a cell.
        failed: told what it raised, an interrupt too: one that left the loop would end the kernel.
    """

    def carefully() -> None:
        try:
            with interruptible():
                work()
        except (Exception, KeyboardInterrupt) as error:
            failed(error)

    loop = _main_loop()
    if loop is None or (threading.current_thread() is threading.main_thread()):
        carefully()
    else:
        loop.call_soon_threadsafe(carefully)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let the kernel's interrupt end the work inside, which ipykernel allows to cells alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def after_each_cell(method: Callable[[], None]) -> bool:
    """Have a method called whenever a cell has run; it is held weakly, and forgotten when gone.

    Gives whether there are cells.
    """
    cells = shell()
    if cells is None:
        return False
    reference = weakref.WeakMethod(method)

    def heard(_: Any = None) -> None:
        if (known := reference()) is None:
            cells.events.unregister("post_run_cell", heard)
        else:
            known()

    cells.events.register("post_run_cell", heard)
    return True


def names_of_the_user() -> dict[str, Any]:
    """The variables of the notebook, or of the program where there is none."""
    cells = shell()
    found: dict[str, Any] = vars(sys.modules["__main__"]) if cells is None else cells.user_ns
    return found


def shell() -> Any:
    """IPython's shell; None where there is none."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def _main_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop of the kernel's main thread; None outside a kernel."""
    kernel = getattr(shell(), "kernel", None)
    loop = getattr(kernel, "io_loop", None)
    return getattr(loop, "asyncio_loop", None)
