"""The tensors of a cache while it is being filled, in the order they come; a number stays its own.

    arriving = Arriving(cache, heard)   # `heard` is told, on the model's side, that there is news
    arriving.found                      # `tensors.Named`, those that were there before first
    arriving.take()                     # takes in what came; gives the numbers of what changed

Nothing listens where the pass is over, and nothing more once it is.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from insitu.engine.cache.record import Record
from insitu.engine.cache.values import Changed, Ref
from insitu.widgets import tensors
from insitu.widgets.tensors import Named

WITH_LOST = (Tensor, Ref, Changed)


@dataclass
class _Taken:
    """What is known of a path: where its tensors are among those found, a list for each call."""

    record: Record
    calls: list[list[int]]

    @property
    def is_less(self) -> bool:
        """Whether some of it is there no more."""
        return self.record.lost or len(self.record.calls) < len(self.calls)


class Arriving:
    """A growing list of tensors.

    Args:
        given: a cache or an entry, or anything `tensors.of` takes, which does not grow.
        heard: called with False when something came, on the model's side and as often as that, and
            with True when the pass is over.

    Attributes:
        found: the tensors.
        size_bytes: those of all together.
    """

    def __init__(self, given: Any, heard: Callable[[bool], None]) -> None:
        self._heard = heard
        self._waiting: deque[Record | None] = deque()
        self._is_on_disk = False
        self._changed: set[int] = set()
        records = tensors.records_of(given) or {}
        self._news = _news_of(records)
        self.found: list[Named] = [] if self._news else tensors.of(given)
        self.size_bytes = sum(it.size_bytes for it in self.found)
        self._path_of: list[str] = []
        """Of each of those found, in the same order."""
        self._taken: dict[str, _Taken] = {}
        self._paths: dict[int, list[str]] = {}
        if self._news:
            self._begin(records)

    def _begin(self, records: Mapping[str, Record]) -> None:
        self._taken = {path: _Taken(record, []) for path, record in records.items()}
        for path, taken in self._taken.items():
            self._paths.setdefault(id(taken.record), []).append(path)
        for news in self._news:
            news.listen(self._told)
        for path, taken in self._taken.items():
            for _ in range(len(taken.record.calls)):
                self._take_call(path)

    @property
    def is_growing(self) -> bool:
        """Whether the pass that fills it is under way."""
        return bool(self._news)

    def stop(self) -> None:
        """Hear of nothing more."""
        for news in self._news:
            news.forget(self._told)
        self._news = []

    def take(self) -> set[int]:
        """Take in what came since the last time; the numbers of the earlier ones that changed."""
        before = len(self.found)
        changed, self._changed = self._changed, set()
        while self._waiting:
            record = self._waiting.popleft()
            if record is None:
                changed |= self._look_again(lambda it: it.is_less)
                self.stop()
                continue
            for path in self._paths.get(id(record), ()):
                if len(self._taken[path].calls) < len(record.calls):
                    changed |= self._take_call(path)
        return {number for number in changed if number < before}

    def read(self, number: int) -> Tensor:
        """A tensor; on the meta device where it is lost, as when the pass has written over it."""
        if self._news:
            taken = self._taken[self._path_of[number]]
            taken.record.give_up_changed()
            if changed := self._look_again_at(self._path_of[number], taken):
                self._changed |= changed
                self._heard(False)
        return self.found[number].read()

    def _told(self, record: Record | None) -> None:
        """There is one call more, or the pass is over: on the model's side, so little is done."""
        if record is None or id(record) in self._paths:
            self._waiting.append(record)
            self._heard(record is None)

    def _take_call(self, path: str) -> set[int]:
        """The next call of a path; gives the numbers of those that are named otherwise by it."""
        calls = self._taken[path].calls
        changed: set[int] = set()
        if len(calls) == 1:  # with a second call the first one is numbered too
            changed = self._replace(calls[0], self._named(path, 0, True))
        come = self._named(path, len(calls), bool(calls))
        calls.append(list(range(len(self.found), len(self.found) + len(come))))
        self._path_of += [path] * len(come)
        self.found += [_kept(it, torch.Size([0])) for it in come]
        self.size_bytes += sum(it.size_bytes for it in self.found[len(self.found) - len(come) :])
        if come and isinstance(come[0].value, Ref) and not self._is_on_disk:
            self._is_on_disk = True  # what came before has moved there too
            changed |= self._look_again(lambda _: True)
        return changed

    def _named(self, path: str, number: int, several: bool) -> list[Named]:
        call = self._taken[path].record.calls[number]
        return list(tensors.of_call(call, f"{path}[{number}]" if several else path, WITH_LOST))

    def _replace(self, numbers: list[int], by: list[Named]) -> set[int]:
        """Put tensors in the place of what was known of them; those that are no more are lost."""
        changed = set()
        for at, number in enumerate(numbers):
            old = self.found[number]
            is_there = len(by) == len(numbers)
            now = _kept(by[at], old.shape) if is_there else old.lost()
            self.found[number] = now
            self.size_bytes += now.size_bytes - old.size_bytes
            if (now.name, now.kind) != (old.name, old.kind):
                changed.add(number)
        return changed

    def _look_again(self, wanted: Callable[[_Taken], bool]) -> set[int]:
        """Some paths anew: their values were changed in place, moved to disk, or taken back."""
        some = [(path, taken) for path, taken in self._taken.items() if wanted(taken)]
        return set().union(*(self._look_again_at(*it) for it in some))

    def _look_again_at(self, path: str, taken: _Taken) -> set[int]:
        changed: set[int] = set()
        for number, numbers in enumerate(taken.calls):
            is_there = number < len(taken.record.calls)
            now = self._named(path, number, len(taken.calls) > 1) if is_there else []
            changed |= self._replace(numbers, now)
        return changed


def _kept(it: Named, shape: Sequence[int]) -> Named:
    """What was changed in place stands there without numbers, in the shape it had."""
    if not isinstance(it.value, Changed):
        return it
    return it._replace(value=torch.empty(tuple(shape), device="meta"), is_lost=True)


def _news_of(records: Mapping[str, Record]) -> list[Any]:
    """What tells of further calls, of those that are still to come."""
    found = {id(it.news): it.news for it in records.values() if it.news and not it.sealed}
    return list(found.values())
