"""The local names of a function that is running: assigned from outside, and not held on to.

    assign(frame, {"hidden": h}, deleted={"scratch"})

From 3.13 on `frame.f_locals` writes through. Before, it is a copy that the frame keeps: it has to
be written back, and it would keep every tensor of the caller alive until the function returns.
"""

import ctypes
import sys
from collections.abc import Iterable, Mapping
from sys import getrefcount
from types import FrameType
from typing import Any

WRITES_THROUGH = sys.version_info >= (3, 13)
UNBINDS = sys.version_info < (3, 12)

_to_frame: Any = None
if not WRITES_THROUGH:
    _to_frame = ctypes.pythonapi.PyFrame_LocalsToFast
    _to_frame.argtypes = (ctypes.py_object, ctypes.c_int)
    _to_frame.restype = None

_HOLDERS = 3  # of the copy: the frame, the variable below, and the argument of getrefcount


def assign(frame: FrameType, changed: Mapping[str, Any], deleted: Iterable[str]) -> None:
    """Assign and delete local names of a running function.

    3.12 and later cannot unbind a name from outside; there a deleted name holds None, so that its
    value is let go of at least.
    """
    own = frame.f_locals
    own.update(changed)
    gone = [name for name in deleted if name in own]
    if gone:
        own.update(dict.fromkeys(gone))
    if WRITES_THROUGH:
        return
    if UNBINDS:
        for name in gone:
            del own[name]
    _to_frame(frame, UNBINDS and bool(gone))
    if getrefcount(own) == _HOLDERS:
        own.clear()


def release(frame: FrameType) -> None:
    """Empty the copy of the locals that the frame keeps, unless someone else looks at it."""
    if WRITES_THROUGH or not frame.f_code.co_flags & 1:  # CO_OPTIMIZED
        return
    own = frame.f_locals
    if getrefcount(own) == _HOLDERS:
        own.clear()
