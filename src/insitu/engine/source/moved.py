"""Names that an upgrade has moved: never another operation's value under a known name.

    model.model.layers[0].self_attn.source.self_o_proj_0
    # UnknownOperationError: … self_o_proj_0 moved to self_o_proj_1 (transformers 5.19.0 → 5.24.0).

Names count the calls of one callee, so a call that a new version adds renames those below it. For
the attention of common models, `moved.json` holds what every name stood for (`tools/operations.py`
writes it): a fingerprint of the call's text with its arguments and target. A class that still has
the text of the table is trusted at once.
"""

import ast
import functools
import json
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

from insitu.engine.source.names import CALL, Named, Plan, base_of
from insitu.engine.source.text import Definition
from insitu.errors import UnknownOperationError


@dataclass(frozen=True)
class Table:
    """What the names of some functions stood for in one version of a package."""

    package: str
    version: str
    functions: Mapping[str, Mapping[str, Any]]
    """For `module.qualname`: its `text`, and the fingerprints of its `operations` by name."""


def key_of(function: FunctionType) -> str:
    """A function's place in the table."""
    return f"{function.__module__}.{function.__qualname__}"


def text_mark(definition: Definition) -> str:
    """A short mark of a function's whole text."""
    return _mark("\n".join(definition.lines))


def fingerprints(plan: Plan) -> dict[str, str]:
    """What each name stands for, in eight letters."""
    with plan.lock:
        return {it.name: _mark(_described(it)) for it in plan.operations}


def check(function: FunctionType, plan: Plan, name: str, path: str) -> None:
    """Raise if a name of the table stands for something else in what is installed.

    Args:
        function: whose operations they are.
        plan: the operations as they are now.
        name: the name asked for.
        path: that of the source, for the error.

    Raises:
        UnknownOperationError: it moved, is gone, or cannot be told from others.
    """
    known = table()
    if not function.__module__.startswith(known.package + "."):
        return
    entry = known.functions.get(key_of(function))
    if entry is None or entry["text"] == text_mark(plan.definition):
        return
    then, now = entry["operations"], fingerprints(plan)
    fate = fate_of(name, then, now)
    if fate is None or fate == [name]:
        return
    installed = getattr(sys.modules.get(known.package), "__version__", "?")
    # A name that itself once stood for another operation would only raise again.
    safe = {new for new in fate if fate_of(new, then, now) in (None, [new])}
    used = {new: f".{new}" if new in safe else f"[{plan.by_name[new].index}]" for new in fate}
    raise _moved(path, name, used, plan, f"{known.package} {known.version} → {installed}")


def fate_of(name: str, then: Mapping[str, str], now: Mapping[str, str]) -> list[str] | None:
    """Under which names an operation may be found now; None if the table does not know it.

    What has kept its text is found by it. What has not is paired, in order, with what is new among
    the calls of the same callee; that is one name if as many are new as are missing.
    """
    if name not in then:
        return None
    alike = [n for n in then if then[n] == then[name]], [n for n in now if now[n] == then[name]]
    if not alike[1]:
        old, new, base = set(then.values()), set(now.values()), base_of(name)
        alike = (
            [n for n in then if base_of(n) == base and then[n] not in new],
            [n for n in now if base_of(n) == base and now[n] not in old],
        )
    before, after = alike
    return [after[before.index(name)]] if len(before) == len(after) else after


def table() -> Table:
    """The table that comes with the package."""
    return _read(Path(__file__).with_name("moved.json"))


@functools.cache
def _read(path: Path) -> Table:
    return Table(**json.loads(path.read_text(encoding="utf-8")))


def _described(operation: Named) -> str:
    node: ast.AST = operation.node
    statement = operation.statement
    if operation.kind != CALL or getattr(statement, "value", None) is not node:
        return ast.unparse(node)
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return " = ".join(ast.unparse(part) for part in (*targets, node))


def _mark(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _moved(
    path: str, name: str, used: Mapping[str, str], plan: Plan, versions: str
) -> UnknownOperationError:
    def told(other: str) -> str:
        number = plan.by_name[other].line
        return f"line {number}: {plan.definition.line(number).strip()}"

    stands = "nothing has that name now"
    if name in plan.by_name:
        stands = f"the name now stands for another one ({told(name)})"
    if len(used) == 1:
        ((new, use),) = used.items()
        return UnknownOperationError(
            f"{path}.{name} moved to {new} ({versions}).",
            f"the calls of one callee are counted, and the forward has changed; {stands}.",
            f"use {path}{use} ({told(new)}).",
        )
    what = f"may be one of several now: {', '.join(used)}" if used else "is gone"
    choose = " or ".join(f"{path}{use}" for use in used.values())
    return UnknownOperationError(
        f"{path}.{name} {what} ({versions}).",
        f"the forward has changed, and no call in it is clearly the same; {stands}.",
        f"print({path}) shows the forward; then {f'use {choose}' if used else 'name another'}.",
    )
