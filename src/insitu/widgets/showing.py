"""A view that is filled by a cell: shown before it ends, heard while it runs, told how it ended.

showing.now(view)                   # it stands in the cell's output from here on
showing.cell_number()               # which cell is running; None outside IPython
showing.hear_while_busy(view.comm)  # its messages need not wait for the cell
showing.carry_out(work, tell)       # running, then done, stopped or failed
"""

from collections.abc import Callable
from typing import Any

from insitu.widgets import main_thread
from insitu.widgets.trouble import Trouble, trouble_of

Tell = Callable[[str, Trouble | None], None]
"""Told `running`, and then `done`, `stopped` or `failed`, with what went wrong."""


def now(widget: Any) -> Any:
    """Display a widget in the output of the running cell; nothing happens outside IPython.

    Gives the handle of that output.
    """
    if main_thread.shell() is None:
        return None
    from IPython.display import display

    return display(widget, display_id=True)


def cell_number() -> int | None:
    """The number of the cell that is running."""
    number: int | None = getattr(main_thread.shell(), "execution_count", None)
    return number


def hear_while_busy(comm: Any) -> None:
    """Have what a view says delivered on Jupyter's thread for messages, also while a cell runs.

    ipykernel 7.4 hands a message to the loop from which the comm published last (`comm/comm.py`,
    `_reply_subshell_for`). For one that a cell fills this is the cell's own, which is busy. Where
    that is forgotten, the page's choice holds: a thread of its own in JupyterLab 4.6.
    """
    getattr(comm, "__dict__", {}).pop("_reply_subshell_id", None)


def carry_out(
    work: Callable[[], Any], tell: Tell, is_stopped: Callable[[], bool] = lambda: False
) -> None:
    """Do work that fills a view, and tell its state; an interrupt leaves what came so far.

    Args:
        work: what it raises is told and raised, but for an interrupt.
        tell: shows the state.
        is_stopped: whether it was ended by the view's own button.
    """
    tell("running", None)
    try:
        work()
    except KeyboardInterrupt:
        tell("stopped", None)
    except BaseException as error:
        tell("failed", trouble_of(error))
        raise
    else:
        tell("stopped" if is_stopped() else "done", None)
