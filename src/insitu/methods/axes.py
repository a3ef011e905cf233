"""The axes of a result: their standard names, and what stands at each place.

Axis("layer", range(6)).find(3)
Axis("pos", ("The", " Eiffel", " Tower")).find("Tower")     # 2
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Protocol

from torch import Tensor

from insitu.errors import UsageError
from insitu.methods.scales import plain, visible

Label = str | int | float
Where = Label | slice | Sequence[Label]
"""A label, a position of one, a slice of positions, or several of them."""
TOKENS = frozenset({"pos", "query_pos", "key_pos", "token"})
"""Axes whose words are tokens, where blanks matter."""


@dataclass(frozen=True)
class Axis:
    """One axis of a result: its standard name, and what stands at each place.

        Axis("layer", range(6)), Axis("pos", ("The", " Eiffel", " Tower"))

    Standard names: `layer pos head query_pos key_pos token neuron component d_model step`.
    """

    name: str
    labels: Sequence[Label]

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", tuple(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_numeric(self) -> bool:
        """Whether its labels are numbers, not words."""
        return all(isinstance(label, (int, float)) for label in self.labels)

    @property
    def shown(self) -> list[str]:
        """Its labels as a figure shows them; tokens with their blanks to be seen."""
        mark = visible if self.name in TOKENS else plain
        return [mark(label) for label in self.labels]

    def told(self, index: int) -> str:
        """A place in words: `layer 3`, `pos 8 (' of')`, `kind induction`."""
        label = self.labels[index]
        by_place = self.name in TOKENS and not self.is_numeric
        return f"{self.name} {index} ({label!r})" if by_place else f"{self.name} {plain(label)}"

    def find(self, wanted: Where) -> int | slice | list[int]:
        """Where a label stands; a number on an axis of words is a position, from the end too.

        Raises:
            UsageError: it does not stand there, or more than once.
        """
        if isinstance(wanted, slice):
            return wanted
        if isinstance(wanted, Sequence) and not isinstance(wanted, str):
            return [self._one(label) for label in wanted]
        return self._one(wanted)

    def _one(self, wanted: Label) -> int:
        found = [i for i, label in enumerate(self.labels) if label == wanted]
        if not found and isinstance(wanted, str):
            found = [i for i, label in enumerate(self.labels) if str(label).strip() == wanted]
        is_position = isinstance(wanted, int) and (wanted < 0 or not self.is_numeric)
        if not found and is_position and -len(self) <= wanted < len(self):  # type: ignore[operator]
            found = [int(wanted) % len(self)]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsageError(
                f"{wanted!r} stands {len(found)} times on the axis {self.name}.",
                f"it is at the positions {', '.join(map(str, found))}.",
                f"give a position: {self.name}={found[0]}.",
            )
        near = get_close_matches(str(wanted), [str(label) for label in self.labels], 1, 0.6)
        raise UsageError(
            f"{wanted!r} is not on the axis {self.name}.",
            f"it has {len(self)} places: {_some(self.labels)}.",
            f"did you mean {self.name}={near[0]!r}?" if near else "give one of them.",
        )


class Shown(Protocol):
    """What a plot or a table needs of a result."""

    @property
    def values(self) -> Tensor:
        """The numbers."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes, in the tensor's order."""

    @property
    def title(self) -> str:
        """What was done."""

    @property
    def limits(self) -> tuple[float, float] | None:
        """The smallest and largest number there can be."""

    @property
    def texts(self) -> Sequence[str] | None:
        """A word for each number."""

    @property
    def measured(self) -> str:
        """The quantity with its unit."""

    @property
    def is_signed(self) -> bool:
        """Whether zero is the middle of its scale."""


def _some(labels: Sequence[Label], most: int = 8) -> str:
    shown = ", ".join(repr(label) for label in labels[:most])
    return f"{shown}, …" if len(labels) > most else shown
