"""Where a block runs: the same program, beside the model, with its values sent back.

    execute(model, request, link, result, limits)       # in a job's process
    saved = run(model, block, link)                     # the middle of it

The program is the user's `with` statement once more, compiled with their own file name and lines,
so everything in it means what it means at home: invokes, steps, gradients, sources.
"""

import ast
import linecache
import sys
from collections.abc import Mapping
from dataclasses import replace
from types import CodeType
from typing import Any, BinaryIO, cast

from insitu.engine import said
from insitu.engine.capture.bodies import program
from insitu.engine.capture.futures import flags_of
from insitu.engine.capture.parsing import parse
from insitu.engine.save import keeping
from insitu.engine.views import View, ViewsOf
from insitu.errors import UsageError
from insitu.models import elsewhere
from insitu.remote.blocks.block import Block, Text, class_name, received
from insitu.remote.blocks.exchange import Exchange
from insitu.remote.blocks.faults import BlockFailed, fault_of
from insitu.remote.blocks.taken import CALL
from insitu.remote.blocks.telling import Generating, Link, Writing
from insitu.remote.protocol import Limits
from insitu.remote.wire import container
from insitu.remote.wire.values import encode_all

MODEL, ARGS, SETTINGS = "__insitu_model__", "__insitu_args__", "__insitu_settings__"
RETURNED = "__insitu_returned__"
"""Under which name the result of a call without a block comes back."""
_GIVEN = frozenset({MODEL, ARGS, SETTINGS, RETURNED, CALL, "__builtins__", "__name__"})


def execute(model: Any, request: bytes, link: Link, result: BinaryIO, limits: Limits) -> None:
    """Run a request, and write the container of its result.

    Raises:
        BlockFailed: the block raised; the fault says what and where.
    """
    try:
        header, tensors = container.unpack(
            request, most=limits.unpacked_bytes, header_most=limits.header_bytes
        )
        block = received(header, tensors, model)
        saved = run(model, block, link, limits)
        told, tensors = encode_all(saved)
        header = {"kind": "result", "python": _python(), **told}
        writing = Writing(link, sum(it.nbytes for it in tensors.values())).told
        container.write(result, header, tensors, most=limits.result_bytes, told=writing)
    except BlockFailed:
        raise
    except Exception as error:
        raise BlockFailed(fault_of(error, frozenset())) from error


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def run(model: Any, block: Block, link: Link, limits: Limits) -> dict[str, Any]:
    """Run a block beside its model; gives what it saved, by name.

    Raises:
        BlockFailed: it raised.
    """
    names: dict[str, Any] = {
        "__builtins__": block.builtins,
        "__name__": "__main__",
        MODEL: model,
        ARGS: block.args,
        SETTINGS: block.settings,
        CALL: Exchange(block, link, limits).come_to,
    }
    if block.body is not None:
        names.update(block.body.names)
    code, file = _program(block)
    there = elsewhere.already_there.set(True)
    names_before, edits_before = model._names, list(model._edits)
    try:
        _prepare(model, block)
        with keeping() as saved, said.to(link.log), Generating(model, link):
            exec(code, names)
    except BaseException as error:
        raise BlockFailed(fault_of(error, frozenset({file}))) from error
    finally:
        elsewhere.already_there.reset(there)
        if block.renamed or block.views or block.edits:  # a process may run several jobs
            model.__dict__["_names"], model._edits[:] = names_before, edits_before
        block.close()
    if block.body is None:
        return {RETURNED: names[RETURNED]}
    return _to_send_back(names, block.body, saved)


