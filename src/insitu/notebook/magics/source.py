"""`%source SITE`: the text of a forward, its operations named; or the lines of one operation.

%source model.transformer.h[0].attn
%source model.transformer.h[0].attn.attention_interface_0
"""

import re
from typing import Any

from insitu.engine.paths import nearest
from insitu.engine.source.operations import Operation, Source
from insitu.engine.wrapped import WrappedModule
from insitu.errors import UsageError
from insitu.notebook.magics.line import Syntax, taken
from insitu.notebook.magics.names import node_of, the_model
from insitu.notebook.magics.widgets import made

SYNTAX = Syntax("%source", "%source MODULE or %source MODULE.OPERATION")
_LAST = re.compile(r"(.*)\.(\w+)")
_SIDES = ("output", "input", "inputs")


def source(ip: Any, line: str) -> Any:
    """Show the text of a module's forward, or of one operation in it.

    %source model.transformer.h[0].attn         a widget: click an operation to take its path
    %source model.transformer.h[0].attn.attention_interface_0           its lines
    %source model.transformer.h[0].attn.attention_interface_0.sdpa_0    inside what it calls
    %source                                     the forward of the only model
    """
    words = taken(SYNTAX, line).words
    if len(words) > 1:
        raise UsageError(
            f"%source was given {len(words)} words: {' '.join(words)}.",
            "it shows one forward, or one operation in it.",
            "write %source model.transformer.h[0].attn.",
        )
    if not words:
        return _opened(the_model(SYNTAX, ip.user_ns)[1])
    node, rest = _divided(words[0], ip.user_ns)
    if node is None:
        raise _no_module(words[0], ip)
    names = [name for name in rest if name != "source"]
    if names and names[-1] in _SIDES:
        names = names[:-1]
    return _operation(node, names) if names else _opened(node)


def _divided(text: str, names: Any) -> tuple[WrappedModule | None, list[str]]:
    """The module that a path begins with, the longest there is, and the names after it."""
    rest: list[str] = []
    while True:
        if (node := node_of(text, names)) is not None:
            return node, rest[::-1]
        found = _LAST.fullmatch(text)
        if found is None:
            return None, []
        text, name = found[1], found[2]
        rest.append(name)


def _operation(node: WrappedModule, names: list[str]) -> Operation:
    at: Source = node.source
    for name in names[:-1]:
        at = getattr(at, name).source
    found: Operation = getattr(at, names[-1])
    return found


def _opened(node: WrappedModule) -> Any:
    """The browser of a forward."""
    return made("source_browser:SourceBrowser", node)


def _no_module(text: str, ip: Any) -> UsageError:
    root = re.split(r"[.\[]", text)[0]
    known = [name for name, value in ip.user_ns.items() if isinstance(value, WrappedModule)]
    close = nearest(root, known) if root not in known else []
    return UsageError(
        f"%source was given {text}, which names no module of this notebook.",
        "it reads a path such as model.transformer.h[0].attn, from a variable on.",
        f"did you mean {text.replace(root, close[0], 1)}?" if close else f"the line is "
        f"{SYNTAX.usage}; %modules shows what there is.",
    )  # fmt: skip
