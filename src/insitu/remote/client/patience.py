"""How long to wait before a connection is tried again, and when to give up.

patience = Patience()
while True:
    try: return fetch()
    except ServerUnreachableError as error: patience.wait(error)
"""

import random
import time

from insitu.errors import ServerError

FIRST_S = 0.1
MOST_S = 5.0
GIVE_UP_S = 120.0
"""Without a word from the server."""


class Patience:
    """Waits longer each time, until there is progress."""

    def __init__(self, give_up_s: float | None = None) -> None:
        self._give_up_s = GIVE_UP_S if give_up_s is None else give_up_s
        self._pause_s = FIRST_S
        self._heard = time.monotonic()

    def heard(self, *, progress: bool = True) -> None:
        """Something came; unless it is progress, the pauses stay as long as they are."""
        self._heard = time.monotonic()
        if progress:
            self._pause_s = FIRST_S

    def wait(self, error: ServerError, at_least_s: float = 0.0) -> None:
        """Wait before the next try; raise the error when that has gone on for too long."""
        left_s = self._heard + self._give_up_s - time.monotonic()
        if left_s <= 0:
            raise error
        pause_s = max(self._pause_s * random.uniform(0.5, 1.0), min(at_least_s, MOST_S))
        time.sleep(min(pause_s, left_s))
        self._pause_s = min(2 * self._pause_s, MOST_S)
