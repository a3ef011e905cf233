"""Functions, classes and modules as source: what a block uses of the user's own goes along.

    code = Code()
    encoder = Encoder(root, code)
    encoder.encode("centre", centre)        # its text, and what its names stand for, recursively
    code.header()

Three ways, in this order. What is on every server goes by name (`torch.nn.functional:relu`). What
stands in a module of the user's goes as that module, whole, as text. What stands in the script or
notebook itself (`__main__`), or in a function, goes as the text of its own `def`, `lambda` or
`class` with the values of its free names. `loaded` makes all of them again.
"""

import ast
import builtins
import dis
import functools
import sys
from collections.abc import Iterator, Mapping
from types import BuiltinMethodType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from insitu.engine.capture.parsing import parse
from insitu.engine.local import MARK
from insitu.remote import allowed
from insitu.remote.wire.found import Found, text_of_class, text_of_function, within
from insitu.remote.wire.loaded import Loaded as Loaded
from insitu.remote.wire.loaded import compiled
from insitu.remote.wire.modules import imports_of, module_text
from insitu.remote.wire.origins import is_sent, source_file, top
from insitu.remote.wire.places import place_of
from insitu.remote.wire.unsendable import unsendable

_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
_ABSENT: Any = object()


class Code:
    """The source that goes along with one request."""

    def __init__(self) -> None:
        self._modules: dict[str, dict[str, Any]] = {}
        self._pieces: list[dict[str, Any]] = []
        self._of: dict[int, tuple[int, Any]] = {}
        self._spaces: list[dict[str, Any]] = []
        self._space_of: dict[int, tuple[int, Any]] = {}
        self._cells: list[Any] = []
        self._cell_of: dict[int, tuple[int, CellType]] = {}
        self._waiting: list[tuple[Any, ...]] = []

    def header(self) -> dict[str, Any]:
        """All of it, for a container's header."""
        return {
            "modules": self._modules,
            "pieces": self._pieces,
            "spaces": self._spaces,
            "cells": self._cells,
        }

    def take(self, encoder: Any, said: str, value: Any) -> Any:
        """A function, class or module as JSON; None for any other value.

        Raises:
            FunctionWhitelistError: it may not run on a server.
            NotSendableError: it has no source.
        """
        if isinstance(value, ModuleType):
            return self._module(encoder, said, value)
        if not callable(value):
            return None
        if isinstance(value, functools.partial):
            parts = [encoder.part(said, it) for it in (value.func, value.args, value.keywords)]
            return {"partial": parts}
        if isinstance(value, MethodType):
            return {"method": value.__name__, "of_value": encoder.part(said, value.__self__)}
        inner = getattr(value, "__wrapped__", None)
        if not isinstance(value, (type, FunctionType)) and not isinstance(inner, FunctionType):
            return self._builtin(encoder, said, value)
        return self._made_by_text(encoder, said, value)

    def take_imports(self, encoder: Any, tree: ast.AST) -> None:
        """Take along the user's modules that a text imports."""
        for name in imports_of(tree, "", False):
            self._module_named(encoder, name)

    def settle(self, encoder: Any) -> None:
        """Encode what the names of functions stand for; after the value that led to them."""
        at = encoder.at
        while self._waiting:
            target, key, said, value, encoder.at = self._waiting.pop(0)
            target[key] = encoder.part(said, value)
        encoder.at = at

    # By name -------------------------------------------------------------------------------------

    def _builtin(self, encoder: Any, said: str, value: Any) -> Any:
        name = _importable(value)
        if name is not None:
            allowed.check_value(value, said, encoder.at or "this line")
            return {"name": name}
        owner = value.__self__ if isinstance(value, BuiltinMethodType) else None
        if owner is None or isinstance(owner, ModuleType):
            return None
        return {"method": value.__name__, "of_value": encoder.part(said, owner)}

    def _module(self, encoder: Any, said: str, module: ModuleType) -> Any:
        name = module.__name__
        if is_sent(name) and name != "__main__":
            self._module_named(encoder, name)
            return {"source": name}
        if name == "__main__":
            why = "it is the program itself"
            raise unsendable(said, module, encoder.at, why, "use its names without the module")
        allowed.check_value(module, name, encoder.at or "this line")
        return {"name": f"{name}:"}

    # By its module -------------------------------------------------------------------------------

    def _module_named(self, encoder: Any, name: str) -> None:
        if name in self._modules or not is_sent(name) or name == "__main__":
            return
        parent = name.rpartition(".")[0]
        if parent:
            self._module_named(encoder, parent)
        file = source_file(name)
        if file is None:
            return  # no module but a name in one, or a package without a file of its own
        text, is_package = module_text(file)
        self._modules[name] = {"text": text, "file": file, "package": is_package}
        for other in imports_of(parse(text), name, is_package):
            self._module_named(encoder, other)

    # By its text ---------------------------------------------------------------------------------

    def _made_by_text(self, encoder: Any, said: str, value: Any) -> Any:
        known = self._of.get(id(value))
        if known is not None:
            return {"piece": known[0]}
        if allowed.is_marked(value):
            allowed.check_value(value, said, encoder.at or "this line")
        module = getattr(value, "__module__", None) or "builtins"
        name = _importable(value)
        if name is not None and not is_sent(module):
            allowed.check_value(value, said, encoder.at or "this line")
            return {"name": name}
        if name is not None and module != "__main__":
            self._module_named(encoder, module)
            return {"name": name, "source": module}
        if not is_sent(module) and not isinstance(value, FunctionType):
            allowed.check_value(value, said, encoder.at or "this line")
        return self._piece(encoder, said, value)

    def _piece(self, encoder: Any, said: str, value: Any) -> Any:
        is_class = isinstance(value, type)
        plain = value if is_class else _unwrapped(value)
        decorated = plain is not value
        found = text_of_class(value) if is_class else text_of_function(plain, decorated)
        if found is None:
            raise _no_text(said, value, encoder.at)
        names = _names_of(value, plain)
        number = len(self._pieces)
        space = self._space(names)
        piece: dict[str, Any] = {
            "text": found.source,
            "file": found.file,
            "line": found.line,
            "futures": list(found.futures),
            "kind": "class" if is_class else "made" if decorated else "function",
            "qualname": value.__qualname__,
            "space": space,
            "cells": {},
        }
        self._pieces.append(piece)
        self._of[id(value)] = number, value
        if is_class:
            self._closures_of_class(encoder, piece, value, found.file)
            self._bases_of_class(encoder, piece, value, found.node, names)
            _check_class(piece, said, value, names, encoder.at)
        else:
            self._function(encoder, said, piece, plain)
        self._free_names(encoder, piece, found, names)
        return {"piece": number}

    def _function(
        self, encoder: Any, said: str, piece: dict[str, Any], function: FunctionType
    ) -> None:
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            piece["cells"][name] = self._cell(encoder, name, cell)
        if piece["kind"] != "function":
            return
        own = {k: v for k, v in vars(function).items() if k not in (MARK, "__wrapped__")}
        for key, value in (
            ("defaults", function.__defaults__),
            ("kwdefaults", function.__kwdefaults__),
            ("attributes", own),
        ):
            if value:
                self._waiting.append((piece, key, f"{said}.__{key}__", value, encoder.at))

    def _closures_of_class(
        self, encoder: Any, piece: dict[str, Any], kind: type, file: str
    ) -> None:
        for function in _functions_of(kind):
            if function.__code__.co_filename != file:
                continue
            for name, cell in zip(
                function.__code__.co_freevars, function.__closure__ or (), strict=True
            ):
                if name != "__class__":
                    piece["cells"][name] = self._cell(encoder, name, cell)

    def _bases_of_class(
        self,
        encoder: Any,
        piece: dict[str, Any],
        kind: type,
        node: ast.ClassDef,
        names: Mapping[str, Any],
    ) -> None:
        """Take the bases along that are names of the function that a class was made in."""
        bases = getattr(kind, "__orig_bases__", kind.__bases__)
        if len(bases) != len(node.bases):
            return
        for written, base in zip(node.bases, bases, strict=True):
            name = written.id if isinstance(written, ast.Name) else ""
            known = names.get(name, getattr(builtins, name, _ABSENT))
            if name and known is not base and name not in piece["cells"]:
                piece["cells"][name] = self._cell(encoder, name, CellType(base))

    def _cell(self, encoder: Any, name: str, cell: CellType) -> int:
        known = self._cell_of.get(id(cell))
        if known is not None:
            return known[0]
        number = len(self._cells)
        self._cells.append(None)
        self._cell_of[id(cell)] = number, cell
        try:
            value = cell.cell_contents
        except ValueError:  # it has not been assigned yet
            return number
        row: dict[str, Any] = {}
        self._cells[number] = row
        self._waiting.append((row, "value", name, value, encoder.at))
        return number

    def _space(self, names: Mapping[str, Any]) -> int:
        known = self._space_of.get(id(names))
        if known is not None:
            return known[0]
        number = len(self._spaces)
        self._spaces.append({"name": str(names.get("__name__", "__main__")), "names": {}})
        self._space_of[id(names)] = number, names
        return number

    def _free_names(
        self, encoder: Any, piece: dict[str, Any], found: Found, names: Mapping[str, Any]
    ) -> None:
        """Have what the names of a piece stand for encoded, in the space of its module."""
        space = self._spaces[piece["space"]]["names"]
        used = {
            name: names[name]
            for name in _globals_of(compiled(piece))
            if name in names and not name.startswith("__") and name not in piece["cells"]
        }
        allowed.check(found.node, used, where=_where(found.file))
        for name, value in used.items():
            if name in space or getattr(builtins, name, _ABSENT) is value:
                continue
            space[name] = None
            at = place_of(found.file, _line_of(found.node, name))
            self._waiting.append((space, name, name, value, at))
        for name in imports_of(found.node, "", False):
            self._module_named(encoder, name)


