"""What a server needs to know of the wrapper here: which model, names, views, lasting changes."""

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from insitu.engine.capture.bodies import text_of
from insitu.engine.edits import Edit
from insitu.engine.views import View
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError
from insitu.remote.blocks.block import Text, class_name
from insitu.remote.wire.places import place_of
from insitu.remote.wire.unsendable import unsendable


def key_of(model: Any) -> str:
    """The name by which a server may know a model: the one it was opened by.

    Raises:
        UsageError: it was not opened by a name.
    """
    name = getattr(model, "_opened_as", None)
    if name is None:
        config = getattr(model._module, "config", None)
        name = getattr(config, "_name_or_path", None)
    if not name:
        raise UsageError(
            f"this {type(model._module).__name__} has no name that a server could know.",
            "a server holds models by name, and loads them itself; weights are not sent.",
            'open it by name, LanguageModel("demo"), or run the block here: leave remote= out.',
        )
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else str(name)


def renamed_of(model: Any) -> dict[str, Any]:
    """Further names of its modules, as JSON; empty where there are none."""
    names = model._names
    if not names.anywhere and not names.placed:
        return {}
    return {
        "anywhere": {name: list(real) for name, real in names.anywhere.items()},
        "placed": [[at, name, path] for (at, name), path in names.placed.items()],
    }


def views_of(model: Any) -> list[tuple[str, type[View]]]:
    """The user's own views, each with the class of modules that it is of; ours are everywhere."""
    return [
        (class_name(kind), view)
        for kind, those in model._names.viewed.items()
        for view in those
        if view.__module__.partition(".")[0] != "insitu"
    ]


def check_attached(model: Any, tree: ast.AST, names: Mapping[str, Any], file: str) -> None:
    """Refuse a block that uses a module of the user's own, which stands beside the model here.

    Raises:
        NotSendableError: it does.
    """
    own = {name: it for those in model._names.attached.values() for name, it in those.items()}
    for node in ast.walk(tree) if own else ():
        if isinstance(node, ast.Attribute) and node.attr in own:
            root: ast.AST = node
            while isinstance(root, (ast.Attribute, ast.Subscript)):
                root = root.value
            owner = names.get(root.id, model) if isinstance(root, ast.Name) else model
            if isinstance(owner, WrappedModule):
                raise unsendable(node.attr, own[node.attr], place_of(file, node.lineno))


def edits_of(model: Any) -> list[Text]:
    """Its edits, as text with the values they use."""
    return [_edit(edit) for edit in model._edits]


def _edit(edit: Edit) -> Text:
    text, (file, line) = text_of(edit.body), edit.place
    if not text:
        raise UsageError(
            f"the edit on line {line} of {file} cannot be sent: it has no text.",
            "it came from neither a file nor a cell, and a server compiles its text.",
            "write the edit in a file or a cell.",
        )
    futures, given = edit.needs(text)
    return Text(text, file, line, futures, None, given)
