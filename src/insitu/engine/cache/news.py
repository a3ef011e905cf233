"""Who is told of each call that a cache takes in: views that show it while it fills.

    news.listen(view.arrived)       # a method; called with a record, and with None at the end
    news.forget(view.arrived)

Nobody is kept alive by it. While nobody listens, a call that is recorded costs one look at an empty
list.
"""

import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Optional

from insitu.errors import InsituWarning

if TYPE_CHECKING:
    from insitu.engine.cache.record import Record

Heard = Callable[[Optional["Record"]], None]


class News:
    """The listeners of one recording."""

    __slots__ = ("ears",)

    def __init__(self) -> None:
        self.ears: list[weakref.WeakMethod[Heard]] = []

    def listen(self, method: Heard) -> None:
        """Have a method called, on the model's side, after each call that was taken in."""
        self.ears.append(weakref.WeakMethod(method))

    def forget(self, method: Heard) -> None:
        """Call it no more; safe to call twice."""
        self.ears[:] = [ear for ear in self.ears if ear() not in (None, method)]

    def tell(self, record: Optional["Record"]) -> None:
        """A record has one call more; None: the pass is over, and nothing more comes."""
        for ear in tuple(self.ears):
            try:
                if (heard := ear()) is not None:
                    heard(record)
                    continue
            except Exception as error:  # a view is a guest here: the pass goes on
                warnings.warn(
                    f"a view of a cache that fills has failed, and follows it no more: {error!r}.",
                    InsituWarning,
                    stacklevel=2,
                )
            self.ears[:] = [it for it in self.ears if it is not ear]

    def __reduce__(self) -> tuple[type["News"], tuple[()]]:
        return News, ()  # who listens here does not listen to a copy
