"""The body of a `with`, taken out of the frame it stands in, to be run later or elsewhere.

    def __enter__(self):
        frame = sys._getframe(1)
        self.body = find_body(frame, "tracer.invoke")
        self.names = Names(frame, self.body)
        self.skip = Skip(frame)

The `with` is found from the instruction that enters it, its text from the file or cell it was read
from. The body is compiled once for each place in the code, with its own lines, so tracebacks and
breakpoints hold. Code that has no text runs from its bytecode, where that can stand alone.
"""

import ast
import dis
import linecache
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from inspect import CO_OPTIMIZED
from threading import RLock
from types import CodeType, FrameType
from typing import Any

from insitu.engine.capture import bytecode as capture_bytecode
from insitu.engine.capture.parsing import parse
from insitu.engine.capture.per_code import facts, known
from insitu.engine.capture.rewrite import Place, check, standing_alone
from insitu.engine.capture.scope import VALUE, Body, body_of
from insitu.engine.capture.scope import Names as Names
from insitu.engine.capture.skip import Skip as Skip
from insitu.engine.capture.text import Tree, With, flags, same, source, trees, within
from insitu.errors import CaptureError

_searching = RLock()


@dataclass(frozen=True)
class Part:
    """What is cut out of a tree."""

    node: ast.AST
    """The `with` it is cut out of, or the module."""
    statements: list[ast.stmt]
    target: ast.expr | None
    """What stands after `as`."""
    line: int


def find_body(frame: FrameType, what: str) -> Body:
    """The body of the `with` that a frame is just entering.

    Args:
        frame: the caller of `__enter__`.
        what: the construct, as the user wrote it.

    Raises:
        CaptureError: it is not entered by a `with`, has no text that could be found, or its body
            returns, yields, awaits, or leaves a loop around it.
    """
    found = known.get(id(frame.f_code))
    body: Body | None = None if found is None else found.bodies.get(frame.f_lasti)
    if body is not None:
        return body
    with _searching:
        bodies = facts(frame.f_code).bodies
        if frame.f_lasti not in bodies:
            bodies[frame.f_lasti] = _find_body(frame, what)
        return bodies[frame.f_lasti]


def find_rest(frame: FrameType, what: str, entered: int | None = None) -> Body:
    """What follows the statement that a frame is in, up to the end of the `with` around it.

    Args:
        frame: the caller, which is in a call that is a statement of its own.
        what: the construct, as the user wrote it.
        entered: the instruction that entered the `with` meant (the frame's `f_lasti` then).

    Raises:
        CaptureError: the statement does not stand directly in that `with`.
    """
    with _searching:
        rests = facts(frame.f_code).rests
        if frame.f_lasti not in rests:
            rests[frame.f_lasti] = _find_rest(frame, what, entered)
        return rests[frame.f_lasti]


def body_of_text(text: str, name: str, futures: int = 0) -> Body:
    """A body from its text alone, as `text_of` gives it; all its names are to be given.

    Args:
        text: its statements, from column 0.
        name: what tracebacks call it.
        futures: the compiler flags of `from __future__` imports that held where it was written.

    Raises:
        SyntaxError: this Python cannot read it.
    """
    lines = text.splitlines(keepends=True)
    statements = parse(text, name).body or [ast.Pass(lineno=1, col_offset=0)]
    module = ast.Module(_without_docstring(statements), [])
    code = compile(module, name, "exec", futures, dont_inherit=True)
    code = code.replace(co_name="edit", co_qualname="edit")
    _remember(code, Tree(module, lines, compiled=True))
    return body_of(code, code, None, 1, text)


def program(module: ast.Module, lines: list[str], name: str, futures: int = 0) -> CodeType:
    """A whole program, compiled so that the bodies in it can be captured in their turn.

    Args:
        module: its tree, with the positions that tracebacks are to show.
        lines: the text it comes from, so that line 1 is the first.
        name: what tracebacks call it.
        futures: the compiler flags of `from __future__` imports that held where it was written.
    """
    code: CodeType = compile(module, name, "exec", futures, dont_inherit=True)
    _remember(code, Tree(module, lines, compiled=True))
    return code


def cut_out(body: Body, statements: list[ast.stmt], what: str) -> Body:
    """Some statements of a captured body as a body of their own, with the same caller.

    Raises:
        CaptureError: they leave the loop or the function around them.
    """
    first = statements[0].lineno
    check(statements, what, first)
    caller, lines = body.code, facts(body.code).tree.lines
    module = ast.Module(_without_docstring(statements), [])
    code = compile(module, caller.co_filename, "exec", flags(caller), dont_inherit=True)
    code = code.replace(co_name=caller.co_name, co_qualname=caller.co_qualname)
    _remember(code, Tree(module, lines, compiled=True))
    cut = body_of(code, code, None, first)
    return replace(
        cut, in_function=body.in_function, local=body.local, around=body.around, cells=body.cells
    )