def _prepare(model: Any, block: Block) -> None:
    """Give the model here the further names, the views and the edits that the one at home has."""
    if block.renamed:
        known = model._names
        model.__dict__["_names"] = replace(
            known,
            anywhere={name: tuple(real) for name, real in block.renamed["anywhere"].items()},
            placed={(at, name): path for at, name, path in block.renamed["placed"]},
        )
    if block.views:
        known = model._names
        model.__dict__["_names"] = replace(known, viewed=_viewed(model, block.views, known.viewed))
    for edit in block.edits:
        call = _call("edit", inplace=True)
        code, _ = _with(call, edit)
        names = {"__builtins__": block.builtins, "__name__": "__main__", MODEL: model}
        exec(code, {**names, **edit.names})


def _viewed(model: Any, told: list[tuple[str, type[View]]], known: ViewsOf) -> ViewsOf:
    """The views of each class of modules, with those that came along.

    Raises:
        UsageError: the model here has no module of such a class.
    """
    kinds = {class_name(kind): kind for it in model._module.modules() for kind in type(it).__mro__}
    found = dict(known)
    for name, view in told:
        kind = kinds.get(name)
        if kind is None:
            raise UsageError(
                f"the view {view.__name__} is of {name}, and the model on the server has no such "
                "module.",
                "views go along with a block, and the server's model was made by other code: "
                "another version of a library, or other settings.",
                "compare both sides with insitu.compare(), or leave the view out of this block.",
            )
        found[kind] = (*found.get(kind, ()), view)
    return found


# The program --------------------------------------------------------------------------------------


def _program(block: Block) -> tuple[CodeType, str]:
    """The `with` statement that the block was the body of, and its file's name."""
    if block.kind == "session":
        call = _call("session")
    else:
        text = f"{MODEL}.{block.kind}(*{ARGS}, **{SETTINGS})"
        call = cast(ast.Expr, parse(text).body[0]).value
    if block.body is not None:
        return _with(call, block.body)
    given = ast.Assign([ast.Name(RETURNED, ast.Store())], call)
    module = ast.fix_missing_locations(ast.Module([given], []))
    return compile(module, "<a call without a block>", "exec"), "<a call without a block>"


def _call(method: str, **settings: bool) -> ast.expr:
    keywords = [ast.keyword(name, ast.Constant(value)) for name, value in settings.items()]
    return ast.Call(ast.Attribute(ast.Name(MODEL, ast.Load()), method, ast.Load()), [], keywords)


def _with(call: ast.expr, text: Text) -> tuple[CodeType, str]:
    lines = ["\n"] * (text.line - 1) + text.text.splitlines(keepends=True)
    file = text.file
    body = parse("".join(lines), file).body or [ast.Pass()]
    target = None if text.target is None else ast.Name(text.target, ast.Store())
    around = ast.With([ast.withitem(call, target)], body)
    for node in ast.walk(call):
        node.lineno = node.end_lineno = max(text.line - 1, 1)  # type: ignore[attr-defined]
        node.col_offset, node.end_col_offset = 0, 1  # type: ignore[attr-defined]
    around.lineno, around.col_offset = max(text.line - 1, 1), 0
    around.end_lineno, around.end_col_offset = len(lines), len(lines[-1]) if lines else 0
    module = ast.fix_missing_locations(ast.Module([around], []))
    if file not in linecache.cache:
        linecache.cache[file] = (len(text.text), None, lines, file)
    return program(module, lines, file, flags_of(text.futures)), file


# What comes of it ---------------------------------------------------------------------------------


def _to_send_back(names: Mapping[str, Any], body: Text, saved: Mapping[int, Any]) -> dict[str, Any]:
    """What was saved under a name; and given lists and dicts that something saved was put into."""
    back: dict[str, Any] = {}
    for name, value in names.items():
        if name in _GIVEN or (name in body.names and body.names[name] is value):
            continue
        if id(value) in saved:
            back[name] = value
    for name, value in body.names.items():
        if names.get(name) is value and _holds_saved(value, saved):
            back[name] = value
    return back


def _holds_saved(value: Any, saved: Mapping[int, Any]) -> bool:
    if not isinstance(value, (list, dict)):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return any(id(part) in saved or _holds_saved(part, saved) for part in parts)
