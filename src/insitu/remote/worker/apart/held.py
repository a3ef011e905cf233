"""What the device process holds for a job: tensors and objects that the job knows by number.

    held = Held(channel, lasting)
    held.told(output, given=True)      # numbers, shapes, and the values beside
    held.read(message, device)         # what a job has said: its own tensors, or ours by number

The job is hostile. A number is looked up, a place in shared memory is checked, and what a job
changes is never memory of the model's own: weights, and whatever else outlasts a job.
"""

from dataclasses import dataclass
from typing import Any

import torch

from insitu.remote.wire import caches
from insitu.remote.wire.tensors import DTYPES
from insitu.remote.worker.apart import grammar
from insitu.remote.worker.apart.channel import Channel, ChannelError
from insitu.remote.worker.apart.shared import SegmentError

HELD_MOST = 1_000_000
_PLAIN = (torch.Tensor, torch.nn.Parameter)
_NOT_GIVEN = -1


@dataclass(slots=True)
class _One:
    value: Any
    version: int = _NOT_GIVEN
    """Of a tensor, when the job was given its values."""


class Held:
    """The numbers of one job."""

    def __init__(self, channel: Channel, lasting: frozenset[int]) -> None:
        self._channel = channel
        self._lasting = lasting
        self._ones: dict[int, _One] = {}
        self._numbers: dict[int, int] = {}
        self._next = 1
        self._giving = False
        self._given: list[_One] = []
        """Whose values lie in the message that is under way."""
        self._sources: dict[int, torch.Tensor] = {}
        """What was cut from the model's graph, by the number of what it goes on with."""
        self._leaves: dict[int, torch.Tensor] = {}
        """And the leaf that it goes on from there."""
        self._device = torch.device("cpu")
        self._moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """What a job changed that could not be changed where it lies, and what it is now."""

    # Telling ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A message begins, whose tensors lie together."""
        self._channel.begin()
        self._given.clear()

    def told(self, value: Any, *, given: bool) -> Any:
        """A value for the job, with what its tensors hold or without.

        Raises:
            RuntimeError: it is too large for one message; none of its values counts as given.
        """
        self._giving = given
        try:
            return grammar.told(value, self)
        except RuntimeError:
            for one in self._given:
                one.version = _NOT_GIVEN
            raise

    def tensor(self, value: torch.Tensor) -> list[Any]:
        """A tensor's number and shape; where it lies, if its values are wanted and not known."""
        if type(value) not in _PLAIN or value.layout is not torch.strided:
            return self.thing(value)
        number = self._number(value)
        dtype, shape = str(value.dtype).removeprefix("torch."), list(value.shape)
        one = self._ones[number]
        version = value._version
        if not self._giving or one.version == version:
            return ["t", number, dtype, shape, -1]
        one.version = version
        self._given.append(one)
        order = _order(value)
        tag = "g" if value.requires_grad else "t"
        laid = value.detach().resolve_conj().resolve_neg()
        at = self._put(laid.permute(order) if order else laid)
        return [tag, number, dtype, shape, at, *order]

    def _put(self, tensor: torch.Tensor) -> int:
        try:
            return self._channel.mine.put(tensor)
        except SegmentError as error:
            raise RuntimeError(f"a value is too large to be read: {error}") from error

    def plain(self, value: torch.Tensor) -> list[Any]:
        """A tensor's values alone: nobody asks for it again."""
        at = self._put(value)
        return ["p", str(value.dtype).removeprefix("torch."), list(value.shape), at]

    def cut(self, value: Any) -> Any:
        """A value in which the model's graph ends, and goes on from leaves with the same values."""
        return grammar.replaced(value, self._cut)

    def _cut(self, tensor: torch.Tensor) -> torch.Tensor:
        if type(tensor) not in _PLAIN or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor
        if self._numbers.get(id(tensor)) in self._leaves:
            return tensor
        leaf, passed_on = _leaf(tensor.detach())
        number = self._number(passed_on)
        self._sources[number], self._leaves[number] = tensor, leaf
        return passed_on

    def pulled(self, number: Any, grad: Any, numbers: Any) -> list[Any]:
        """What a gradient at one value is at leaves that it came of."""
        source = self._sources.get(number) if type(number) is int else None
        source = self.of(number) if source is None else source
        if not isinstance(source, torch.Tensor) or not isinstance(numbers, list):
            raise ChannelError("a gradient of what is no tensor")
        grad = self.read(grad, source.device)
        leaves = [self._leaves.get(one) for one in numbers if type(one) is int]
        if not isinstance(grad, torch.Tensor) or grad.shape != source.shape:
            raise ChannelError("a gradient of another shape")
        found: list[Any] = [None] * len(leaves)
        ends = [leaf for leaf in leaves if leaf is not None]
        if ends and source.requires_grad:
            parts = torch.autograd.grad(
                source, ends, grad.to(source.dtype), retain_graph=True, allow_unused=True
            )
            at = [n for n, leaf in enumerate(leaves) if leaf is not None]
            for n, part in zip(at, parts, strict=True):
                found[n] = None if part is None else self.plain(part)
        return ["[", *found]

    def thing(self, value: Any) -> list[Any]:
        """An object that stays here: its number, and what it is."""
        kind = "cache" if caches.is_cache(value) else ""
        return ["o", self._number(value), type(value).__name__, kind]

    def _number(self, value: Any) -> int:
        number = self._numbers.get(id(value))
        if number is None:
            number, self._next = self._next, self._next + 1
            self._keep(number, value)
        return number

    def _keep(self, number: int, value: Any) -> None:
        if len(self._ones) >= HELD_MOST:
            raise ChannelError(f"no word of what it needs no more, for {HELD_MOST:,} values")
        self._ones[number] = _One(value)
        self._numbers[id(value)] = number

    # Reading ------------------------------------------------------------------------------------

    def read(self, message: Any, device: torch.device) -> Any:
        """A value of the job's; its own tensors come to a device.

        Raises:
            ChannelError: it is none.
        """
        self._device = device
        return grammar.read(message, self)

    def special(self, told: list[Any]) -> Any:
        """One of ours by number, or a tensor or a key-value cache of the job's own."""
        if told[0] in ("t", "o"):
            return self._own_copy(self.of(told[1]))
        if told[0] in ("n", "v"):
            tag, dtype, shape, at, number = told
            made = self._taken(at, DTYPES[dtype], _shape(shape)).to(self._device)
            if number is None:
                return made
            self._require_own(number)
            if tag == "v":
                if not (made.is_floating_point() or made.is_complex()):
                    raise ChannelError("a gradient of what has none")
                self._leaves[number], made = _leaf(made)
            self._keep(number, made)
            self._ones[number].version = made._version
            return made
        if told[0] == "c":
            _, number, row = told
            self._require_own(number)
            made = caches.READERS["cache"](_Parts(self), row)
            self._keep(number, made)
            return made
        raise ChannelError("a value of a kind that is not known")

    def _own_copy(self, value: Any) -> Any:
        """A value that a module may change in place: never the model's own memory."""
        lasts = isinstance(value, torch.Tensor) and self._lasts(value)
        return value.detach().clone() if lasts else value

    def _lasts(self, value: torch.Tensor) -> bool:
        return (
            type(value) in _PLAIN
            and value.layout is torch.strided
            and value.untyped_storage().data_ptr() in self._lasting
        )

    def _require_own(self, number: Any) -> None:
        if type(number) is not int or number >= 0 or number in self._ones:
            raise ChannelError("a number that is not its to give")

    def of(self, number: Any) -> Any:
        """What a number stands for."""
        one = self._ones.get(number) if type(number) is int else None
        if one is None:
            raise ChannelError("a number that stands for nothing")
        return one.value

    def fetched(self, numbers: Any) -> list[Any]:
        """Tensors by number, with their values."""
        if not isinstance(numbers, list):
            raise ChannelError("no list of numbers")
        found = []
        for number in numbers:
            value = self.of(number)
            if isinstance(value, torch.Tensor):
                self._ones[number].version = _NOT_GIVEN
            found.append(self.told(value, given=True))
        return found

    def change(self, number: Any, at: Any) -> None:
        """A job has changed its copy of a tensor in place: change the tensor."""
        value = self.of(number)
        if not isinstance(value, torch.Tensor):
            raise ChannelError("new values for what is no tensor")
        if type(value) not in _PLAIN or value.layout is not torch.strided:
            raise ChannelError("new values for what stays with the model")
        new = self._taken(at, value.dtype, tuple(value.shape))
        if self._lasts(value) or _overlaps(value):
            del self._numbers[id(value)]
            moved = new.to(value.device)
            self._moved[id(value)] = value, moved
            value = self._ones[number].value = moved
            self._numbers[id(value)] = number
        else:
            value.copy_(new)
        self._ones[number].version = value._version

    def now(self, value: Any) -> Any:
        """A value of the model's, with what a job has made of the tensors in it."""
        return grammar.replaced(value, self._now) if self._moved else value

    def _now(self, tensor: torch.Tensor) -> torch.Tensor:
        before, moved = self._moved.get(id(tensor), (None, tensor))
        return moved if before is tensor else tensor

    def forget(self, number: Any) -> None:
        """The job has no use for a number any more."""
        value = self.of(number)
        del self._ones[number], self._numbers[id(value)]
        self._sources.pop(number, None)
        self._leaves.pop(number, None)

    def _taken(self, at: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        if type(at) is not int:
            raise ChannelError("a tensor that lies nowhere")
        try:
            return self._channel.theirs.take(at, dtype, shape)
        except SegmentError as error:
            raise ChannelError(str(error)) from error


class _Parts:
    """What `wire.caches` asks for a cache's parts."""

    def __init__(self, side: Held) -> None:
        self._side = side

    def part(self, told: Any) -> Any:
        return grammar.read(told, self._side)

    def parts(self, told: Any) -> list[Any]:
        return [self.part(one) for one in told]


def _leaf(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A leaf of torch's graph, and what a model may go on with, in place too, as no leaf can be."""
    with torch.enable_grad():
        leaf = value.requires_grad_()
        return leaf, leaf.clone()


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ChannelError("a shape that is none")
    return tuple(shape)


def _overlaps(value: torch.Tensor) -> bool:
    """Whether places of a tensor share memory, so that it cannot be changed in place."""
    return any(n > 1 and stride == 0 for n, stride in zip(value.shape, value.stride(), strict=True))


def _order(value: torch.Tensor) -> list[int]:
    """The order of dimensions in which a tensor lies without gaps; none for the usual one."""
    if value.is_contiguous() or value.dim() < 2:
        return []
    strides = value.stride()
    order = sorted(range(value.dim()), key=lambda d: -strides[d])
    return order if value.permute(order).is_contiguous() else []
