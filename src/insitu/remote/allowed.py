"""What a block may name on a server: told before it is sent, with the line and the ways out.

    check("h = os.system('true')", {"os": os})      # FunctionWhitelistError: os.system on line 1

This list makes errors clear and early. It is no protection: what keeps a server safe is the process
that a job runs in, see docs/protocol.md.
"""

import ast
import builtins
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from insitu.engine.capture.parsing import parse
from insitu.engine.local import MARK
from insitu.errors import FunctionWhitelistError
from insitu.remote.wire.origins import is_sent, top

_NAMES = """
__future__ abc array bisect cmath collections contextlib copy dataclasses datetime decimal einops
enum fractions functools heapq insitu itertools jaxtyping json math numbers numpy operator pprint
random re statistics string textwrap time torch transformers types typing typing_extensions
unicodedata warnings
"""
MODULES = frozenset(_NAMES.split())
"""Packages that are on every server and that a block may name."""

REFUSED: Mapping[str, str] = {
    "builtins": "open exec eval compile input breakpoint __import__ exit quit help",
    "torch": "load save hub jit compile export package multiprocessing distributed serialization "
    "from_file classes ops.load_library utils.cpp_extension utils.model_zoo utils.data.DataLoader "
    "utils.dlpack onnx profiler monitor testing set_num_threads set_num_interop_threads "
    "UntypedStorage.from_file Storage.from_file",
    "numpy": "load save savez savez_compressed fromfile memmap loadtxt savetxt genfromtxt "
    "DataSource lib.format lib.npyio f2py ctypeslib distutils testing fromregex "
    "ndarray.tofile ndarray.dump",
    "transformers": "pipeline Trainer TrainingArguments utils.hub AutoModel AutoModelForCausalLM "
    "AutoTokenizer AutoConfig AutoProcessor",
    "types": "CodeType FunctionType",
    "warnings": "sys",
    "insitu": "local remote load_cache widgets show",
}
"""What these have that no block may name: it reads or writes files, loads code, or waits."""

_WAY_OUT = (
    "move it into `with insitu.local():`, which runs on your machine; "
    "insitu.register(package) sends a package of Python files along."
)
_Where = Callable[[int], str]


def check(block: str | ast.AST, names: Mapping[str, Any], *, where: _Where | None = None) -> None:
    """Refuse a block that names what may not run on a server.

    Args:
        block: its text or tree, without its `local()` parts.
        names: what its names stand for here.
        where: a line as the user knows it; `line 7` when None.

    Raises:
        FunctionWhitelistError: the first that it names.
    """
    tree = parse(block) if isinstance(block, str) else block
    told = where or "line {}".format
    own = set(_stored(tree))
    given = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    inner: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            _check_import(node, told)
        elif isinstance(node, (ast.Name, ast.Attribute)) and id(node) not in inner:
            chain = _chain(node)
            inner.update(id(part) for part in ast.walk(node) if isinstance(part, ast.Attribute))
            if chain is not None:
                inner.update(id(part) for part in ast.walk(node))
                if chain[0] not in given and (chain[0] not in own or chain[0] in names):
                    _check_chain(chain, names, told(node.lineno))


def check_value(value: Any, said: str, at: str) -> None:
    """Refuse a function, class or module that may not run on a server.

    Raises:
        FunctionWhitelistError: it may not.
    """
    if is_marked(value):
        raise _marked(said, at)
    refused = _refused_name(value)
    if refused is not None:
        raise _not_there(refused, at)
    owner = owner_of(value)
    if owner is not None and not may_name(owner):
        shown = said if isinstance(value, ModuleType) else f"{owner}.{_name_of(value, said)}"
        raise _not_there(shown, at)


def is_marked(value: Any) -> bool:
    """Whether `@insitu.trace` has marked a function; nothing of the value's own is called."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return False
    return not isinstance(value, type) and own.get(MARK) is True


def may_name(module: str) -> bool:
    """Whether a block may name a module: it is on every server, or goes along."""
    if any(_is_below(module, f"{package}.{name}") for package, name in _refused()):
        return False
    return top(module) in MODULES or module == "builtins" or is_sent(module)


def owner_of(value: Any) -> str | None:
    """The module of a function, class or module; None for other values, and without one."""
    if isinstance(value, ModuleType):
        return value.__name__
    if not (isinstance(value, type) or callable(value)):
        return None
    kind = value if isinstance(value, type) else type(value)
    if kind.__module__ == "builtins" or isinstance(value, type):
        name = getattr(value, "__module__", None)
        if name is None:
            owner = getattr(value, "__objclass__", None) or getattr(value, "__self__", None)
            name = owner.__name__ if isinstance(owner, ModuleType) else None
        return _public(name) if isinstance(name, str) else None
    return None


# Chains -------------------------------------------------------------------------------------------


def _chain(node: ast.AST) -> list[str] | None:
    """`torch.nn.functional` as its names; None for what is no name with attributes."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or not isinstance(node.ctx, ast.Load):
        return None
    return [node.id, *reversed(names)]