def tree_of(body: Body) -> ast.Module | None:
    """What a body was compiled from, with the target's assignment first where it has one that is
    no plain name; None for a body that runs from its bytecode.
    """
    tree: Tree | None = facts(body.code).tree
    return None if tree is None else tree.root


def text_of(body: Body) -> str:
    """A body's text as it can stand alone; as it was written, where that means the same.

    It does not in a class, whose private names are mangled, and where `nonlocal` or `super()` had
    to be rewritten. Empty for a body that runs from its bytecode.
    """
    if not body.text:
        return ""
    module: ast.Module = facts(body.code).tree.root
    statements = module.body[1:] if body.target == VALUE else module.body
    written = _without_docstring(parse(body.text).body)
    if [ast.dump(one) for one in written] == [ast.dump(one) for one in statements]:
        return body.text
    return ast.unparse(ast.Module(statements, [])) + "\n"


def assign_target(body: Body, names: Names, value: Any) -> None:
    """Give what stands after `as` its value, before the body runs."""
    if body.target is None:
        return
    names[body.target] = value
    tree: Tree | None = facts(body.code).tree
    if body.target == VALUE and tree is not None:  # `as self.edited`: the body's first statement
        assigned = ast.Module(tree.root.body[:1], [])
        exec(compile(assigned, body.code.co_filename, "exec", dont_inherit=True), names)
    elif body.target == VALUE and (name := capture_bytecode.target(body.code)) is not None:
        names[name] = value
    names.write_back()


# Finding ------------------------------------------------------------------------------------------


def _find_body(frame: FrameType, what: str) -> Body:
    code, at = frame.f_code, frame.f_lasti
    entering = dis.opname[code.co_code[at]]
    if entering != "BEFORE_WITH":
        raise _not_a_with(frame, what, entering)
    tree, (node, item) = _located(frame, what, at)
    if tree is None:
        return capture_bytecode.find_body(frame, what)
    statements: list[ast.stmt] = node.body
    if item + 1 < len(node.items):  # the items after it belong to its body
        rest = type(node)(items=node.items[item + 1 :], body=node.body)
        statements = [ast.copy_location(rest, node)]
    part = Part(node, statements, node.items[item].optional_vars, node.lineno)
    return _compiled(frame, tree, part, what)


def _located(frame: FrameType, what: str, at: int) -> tuple[Tree | None, tuple[Any, int]]:
    """The tree, the `with` and the item of it that an instruction enters."""
    for tree in _trees(frame):
        found = _at(tree, frame.f_code, at)
        if found is not None and same(frame.f_code, tree, found[0]):
            return tree, found
    if frame.f_code.co_flags & CO_OPTIMIZED:
        known_text = linecache.getlines(frame.f_code.co_filename, frame.f_globals)
        raise _edited(frame, what) if known_text else _no_text(frame, what)
    return None, (None, 0)


def _trees(frame: FrameType) -> Iterable[Tree]:
    found = known.get(id(frame.f_code))
    if found is not None and found.tree is not None:
        return [found.tree]
    return trees(frame)


