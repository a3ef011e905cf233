"""Two sets of named tensors, compared by name: a table of how far each is from its other.

    comparison(title, [("h.0.output", "float32[2]", {"largest": 0.5, "cosine": 0.9})], [], [])

What stands in one of the two alone is named below.
"""

from collections.abc import Mapping, Sequence

from insitu.twins.grid import seen
from insitu.twins.table import Table

TEXT_MAX, HTML_MAX = 30, 100
"""So many rows as text and as HTML."""
_NAMES_MAX = 4

Apart = Mapping[str, float | None]
Row = tuple[str, str, Apart | None]
"""A name, its kind and shape, and the difference; None where the other has another shape."""


def comparison(
    title: str, rows: Sequence[Row], only: tuple[Sequence[str], Sequence[str]], left: int, most: int
) -> Table:
    """The table.

    Args:
        title: for its head.
        rows: those that both have and that were compared.
        only: names that the first alone has, and the second.
        left: how many that both have were not compared.
        most: how many rows are shown.
    """
    shown = rows if len(rows) <= most else [row for row in rows if not _is_same(row)] or rows
    cells = [(seen(name), kind, *_told(apart)) for name, kind, apart in shown[:most]]
    notes = [f"… and {len(shown) - most:,} more that differ"] if len(shown) > most else []
    notes += _summary(rows) if rows else []
    if len(shown) < len(rows):
        notes[-1] += ", which are not listed"
    if left:
        notes.append(f"{left:,} more are not compared here, to be quick; the live view does it")
    for which, names in zip(("first", "second"), only, strict=True):
        if names:
            further = f" and {len(names) - _NAMES_MAX:,} more" if len(names) > _NAMES_MAX else ""
            notes.append(
                f"only in the {which}: {', '.join(map(seen, names[:_NAMES_MAX]))}{further}"
            )
    count = f"{title}: {len(rows) + left:,} tensors are in both"
    names = ("tensor", "kind", "largest difference", "relative", "cosine")
    return Table(count, names, cells, notes=tuple(notes), numbers=frozenset(names[2:]))


def _told(apart: Apart | None) -> tuple[str, str, str]:
    if apart is None:
        return "another shape", "", ""
    largest, relative, cosine = (apart[name] for name in ("largest", "relative", "cosine"))
    return _number(largest), _number(relative), "–" if cosine is None else f"{cosine:.4f}"


def _is_same(row: Row) -> bool:
    return row[2] is not None and row[2]["largest"] == 0


def _summary(rows: Sequence[Row]) -> list[str]:
    """Where they differ most, and how many are the same."""
    known = [
        (it["largest"] or 0.0, name) for name, _, it in rows if it and it["largest"] is not None
    ]
    if not known:
        return ["none of them has a difference that is a number"]
    far, where = max(known, key=lambda it: it[0])
    same = f"no difference in {sum(map(_is_same, rows)):,} of {len(rows):,}"
    if not far:
        return [same]
    cosines = [(it["cosine"], name) for name, _, it in rows if it and it["cosine"] is not None]
    least = min(cosines, key=lambda it: it[0] or 0.0) if cosines else None
    told = [f"least cosine {least[0]:.4f} at {seen(least[1])}"] if least else []
    return [f"largest difference {_number(far)} at {seen(where)}", *told, same]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
