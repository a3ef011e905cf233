"""What IPython shows of an error that passes through a magic: the user's own lines.

    except BaseException as error:
        show_users_lines(error, ip)
        raise

IPython asks an exception for `_render_traceback_` first. Without it, four frames of IPython's and
ours come before the user's.
"""

import contextlib
import os
from types import TracebackType
from typing import Any

from insitu.settings import CONFIG

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


def show_users_lines(error: BaseException, ip: Any) -> None:
    """Let IPython show the traceback from the user's first line on; once, then as usual."""
    if CONFIG.APP.DEBUG:
        return
    traceback = _below(error.__traceback__)

    def render() -> Any:
        del error._render_traceback_  # type: ignore[attr-defined]
        return ip.InteractiveTB.structured_traceback(type(error), error, traceback, tb_offset=0)

    with contextlib.suppress(AttributeError):
        error._render_traceback_ = render  # type: ignore[attr-defined]


def _below(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins with the first frame not of this package."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        traceback = traceback.tb_next
    return traceback
