"""What a method found: numbers whose axes have names, ready to select, plot and tabulate.

lens = logit_lens(model, "The Eiffel Tower is in the city of", target=" Paris")
lens.sel(layer=3, pos=-1)           # one number, by the names of its axes
lens.max()                          # the largest, and where it is
lens.plot()                         # plotly
lens.to_frame()                     # pandas, one row a number
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from insitu.errors import UsageError
from insitu.methods import plot, table
from insitu.methods.axes import Axis, Label, Where
from insitu.methods.optional import package


class Peak(NamedTuple):
    """A number of a result and where it stands: `value`, `at` its labels, `place` their numbers."""

    value: float
    at: dict[str, Label]
    place: tuple[int, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Numbers with named axes, what they measure, and which paper the method comes from.

        Result(effects, (Axis("layer", range(6)), Axis("head", range(4))), "logit difference lost")

    Args:
        values: the numbers, one axis of the tensor for each of `axes`.
        axes: names and labels, in the tensor's order.
        quantity: what a number is ("logit difference restored").
        unit: in what it is counted ("nats", "logits"); empty for a share.
        title: what was done, for the head of a plot.
        source: the paper: authors, title, year.
        limits: the smallest and largest number there can be, where there are such (0, 1).
        texts: a word for each number, in the tensor's order, shown in its cell.
        further: other results of the same run, by name; axes they share are selected alike.
        info: numbers about the run, by name: `passes`, `rows`, `seconds`.
    """

    values: Tensor
    axes: tuple[Axis, ...]
    quantity: str = "value"
    unit: str = ""
    title: str = ""
    source: str = ""
    limits: tuple[float, float] | None = None
    texts: Sequence[str] | None = None
    further: Mapping[str, "Result"] = field(default_factory=dict)
    info: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", torch.as_tensor(self.values).detach())
        object.__setattr__(self, "axes", tuple(self.axes))
        named = ", ".join(f"{axis.name} {len(axis)}" for axis in self.axes)
        if tuple(self.values.shape) != tuple(map(len, self.axes)):
            raise UsageError(
                f"a result's values have shape {list(self.values.shape)}; its axes are [{named}].",
                "each axis of the tensor needs one name, and each of its places one label.",
                "give an Axis(name, labels) for each dimension, in the tensor's order.",
            )
        if len({axis.name for axis in self.axes}) < len(self.axes):
            raise UsageError(
                f"two axes of a result have one name: [{named}].",
                "numbers are selected by the names of axes.",
                'call them apart, as in "query_pos" and "key_pos".',
            )
        if self.texts is not None and len(self.texts) != self.values.numel():
            raise UsageError(
                f"a result was given {len(self.texts)} texts for {self.values.numel()} numbers.",
                "each cell shows one.",
                "give as many texts as there are values, flat, in the tensor's order.",
            )

    # Selecting --------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its axes."""
        return tuple(axis.name for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """How many places each axis has."""
        return tuple(self.values.shape)

    def axis(self, name: str) -> Axis:
        """The axis of that name.

        Raises:
            UsageError: there is none.
        """
        if name in self.names:
            return self.axes[self.names.index(name)]
        raise UsageError(
            f"this result has no axis {name!r}.",
            f"its axes are {', '.join(self.names) or 'none: it is one number'}.",
            f"write {self.names[0]}=…." if self.names else "read .values, or float(result).",
        )

    def sel(self, **wanted: Where) -> "Result":
        """The part at some labels; an axis with one label wanted falls away.

            lens.sel(layer=3, pos=" Paris")     # by label, blanks at its ends left out or not
            lens.sel(pos=-1)                    # or by position, where labels are words
            lens.sel(layer=slice(2, 4), head=[0, 3])

        Raises:
            UsageError: there is no such axis or label.
        """
        result = self
        for name, label in wanted.items():
            result = result._along(name, self.axis(name).find(label))
        return result

    def __getitem__(self, wanted: Any) -> "Result":
        """`result[3, " Paris"]`: as `sel`, in the order of the axes."""
        given = wanted if isinstance(wanted, tuple) else (wanted,)
        if len(given) > len(self.axes):
            raise UsageError(
                f"{len(given)} labels were given for {len(self.axes)} axes.",
                f"the axes of this result are {', '.join(self.names) or 'none'}.",
                "give one label for each of them, or fewer.",
            )
        return self.sel(**dict(zip(self.names, given, strict=False)))

    def __iter__(self) -> Iterator["Result"]:
        """Along the first axis."""
        if not self.axes:
            raise TypeError("a result of one number cannot be iterated")
        return (self._along(self.axes[0].name, place) for place in range(len(self.axes[0])))

    def __len__(self) -> int:
        return len(self.axes[0]) if self.axes else 0

    def __bool__(self) -> bool:
        return True

    def _along(self, name: str, place: int | slice | list[int]) -> "Result":
        dim = self.names.index(name)
        at: Any = (slice(None),) * dim + (place,)
        labels = self.axes[dim].labels
        kept = range(len(labels))[place] if isinstance(place, slice) else place
        middle = () if isinstance(kept, int) else (Axis(name, [labels[i] for i in kept]),)
        texts = self.texts
        if texts is not None:
            order = torch.arange(len(texts)).reshape(self.shape)[at].flatten().tolist()
            texts = tuple(texts[i] for i in order)
        further = {
            key: other._along(name, place) if self.axes[dim] in other.axes else other
            for key, other in self.further.items()
        }
        axes = self.axes[:dim] + middle + self.axes[dim + 1 :]
        changed: dict[str, Any] = {"axes": axes, "texts": texts, "further": further}
        if isinstance(kept, int) and self.title:
            changed["title"] = f"{self.title}, {self.axes[dim].told(kept)}"
        return replace(self, values=self.values[at], **changed)

    def mean(self, *names: str) -> "Result":
        """The mean over some axes, or over all; places that are not a number are left out."""
        dims = [self.names.index(self.axis(name).name) for name in names or self.names]
        kept = tuple(axis for i, axis in enumerate(self.axes) if i not in dims)
        values = self.values.float().nanmean(dims) if dims else self.values
        return replace(self, values=values, axes=kept, texts=None, further={})

    # Numbers ----------------------------------------------------------------------------------

    def top(self, count: int = 5, *, absolute: bool = False) -> list[Peak]:
        """The largest numbers and where they stand, the largest first.

            for value, at, _ in effects.top(3, absolute=True): …

        Args:
            count: how many.
            absolute: go by size, whatever the sign.
        """
        flat = self.values.float().flatten()
        by = (flat.abs() if absolute else flat).nan_to_num(nan=-math.inf, posinf=math.inf)
        order = by.argsort(descending=True, stable=True)[:count]
        places = [tuple(int(i) for i in torch.unravel_index(n, self.shape)) for n in order]
        return [
            Peak(
                float(self.values[place]),
                {axis.name: axis.labels[i] for axis, i in zip(self.axes, place, strict=True)},
                place,
            )
            for place in places
        ]

    def max(self, *, absolute: bool = False) -> Peak:
        """The largest number and where it stands: `value, at, place = effects.max()`."""
        return self.top(1, absolute=absolute)[0]

    def min(self) -> Peak:
        """The smallest number and where it stands."""
        peak = replace(self, values=-self.values, texts=None, further={}).max()
        return Peak(0.0 - peak.value, peak.at, peak.place)

    def __float__(self) -> float:
        return float(self.values)

    def item(self) -> float:
        """The number itself, where there is one."""
        return float(self.values)

    @property
    def is_signed(self) -> bool:
        """Whether zero is the middle of its scale: colours then part there."""
        if self.limits is not None:
            return self.limits[0] < 0
        return bool((self.values < 0).any())

    @property
    def measured(self) -> str:
        """The quantity with its unit."""
        return f"{self.quantity} ({self.unit})" if self.unit else self.quantity

    # Shown ------------------------------------------------------------------------------------

    def plot(self, *, dark: bool = False, title: str | None = None) -> Any:
        """A plotly figure: bars or a line for one axis, a heat map for two, small ones for more.

            effects.plot().show()
            effects.plot(dark=True).write_html("effects.html")

        Values with a sign get blue and red around a white (or black) zero, others viridis; both
        keep their order for every kind of colour vision.

        Raises:
            MissingPackageError: plotly is not installed.
            UsageError: it has more than four axes, or none.
        """
        figure: Any = plot.figure(self, dark=dark, title=title)
        return figure

    def to_frame(self) -> Any:
        """A pandas frame, one row for each number: a column for each axis, then `value`.

            effects.to_frame().pivot(index="layer", columns="head", values="value")

        An axis of words has its positions beside it, in `<name>_index`. Further results with the
        same axes are further columns, texts the column `text`.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        pandas = package("pandas", "to_frame() makes a pandas frame", "insitu[lab]")
        columns: dict[str, Any] = {}
        for dim, axis in enumerate(self.axes):
            place = torch.arange(len(axis)).reshape([-1] + [1] * (len(self.axes) - dim - 1))
            places = place.expand(self.shape).flatten().tolist()
            columns[axis.name] = [axis.labels[i] for i in places]
            if not axis.is_numeric:
                columns[f"{axis.name}_index"] = places
        columns["value"] = self.values.float().flatten().tolist()
        for name, other in self.further.items():
            if other.axes == self.axes:
                columns[name] = other.values.float().flatten().tolist()
        if self.texts is not None:
            columns["text"] = list(self.texts)
        frame: Any = pandas.DataFrame(columns)
        return frame

    def __repr__(self) -> str:
        shape = " × ".join(f"{axis.name} {len(axis)}" for axis in self.axes)
        lines = [f"Result: {self.measured}" + (f" [{shape}]" if shape else "")]
        lines += [f"  {self.title}"] if self.title else []
        if not self.axes:
            lines[0] += f" = {float(self):.4g}"
        elif self.values.numel():
            lines += [
                f"  largest  {self._told(self.max())}",
                f"  smallest {self._told(self.min())}",
            ]
        lines += [f"  further  {', '.join(self.further)}"] if self.further else []
        told = ", ".join(f"{name} {number:.4g}" for name, number in self.info.items())
        lines += [f"  info     {told}"] if told else []
        lines += [f"  source   {self.source}"] if self.source else []
        return "\n".join(lines)

    def _told(self, peak: Peak) -> str:
        where = [axis.told(i) for axis, i in zip(self.axes, peak.place, strict=True)]
        return f"{peak.value:.4g} at {', '.join(where)}"

    def _repr_html_(self) -> str:
        return table.html(self)

    # Kept -------------------------------------------------------------------------------------

    def save(self, file: str | PathLike[str]) -> Path:
        """Write it as JSON, which any program reads: `lens.save("lens.json")`."""
        path = Path(file)
        path.write_text(json.dumps(self._as_dict(), ensure_ascii=False), encoding="utf-8")
        return path

    @classmethod
    def load(cls, file: str | PathLike[str]) -> "Result":
        """Read what `save` has written: `Result.load("lens.json")`."""
        return cls._of_dict(json.loads(Path(file).read_text(encoding="utf-8")))

    def _as_dict(self) -> dict[str, Any]:
        plain = ("quantity", "unit", "title", "source", "limits", "texts", "info")
        return {
            "axes": [{"name": axis.name, "labels": list(axis.labels)} for axis in self.axes],
            "values": self.values.tolist(),
            "dtype": str(self.values.dtype).removeprefix("torch."),
            **{name: _plain(getattr(self, name)) for name in plain},
            "further": {name: other._as_dict() for name, other in self.further.items()},
        }

    @classmethod
    def _of_dict(cls, kept: dict[str, Any]) -> "Result":
        kept = dict(kept)
        axes = tuple(Axis(one["name"], one["labels"]) for one in kept.pop("axes"))
        values = torch.tensor(kept.pop("values"), dtype=getattr(torch, kept.pop("dtype")))
        further = {name: cls._of_dict(other) for name, other in kept.pop("further").items()}
        limits = kept.pop("limits")
        return cls(
            values.reshape([len(axis) for axis in axes]), axes, further=further,
            limits=tuple(limits) if limits else None, **kept,
        )  # fmt: skip


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
