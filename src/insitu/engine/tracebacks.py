"""Tracebacks that end in the user's code: `prune(error.__traceback__)`."""

import os
from types import TracebackType

from insitu.settings import CONFIG

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def prune(traceback: TracebackType | None) -> None:
    """Take this package's own frames out of a traceback, below the user's; not while debugging."""
    if CONFIG.APP.DEBUG:
        return
    while traceback is not None:
        following = traceback.tb_next
        while following is not None and following.tb_frame.f_code.co_filename.startswith(_PACKAGE):
            following = following.tb_next
        traceback.tb_next = following
        traceback = following
