"""The facts on a run card, and the words and numbers both its drawings share.

Card(model="GPT2LMHeadModel", tokens=None, prompts=(("The", " Eiffel"),), …)
"""

import math
from dataclasses import dataclass, field

from insitu.notebook.effects import NOTHING, Change, Effects, StepChange
from insitu.notebook.recorder import Stats, Visit

TV = "TV: total variation distance, 0 = same distribution, 1 = no overlap"
"""Said once on a card that tells distances."""
_TOKENS_MAX = 64
_PROMPTS_MAX = 4
_GAP = " … "
_MARKS = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}


@dataclass(frozen=True)
class Timing:
    """How long the run took, and the same without the block."""

    run_s: float
    bare_s: float
    repeats: int
    is_first_pass: bool


@dataclass(frozen=True)
class Card:
    """What a `%%trace` cell did."""

    model: str
    tokens: int | None
    """How many tokens it was to generate; None for a single forward."""
    prompts: tuple[tuple[str, ...], ...]
    given: str
    """The kind of an input that is no text."""
    visits: tuple[Visit, ...]
    written: tuple[int, ...]
    """Which visits wrote, in order; `effects.of_writes` runs alongside."""
    effects: Effects = field(default_factory=Effects)
    timing: Timing | None = None
    notes: tuple[str, ...] = ()

    @property
    def device(self) -> str:
        """The device of all values when it is one and the same, otherwise empty."""
        devices = {visit.arrived.device for visit in self.visits if visit.arrived}
        return devices.pop() if len(devices) == 1 else ""

    def moved_by(self, visit: int) -> float | None:
        """How far the write at a visit moved the next token, when that was measured."""
        moved = self.effects.of_writes
        return moved[self.written.index(visit)] if visit in self.written and moved else None

    def step_moved_by(self, visit: int) -> float | None:
        """How far the step of the write at a visit moved; several writes share their step's."""
        if visit not in self.written:
            return None
        step = self.visits[visit].step
        return next((s.change.moved for s in self.effects.steps if s.step == step), None)

    @property
    def tells_distances(self) -> bool:
        """Whether a distance is shown, and its unit is to be explained."""
        change = self.effects.change
        return change is not None and (bool(self.written) or not is_nothing(change.moved))


def token(text: str) -> str:
    """A token so that all of it can be seen: blanks, line ends and control characters too."""
    if not text:
        return "∅"
    return "".join(_MARKS.get(c) or (c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)


def amount(value: float | None) -> str:
    """A norm in four figures."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞"
    if value == 0 or 0.01 <= value < 100_000:
        return f"{value:.{2 if value < 1000 else 0}f}"
    return f"{value:.1e}"


def moved(value: float) -> str:
    """A distance between distributions; a small one is not said to be nothing."""
    if NOTHING <= value < 0.005:
        return "< 0.01"
    return "NaN" if math.isnan(value) else f"{value:.2f}"


def moved_by(change: Change) -> str:
    """The sentence on all writes together."""
    said = f"The cell moved next-token probabilities by {moved(change.moved)} TV"
    return said + ": no effect" * is_nothing(change.moved)


def most_moved(card: Card, change: Change) -> str:
    """The sentence on a generation: its step that moved most."""
    if is_nothing(change.moved):
        return moved_by(change).replace(" TV:", " TV at every step:")
    at = next(step.step for step in card.effects.steps if step.change is change)
    return f"At step {at} the cell moved next-token probabilities most: by {moved(change.moved)} TV"


def steps_shown(card: Card) -> tuple[list[StepChange], list[StepChange]]:
    """The steps of a generation to tell one by one, and those that nothing wrote or moved.

    Where nothing was written or moved at all, every step is told: a record of what was generated.
    """
    wrote = {card.visits[visit].step for visit in card.written}
    told = [s for s in card.effects.steps if s.step in wrote or not is_nothing(s.change.moved)]
    if not told:
        return list(card.effects.steps), []
    return told, [step for step in card.effects.steps if step not in told]


def unmoved(steps: int) -> str:
    """The line that stands for the steps not told."""
    return f"{steps} other step{'s' * (steps != 1)}: unmoved"


def is_nothing(value: float) -> bool:
    """Whether a distance is shown as 0.00, and flagged."""
    return value < NOTHING


def shape(stats: Stats | None) -> str:
    """A shape as a user writes it; a number's is empty brackets."""
    return "" if stats is None else "[" + ", ".join(map(str, stats.shape)) + "]"


def seconds(value: float) -> str:
    """A time in the unit that suits it."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def time_line(timing: Timing) -> str:
    """The run's time over the bare forward's."""
    over = timing.run_s - timing.bare_s
    sign = "−" if over < 0 else "+"
    line = (
        f"{seconds(timing.run_s)} for the run, {seconds(timing.bare_s)} bare "
        f"(median of {timing.repeats}): {sign}{seconds(abs(over))}"
    )
    return line + ("; first pass: includes learning the module order" * timing.is_first_pass)


def title(card: Card) -> str:
    """What ran, in a few words."""
    if card.tokens is None:
        return f"{card.model}, one forward"
    return f"{card.model}, {card.tokens} tokens generated"


def columns_used(card: Card) -> tuple[str, ...]:
    """The columns of the table of sites that say something; the last ones tell what was done."""
    stats = [s for visit in card.visits for s in (visit.arrived, visit.left) if s is not None]
    devices = {s.device for s in stats}
    shown = {
        "site": True,
        "line": True,
        "step": card.tokens is not None,
        "shape": True,
        "dtype": bool(stats),
        "device": len(devices) > 1 or not devices <= {"cpu"},
        "norm": bool(stats),
        "NaN": any(s.nans for s in stats),
        "act": True,
        "moved by": bool(card.effects.of_writes),
        "step moved by": bool(card.written and card.effects.steps),
    }
    return tuple(name for name, is_shown in shown.items() if is_shown)


def prompt_lines(card: Card) -> list[tuple[str, ...]]:
    """The prompts' tokens, shortened to what fits a card."""
    lines = [
        line if len(line) <= _TOKENS_MAX else (*line[: _TOKENS_MAX - 8], _GAP, *line[-8:])
        for line in card.prompts[:_PROMPTS_MAX]
    ]
    if len(card.prompts) > _PROMPTS_MAX:
        lines.append((f"… and {len(card.prompts) - _PROMPTS_MAX} more prompts",))
    return lines


def nans(visit: Visit) -> int:
    """How many elements the model goes on with are not numbers."""
    stats = visit.left or visit.arrived
    return stats.nans if stats else 0


def of_prompt(card: Card, change: Change) -> str:
    """Which prompt is shown, when there are several."""
    several = len(card.prompts) > 1
    return f" (prompt {change.row + 1} of {len(card.prompts)}, which moved most)" if several else ""


def percent(share: float) -> str:
    """A probability; the smallest are not said to be nothing."""
    return "< 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"
