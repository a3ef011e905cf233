"""Sites asked for after the model has passed them, as its known order tells; writes that come late.

    out_of_order(block), late_writes(block)

The order is what an earlier pass of the same kind has shown. Without one nothing is said of reads.
"""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from insitu.engine.order import INPUT, OUTPUT
from insitu.engine.wrapped import WrappedModule
from insitu.notebook.lint.blocks import Block
from insitu.notebook.lint.finding import Change, Finding
from insitu.notebook.lint.flow import Event, flows
from insitu.notebook.lint.text import Cell


@dataclass(frozen=True)
class _Reached:
    """The site that lies furthest on the model's way, of those asked for so far."""

    at: int
    event: Event


def out_of_order(block: Block) -> Iterator[Finding]:
    """Reads and writes of sites that the pass has left behind by then."""
    if block.order is None:
        return
    told: set[int] = set()
    for events in flows(block):
        reached: _Reached | None = None
        for event in events:
            if event.act == "step":
                reached = None
            place = _place(block, event)
            if place is None:
                continue
            if reached is not None and place < reached.at:
                if id(event.node) not in told:
                    told.add(id(event.node))
                    yield _out_of_order(block, event, reached.event, place, events)
            elif reached is None or place > reached.at:
                reached = _Reached(place, event)


def _place(block: Block, event: Event) -> int | None:
    """Where on the model's way a site lies; None where that is not known."""
    if event.act not in ("ask", "skip") or event.module is None or block.order is None:
        return None
    side = OUTPUT if event.site is not None and event.site.side == "output" else INPUT
    found = block.order.single.get(event.module._module)
    return None if found is None else found[side]


def _out_of_order(
    block: Block, late: Event, passed: Event, place: int, events: list[Event]
) -> Finding:
    cell = block.cell
    beside = [it for it in events if it.body is late.body]
    later = [it for it in beside if (at := _place(block, it)) is not None and at > place]
    earlier = later[0].statement if later else None
    changes = () if earlier is None else moved(cell, late.body, late.statement, earlier)
    return Finding(
        "out-of-order",
        late.node.lineno,  # type: ignore[attr-defined]
        cell.column(late.node),
        f"{_called(late)} is asked for after {_called(passed)}, which the model runs later.",
        f"a block meets modules in the order they run; line {passed.node.lineno} "  # type: ignore[attr-defined]
        f"has let the model run on to {_called(passed)}.",
        f"move line {late.statement.lineno} above line "
        f"{(earlier or passed.statement).lineno}, or open a second trace.",
        changes,
    )


def _called(event: Event) -> str:
    if event.site is not None:
        return f"{event.site.path}.{event.site.side}"
    return _path(event.module)


def _path(module: WrappedModule | None) -> str:
    return "" if module is None else module._path


def late_writes(block: Block) -> Iterator[Finding]:
    """Writes into a value that the pass has left: `h = a.output; b.output; h[:] = 0`."""
    told: set[int] = set()
    for events in () if block.kind == "scan" else flows(block):
        bound: dict[str, tuple[Event, Event | None]] = {}
        for event in events:
            if event.act == "step":
                bound = {}
            elif event.act == "bind":
                has_site = event.held is not None and event.held.copy is None
                bound.pop(event.name, None)
                if has_site:
                    bound[event.name] = event, None
            elif event.act in ("ask", "skip"):
                bound = {name: _left(it, event) for name, it in bound.items()}
            elif event.act == "write" and event.name in bound and id(event.node) not in told:
                bind, passed = bound[event.name]
                is_read = block.cell.is_read_after(event.name, event.statement)
                if passed is not None and not is_read:
                    told.add(id(event.node))
                    yield _late_write(block, event, bind, passed)


def _left(bound: tuple[Event, Event | None], asked: Event) -> tuple[Event, Event | None]:
    """Whether another site has been asked for since a name was bound to one."""
    bind, passed = bound
    site = bind.held.site if bind.held is not None else None
    if passed is None and site is not None and asked.statement is not bind.statement:
        is_other = asked.site is None or asked.site.is_other(site)
        return bind, asked if is_other else None
    return bound


def _late_write(block: Block, write: Event, bind: Event, passed: Event) -> Finding:
    cell, line = block.cell, bind.statement.lineno
    after = _following(write.body, bind.statement)
    changes = () if after is None else moved(cell, write.body, write.statement, after)
    return Finding(
        "late-write",
        write.statement.lineno,
        cell.column(write.statement),
        f"{write.name} is changed when the model has gone on to {_called(passed)}.",
        f"{write.name} is what {_called_held(bind)} was on line {line}; what has read it since "
        "does not see the change.",
        f"write to {write.name} right below line {line}.",
        changes,
    )


def _called_held(bind: Event) -> str:
    assert bind.held is not None
    return f"{bind.held.site.path}.{bind.held.site.side}"


def _following(body: Sequence[ast.stmt], statement: ast.stmt) -> ast.stmt | None:
    places = [n for n, it in enumerate(body) if it is statement]
    return body[places[0] + 1] if places and places[0] + 1 < len(body) else None


def moved(
    cell: Cell, body: Sequence[ast.stmt], statement: ast.stmt, before: ast.stmt
) -> tuple[Change, ...]:
    """The change that moves a statement above another of its body; none where names forbid it."""
    start, end = (next(n for n, it in enumerate(body) if it is s) for s in (before, statement))
    if start >= end or not (_is_alone(cell, statement) and _is_alone(cell, before)):
        return ()
    reads, binds = _names(statement, ast.Load), _names(statement, ast.Store)
    for other in body[start:end]:
        if reads & _names(other, ast.Store) or binds & (
            _names(other, ast.Load) | _names(other, ast.Store)
        ):
            return ()
    first = cell.lines_from(statement.lineno)
    last = cell.lines_from((statement.end_lineno or statement.lineno) + 1)
    text = cell.text[first:last]
    place = cell.lines_from(before.lineno)
    whole = text if text.endswith("\n") else text + "\n"
    cut = first if text.endswith("\n") else first - 1  # the last line takes its line end along
    return Change(place, place, whole), Change(cut, last, "")


def _is_alone(cell: Cell, statement: ast.stmt) -> bool:
    """Whether no other statement shares a statement's lines."""
    first = cell.text[cell.lines_from(statement.lineno) : cell.start(statement)]
    end = cell.end(statement)
    rest = cell.text[end : cell.lines_from((statement.end_lineno or 0) + 1)].strip()
    return not first.strip() and (not rest or rest.startswith("#"))


def _names(node: ast.AST, kind: type[ast.expr_context]) -> set[str]:
    names = (it for it in ast.walk(node) if isinstance(it, ast.Name))
    return {it.id for it in names if isinstance(it.ctx, kind)}
