"""What the words of a magic's line stand for in the notebook.

    model, words = model_and_rest(LENS, taken(LENS, "'The Eiffel Tower is in'"), ip.user_ns)

The model may be left out where the notebook has exactly one.
"""

import ast
from collections.abc import Mapping
from typing import Any

from insitu.engine.paths import nearest
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError
from insitu.models.base import NNsight
from insitu.models.language import LanguageModel
from insitu.notebook.magics.line import Syntax, Taken
from insitu.notebook.spoken import resolve


def models(names: Mapping[str, Any]) -> dict[str, NNsight]:
    """The notebook's models by name; one that has several is named by the first."""
    found: dict[str, NNsight] = {}
    for name, value in names.items():
        is_new = isinstance(value, NNsight) and all(value is not it for it in found.values())
        if is_new and not name.startswith("_"):
            found[name] = value
    return found


def the_model(syntax: Syntax, names: Mapping[str, Any]) -> tuple[str, NNsight]:
    """The one model of a notebook, and its name.

    Raises:
        UsageError: there is none, or there are several.
    """
    found = models(names)
    if len(found) == 1:
        return next(iter(found.items()))
    if not found:
        raise UsageError(
            f"%{syntax.magic[1:]} found no model in this notebook.",
            "it looks for a variable that holds a wrapped model.",
            'load one: model = insitu.LanguageModel("demo").',
        )
    raise UsageError(
        f"%{syntax.magic[1:]} was given no model, and this notebook has {len(found)}.",
        f"they are {', '.join(list(found)[:6])}.",
        f"name one. The line is {syntax.usage}",
    )


def model_and_rest(
    syntax: Syntax, found: Taken, names: Mapping[str, Any], most: int
) -> tuple[str, NNsight, list[str]]:
    """The model a line names first, or the only one; and the line's other words.

    Args:
        syntax: the magic's.
        found: its line.
        names: the notebook's variables.
        most: how many other words there may be.

    Raises:
        UsageError: a name that the notebook does not know, or too many words.
    """
    words = found.words
    if words and isinstance(_looked_up(words[0], names), NNsight):
        name, model, rest = words[0], _looked_up(words[0], names), words[1:]
    else:
        if len(words) > most and words[0].isidentifier():
            raise unknown(syntax, words[0], words[0], names)
        (name, model), rest = the_model(syntax, names), words
    if len(rest) > most:
        raise UsageError(
            f"%{syntax.magic[1:]} was given {len(rest) - most} word{'s' * (len(rest) - most > 1)} "
            f"too many: {' '.join(rest[most:])}.",
            f"the line is {syntax.usage}",
            "put text with spaces in quotes.",
        )
    return name, model, rest


def language_model(syntax: Syntax, name: str, model: NNsight) -> LanguageModel:
    """The model as one that reads text.

    Raises:
        UsageError: it reads none.
    """
    if isinstance(model, LanguageModel):
        return model
    raise UsageError(
        f"%{syntax.magic[1:]} needs a language model, and {name} is none.",
        f"it wraps {type(model._module).__name__}, without a tokenizer.",
        "wrap it with insitu.LanguageModel(module, tokenizer=tokenizer), or name another.",
    )


def value(syntax: Syntax, text: str, role: str, names: Mapping[str, Any]) -> Any:
    """What an expression of the line means in the notebook.

    Raises:
        UsageError: it is no expression, or names what the notebook does not know.
    """
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError:
        raise UsageError(
            f"the {role} of %{syntax.magic[1:]} is no Python expression: {text}",
            f"the line is {syntax.usage}",
            f"put text in quotes: {quoted(text)}.",
        ) from None
    try:
        return eval(compile(tree, f"<the {role} of {syntax.magic}>", "eval"), {**names})
    except NameError as error:
        if error.name is None or error.name not in text:
            raise
        is_text = role in ("prompt", "target") or "token" in role
        raise unknown(syntax, error.name, text, names, may_be_text=is_text) from None


def text_of(syntax: Syntax, text: str, role: str, names: Mapping[str, Any]) -> str:
    """An expression that is to be text.

    Raises:
        UsageError: it is none.
    """
    found = value(syntax, text, role, names)
    if isinstance(found, str):
        return found
    raise UsageError(
        f"the {role} of %{syntax.magic[1:]} is {type(found).__name__}, not text.",
        f"{text} is looked up among the notebook's variables.",
        f"put text in quotes: {quoted(text)}.",
    )


def unknown(
    syntax: Syntax, name: str, text: str, names: Mapping[str, Any], *, may_be_text: bool = True
) -> UsageError:
    """The error for a name that the notebook does not know."""
    own = [known for known in names if not known.startswith("_")]
    close = nearest(name, own, 0.6)
    remedy = f"did you mean {close[0]}?" if close else "run the cell that defines it first."
    if name == text and may_be_text:
        remedy = f"put text in quotes: {quoted(text)}" + (f"; or {remedy}" if close else ".")
    return UsageError(
        f"%{syntax.magic[1:]} names {name}, which this notebook does not know.",
        f"{text} is looked up among the notebook's variables.",
        remedy,
    )


def node_of(text: str, names: Mapping[str, Any]) -> WrappedModule | None:
    """The wrapped module that a path such as `model.transformer.h[0]` leads to."""
    root, dot, path = text.partition(".")
    if "[" in root:
        root, bracket, rest = text.partition("[")
        dot, path = bracket, rest
    return resolve(root, dot + path, names)


def quoted(text: str) -> str:
    """Text as it goes between quotes."""
    return '"' + text.strip("'\"").replace("\\", "\\\\").replace('"', '\\"') + '"'


def _looked_up(text: str, names: Mapping[str, Any]) -> Any:
    """A variable, or a part of one; None for everything else. Nothing is called."""
    try:
        tree: ast.expr = ast.parse(text, mode="eval").body
    except SyntaxError:
        return None
    if isinstance(tree, ast.Name):
        return names.get(tree.id)
    if isinstance(tree, ast.Subscript) and isinstance(tree.value, ast.Name):
        container, key = names.get(tree.value.id), tree.slice
        if isinstance(container, (list, tuple, dict)) and isinstance(key, ast.Constant):
            try:
                return container[key.value]  # type: ignore[index]
            except (LookupError, TypeError):
                return None
    return None