def _functions_of(kind: type) -> Iterator[FunctionType]:
    """The functions of a class, those of its properties too."""
    for one in vars(kind).values():
        parts = (one.fget, one.fset, one.fdel) if isinstance(one, property) else (one,)
        for part in parts:
            function = getattr(part, "__func__", part)
            if isinstance(function, FunctionType):
                yield function


def _check_class(
    piece: dict[str, Any], said: str, kind: type, names: Mapping[str, Any], at: str
) -> None:
    """Refuse a class whose body reads variables of a function: nobody knows them any more.

    Raises:
        NotSendableError: it does.
    """
    around = next(it for it in compiled(piece).co_consts if isinstance(it, CodeType))
    known = {*piece["cells"], *names, *vars(builtins), kind.__name__}
    for code in (around, *_bodies_in(around)):
        steps = [*dis.get_instructions(code)]
        own = {it.argval for it in steps if it.opname == "STORE_NAME"}
        for it in steps:
            if it.opname not in _GLOBAL or it.argval.startswith("__"):
                continue
            if it.argval not in known and it.argval not in own:
                why = f"its body reads {it.argval}, a variable of the function that it stands in"
                do = "write the class outside of the function, or put the value into a method"
                raise unsendable(said, kind, at, why, do)


def _bodies_in(code: CodeType) -> Iterator[CodeType]:
    """The bodies of classes, which are run when those are made."""
    for it in code.co_consts:
        if isinstance(it, CodeType) and not it.co_flags & 1:
            yield it
            yield from _bodies_in(it)


