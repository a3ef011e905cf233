"""`%sites [MODEL] [GLOB]`: what can be read, in the order the model runs it.

%sites
%sites model transformer.h.0.**
"""

from typing import Any

from insitu.engine.cache.globs import chosen
from insitu.errors import UsageError
from insitu.models.base import NNsight
from insitu.notebook.magics.line import Syntax, taken
from insitu.notebook.magics.modules import bare
from insitu.notebook.magics.names import model_and_rest
from insitu.twins.table import Table

SYNTAX = Syntax("%sites", "%sites [MODEL] [GLOB]")


def sites(ip: Any, line: str) -> Table:
    """List what can be read, in the order the model runs it, with shapes and classes.

        %sites                          the only model of the notebook
        %sites model transformer.h.0.** some of it

    Each module listed has `.input` and `.inputs` too, and `.source` for the operations inside it.
    """
    name, model, rest = model_and_rest(SYNTAX, taken(SYNTAX, line), ip.user_ns, 1)
    if not model._orders:
        raise UsageError(
            f"nothing is known yet of what {name} runs.",
            "the order and the shapes are those a run has shown, and there was none.",
            f'run it once: %%trace {name} "The Eiffel Tower is in the city of".',
        )
    return of_model(model, bare(rest[0]) if rest else "")


def of_model(model: NNsight, pattern: str) -> Table:
    """The modules a model has called, by where their first call ended."""
    kind, order = next(reversed(model._orders.items()))
    wanted = chosen(model, pattern or None)
    paths = {node._module: node._path for node in reversed(list(wanted.values()))}
    called = [(module, seen) for module, seen in order.called.items() if module in paths]
    called.sort(key=lambda it: it[1].ends[0] if it[1].ends else it[1].starts[0])
    rows = []
    for module, seen in called:
        calls = len(seen.starts)
        path = "model" if module is model._module else paths[module]
        times = str(calls) if module not in order.single or calls != 1 else ""
        rows.append((f"{path}.output", seen.output, type(module).__name__, times))
    has_times = any(row[3] for row in rows)
    names = ("site", "kind", "module", "calls")
    left_out = len(wanted) - len(rows)
    note = f"{left_out} more did not run." if left_out and not pattern else ""
    return Table(
        f"{type(model._module).__name__}: {len(rows)} site{'s' * (len(rows) != 1)} "
        f"in the order they run, as in the first "
        f"{kind}",
        names if has_times else names[:3],
        rows if has_times else [row[:3] for row in rows],
        note,
        frozenset({"calls"}),
    )
