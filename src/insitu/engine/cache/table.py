"""What a cache holds, as a table of few rows: siblings that are alike share one.

    transformer.h.*.mlp    4 modules  float32[1, 8, 32]  4.1 kB

A table looks at shapes alone: no number is read, no file opened, nothing comes from the GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from insitu.engine.cache.globs import folded
from insitu.engine.cache.record import INPUTS, OUTPUT, Record
from insitu.engine.cache.values import kind, size_bytes

LINES_MAX = 20
_KIND_MAX = 48


@dataclass(frozen=True)
class Row:
    """A module, or several alike."""

    path: str
    modules: int
    kind: str
    calls: int
    """Those of each."""
    size_bytes: int
    """Those of all together."""


def rows(records: Mapping[str, Record], fold: bool = True) -> list[Row]:
    """One row for each module that ran; siblings that are alike in one, where all are."""
    single = {path: _row(path, record) for path, record in records.items() if record.calls}
    if not fold:
        return list(single.values())
    groups: dict[str, list[Row]] = {}
    for path, row in single.items():
        groups.setdefault(folded(path), []).append(row)
    found: list[Row] = []
    for pattern, group in groups.items():
        first = group[0]
        alike = all((row.kind, row.calls) == (first.kind, first.calls) for row in group)
        if len(group) == 1 or not alike:
            found.extend(group)
        else:
            total = sum(row.size_bytes for row in group)
            found.append(Row(pattern, len(group), first.kind, first.calls, total))
    return found


def total_bytes(records: Mapping[str, Record]) -> int:
    """Bytes of all values; one that several modules returned counts once."""
    seen: set[object] = set()
    calls = (call for record in records.values() for call in record.calls)
    return sum(size_bytes((call[OUTPUT], call[INPUTS]), seen) for call in calls)


def text(title: str, found: list[Row]) -> str:
    """The table below its title, in at most `LINES_MAX` lines."""
    shown = found if len(found) < LINES_MAX else found[: LINES_MAX - 2]
    cells = [columns(row) for row in shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    if len(found) > len(shown):
        lines.append(f"  … and {len(found) - len(shown)} rows more")
    return "\n".join([title, *lines])


def columns(row: Row) -> tuple[str, str, str, str, str]:
    """A row in words: path, how many modules, kind, calls, bytes."""
    return (
        row.path,
        f"{row.modules} modules" if row.modules > 1 else "",
        row.kind if len(row.kind) <= _KIND_MAX else f"{row.kind[: _KIND_MAX - 2]} …",
        f"{row.calls} calls" if row.calls > 1 else "",
        in_bytes(row.size_bytes),
    )


def in_bytes(size: float) -> str:
    """A number of bytes in the unit that suits it: `1.4 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} TB"


def counted(number: int, name: str) -> str:
    """`1 call`, `3 calls`."""
    return f"{number:,} {name}{'s' * (number != 1)}"


def kinds(record: Record, side: int) -> str:
    """The kind of a record's values: the first call's, and the last one's where it differs."""
    first, last = kind(record.calls[0][side]), kind(record.calls[-1][side])
    return first if first == last else f"{first} … {last}"


def _row(path: str, record: Record) -> Row:
    side = OUTPUT if record.calls[0][OUTPUT] is not None else INPUTS
    seen: set[object] = set()
    size = sum(size_bytes((call[OUTPUT], call[INPUTS]), seen) for call in record.calls)
    return Row(path, 1, kinds(record, side), len(record.calls), size)
