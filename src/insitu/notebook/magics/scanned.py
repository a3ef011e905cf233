"""`%%trace … --scan`: the cell on fake tensors, and the shapes it met.

scanned = Scanned()
tracer.watch = scanned
scanned.table("GPT2LMHeadModel")
"""

from typing import Any

from insitu.engine.arming import Node
from insitu.engine.misses import site
from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.values import describe
from insitu.twins.table import Table


class Scanned:
    """Watches a pass whose tensors have shapes only."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, ...]] = []

    def arrived(self, node: Node, kind: int, value: Any, line: int, step: int) -> None:
        """The block has come to a site."""
        if kind == INPUT:
            args, kwargs = value
            value = args[0] if args else next(iter(kwargs.values()), None)
        self.rows.append((site(node, kind), str(line), describe(value)))

    def leaving(self, value: Any) -> None:
        """The block goes on."""

    def skipped(self, node: Node, value: Any, line: int, step: int) -> None:
        """A module's call has been replaced."""
        self.rows.append((site(node, OUTPUT), str(line), describe(value)))

    def table(self, model: str) -> Table:
        """The sites in the order they were met."""
        return Table(
            f"{model}, shapes alone: nothing was computed",
            ("site", "line", "kind"),
            self.rows,
            "" if self.rows else "The cell met no site.",
            frozenset({"line"}),
        )
