"""The model, the prompt and the number that a `%%trace` line names, looked up in the notebook.

of(ip.user_ns, Request(model="model", prompt="prompts[0]"))
"""

import ast
import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from insitu.engine.paths import nearest
from insitu.engine.trace import Tracer
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InputError, UsageError
from insitu.models.base import NNsight
from insitu.models.language import LanguageModel
from insitu.notebook.request import USAGE, Request


@dataclass(frozen=True)
class Operands:
    """What a cell is to run: the model, what its `trace` is given, and how much to generate."""

    model: NNsight
    args: tuple[Any, ...]
    tokens: int | None
    name: str
    invokes: tuple[Any, ...] = ()
    """Inputs that are no text, each of which becomes an invoke."""


def of(names: Mapping[str, Any], request: Request, body: str = "") -> Operands:
    """Look up what a line names; a body may bring the prompts, by `tracer.invoke(...)`.

    Raises:
        UsageError: it is no expression, or no model.
        InputError: a model that needs a prompt was given none.
    """
    model = _model(names, request.model)
    tokens = _tokens(names, request, model)
    if request.invokes:
        args, invokes = _several(names, request)
        return Operands(model, args, tokens, request.model, invokes)
    return Operands(model, _args(names, request, model, body), tokens, request.model)


def _model(names: Mapping[str, Any], text: str) -> NNsight:
    model = _value(names, text, "model")
    if isinstance(model, NNsight):
        return model
    kind = type(model).__name__
    if isinstance(model, WrappedModule):
        remedy = f"trace the whole model; inside the cell, read {text}.output."
        raise UsageError(
            f"{text} is one module of a model, and a pass runs the whole.",
            f"it is {model._path}, a wrapped {type(model._module).__name__}.",
            remedy,
        )
    wrap = isinstance(model, nn.Module)
    raise UsageError(
        f"{text} is no model that can be traced; it is {kind}.",
        "%%trace runs a model that Insitu has wrapped.",
        f"wrap it: model = insitu.NNsight({text})."
        if wrap
        else 'load one: model = insitu.LanguageModel("demo").',
    )


def _args(names: Mapping[str, Any], request: Request, model: NNsight, body: str) -> tuple[Any, ...]:
    if not request.prompt:
        if ".invoke(" not in body:
            _require_no_input(request, model)
        return ()
    prompt = _value(names, request.prompt, "prompt")
    several = isinstance(_expression(request.prompt, "prompt").body, ast.Tuple)
    return prompt if several and not isinstance(model, LanguageModel) else (prompt,)


def _several(names: Mapping[str, Any], request: Request) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The prompts of `--invoke` and the one before them: texts as one list, others as invokes."""
    texts = [text for text in (request.prompt, *request.invokes) if text]
    given = [_value(names, text, "prompt") for text in texts]
    if all(isinstance(it, str) for it in given):
        return (given,), ()
    return (), tuple(given)


def _require_no_input(request: Request, model: NNsight) -> None:
    call = cast(Tracer, model.trace()).give_call()
    if not call.pending:
        return
    try:
        call.alone()
    except InputError as error:
        raise InputError(
            "%%trace was given no prompt.",
            error.why,
            f'write one: %%trace {request.model} "The Eiffel Tower is in the city of".',
        ) from None


def _tokens(names: Mapping[str, Any], request: Request, model: NNsight) -> int | None:
    if not request.generate:
        return None
    if not isinstance(model, LanguageModel):
        raise UsageError(
            f"{request.model} cannot generate.",
            f"it wraps {type(model._module).__name__}, and only a language model generates.",
            "leave --generate out, or wrap the model with insitu.LanguageModel.",
        )
    count = _value(names, request.generate, "number")
    if type(count) is not int or count < 1:
        raise UsageError(
            f"--generate takes a number of tokens, not {count!r}.",
            "it generates that many tokens, with the cell inside every step.",
            "write --generate 3.",
        )
    return count


def expression(names: Mapping[str, Any], text: str, role: str) -> Any:
    """What an expression of the line means once the cell has run."""
    return _value(names, text, role)


def _value(names: Mapping[str, Any], text: str, role: str) -> Any:
    """What an expression of the line means in the notebook."""
    code = compile(_expression(text, role), f"<the {role} of %%trace>", "eval")
    try:
        return eval(code, {**names})
    except NameError as error:
        if error.name is None or error.name not in text:
            raise
        raise _unknown_name(names, error.name, text, role) from None


def _expression(text: str, role: str) -> ast.Expression:
    try:
        return ast.parse(text, mode="eval")
    except SyntaxError:
        raise UsageError(
            f"the {role} of %%trace is no Python expression: {text}",
            f"the line is {USAGE}, and all three are expressions.",
            f"put text in quotes: {_quoted(text)}."
            if role == "prompt"
            else "give the name of a variable of this notebook.",
        ) from None


def _unknown_name(names: Mapping[str, Any], name: str, text: str, role: str) -> UsageError:
    own = [known for known in names if not known.startswith("_")]
    if role == "model":
        own = [known for known in own if isinstance(names[known], NNsight)]
    close = nearest(name, [*own, *vars(builtins)])
    if role == "model" and own:
        close = close or own
    near = f"did you mean {close[0]}?" if close else "run the cell that defines it first."
    if role == "prompt" and name == text:
        near = f"put text in quotes: {_quoted(text)}" + (f"; or {near}" if close else ".")
    return UsageError(
        f"the {role} of %%trace names {name}, which this notebook does not know.",
        f"{text} is looked up among the notebook's variables.",
        near,
    )


def _quoted(text: str) -> str:
    return '"' + text.strip("'\"").replace("\\", "\\\\").replace('"', '\\"') + '"'
