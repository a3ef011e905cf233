"""A cell's body, run where it stands: names, line numbers and breakpoints are the cell's own.

    body = compiled(ip, raw_cell, "trace", line, cell)
    body.run(ip)

A debugger finds a breakpoint by file name and line. ipykernel names a cell's file by a hash of the
whole cell, so `ip.run_cell(body)`, whose text differs, would lose every breakpoint. The body is
compiled under the whole cell's name instead, at the lines it has there.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import CodeType
from typing import Any

from IPython.core.displayhook import DisplayHook

from insitu.errors import UsageError

_TOP_LEVEL_AWAIT = ("'await' outside function", "'async for' outside", "'async with' outside")


@dataclass(frozen=True)
class Body:
    """Statements of a cell, compiled piece by piece so that expressions can be displayed."""

    filename: str
    pieces: tuple[CodeType, ...]

    def run(self, ip: Any) -> None:
        """Run the statements in the user's namespace."""
        __tracebackhide__ = True
        for piece in self.pieces:
            exec(piece, ip.user_global_ns, ip.user_ns)

    def says(self, name: str, names: Mapping[str, Any]) -> bool:
        """Whether the statements name something, or a function that they name does."""
        return any(_says(piece, name, names) for piece in self.pieces)


def compiled(ip: Any, whole: str, body: str) -> Body:
    """Compile the end of a cell under the name and at the lines of the whole.

    Args:
        ip: the shell.
        whole: the cell as the user wrote it.
        body: what follows the magic's line; IPython's `!` and `%` are understood there.

    Raises:
        SyntaxError: at the cell's own line.
        UsageError: the body awaits at its top level.
    """
    filename, _, source = placed(ip, whole, body)
    tree = ip.transform_ast(ip.compile.ast_parse(source, filename=filename))
    silent = DisplayHook.semicolon_at_end_of_expression(source)
    try:
        pieces = tuple(
            ip.compile(piece, filename, mode)
            for piece, mode in _pieces(tree, "none" if silent else ip.ast_node_interactivity)
        )
    except SyntaxError as error:
        raise told(error) from None
    return Body(filename, pieces)


def placed(ip: Any, whole: str, body: str) -> tuple[str, int, str]:
    """A cell's name, how many lines stand above its body, and the body at its own lines.

    Comment lines in place of what is above keep the numbers right, also through IPython's
    transformations, which drop leading blank lines.
    """
    filename = ip.compile.cache(whole, _number(ip), raw_code=whole)
    above = _lines_above(whole, body)
    return filename, above, ip.transform_cell("#\n" * above + body)


def _says(code: CodeType, name: str, names: Mapping[str, Any]) -> bool:
    functions = (getattr(names.get(used), "__code__", None) for used in code.co_names)
    inner = (*code.co_consts, *functions)
    return name in code.co_names or any(
        _says(it, name, {}) for it in inner if isinstance(it, CodeType)
    )


def _number(ip: Any) -> int:
    """The running cell's number; IPython 9 counts on before the cell runs."""
    running = ip.displayhook.exec_result
    return getattr(running, "execution_count", None) or ip.execution_count or 0


def ending(text: str) -> str:
    """A cell with a line end after its last line, as IPython hands bodies to magics."""
    return text if text.endswith("\n") else text + "\n"


def _lines_above(whole: str, body: str) -> int:
    """How many lines of the cell stand above the body."""
    return ending(whole)[: -len(body)].count("\n")


def _pieces(tree: ast.Module, interactivity: str) -> Iterator[tuple[ast.AST, str]]:
    """Runs of statements, with those that display their value on their own."""
    quiet: list[ast.stmt] = []
    for statement in tree.body:
        shown = interactivity == "all" or statement is tree.body[-1]
        if isinstance(statement, ast.Expr) and shown and interactivity != "none":
            if quiet:
                yield ast.Module(quiet, type_ignores=[]), "exec"
                quiet = []
            yield ast.Interactive([statement]), "single"
        else:
            quiet.append(statement)
    if quiet:
        yield ast.Module(quiet, type_ignores=[]), "exec"


def told(error: SyntaxError) -> SyntaxError | UsageError:
    """An error of the compiler, in words of our own where it is about `await`."""
    if not str(error.msg).startswith(_TOP_LEVEL_AWAIT):
        return error
    return UsageError(
        f"line {error.lineno} awaits, and the body of %%trace cannot.",
        "a forward pass is parked on this thread's stack while the body runs; the event loop "
        "would go on without it.",
        "await above the cell, in one of its own, and use the result here.",
    )
