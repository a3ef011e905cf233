"""Modules as text: what is in the file, and which other modules it imports."""

import ast
import os
import tokenize
from collections.abc import Iterator


def module_text(file: str) -> tuple[str, bool]:
    """The text of a module, and whether it is a package."""
    with tokenize.open(file) as opened:
        return opened.read(), os.path.basename(file) == "__init__.py"


def imports_of(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Every module that a text imports, or may import: `from a import b` names `a` and `a.b`."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node.module or "", node.level, package)
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def absolute(name: str, level: int, package: str) -> str:
    """The full name of a module that is imported with `level` dots in front."""
    if not level:
        return name
    parts = package.split(".")
    above = parts[: len(parts) - level + 1]
    return ".".join([*above, name] if name else above)
