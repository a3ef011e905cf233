"""Edits in a file: what they do as source, what they do it with as safetensors.

    with model.edit() as edited:
        model.transformer.h[2].output[:, -1] += direction
    edited.save_edits("steer.safetensors")

    steered = model.load_edits("steer.safetensors")     # in another program
    steered.generate("The Colosseum is in")

The file holds each edit's text, and of the names it uses what `edits_values` can name. Loading
compiles the text and runs none of it; it runs in every pass, like any edit. So a file of edits is a
program: load those of people you trust.
"""

import ast
import json
import linecache
import weakref
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from insitu.engine.cache.file import write_tensors
from insitu.engine.capture.bodies import body_of_text, text_of
from insitu.engine.capture.futures import flags_of
from insitu.engine.capture.parsing import parse
from insitu.engine.capture.scope import Body, Names
from insitu.engine.edits import Edit
from insitu.engine.edits_values import Missing, Packing, Unpacking
from insitu.engine.wrapped import WrappedModule
from insitu.errors import EditsFileError, InsituError, UnknownModuleError, UsageError

FORMAT = 1
_KEY = "insitu_edits"
_OFTEN_NOT = (
    ast.If, ast.IfExp, ast.Try, ast.Match, ast.BoolOp,
    ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef,
)  # fmt: skip
"""What stands inside these may never be run."""


# Writing ------------------------------------------------------------------------------------------


def save(root: Any, file: str | PathLike[str]) -> Path:
    """Write a wrapper's edits into a file, over what is there; a failure leaves that as it was.

    Raises:
        UsageError: there are none, or one uses what no file can hold.
        EditsFileError: the file cannot be written.
    """
    path = Path(file)
    if not root._edits:
        raise UsageError(
            "there are no edits to save.",
            "this wrapper has none: model.edit() makes a second wrapper, and that one has them.",
            "with model.edit() as edited: …, and edited.save_edits(file).",
        )
    packing = Packing(root)
    document = {
        "format": FORMAT,
        "model": type(root._module).__name__,
        "edits": [_written(edit, packing) for edit in root._edits],
        "values": packing.values,
    }
    try:
        write_tensors(path, packing.tensors, {_KEY: json.dumps(document)})
    except Exception as error:  # safetensors' own class derives from Exception alone
        raise EditsFileError(
            f"the edits could not be written to {path}.",
            f"{error}.",
            "give a file in a folder that exists and can be written to.",
        ) from error
    return path


def _written(edit: Edit, packing: Packing) -> dict[str, Any]:
    file, line = edit.place
    packing.edit = f"the edit on line {line} of {file}"
    text = text_of(edit.body)
    if not text:
        raise UsageError(
            f"{packing.edit} cannot be saved: it has no text.",
            "it came from neither a file nor a cell, and runs from its bytecode, which other "
            "versions of Python cannot read.",
            "write the edit in a file or a cell.",
        )
    futures, given = edit.needs(text)
    return {
        "text": text,
        "line": line,
        "file": file,
        "futures": list(futures),
        "names": {name: packing.pack(name, value) for name, value in given.items()},
    }


# Reading ------------------------------------------------------------------------------------------


def load(root: Any, file: str | PathLike[str]) -> list[Edit]:
    """The edits of a file, for this wrapper; all of them or none.

    Raises:
        EditsFileError: there is no such file, it is of another kind or format, or an edit in it
            needs what this model, or this program, does not have.
    """
    path = Path(file)
    opened = _open(path)
    document = _document(path, opened)
    unpacking = Unpacking(root, document["values"], lambda name: _tensor(path, opened, name))
    edits = []
    for number, written in enumerate(document["edits"]):
        unpacking.edit = f"edit {number} of {path.name}"
        try:
            edits.append(_edit(root, unpacking, f"{path.name}:{number}", written))
        except Missing as missing:
            raise _does_not_fit(unpacking.edit, missing, root, document) from None
        except InsituError:
            raise
        except SyntaxError as error:
            raise EditsFileError(
                f"{unpacking.edit} cannot be read by this Python.",
                f"{error}.",
                f"it was written on line {written['line']} of {written['file']}: save it from "
                "there again, with this version of Python.",
            ) from error
        except Exception as error:
            raise _broken(path, f"{unpacking.edit} cannot be read ({error!r})") from error
    return edits


