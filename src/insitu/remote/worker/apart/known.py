"""What a job knows of the values in the device process: numbers, shapes, and some of their values.

    known = Known(channel, ask, pull)
    known.read(told)                    # tensors: with values, or on `meta`, as stand-ins
    known.told(value)                   # by number, where it is known there
    known.edits()                       # what the block has changed in place since

A stand-in has a shape and no values; it is passed on where nobody looks at it. What a block sees is
brought first (`missing`, `bring`).
"""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from insitu.engine.written import leaves
from insitu.errors import UsageError
from insitu.remote.wire import caches
from insitu.remote.wire.tensors import DTYPES, can_go
from insitu.remote.worker.apart import afar, grammar
from insitu.remote.worker.apart.channel import Channel
from insitu.remote.worker.apart.graph import Graph, Pull


@dataclass(slots=True)
class _One:
    number: int
    of: Any
    """A weak reference to the object."""
    version: int


class Known:
    """One job's numbers."""

    def __init__(self, channel: Channel, ask: Callable[..., Any], pull: Pull) -> None:
        self._channel = channel
        self._ask = ask
        self._ones: dict[int, _One] = {}
        """By the object's id."""
        self._real: dict[int, _One] = {}
        self._stand_ins: dict[int, _One] = {}
        self._things: dict[int, _One] = {}
        self._freed: set[int] = set()
        self.graph = Graph(pull, self._free)
        self.with_grad = False
        """Whether the call under way is recorded, for gradients."""
        self._own = 0
        self._unsent: list[tuple[dict[int, _One], int]] = []
        """Numbers from here, in a message that is not on its way yet."""

    def begin(self) -> None:
        """A message begins; one that was not sent has told nothing."""
        for among, number in self._unsent:
            one = among.pop(number, None)
            if one is not None and self._ones.get(id(one.of())) is one:
                del self._ones[id(one.of())]
            self._freed.discard(number)
        self._unsent.clear()

    def sent(self) -> None:
        """The message is on its way."""
        self._unsent.clear()

    def _note_own(self, among: dict[int, _One], value: Any) -> None:
        self._own -= 1
        self._note(among, self._own, value)
        self._unsent.append((among, self._own))

    # Telling ------------------------------------------------------------------------------------

    def told(self, value: Any) -> Any:
        """A value for the device process."""
        return grammar.told(value, self)

    def tensor(self, value: torch.Tensor) -> list[Any]:
        """A tensor: its number there, or its values, under a number from here."""
        one = self._ones.get(id(value))
        if one is not None and one.of() is value:
            return ["t", one.number]
        plain = value.layout is torch.strided and value.device.type == "cpu"
        if not plain or not can_go(value.dtype):
            raise _stays(f"a {value.layout} tensor of {value.dtype} on {value.device}")
        laid = value.detach().resolve_conj().resolve_neg()
        dtype = str(value.dtype).removeprefix("torch.")
        row = [dtype, list(value.shape), self._channel.mine.put(laid)]
        self._note_own(self._real, value)
        if not (self.with_grad and value.requires_grad):
            return ["n", *row, self._own]
        self.graph.crossed(self._own, value)
        return ["v", *row, self._own]

    def thing(self, value: Any) -> list[Any]:
        """An object of the device process's, or a key-value cache that goes there for good."""
        one = self._ones.get(id(value))
        if one is not None and one.of() is value:
            return ["o", one.number]
        row = caches.node(_Parts(self), "the cache", value) if caches.is_cache(value) else None
        if row is None:
            raise _stays(f"a {type(value).__name__}")
        self._note_own(self._things, value)
        afar.send_away(value, self._own, self._ask)
        return ["c", self._own, row]

    # Reading ------------------------------------------------------------------------------------

    def read(self, told: Any) -> Any:
        """A value of the device process's."""
        return grammar.read(told, self)

    def special(self, told: list[Any]) -> Any:
        """A tensor or an object of the device process's."""
        if told[0] == "o":
            return self._thing(*told[1:])
        if told[0] == "p":
            return self._values(told[3], DTYPES[told[1]], told[2], [])
        tag, number, name, shape, at, *order = told
        one = self._real.get(number)
        real = None if one is None else one.of()
        if at < 0:
            return real if real is not None else self._stand_in(number, DTYPES[name], shape)
        values = self._values(at, DTYPES[name], shape, order)
        if real is None:
            if tag == "g":
                values = self.graph.node(number, values)
            self._note(self._real, number, values)
            return values
        assert one is not None
        with torch.no_grad():
            real.copy_(values)
        one.version = real._version
        return real

    def _values(
        self, at: int, dtype: torch.dtype, shape: list[int], order: list[int]
    ) -> torch.Tensor:
        if not order:
            return self._channel.theirs.take(at, dtype, tuple(shape))
        laid = self._channel.theirs.take(at, dtype, tuple(shape[d] for d in order))
        return laid.permute([order.index(d) for d in range(len(order))])

    def _stand_in(self, number: int, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
        one = self._stand_ins.get(number)
        found = None if one is None else one.of()
        if found is None:
            found = torch.empty(shape, dtype=dtype, device="meta")
            self._note(self._stand_ins, number, found)
        return found

    def _thing(self, number: int, name: str, kind: str) -> Any:
        one = self._things.get(number)
        found = None if one is None else one.of()
        if found is None:
            found = afar.made(number, name, kind, self._ask)
            self._note(self._things, number, found)
        return found

    # What is missing of values -------------------------------------------------------------------

    def missing(self, value: Any) -> list[int]:
        """The numbers of the stand-ins in a value."""
        return [
            one.number
            for _, part in leaves(value)
            if part.is_meta and (one := self._ones.get(id(part))) is not None and one.of() is part
        ]

    def bring(self, value: Any) -> Any:
        """A value in which stand-ins are replaced by tensors whose values have come."""
        return grammar.replaced(value, self._brought)

    def _brought(self, tensor: torch.Tensor) -> torch.Tensor:
        one = self._ones.get(id(tensor)) if tensor.is_meta else None
        real = None if one is None else self._real.get(one.number)
        found: torch.Tensor | None = None if real is None else real.of()
        return tensor if found is None else found

    # What has changed ---------------------------------------------------------------------------

    def edits(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Tensors that were changed in place since the device process knew their values."""
        for one in tuple(self._real.values()):
            tensor = one.of()
            if tensor is not None and tensor._version != one.version:
                one.version = tensor._version
                yield one.number, tensor

    def freed(self) -> list[int]:
        """Numbers that nothing here stands for any more."""
        found, self._freed = sorted(self._freed), set()
        return found

    def _note(self, among: dict[int, _One], number: int, value: Any) -> None:
        key = id(value)

        def gone(_: Any) -> None:
            if self._ones.get(key) is one:
                del self._ones[key]
            if among.get(number) is one:
                del among[number]
            self._free(number)

        version = value._version if isinstance(value, torch.Tensor) else 0
        one = _One(number, weakref.ref(value, gone), version)
        self._ones[key] = among[number] = one
        self._freed.discard(number)

    def _free(self, number: int) -> None:
        """Something that stood for a number is gone: perhaps it was the last."""
        kinds = (self._real, self._stand_ins, self._things)
        if not any(number in kind for kind in kinds) and not self.graph.needs(number):
            self._freed.add(number)


class _Parts:
    """What `wire.caches` asks for a cache's parts."""

    code = None

    def __init__(self, side: Known) -> None:
        self._side = side

    def part(self, said: str, value: Any) -> Any:
        return grammar.told(value, self._side)


def _stays(what: str) -> UsageError:
    return UsageError(
        f"{what} was given to the model, and cannot go there.",
        "the model computes in a process of its own on this server; tensors, numbers, texts, and "
        "containers of them cross.",
        "pass tensors, or call the parts of the model that take them.",
    )