def _where(file: str) -> Any:
    return lambda line: place_of(file, line)


def _unwrapped(value: Any) -> Any:
    """The function inside of what a decorator has made of it."""
    while isinstance(inner := getattr(value, "__wrapped__", None), FunctionType):
        value = inner
    return value


def _names_of(value: Any, plain: Any) -> Mapping[str, Any]:
    """The globals of a function or a class."""
    if isinstance(plain, FunctionType):
        return plain.__globals__
    for function in map(_unwrapped, _functions_of(value)):  # a dataclass has `repr`s of a library's
        if function.__module__ != value.__module__:
            continue
        if function.__code__.co_filename != "<string>":
            return cast(Mapping[str, Any], function.__globals__)
    return vars(sys.modules[value.__module__])


def _globals_of(code: CodeType) -> Iterator[str]:
    for one in within(code):
        for step in dis.get_instructions(one):
            if step.opname in _GLOBAL:
                yield step.argval


def _line_of(node: ast.AST, name: str) -> int:
    lines = [it.lineno for it in ast.walk(node) if isinstance(it, ast.Name) and it.id == name]
    return min(lines, default=getattr(node, "lineno", 1))


def _importable(value: Any) -> str | None:
    """`module:name`, where that leads to this very value."""
    names = [getattr(value, "__qualname__", None), getattr(value, "__name__", None)]
    holder = getattr(value, "__objclass__", None)
    if isinstance(holder, type):  # a method of a class of C
        inside = _importable(holder)
        return None if inside is None else f"{inside}.{value.__name__}"
    owner = getattr(value, "__module__", None)
    candidates = [owner, top(owner)] if isinstance(owner, str) else list(_LIBRARY)
    for module in candidates:
        for name in dict.fromkeys(it for it in names if isinstance(it, str)):
            first, *rest = name.split(".")
            found: Any = vars(sys.modules[module]).get(first) if module in sys.modules else None
            for part in rest:
                found = getattr(found, part, None) if isinstance(found, type) else None
            if found is value and found is not None:
                return f"{module}:{name}"
    return None


_LIBRARY = (
    "builtins",
    "torch",
    "torch.nn.functional",
    "torch.Tensor",
    "numpy",
    "math",
    "torch._C._nn",
)


def _no_text(said: str, value: Any, at: str) -> Exception:
    if isinstance(value, FunctionType) and value.__name__ == "<lambda>":
        why, next = "a lambda goes along as its text, and this one's was not found", "write a `def`"
    else:
        why = "it goes along as its text, which was not found where it says it was written"
        next = "write it in a file or a cell, and run that again if it was edited"
    return unsendable(said, value, at, why, f"{next}; or use it in `with insitu.local():`")
