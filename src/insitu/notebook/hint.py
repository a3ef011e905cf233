"""What `import insitu` says in a notebook that has not loaded the extension: one line, once.

offer()           # after the cell that is running, unless …
withdraw(ip)      # … the extension is loaded by then
"""

import weakref
from typing import Any

from IPython.core.getipython import get_ipython

HINT = "insitu: %load_ext insitu adds %%trace, run cards and completion of module paths"


class _Hint:
    """Waits for one cell to end."""

    def __init__(self, ip: Any) -> None:
        self._events = weakref.proxy(ip.events)
        self._waits = True
        self._events.register("post_run_cell", self.tell)

    def tell(self, result: Any) -> None:
        """The cell has ended."""
        self.cancel()
        print(HINT)

    def cancel(self) -> None:
        """Wait no more; a second call does nothing."""
        if self._waits:
            self._waits = False
            self._events.unregister("post_run_cell", self.tell)


_hints: weakref.WeakKeyDictionary[Any, _Hint] = weakref.WeakKeyDictionary()


def offer() -> None:
    """Print the hint after the running cell, if there is a shell; once in its life."""
    ip = get_ipython()
    if ip is not None and ip not in _hints:
        _hints[ip] = _Hint(ip)


def withdraw(ip: Any) -> None:
    """The extension is there, so there is nothing to say."""
    if ip in _hints:
        _hints[ip].cancel()
