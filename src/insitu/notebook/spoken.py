"""Module paths as they stand in code: found, cut at the cursor, and looked up.

    resolve("model", ".transformer.h[0]", ip.user_ns)              # the wrapped module, or None
    path_at("x = model.transformer.h[0].output", 26, ip.user_ns)   # "model.transformer.h[0]"

Names are looked up among the modules; nothing is called and no property is read.
"""

import re
from collections.abc import Mapping
from typing import Any

from insitu.engine.wrapped import WrappedModule
from insitu.errors import InsituError

STEP = r"\.[A-Za-z_]\w*|\[\s*-?\d+\s*\]"
PATH = rf"(?<![\w.\])])([A-Za-z_]\w*)((?:{STEP})*)"

_path = re.compile(PATH)
_step = re.compile(STEP)


def resolve(root: str, path: str, names: Mapping[str, Any]) -> WrappedModule | None:
    """The module that a path such as `.transformer.h[0]` leads to from a variable."""
    node = names.get(root)
    if not isinstance(node, WrappedModule):
        return None
    for step in _step.findall(path):
        name = step[1:]
        if step[0] == "[":
            children, index = list(node._module._modules), int(step[1:-1])
            if not -len(children) <= index < len(children):
                return None
            name = children[index]
        found = node._child(name) or _learned(node, name)
        if found is None:
            return None
        node = found
    return node


def _learned(node: WrappedModule, name: str) -> WrappedModule | None:
    """The module of a name that the model has only when it is asked for."""
    try:
        return node._child(name) if node._learns(name) else None
    except InsituError:  # it has none
        return None


def path_at(code: str, cursor: int, names: Mapping[str, Any]) -> str | None:
    """The path under the cursor, up to the part it is in; a site stands for what it is a site of:
    a module, or an operation of its forward."""
    for found in _path.finditer(code):
        if not found.start() <= cursor <= found.end():
            continue
        steps = [
            it[0]
            for it in _step.finditer(code, found.start(2), found.end(2))
            if it.start() < cursor
        ]
        path = ""
        while steps and resolve(found[1], path + steps[0], names) is not None:
            path += steps.pop(0)
        node = resolve(found[1], path, names)
        return None if node is None else found[1] + path + "".join(_operations(node, steps))
    return None


def _operations(node: Any, steps: list[str]) -> list[str]:
    """The beginning of some steps that leads to an operation: `.source`, `.attn_0`, …"""
    for at in range(0, len(steps) - 1, 2):
        name = steps[at + 1][1:]
        try:
            if steps[at] != ".source" or name not in node.source:
                return steps[:at]
            node = node.source[name]
        except InsituError:  # it has no text
            return steps[:at]
    return steps[: len(steps) // 2 * 2]
