"""One module's part of a cache: what it returned and was called with, in each of its calls.

entry = cache["model.lm_head"]
entry.output            # one call: the value; several: a list, in the order of the calls
entry[2].output         # of one call
entry.steps             # [0, 1, 2]: the step of each call
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from insitu.engine.cache.record import INPUTS, OUTPUT, STEP, Call, Record
from insitu.engine.cache.table import counted, kinds
from insitu.engine.cache.values import Changed, leaves, read
from insitu.errors import MissingActivation

SITES = ("output", "input", "inputs")


class Entry:
    """What a cache holds of one module."""

    __slots__ = ("_path", "_record", "_sides")

    def __init__(self, path: str, record: Record, sides: frozenset[int]) -> None:
        self._path = path
        self._record = record
        self._sides = sides

    @property
    def output(self) -> Any:
        """What the module returned, after the block had its turn.

        Raises:
            MissingActivation: outputs are not cached, or this one was changed in place afterwards.
        """
        return self.values("output")

    @property
    def input(self) -> Any:
        """The module's first argument, given by position or by keyword."""
        return self.values("input")

    @property
    def inputs(self) -> Any:
        """All arguments: `(args, kwargs)`."""
        return self.values("inputs")

    @property
    def steps(self) -> list[int]:
        """The step of each call; 0 where there are none."""
        return [max(call[STEP], 0) for call in self._record.calls]

    def values(self, site: str) -> Any:
        """The value at a site: of the only call, or a list over calls."""
        side = OUTPUT if site == "output" else INPUTS
        if side not in self._sides:
            raise self._not_kept(site)
        found = [self._value(call, site) for call in self._record.current()]
        return found[0] if len(found) == 1 else found

    def _value(self, call: Call, site: str) -> Any:
        value = call[OUTPUT] if site == "output" else call[INPUTS]
        if site == "input" and not isinstance(value, Changed):
            args, kwargs = value
            value = args[0] if args else next(iter(kwargs.values()), None)
        if type(value) is Tensor:
            return value
        if any(isinstance(leaf, Changed) for leaf in leaves(value)):
            raise self._changed(site)
        return read(value)

    def _not_kept(self, site: str) -> MissingActivation:
        kept, option = ("outputs", "inputs") if site != "output" else ("inputs", "output")
        return MissingActivation(
            f"{self._path}.{site} is not in this cache.",
            f"it was told to keep {kept} alone.",
            f"write tracer.cache(include_{option}=True).",
        )

    def _changed(self, site: str) -> MissingActivation:
        return MissingActivation(
            f"{self._path}.{site} is lost: it was changed in place after it was cached.",
            "the model or the block wrote into the tensor later in the same pass, "
            "and the cache held no copy.",
            "trace again: its values are now copied; or copy all with tracer.cache(clone=True).",
        )

    def __len__(self) -> int:
        return len(self._record.calls)

    def __iter__(self) -> Iterator["Entry"]:
        for number in range(len(self)):
            yield self[number]

    def __getitem__(self, number: int) -> "Entry":
        """One call of several."""
        if not isinstance(number, int):
            raise TypeError(f"a call is named by its number, not by {type(number).__name__}.")
        if not -len(self) <= number < len(self):
            raise IndexError(
                f"{self._path} has {counted(len(self), 'call')}; there is no [{number}]."
            )
        record = Record([self._record.current()[number]], self._record.sealed)
        return Entry(self._path, record, self._sides)

    def __repr__(self) -> str:
        told = [
            f"{name} {kinds(self._record, side)}"
            for name, side in (("output", OUTPUT), ("inputs", INPUTS))
            if side in self._sides and self._record.calls
        ]
        calls = f", {len(self)} calls" if len(self) != 1 else ""
        return f"<{self._path}{calls}: {', '.join(told)}>"


class Place:
    """A place in the tree of a cache: `cache.model.transformer.h[0].output`."""

    __slots__ = ("_cache", "_path")

    def __init__(self, cache: Any, path: str) -> None:
        self._cache = cache
        self._path = path

    @property
    def output(self) -> Any:
        """What the module at this place returned."""
        return self._cache[self._path].output

    @property
    def input(self) -> Any:
        """The first argument of the module at this place."""
        return self._cache[self._path].input

    @property
    def inputs(self) -> Any:
        """All arguments of the module at this place: `(args, kwargs)`."""
        return self._cache[self._path].inputs

    @property
    def steps(self) -> list[int]:
        """The step of each call of the module at this place."""
        return list(self._cache[self._path].steps)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        found = self._cache._place(f"{self._path}.{name}")
        if found is None and name.endswith("_") and name[:-1] in (*SITES, "steps"):
            found = self._cache._place(f"{self._path}.{name[:-1]}")
        if found is None:
            raise self._cache._missing(f"{self._path}.{name}")
        return found

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return [self[number] for number in range(*key.indices(len(self)))]
        if isinstance(key, int) and key < 0:
            key += len(self)
        found = self._cache._place(f"{self._path}.{key}")
        if found is None:
            raise self._cache._missing(f"{self._path}.{key}")
        return found

    def __len__(self) -> int:
        numbers = [int(name) for name in self._cache._names_below(self._path) if name.isdigit()]
        return max(numbers, default=-1) + 1

    def __bool__(self) -> bool:
        return True

    def __dir__(self) -> list[str]:
        return [*self._cache._names_below(self._path), *SITES, "steps"]

    def __repr__(self) -> str:
        if self._path in self._cache:
            return repr(self._cache[self._path])
        below = ", ".join(self._cache._names_below(self._path))
        return f"<{self._path}: {below}>"
