"""The text of a forward with its operations named beside it.

    attention_interface_0 -> 211  attn_output, attn_weights = attention_interface(
                             212      self,

Line numbers are the file's, as in tracebacks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from insitu.engine.source.names import Named, Plan


def place(file: str, line: int) -> str:
    """A line of a file, named from its package on: `torch/nn/modules/linear.py:130`."""
    parts = Path(file).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            return f"{Path(*parts[parts.index(folder) + 1 :]).as_posix()}:{line}"
    return f"{file}:{line}"


@dataclass(frozen=True)
class Row:
    """One line of a function's text."""

    number: int
    text: str
    names: tuple[str, ...]
    """The operations that are read here, from left to right."""


def rows(plan: Plan) -> list[Row]:
    """The lines of a function, without their common margin."""
    definition = plan.definition
    names: dict[int, list[str]] = {}
    for operation in plan.operations:
        names.setdefault(operation.line, []).append(operation.name)
    filled = [line for line in definition.lines if line.strip()]
    margin = min((len(line) - len(line.lstrip()) for line in filled), default=0)
    return [
        Row(number, line[margin:], tuple(names.get(number, ())))
        for number, line in enumerate(definition.lines, definition.first)
    ]


def text(head: str, plan: Plan) -> str:
    """The whole function, each operation's name in a column on the left."""
    shown = rows(plan)
    widths = [len(operation.name) for operation in plan.operations]
    width, digits = max(widths, default=0), len(str(shown[-1].number))
    lines = [head]
    for row in shown:
        first = f"{row.names[0]:<{width}} -> " if row.names else " " * (width + 4)
        lines.append(f"{first}{row.number:>{digits}}  {row.text}".rstrip())
        lines.extend(f"{name:<{width}} -> {'+':>{digits}}" for name in row.names[1:])
    return "\n".join(lines)


def excerpt(head: str, plan: Plan, operation: Named) -> str:
    """The statement of one operation, with an arrow at its line."""
    lines = (
        f"{'-->' if is_here else '   '} {row.number}  {row.text}"
        for row, is_here in marked(plan, operation)
    )
    return "\n".join([head, *lines])


def marked(plan: Plan, operation: Named) -> Iterator[tuple[Row, bool]]:
    """The lines of an operation's statement, and whether it is read on each."""
    first, last = operation.statement.lineno, operation.statement.end_lineno or 0
    if hasattr(operation.statement, "body"):  # of a loop or a branch, its own line alone
        first = last = operation.line
    for row in rows(plan):
        if first <= row.number <= last:
            yield row, row.number == operation.line