def _edit(root: Any, unpacking: Unpacking, name: str, written: dict[str, Any]) -> Edit:
    text, place = str(written["text"]), (str(written["file"]), int(written["line"]))
    values = {key: unpacking.value(packed) for key, packed in written["names"].items()}
    body = body_of_text(text, _unused(name), flags_of(written["futures"]))
    _check_places(parse(text), values, body)
    _show(text, body)
    return Edit(root, body, Names.standing_alone(body, values), place)


def _unused(name: str) -> str:
    shown, number = f"<edits {name}>", 1
    while shown in linecache.cache:
        number += 1
        shown = f"<edits {name} ({number})>"
    return shown


def _show(text: str, body: Body) -> None:
    """Let tracebacks and debuggers find a body's lines, for as long as it lives."""
    name = body.code.co_filename
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    weakref.finalize(body.code, linecache.cache.pop, name, None).atexit = False


def _check_places(text: ast.Module, values: dict[str, Any], body: Body) -> None:
    """Raise if a text names a module for certain that the model does not have."""
    own = {
        name: value
        for name, value in values.items()
        if isinstance(value, WrappedModule) and name not in body.stored
    }
    for node in _certain(text):
        _place(node, own)


def _certain(node: ast.AST) -> Iterator[ast.AST]:
    """What runs whenever the text does."""
    yield node
    if not isinstance(node, _OFTEN_NOT):
        for inner in ast.iter_child_nodes(node):
            yield from _certain(inner)


def _place(node: ast.AST, own: dict[str, WrappedModule]) -> Any:
    """The module that an expression names; None for anything else."""
    if isinstance(node, ast.Name):
        return own.get(node.id)
    if not isinstance(node, (ast.Attribute, ast.Subscript)):
        return None
    around = _place(node.value, own)
    if not isinstance(around, WrappedModule):
        return None
    if isinstance(node, ast.Subscript):
        try:
            index = ast.literal_eval(node.slice)
        except ValueError:  # it is computed
            return None
        try:
            return around[index]
        except IndexError:
            raise Missing(ast.unparse(node), around._unknown(str(index))) from None
        except UnknownModuleError as error:
            raise Missing(ast.unparse(node), error) from None
    if node.attr in around.__dict__ or hasattr(type(around), node.attr):
        return around.__dict__.get(node.attr)
    try:
        return _named(around, node.attr)
    except UnknownModuleError as error:
        raise Missing(ast.unparse(node), error) from None


def _named(around: WrappedModule, name: str) -> WrappedModule | None:
    """The module of a name; None for a view or an attribute."""
    found = around._child(name)
    known = found is not None or around._view(name) or hasattr(around._module, name)
    if not known and around._learns(name):
        return around._child(name)
    if not known and not name.endswith("_"):
        raise around._unknown(name)
    return found


def _open(path: Path) -> Any:
    if not path.is_file():
        raise EditsFileError(
            f"there is no file {path}.",
            "edits are read from the file that they were written to.",
            "check the path; edited.save_edits(path) writes one.",
        )
    from safetensors import safe_open

    try:
        return safe_open(path, framework="pt")
    except Exception as error:  # safetensors' own class derives from Exception alone
        raise _broken(path, str(error)) from error


def _document(path: Path, opened: Any) -> dict[str, Any]:
    text = (opened.metadata() or {}).get(_KEY)
    if text is None:
        raise _broken(path, "it is a safetensors file that save_edits() did not write")
    try:
        document: dict[str, Any] = json.loads(text)
        number = document["format"]
        if [type(document[part]) for part in ("edits", "values")] != [list, list]:
            raise ValueError("it has no edits")
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise _broken(path, f"its structure cannot be read ({error!r})") from error
    if number != FORMAT:
        raise EditsFileError(
            f"{path} was written in format {number}, and is not read here.",
            f"this version of Insitu knows format {FORMAT}.",
            "pip install --upgrade insitu",
        )
    return document


def _tensor(path: Path, opened: Any, name: str) -> Tensor:
    try:
        value: Tensor = opened.get_tensor(name)
    except Exception as error:
        raise _broken(path, f"{name}: {error}") from error
    return value.clone()  # the file may be written over


def _does_not_fit(
    edit: str, missing: Missing, root: Any, document: dict[str, Any]
) -> EditsFileError:
    was, here = document.get("model"), type(root._module).__name__
    return EditsFileError(
        f"{edit} does not fit this model: it has no {missing.place}.",
        f"it was saved from a {was}, and this is a {here}; {missing.error.why}",
        missing.error.next,
    )


def _broken(path: Path, why: str) -> EditsFileError:
    return EditsFileError(
        f"{path} could not be read as edits.",
        f"{why}.",
        "give a file that edited.save_edits(file) has written.",
    )