def _at(tree: Tree, code: CodeType, at: int) -> tuple[With, int] | None:
    """The `with` item that an instruction enters.

    3.13 gives that instruction the position of the item, earlier versions that of the whole `with`,
    so that its items have to be counted; a `finally` is compiled twice, and counted round.
    """
    positions = list(code.co_positions())
    here = positions[at // 2]
    first, last, left, right = here
    if left is None:  # run with -X no_debug_ranges: lines alone
        entered = tree.items if sys.version_info >= (3, 13) else tree.withs
        items = [item for where, its in entered.items() for item in its if where[0] == first]
        if len({id(node) for node, _ in items}) > 1:
            return None
    else:
        items = tree.items.get((first, last, left, right)) or tree.withs.get(here, [])
    if not items:
        return None
    before = sum(
        positions[offset // 2] == here
        for offset in range(0, at, 2)
        if dis.opname[code.co_code[offset]] == "BEFORE_WITH"
    )
    return items[before % len(items)]


def _find_rest(frame: FrameType, what: str, entered: int | None) -> Body:
    code, at = frame.f_code, frame.f_lasti
    _, last, _, right = list(code.co_positions())[at // 2]
    meant = None
    for tree in _trees(frame):
        statement = tree.calls.get((last, right))
        if statement is None:
            continue
        around = tree.around[statement]
        if entered is not None:
            meant = _at(tree, code, entered)
            if meant is None or meant[0] is not around or meant[1] + 1 < len(meant[0].items):
                raise _not_directly(frame, what)
        if not isinstance(around, (ast.With, ast.Module)) or statement not in around.body:
            raise _not_directly(frame, what)
        if isinstance(around, ast.Module) and not tree.compiled:
            raise _not_directly(frame, what)
        if same(code, tree, around if isinstance(around, ast.With) else statement):
            rest = around.body[around.body.index(statement) + 1 :]
            nothing: ast.stmt = ast.copy_location(ast.Pass(), statement)
            part = Part(around, rest or [nothing], None, statement.lineno)
            return _compiled(frame, tree, part, what)
    raise _no_text(frame, what)


# Compiling ----------------------------------------------------------------------------------------


def _compiled(frame: FrameType, tree: Tree, part: Part, what: str) -> Body:
    """A body as code that stands alone."""
    code = frame.f_code
    check(part.statements, what, part.line)
    place = _place(code, tree, part.node)
    alone = _without_docstring(standing_alone(part.statements, place, what))
    target = None
    if part.target is not None:
        given = ast.Assign(
            [part.target], ast.copy_location(ast.Name(VALUE, ast.Load()), part.target)
        )
        assigned: Any = standing_alone([ast.copy_location(given, part.target)], place, what)[0]
        target = getattr(assigned.targets[0], "id", VALUE)
        if target is VALUE:
            alone.insert(0, assigned)
    module = ast.Module(alone, [])
    try:
        compiled = compile(module, code.co_filename, "exec", flags(code), dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise _cannot_stand_alone(what, part.line, error) from error
    compiled = compiled.replace(co_name=code.co_name, co_qualname=code.co_qualname)
    _remember(compiled, Tree(module, tree.lines, compiled=True))
    line, text = part.statements[0].lineno, source(part.node, part.statements, tree.lines)
    return body_of(code, compiled, target, line, text)


def _without_docstring(statements: list[ast.stmt]) -> list[ast.stmt]:
    """Statements that are compiled like a module, whose first string would be its docstring."""
    first = statements[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        return [ast.copy_location(ast.Pass(), first), *statements]
    return statements


def _remember(compiled: CodeType, origin: Tree) -> None:
    for inner in (compiled, *within(compiled)):
        facts(inner).tree = origin


def _place(code: CodeType, tree: Tree, node: ast.AST) -> Place:
    classes = [outer for outer in tree.above(node) if isinstance(outer, ast.ClassDef)]
    in_function = bool(code.co_flags & CO_OPTIMIZED)
    own = code.co_varnames + code.co_cellvars + code.co_freevars
    return Place(
        in_function=in_function,
        owner=classes[0].name if classes else "",
        first=code.co_varnames[0] if in_function and code.co_argcount else "",
        local=frozenset(own) if in_function else frozenset(),
    )


# What goes wrong ----------------------------------------------------------------------------------


def _where(frame: FrameType) -> str:
    return f"line {frame.f_lineno} of {os.path.basename(frame.f_code.co_filename)}"


def _not_a_with(frame: FrameType, what: str, entering: str) -> CaptureError:
    if entering == "BEFORE_ASYNC_WITH":
        return CaptureError(
            f"{what} on {_where(frame)} is entered by `async with`.",
            "its body is taken out of a plain `with`, and run when the model gets there.",
            f"write `with {what}(...):`.",
        )
    return CaptureError(
        f"{what} on {_where(frame)} is not entered by a `with` of its own.",
        "its body runs later, so it has to be found: it is the body of the `with` that enters it, "
        "and an ExitStack or another context manager in between has none.",
        f"write `with {what}(...):` around the body.",
    )


def _no_text(frame: FrameType, what: str) -> CaptureError:
    return CaptureError(
        f"{what} on {_where(frame)} needs the text of the function it is in, "
        "which cannot be found.",
        "its body runs later and is compiled from its text; this function came from neither a file "
        "nor a cell (exec, a pipe, or the prompt of Python before 3.13).",
        "put the function into a file or a cell, or write the `with` outside of any function.",
    )


def _edited(frame: FrameType, what: str) -> CaptureError:
    name = os.path.basename(frame.f_code.co_filename)
    return CaptureError(
        f"{what} on line {frame.f_lineno} does not stand in {name} as it runs.",
        f"{name} has been edited since it was loaded (or an import hook has rewritten it), "
        "and the body that runs later is compiled from its text.",
        "restart, or load it again with importlib.reload(module), and run this once more.",
    )


def _not_directly(frame: FrameType, what: str) -> CaptureError:
    return CaptureError(
        f"{what} on {_where(frame)} does not stand directly in the trace's `with`.",
        "what follows it there is run in every step, which cannot be cut out of a loop, a branch "
        "or another `with`.",
        "write `for step in tracer.iter[:]:` around what is to run in every step.",
    )


def _cannot_stand_alone(what: str, line: int, error: Exception) -> CaptureError:
    return CaptureError(
        f"the body of {what} on line {line} cannot be run on its own.",
        f"Python says: {getattr(error, 'msg', error)}.",
        "move that part into a function defined above, and call it in the body.",
    )
