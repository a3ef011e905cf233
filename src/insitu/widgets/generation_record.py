"""What is known of a generation, step by step, and of the branches that leave it.

    record = Record("Generation", prompt=["Once", " upon"], layers=range(6))
    branch = record.branch()
    branch.own.append(Step(" a", chance=0.7, entropy=1.2))
    record.steps(branch)            # with those it shares with what it left

A step is one token that was chosen, what else was likely, and what each layer would have said.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from insitu.errors import UsageError
from insitu.methods.axes import Axis, Label
from insitu.methods.result import Result
from insitu.widgets.words import word, words

TEXT_MAX = 80
"""So many characters of a token reach a view."""
SENT_DIGITS = 6

Top = tuple[str, int | None, float]
"""A token that was likely: its text, its id, its probability."""


@dataclass(frozen=True)
class Measure:
    """What a number of a layer is."""

    quantity: str
    unit: str = ""
    limits: tuple[float, float] | None = None


LENS = (
    Measure("probability of the likeliest token", limits=(0.0, 1.0)),
    Measure("KL from the final prediction", "nats"),
)
"""What the logit lens tells of a layer."""


@dataclass(frozen=True)
class Step:
    """One token of a generation, and how it came about.

    Args:
        token, id: the one that was chosen; a plain text has no id.
        chance: its probability, as the model predicted it.
        entropy: of that prediction, in nats.
        top: the likeliest tokens, the first the likeliest.
        texts: each layer's likeliest token.
        values: for each measure, a number a layer.
        is_forced: it was put there by a fork; the model did not choose it.
    """

    token: str
    id: int | None = None
    chance: float = math.nan
    entropy: float = math.nan
    top: tuple[Top, ...] = ()
    texts: tuple[str, ...] = ()
    values: tuple[tuple[float, ...], ...] = ()
    is_forced: bool = False

    def told(self) -> dict[str, Any]:
        """As a view is told it: short numbers, None for those that are none."""
        return {
            "token": word(self.token, TEXT_MAX),
            "id": self.id,
            "chance": _short(self.chance),
            "entropy": _short(self.entropy),
            "top": [
                [word(text, TEXT_MAX), number, _short(chance)] for text, number, chance in self.top
            ],
            "texts": words(self.texts, TEXT_MAX),
            "values": [[_short(value) for value in row] for row in self.values],
            "forced": self.is_forced,
        }


@dataclass
class Branch:
    """A way the text went on: the main one, or one that leaves another at a step.

    Attributes:
        number: 0 for the main one.
        parent: the number of the one it leaves; None for the main one.
        start: the first step that is its own.
        why: what is different: a token, an edit.
        edit: what changes the model in it; None for nothing.
        own: its own steps.
        state: `waiting`, `running`, `done`, `stopped` or `failed`.
        trouble: why it failed: what, why, next.
    """

    number: int
    parent: int | None = None
    start: int = 0
    why: str = ""
    edit: Any = None
    own: list[Step] = field(default_factory=list)
    state: str = "waiting"
    trouble: dict[str, str] | None = None

    def told(self) -> dict[str, Any]:
        """As a view is told it, but for its steps."""
        names = ("number", "parent", "start", "why", "state", "trouble")
        return {name: getattr(self, name) for name in names}


@dataclass
class Record:
    """A generation and its branches."""

    title: str
    prompt: Sequence[str] = ()
    layers: Sequence[Label] = ()
    measures: Sequence[Measure] = LENS
    branches: list[Branch] = field(default_factory=list)

    def branch(self, **told: Any) -> Branch:
        """Begin another branch."""
        self.branches.append(Branch(len(self.branches), **told))
        return self.branches[-1]

    def at(self, number: int) -> Branch:
        """The branch of a number.

        Raises:
            UsageError: there is none.
        """
        if isinstance(number, int) and 0 <= number < len(self.branches):
            return self.branches[number]
        raise UsageError(
            f"there is no branch {number!r}.",
            f"the generation has {len(self.branches)}, numbered from 0, the main one.",
            "give one of their numbers: view.branches[1].number.",
        )

    def steps(self, branch: Branch) -> list[Step]:
        """All steps of a branch, with those it shares with the one it left."""
        if branch.parent is None:
            return list(branch.own)
        return self.steps(self.branches[branch.parent])[: branch.start] + branch.own

    def owner(self, branch: Branch, step: int) -> Branch:
        """The branch that a fork at a step leaves: the one in which the choice is made."""
        while branch.parent is not None:
            parent = self.branches[branch.parent]
            is_sibling = step == branch.start and branch.edit is parent.edit
            if step > branch.start or (step == branch.start and not is_sibling):
                break
            branch = parent
        return branch

    def text(self, branch: Branch) -> str:
        """The tokens of a branch, one after the other, without the prompt."""
        return "".join(step.token for step in self.steps(branch))

    def result(self, branch: Branch) -> Result:
        """Layers by steps of a branch, as a method's result; one a measure, the rest in `further`.

        Raises:
            UsageError: nothing was told of its layers.
        """
        steps = self.steps(branch)
        if not (steps and len(self.layers)):
            raise UsageError(
                "this generation has no numbers of layers.",
                "no step was recorded, or the model's layers have no standard names.",
                "read view.branches for its tokens and their probabilities.",
            )
        axes = Axis("layer", self.layers), Axis("step", range(len(steps)))
        count = len(self.layers)
        texts = _across([step.texts or ("",) * count for step in steps])
        found = []
        for number, measure in enumerate(self.measures):
            rows = [_row(step.values, number, count) for step in steps]
            found.append(
                Result(
                    torch.tensor(rows).T, axes, measure.quantity, measure.unit, texts=texts,
                    title=self.title, limits=measure.limits,
                )
            )  # fmt: skip
        further = {it.quantity: it for it in found[1:]}
        object.__setattr__(found[0], "further", further)
        return found[0]


def _row(values: Sequence[Sequence[float]], number: int, count: int) -> list[float]:
    return list(values[number]) if number < len(values) else [math.nan] * count


def _across(columns: Iterable[Sequence[str]]) -> list[str]:
    """Columns of words as rows after rows."""
    return [word for row in zip(*columns, strict=True) for word in row]


def _short(value: float) -> float | None:
    """Six digits of a number; None for one that JSON does not know."""
    return float(f"{value:.{SENT_DIGITS}g}") if math.isfinite(value) else None
