"""Colour scales whose order every kind of colour vision keeps, and tokens as labels.

css(0.3, (0, 1), signed=False)          # ("#35608d", "#fff"): the paper and its ink
visible(" of")                          # "·of"
"""

from collections.abc import Sequence

VIRIDIS = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e",
    "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725",
)  # fmt: skip
"""matplotlib's viridis: for numbers without a sign."""
BLUE_RED = (
    "#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7",
    "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f",
)  # fmt: skip
"""ColorBrewer's RdBu, turned around: blue is below zero, red above."""
BLUE_RED_DARK = (
    "#a9d3ff", "#6fb1f0", "#3f8ad0", "#28609b", "#1f3e60", "#1b1f24",
    "#5e2a26", "#963a30", "#cc5544", "#ef8a72", "#ffc4b3",
)  # fmt: skip
"""The same on dark paper: zero is the paper, and far from zero is light."""


def scale(*, signed: bool, dark: bool) -> tuple[str, ...]:
    """The colours for numbers of a kind."""
    if not signed:
        return VIRIDIS
    return BLUE_RED_DARK if dark else BLUE_RED


def css(value: float, limits: tuple[float, float], *, signed: bool) -> tuple[str, str]:
    """The colour of a number between limits, and black or white, whichever reads better on it."""
    colours = scale(signed=signed, dark=False)
    low, high = limits
    share = (value - low) / (high - low) if high > low else 0.5
    at = min(max(share, 0.0), 1.0) * (len(colours) - 1)
    below = min(int(at), len(colours) - 2)
    mixed = [
        round(a + (b - a) * (at - below))
        for a, b in zip(_rgb(colours[below]), _rgb(colours[below + 1]), strict=True)
    ]
    paper = "#" + "".join(f"{part:02x}" for part in mixed)
    return paper, ink(paper)


def ink(paper: str) -> str:
    """Black or white, whichever has more contrast on a colour (WCAG 2.2)."""
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (value / 255 for value in _rgb(paper))
    ]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000" if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else "#fff"


def limits_of(
    values: Sequence[float], limits: tuple[float, float] | None, *, signed: bool
) -> tuple[float, float]:
    """From where to where colours go: for signed numbers as far below zero as above."""
    if limits is not None:
        return limits
    if not values:
        return 0.0, 1.0
    if signed:
        far = max(max(map(abs, values)), 1e-9)
        return -far, far
    return min(0.0, *values), max(*values, 1e-9)


def rounded(value: float, limits: tuple[float, float]) -> str:
    """A number to as many places as tell it apart from others between these limits."""
    far = max(map(abs, limits))
    places = 3 if far <= 1.5 else 2 if far < 30 else 1 if far < 300 else 0
    if 0 < far < 0.01:
        return f"{value:.2e}" if value else "0"  # minus zero is zero too
    text = f"{value:.{places}f}"
    return text if text.strip("-0.") else text.removeprefix("-")


def visible(token: object) -> str:
    """A token with its blanks to be seen."""
    return plain(token).replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")


def plain(label: object) -> str:
    """A label as text."""
    return f"{label:g}" if isinstance(label, float) else str(label)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
