"""A view that is filled by a cell: shown before it ends, heard while it runs, interrupted with it.

showing.now(view)                   # it stands in the cell's output from here on
showing.cell_number()               # which cell is running; None outside IPython
showing.hear_while_busy(view)       # its messages need not wait for the cell
with showing.interruptible(): ...   # in work that a view has asked for
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from insitu.widgets import main_thread


def now(widget: Any) -> None:
    """Display a widget in the output of the running cell; nothing happens outside IPython."""
    if main_thread.shell() is not None:
        from IPython.display import display

        display(widget)


def cell_number() -> int | None:
    """The number of the cell that is running."""
    number: int | None = getattr(main_thread.shell(), "execution_count", None)
    return number


def hear_while_busy(widget: Any) -> None:
    """Have what a view says delivered on Jupyter's thread for messages, also while a cell runs.

    ipykernel 7.4 hands a message to the loop from which the comm published last (`comm/comm.py`,
    `_reply_subshell_for`). For one that a cell fills this is the cell's own, which is busy. Where
    that is forgotten, the page's choice holds: a thread of its own in JupyterLab 4.6.
    """
    getattr(widget.comm, "__dict__", {}).pop("_reply_subshell_id", None)


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
