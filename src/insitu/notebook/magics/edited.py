"""`%%trace MODEL --edit NAME`: the cell's body as a lasting edit of a model.

keep(ip, "model", "edited", "model.transformer.h[2].output[:] *= 2\\n")
"""

import ast
from typing import Any

from insitu.notebook.cell import compiled


def keep(ip: Any, model: str, name: str, body: str) -> Any:
    """Make the edit, and give the edited model to a variable.

    Args:
        ip: the shell.
        model: the model to be edited, as it is written.
        name: the variable that gets it.
        body: what every later pass of it runs.
    """
    __tracebackhide__ = True
    source = f"with {model}.edit() as {name}:\n{indented(ip.transform_cell(body))}"
    compiled(ip, source, source).run(ip)
    return ip.user_ns[name]


def indented(body: str) -> str:
    """A body one step further in; lines inside a text that goes over several stay as they are."""
    inside = {
        line
        for node in ast.walk(ast.parse(body))
        if isinstance(node, (ast.Constant, ast.JoinedStr))
        for line in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)
    }
    lines = body.splitlines(keepends=True)
    moved = [
        line if number in inside or not line.strip() else f"    {line}"
        for number, line in enumerate(lines, 1)
    ]
    return "".join(moved) if ast.parse(body).body else "    pass\n"
