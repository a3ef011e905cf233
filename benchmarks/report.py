"""What was measured, as text, as JSON and as markdown."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.comparison import ALONE, OVER, TIMES, Figure, Skip
from benchmarks.libraries import EVERYONE, INSITU, PACKAGES
from benchmarks.timing import Spread

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
PERCENT_FROM_US = 50_000
"""A forward so long that what is put on it is told in percent."""


@dataclass
class Theme:
    """One theme's figures, in the order they were measured."""

    name: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)


@dataclass
class Report:
    """A run of the benchmarks."""

    versions: dict[str, str]
    machine: str
    themes: list[Theme]

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> "Report":
        """What `save` wrote."""
        data = json.loads(path.read_text())
        return cls(data["versions"], data["machine"], [_theme(part) for part in data["themes"]])


def _theme(data: dict[str, Any]) -> Theme:
    figures = []
    for part in data["figures"]:
        took, base = part.pop("took"), part.pop("base")
        figures.append(Figure(**part, took=Spread(**took), base=base and Spread(**base)))
    return Theme(data["name"], data["title"], figures, [Skip(**part) for part in data["skipped"]])


# Text ----------------------------------------------------------------------------------------


def text(theme: Theme) -> str:
    """Everything of a theme: median, first quartile and least."""
    lines = [f"\n{theme.title}"]
    width = max((len(_label(it)) for it in theme.figures), default=0)
    for subject, figures in _by(theme.figures, "subject"):
        lines.append(f"  {subject}")
        heads = ("median", "1st quartile", "least", "of pairs", "base")
        lines.append(f"    {'':{width}}" + "".join(f"{head:>14}" for head in heads))
        for it in figures:
            values = [number(it.value(of), it.unit) for of in ("median", "quarter", "least")]
            base = number(it.base.quarter, OVER) if it.base else ""
            values.append("" if it.paired is None else number(it.paired, it.unit))
            lines.append(
                f"    {_label(it):{width}}"
                + "".join(f"{v:>14}" for v in (*values, base))
                + _verdict(it)
            )
    lines += [f"    not measured: {it.what}, {it.who}: {it.reason}" for it in theme.skipped]
    return "\n".join(lines)


def bounds(themes: Iterable[Theme]) -> Iterator[str]:
    """One line for each bound that was set for Insitu."""
    for theme in themes:
        own = [it for it in theme.figures if it.who == INSITU]
        for it in own:
            if it.bound is not None:
                yield _line(it, _met(it), f"{number(it.value(), it.unit)}, at most {it.bound:g}")
        for _, points in groupby((it for it in own if it.flat), key=_curve_of):
            first, *_, last = points
            grown = last.value() / first.value()
            found = f"{grown:.2f} × from {first.at:,} to {last.at:,}, at most {first.flat:g}"
            yield _line(first, grown <= (first.flat or 0), found)


def _line(it: Figure, is_met: bool, found: str) -> str:
    return f"{'met' if is_met else 'NOT MET':8} {it.subject}: {it.what}: {found}"


def _curve_of(it: Figure) -> tuple[str, str]:
    return it.subject, it.what


def number(value: float | None, unit: str) -> str:
    """A figure as a reader wants it."""
    if value is None:
        return ""
    if unit == TIMES:
        return f"{value:.3f} ×"
    if abs(value) >= 10_000:
        return f"{value / 1000:,.1f} ms"
    return f"{value:,.0f} µs" if abs(value) >= 100 else f"{value:,.1f} µs"


def _label(it: Figure) -> str:
    return f"{it.what}{'' if it.at is None else f' ({it.at:,})'}, {it.who}"


def _met(it: Figure) -> bool:
    return it.bound is not None and it.value() <= it.bound


def _verdict(it: Figure) -> str:
    notes = [it.equality] if it.equality.startswith("within") else []
    if it.bound is not None and it.who == INSITU:
        notes.append(f"≤ {it.bound:g}" + ("" if _met(it) else ", NOT MET"))
    return "   " + "; ".join(notes) if notes else ""


def _by(figures: Iterable[Figure], name: str) -> Iterator[tuple[Any, list[Figure]]]:
    for key, group in groupby(figures, key=lambda it: getattr(it, name)):
        yield key, list(group)


# Markdown ------------------------------------------------------------------------------------


def write_markdown(report: Report, path: Path) -> None:
    """Put the figures between the two marks of a file, and leave the prose around them."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} has no {BEGIN} … {END}, where the figures are to go.")
    path.write_text(f"{before}{BEGIN}\n\n{markdown(report)}\n\n{END}{after}")


def markdown(report: Report) -> str:
    """A table for each theme, and the curves of growth after it."""
    parts = [_table(theme, report.versions) for theme in report.themes if theme.figures]
    measured = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return "\n\n".join([*parts, f"Measured on {report.machine}: {measured}."])


def _table(theme: Theme, versions: dict[str, str]) -> str:
    plain = [it for it in theme.figures if it.at is None]
    who = [name for name in EVERYONE if any(it.who == name for it in theme.figures)]
    heads = [f"{name} {versions.get(PACKAGES.get(name, ''), '')}".strip() for name in who]
    lines = [f"### {theme.title}"]
    if plain:
        lines += ["", f"| | {' | '.join(heads)} |", "|---|" + "--:|" * len(who)]
    for subject, figures in _by(plain, "subject"):
        lines.append(f"| **{subject}**{_bare(figures)} |" + " |" * len(who))
        for what, cells in _by(figures, "what"):
            found = {it.who: _cell(it) for it in cells}
            label = f"{what}{_limit(cells[0])}"
            lines.append(f"| {label} | " + " | ".join(found.get(name, "") for name in who) + " |")
    curves = [it for it in theme.figures if it.at is not None]
    for (subject, what), points in groupby(curves, key=_curve_of):
        lines += ["", *_curve(subject, what, list(points), versions)]
    if theme.skipped:
        lines += ["", f"Not measured: {'; '.join(_reasons(theme.skipped))}."]
    return "\n".join(lines)


def _curve(
    subject: str, what: str, points: list[Figure], versions: dict[str, str]
) -> Iterator[str]:
    places = sorted({it.at for it in points if it.at is not None})
    yield f"| {what}, {subject} | " + " | ".join(f"{at:,}" for at in places) + " |"
    yield "|---|" + "--:|" * len(places)
    for who in EVERYONE:
        found = {it.at: number(it.value(), it.unit) for it in points if it.who == who}
        if found:
            label = f"{who} {versions.get(PACKAGES.get(who, ''), '')}".strip()
            yield f"| {label} | " + " | ".join(found.get(at, "") for at in places) + " |"


def _cell(it: Figure) -> str:
    if it.from_bare and it.base and it.base.quarter > PERCENT_FROM_US:
        return f"{100 * it.value() / it.base.quarter:.1f} %"
    return number(it.value(), it.unit)


def _bare(figures: list[Figure]) -> str:
    found = [it.base.quarter for it in figures if it.who == INSITU and it.base and it.from_bare]
    return f", bare forward {number(min(found), ALONE)}" if found else ""


def _limit(it: Figure) -> str:
    return "" if it.bound is None else f" (≤ {it.bound:g})"


def _reasons(skipped: list[Skip]) -> list[str]:
    return sorted({f"{it.who}, {it.what}: {re.sub(r'[|<>]', ' ', it.reason)}" for it in skipped})
