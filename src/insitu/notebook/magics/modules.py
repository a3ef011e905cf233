"""`%modules [MODEL] [GLOB]`: a model's tree, or a table of the modules a pattern names.

%modules
%modules model transformer.h.*.mlp
"""

import ast
from typing import Any

from insitu.engine.cache.globs import chosen
from insitu.engine.wrapped import WrappedModule
from insitu.notebook.magics.line import Syntax, taken
from insitu.notebook.magics.names import model_and_rest, node_of
from insitu.notebook.magics.widgets import made
from insitu.twins.table import Table

SYNTAX = Syntax("%modules", "%modules [MODEL] [GLOB]")


def modules(ip: Any, line: str) -> Any:
    """Open the tree of a model's modules, or list those that a pattern names.

        %modules                                    the only model of the notebook
        %modules model.transformer.h[2]             one module and what is below it
        %modules model transformer.h.*.mlp          a table; * is one name, ** any number of them

    The tree is a widget: `tree = %modules`, then `tree.selected`, `tree.module`.
    """
    found = taken(SYNTAX, line)
    node = node_of(found.words[0], ip.user_ns) if found.words else None
    if node is not None and node._parent is not None:
        return made("module_tree:ModuleTree", node)
    _, model, rest = model_and_rest(SYNTAX, found, ip.user_ns, 1)
    return listed(model, bare(rest[0])) if rest else made("module_tree:ModuleTree", model)


def listed(model: WrappedModule, pattern: str) -> Table:
    """The modules that a pattern names, with sizes and what they returned."""
    nodes = chosen(model, pattern).values()
    rows = [
        (
            node._path,
            type(node._module).__name__,
            f"{sum(it.numel() for it in node._module.parameters()):,}",
            returned(node),
        )
        for node in nodes
    ]
    many = f"{len(rows)} module{'s' * (len(rows) != 1)}"
    return Table(
        f"{type(model._module).__name__}, {pattern}: {many}",
        ("path", "class", "parameters", "output"),
        rows,
        numbers=frozenset({"parameters"}),
    )


def returned(node: WrappedModule) -> str:
    """The kind of what a module returned in the last run that has shown it."""
    for order in reversed(node._root._orders.values()):
        if (seen := order.called.get(node._module)) is not None and seen.output:
            return str(seen.output)
    return ""


def bare(word: str) -> str:
    """A pattern without the quotes it may stand in."""
    try:
        value = ast.literal_eval(word)
    except (ValueError, SyntaxError):
        return word
    return value if isinstance(value, str) else word
