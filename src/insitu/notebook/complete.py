"""Completion of module paths: `model.transformer.h[0].` offers what a block can say there.

    candidates("logits = model.transformer.h[0].", ip.user_ns)
    # ("", ["ln_1", "attn", "ln_2", "mlp", "output", "input", "inputs", "skip", "source"])

Submodules and sites only: not the hundred methods of `nn.Module`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, context_matcher
from torch import nn

from insitu.engine import names as names_of
from insitu.engine.source.operations import Operation, Source
from insitu.engine.wrapped import WrappedModule
from insitu.errors import InsituError
from insitu.notebook.magics.line import Syntax
from insitu.notebook.magics.register import SYNTAXES
from insitu.notebook.magics.run import WORDS
from insitu.notebook.request import SYNTAX
from insitu.notebook.spoken import PATH, STEP, resolve

_no_forward = nn.Module.forward
SITES = ("output", "input", "inputs", "skip", "source")
ROOT = ("trace", "generate", "open", "tokenizer")
INDEXES_MAX = 200

_ATTRIBUTE = re.compile(PATH + r"\.([A-Za-z_]\w*)?$")
_OPERATION = re.compile(
    rf"(?<![\w.\])])([A-Za-z_]\w*)((?:{STEP})*?)\.source((?:\.[A-Za-z_]\w*)*)\.([A-Za-z_]\w*)?$"
)
_INDEX = re.compile(PATH + r"\[\s*(\d*)$")
_MAGIC = re.compile(r"^\s*(?:\w+\s*=\s*)?%(%trace|\w+)\s(.*)$")
_CHOICE = re.compile(r"(?:^|.*\s)(--[-\w]+)[\s=](\w*)$")
_OPTION = re.compile(r"(?:^|.*\s)(-[-\w]*)$")
_WORD = re.compile(r"\s*(\w*)$")


def candidates(before: str, names: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """The word being typed and what it may become; None where no module path stands.

    Args:
        before: the line up to the cursor.
        names: the notebook's variables.
    """
    if (found := _MAGIC.match(before)) and (words := _of_magic(found[1], found[2])) is not None:
        return words
    if found := _OPERATION.search(before):
        node = resolve(found[1], found[2], names)
        typed = found[4] or ""
        return None if node is None else (typed, _starting(typed, _operations(node, found[3])))
    if found := _ATTRIBUTE.search(before):
        node = resolve(found[1], found[2], names)
        typed = found[3] or ""
        return None if node is None else (typed, _starting(typed, _attributes(node)))
    if found := _INDEX.search(before):
        node = resolve(found[1], found[2], names)
        return None if node is None else (found[3], _starting(found[3], _indexes(node)))
    return None


def _of_magic(name: str, line: str) -> tuple[str, list[str]] | None:
    """What may stand in a magic's line: options, their values, and the words of `%run`."""
    syntax: Syntax | None = SYNTAX if name == "%trace" else SYNTAXES.get(name)
    if syntax is None:
        return None
    if found := _CHOICE.match(line):
        option = next((it for it in syntax.options if it.name == found[1]), None)
        if option is not None and option.choices:
            return found[2], [it for it in option.choices if it.startswith(found[2])]
    if found := _OPTION.match(line):
        return found[1], [it for it in syntax.names if it.startswith(found[1])]
    if name == "run" and (found := _WORD.match(line)):
        words = [it for it in WORDS if it.startswith(found[1])]
        return (found[1], words) if words and found[1] else None  # files are IPython's to offer
    return None


def _attributes(node: WrappedModule) -> list[str]:
    names = [name for name in (*node._module._modules, *node._extras) if name.isidentifier()]
    runs = getattr(type(node._module), "forward", None) is not _no_forward
    further = dict.fromkeys((*names_of.here(node), *node._could_be()))
    own = [name for name in ROOT if hasattr(type(node), name) or name in node.__dict__]
    return [*names, *further, *(SITES if runs else ()), *(own if node._parent is None else ())]


def _operations(node: WrappedModule, words: str) -> list[str]:
    """What may follow `node.source` and words such as `.attention_interface_0.source`."""
    try:
        at: Source | Operation = node.source
        for word in words.split(".")[1:]:
            if isinstance(at, Operation) and word != "source":
                return []
            at = getattr(at, word)
        return dir(at)
    except InsituError:  # no such operation, or one whose callee is not known
        return []


def _indexes(node: WrappedModule) -> list[str]:
    return [str(index) for index in range(min(len(node), INDEXES_MAX))]


def _starting(typed: str, names: list[str]) -> list[str]:
    private = typed.startswith("_")
    return [n for n in names if n.startswith(typed) and (private or not n.startswith("_"))]


def register(ip: Any) -> Callable[[], None]:
    """Add the matcher to a shell; gives what takes it away again."""

    @context_matcher()  # type: ignore[untyped-decorator]
    def insitu_matcher(context: CompletionContext) -> dict[str, Any]:
        found = candidates(context.text_until_cursor, ip.user_ns)
        if found is None:
            return {"completions": [], "suppress": False}
        typed, words = found
        return {
            "completions": [SimpleCompletion(word, type="module") for word in words],
            "matched_fragment": typed,
            "suppress": True,
            "ordered": True,
        }

    matchers = ip.Completer.custom_matchers
    matchers.append(insitu_matcher)
    return lambda: matchers.remove(insitu_matcher)