def _check_chain(chain: list[str], names: Mapping[str, Any], at: str) -> None:
    first, *rest = chain
    if first in names:
        value = names[first]
    elif hasattr(builtins, first):
        value = getattr(builtins, first)
    else:
        return
    if isinstance(value, ModuleType):
        _check_in_module(value, rest, at)
        return
    check_value(value, first, at)
    if isinstance(value, type):
        _check_attributes(value, rest, at)


def _check_in_module(module: ModuleType, rest: list[str], at: str) -> None:
    """Follow names from a module through those in it, as far as they are modules."""
    said = module.__name__
    for position, name in enumerate(rest):
        said = f"{module.__name__}.{name}"
        if _is_refused(said):
            raise _not_there(said, at)
        inside = vars(module).get(name)
        if not may_name(module.__name__):
            break
        if not isinstance(inside, ModuleType):
            if isinstance(inside, type) or callable(inside):
                check_value(inside, said, at)
            if isinstance(inside, type):
                _check_attributes(inside, rest[position + 1 :], at)
            return
        module = inside
    if not may_name(module.__name__):
        raise _not_there(said, at)


def _check_attributes(kind: type, rest: list[str], at: str) -> None:
    said = f"{top(kind.__module__)}.{kind.__qualname__}.{rest[0]}" if rest else ""
    if said and _is_refused(said):
        raise _not_there(said, at)


def _check_import(node: ast.Import | ast.ImportFrom, told: _Where) -> None:
    at = told(node.lineno)
    if isinstance(node, ast.ImportFrom):
        module = node.module or ""
        names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            if _is_refused(name):
                raise _not_there(name, at)
        found = [module]
    else:
        found = [alias.name for alias in node.names]
    for name in found:
        if not may_name(name) and not _can_go(name):
            raise _not_there(f"import {name}", at)


def _can_go(module: str) -> bool:
    """Whether a module that has not been imported yet would go along."""
    if module in sys.modules:
        return False
    try:
        return importlib.util.find_spec(top(module)) is not None and is_sent(module)
    except (ImportError, ValueError):
        return False


def _stored(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name


# What is refused ----------------------------------------------------------------------------------


def _refused() -> Iterator[tuple[str, str]]:
    for package, names in REFUSED.items():
        for name in names.split():
            yield package, name


def _is_refused(said: str) -> bool:
    return any(_is_below(said, f"{package}.{name}") for package, name in _refused())


def _is_below(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _refused_name(value: Any) -> str | None:
    """What a value is called in REFUSED, under whatever name it goes here."""
    behind = inspect.getattr_static(value, "__wrapped__", value)  # a notebook's `open` is IPython's
    for package, name in _refused():
        found: Any = sys.modules.get(package)
        for part in name.split("."):
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
        if found is not None and (found is value or found is behind):
            return name if package == "builtins" else f"{package}.{name}"
    return None


def _public(module: str) -> str:
    """The module as users know it: `_operator` is `operator`."""
    first, dot, rest = module.partition(".")
    bare = {"_io": "io", "posix": "os", "nt": "os", "posixpath": "os.path"}.get(first)
    if bare is None:
        bare = first.lstrip("_") if first.lstrip("_") in MODULES else first
    return f"{bare}{dot}{rest}"


def _name_of(value: Any, said: str) -> str:
    return str(getattr(value, "__qualname__", said.rpartition(".")[2]))


def _not_there(name: str, at: str) -> FunctionWhitelistError:
    return FunctionWhitelistError(
        f"{name} on {at} may not run on a server.",
        "a block there uses torch, numpy, the harmless parts of Python, and your own functions; "
        "not files, processes, the network, or code made from text.",
        _WAY_OUT,
    )


def _marked(name: str, at: str) -> FunctionWhitelistError:
    return FunctionWhitelistError(
        f"{name} on {at} is for local() parts alone.",
        "@insitu.trace marks a function that stays on your machine.",
        f"call it in `with insitu.local():`, or take the mark off to send {name} along.",
    )
