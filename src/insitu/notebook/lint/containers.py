"""Elements that are saved one by one, while the list that holds them is not.

saved_elements(block)
"""

import ast
from collections.abc import Iterator

from insitu.notebook.lint.blocks import Block
from insitu.notebook.lint.finding import Change, Finding


def saved_elements(block: Block) -> Iterator[Finding]:
    """`found = []` in a block, then `found.append(x.save())`."""
    nodes = [it for part in block.body for it in ast.walk(part)]
    made: dict[str, ast.Assign] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and _is_empty(node.value):
            made.update({it.id: node for it in node.targets if isinstance(it, ast.Name)})
    told: set[str] = set()
    for node in nodes:
        name, element = _added(node)
        if name in made and name not in told and element is not None:
            told.add(name)
            yield _finding(block, made[name], name, [e for n, e in map(_added, nodes) if n == name])


def _is_empty(value: ast.expr) -> bool:
    """Whether it makes an empty list, dict or set, without `.save()`."""
    if isinstance(value, ast.List):
        return not value.elts
    if isinstance(value, ast.Dict):
        return not value.keys
    is_call = isinstance(value, ast.Call) and isinstance(value.func, ast.Name)
    return is_call and value.func.id in ("list", "dict", "set") and not value.args  # type: ignore[attr-defined]


def _added(node: ast.AST) -> tuple[str, ast.Call | None]:
    """The container that a node adds a saved element to, and the call of `save`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        adds = node.func.attr in ("append", "add") and len(node.args) == 1
        if adds and isinstance(node.func.value, ast.Name):
            return node.func.value.id, _saved(node.args[0])
    if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Subscript):
        name = target.value.id if isinstance(target.value, ast.Name) else ""
        return name, _saved(node.value)
    return "", None


def _saved(value: ast.expr) -> ast.Call | None:
    is_call = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)
    if is_call and value.func.attr == "save" and not value.args:  # type: ignore[attr-defined]
        assert isinstance(value, ast.Call)
        return value
    return None


def _finding(block: Block, made: ast.Assign, name: str, elements: list[ast.Call | None]) -> Finding:
    cell = block.cell
    said = cell.said(made.value)
    whole = f"{ {'[]': 'list()', '{}': 'dict()'}.get(said, said) }.save()"
    saves = [it for it in elements if it is not None]
    shorter = [
        Change(cell.end(it.func.value), cell.end(it), "")
        for it in saves
        if isinstance(it.func, ast.Attribute)
    ]
    return Finding(
        "saved-elements",
        saves[0].lineno,
        cell.column(saves[0]),
        f"the elements of {name} are saved, and {name} itself is not.",
        "what is saved comes back from a server; a container that is not stays there, with all "
        "it holds.",
        f"save the container: {name} = {whole}",
        (cell.instead(made.value, whole), *shorter),
    )
