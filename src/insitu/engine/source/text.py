"""A function's own text and syntax tree, proven to be what its code was compiled from.

    definition = define(GPT2Attention.forward)
    definition.lines[0]         # "    def forward("
    definition.tree             # its ast.FunctionDef, with the line numbers of its file

A file may have been edited since it was imported, and a name found in the new text would then stand
for something else in the old code. So the text is compiled once more and compared (0.4 ms).
"""

import ast
import dis
import inspect
import linecache
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from insitu.engine.capture.parsing import parse
from insitu.errors import SourceError

Tree = ast.FunctionDef | ast.AsyncFunctionDef

_FUTURE_FLAGS = 0x1FE0000
"""Those of `from __future__` imports, which change what the same text compiles to."""
_REWRITTEN_BY_PYTEST = "@pytest_ar"
_NOTHING = {
    dis.opmap[name] for name in ("CACHE", "NOP", "PUSH_NULL", "PRECALL") if name in dis.opmap
}
_JUMPS = {*dis.hasjrel, *dis.hasjabs}
_EXTENDED = dis.EXTENDED_ARG
_METHOD, _ATTRIBUTE = dis.opmap.get("LOAD_METHOD"), dis.opmap["LOAD_ATTR"]
_HALVED = {dis.opmap["LOAD_GLOBAL"], *([_ATTRIBUTE] if sys.version_info >= (3, 12) else [])}
"""Instructions whose argument has a bit of the calling convention below the name's index."""
_no_types: Any = {"type_params": []} if "type_params" in ast.FunctionDef._fields else {}


@dataclass(frozen=True)
class Definition:
    """One function's text."""

    name: str
    file: str
    first: int
    """The line of the file on which it begins, decorators included."""
    lines: tuple[str, ...]
    tree: Tree

    def line(self, number: int) -> str:
        """A line by its number in the file; empty outside the function."""
        index = number - self.first
        return self.lines[index] if 0 <= index < len(self.lines) else ""


def define(function: FunctionType) -> Definition:
    """The text of a function.

    Raises:
        SourceError: there is none, or it is not what the function was compiled from.
    """
    code = function.__code__
    if code.co_name == "<lambda>":
        raise SourceError(
            f"the operations of {called(function)} cannot be named: it is a lambda.",
            "operations are named from the lines of a `def`.",
            "write it as a `def` and use that.",
        )
    for is_last in (False, True):
        lines = linecache.getlines(code.co_filename, function.__globals__)
        if not lines:
            raise SourceError(
                f"{called(function)} has no text to name operations from.",
                f"Python knows no lines of {code.co_filename}: it was compiled from a string.",
                "put its definition into a file or a cell.",
            )
        definition = _parsed(lines, code)
        if definition is not None and _is_text_of(definition.tree, function):
            return definition
        if not is_last:
            linecache.checkcache(code.co_filename)
    raise SourceError(
        f"the text of {called(function)} has changed since it was imported.",
        f"line {code.co_firstlineno} of {code.co_filename} and what follows is not what runs.",
        "restart the kernel, or import the file again and build the model anew.",
    )


def compiled(
    tree: Tree, code: CodeType, names: Sequence[str] = (), *, above: Sequence[ast.stmt] = ()
) -> CodeType:
    """A definition as code whose free variables are those of `code` and `names`.

    Args:
        tree: the definition, perhaps changed.
        code: what it was compiled to when it was imported.
        names: free variables to be had besides.
        above: statements of its file that change how it is compiled.
    """
    parameters = [ast.arg(name) for name in (*names, *code.co_freevars)]
    factory = ast.FunctionDef(
        "factory", _arguments(parameters), [_without_its_surroundings(tree)], [], **_no_types
    )
    outer: ast.stmt = factory
    around = _class_around(code.co_qualname)
    if around is not None:  # for it, the compiler mangles names such as self.__cache
        outer = ast.ClassDef(around, [], [], [factory], [], **_no_types)
    for node in (*above, outer, factory, *parameters):
        ast.copy_location(node, tree)
    future = code.co_flags & _FUTURE_FLAGS
    module = ast.Module([*above, outer], [])
    if above:
        ast.fix_missing_locations(module)
    found = compile(module, code.co_filename, "exec", future, dont_inherit=True)
    for _ in range(2 if around is None else 3):
        found = next(const for const in found.co_consts if isinstance(const, CodeType))
    return _qualified(found, found.co_qualname, code.co_qualname).replace(co_name=code.co_name)


def called(function: Any) -> str:
    """A function's name, for an error text."""
    return str(getattr(function, "__qualname__", None) or type(function).__name__)


def _parsed(lines: Sequence[str], code: CodeType) -> Definition | None:
    """The definition that begins where the code does; None if none of that name does."""
    first = code.co_firstlineno
    for find in (_block, _block_by_tokens):
        try:
            text = find(lines, code)
            tree = _tree(text, first)
        except (SyntaxError, IndexError):
            continue
        if isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)) and tree.name == code.co_name:
            shown = tuple(line.rstrip("\n") for line in text)
            return Definition(code.co_name, code.co_filename, first, shown, tree)
    return None


def _tree(text: Sequence[str], first: int) -> ast.stmt:
    """The first statement of a text, with the file's line numbers, columns and strings kept."""
    above = "\n" * (first - 1)
    if text[0][:1].isspace():
        if first == 1:
            raise SyntaxError
        within = parse(above[1:] + "if 1:\n" + "".join(text)).body[0]
        assert isinstance(within, ast.If)
        return within.body[0]
    return parse(above + "".join(text)).body[0]


def _block(lines: Sequence[str], code: CodeType) -> Sequence[str]:
    """The lines of a definition. Its instructions lead almost to its end, indentation the rest."""
    first = code.co_firstlineno - 1
    last = max(_last_line(code), first + 1)
    margin = _margin(lines[first])
    end = last
    for at in range(last, len(lines)):
        words = lines[at].strip()
        if not words or words[0] == "#":
            continue
        if _margin(lines[at]) <= margin and words[0] not in ")]}":
            break
        end = at + 1
    return lines[first:end]


def _block_by_tokens(lines: Sequence[str], code: CodeType) -> Sequence[str]:
    return inspect.getblock(lines[code.co_firstlineno - 1 :])


def _margin(line: str) -> int:
    return len(line) - len(line.lstrip())


def _last_line(code: CodeType) -> int:
    own = max((line for _, _, line in code.co_lines() if line is not None), default=0)
    return max(own, *(_last_line(c) for c in code.co_consts if isinstance(c, CodeType)), 0)


def _without_its_surroundings(tree: Tree) -> Tree:
    """The definition without what runs when it is defined: decorators, defaults, annotations."""
    given = tree.args

    def bare(arguments: Sequence[ast.arg]) -> list[ast.arg]:
        return [ast.copy_location(ast.arg(argument.arg), argument) for argument in arguments]

    arguments = _arguments(bare(given.args))
    arguments.posonlyargs = bare(given.posonlyargs)
    arguments.kwonlyargs = bare(given.kwonlyargs)
    arguments.kw_defaults = [None] * len(given.kwonlyargs)
    arguments.vararg = bare([given.vararg])[0] if given.vararg else None
    arguments.kwarg = bare([given.kwarg])[0] if given.kwarg else None
    # Under its own name, a function that calls itself would find one that never runs.
    return ast.copy_location(type(tree)("function", arguments, tree.body, [], **_no_types), tree)


def _arguments(plain: list[ast.arg]) -> ast.arguments:
    return ast.arguments([], plain, None, [], [], None, [])


def _class_around(qualname: str) -> str | None:
    """The class in whose body a function, or the function around it, was defined."""
    parts = qualname.split(".")
    while len(parts) > 2 and parts[-2] == "<locals>":
        parts = parts[:-2]
    return parts[-2] if len(parts) > 1 else None


def _qualified(code: CodeType, before: str, after: str) -> CodeType:
    """Code under another qualified name, and what is defined in it likewise."""
    inside = before + ".<locals>."

    def renamed(const: Any) -> Any:
        if isinstance(const, CodeType):
            return _qualified(const, before, after)
        if isinstance(const, str) and const.startswith(inside):  # what a class in it is called
            return after + const.removeprefix(before)
        return const

    name = after + code.co_qualname.removeprefix(before)
    return code.replace(co_consts=tuple(map(renamed, code.co_consts)), co_qualname=name)


def _is_text_of(tree: Tree, function: FunctionType) -> bool:
    code = function.__code__
    if _REWRITTEN_BY_PYTEST in code.co_names:
        return True  # its asserts were rewritten when it was imported: nothing to compare with
    try:
        return any(_same(compiled(tree, code, above=it), code) for it in _files(function))
    except (SyntaxError, ValueError):
        return False


def _files(function: FunctionType) -> Iterator[list[ast.stmt]]:
    """What its file may say that changes how a function is compiled: nothing, mostly.

    A `super` that is named elsewhere makes `super()` a call like others; a long call of what was
    imported is compiled otherwise than that of a method.
    """
    yield []
    names = function.__code__.co_names
    plain: list[ast.stmt] = [ast.Expr(ast.Name("super", ast.Load()))] if "super" in names else []
    if plain:
        yield plain
    modules = [it for it in names if isinstance(function.__globals__.get(it), ModuleType)]
    if modules:
        imports = ast.Import([ast.alias(name) for name in modules])
        yield [imports]
        if plain:
            yield [*plain, imports]


def _same(one: CodeType, other: CodeType) -> bool:
    alike = (
        one.co_names == other.co_names
        and one.co_varnames == other.co_varnames
        and one.co_freevars == other.co_freevars
        and one.co_cellvars == other.co_cellvars
        and len(one.co_consts) == len(other.co_consts)
        and (one.co_code == other.co_code or _instructions(one) == _instructions(other))
    )
    return alike and all(map(_same_const, one.co_consts, other.co_consts))


def _instructions(code: CodeType) -> list[tuple[int, int]]:
    """Instructions but for how methods are called: that hangs on a file's imports, unseen here."""
    found, extended, raw = [], 0, code.co_code
    for instruction, low in zip(raw[::2], raw[1::2], strict=True):
        if instruction in _NOTHING:
            continue
        argument = low | extended
        if instruction == _EXTENDED:
            extended = argument << 8
            continue
        extended = 0
        if instruction in _JUMPS:
            argument = 0  # how far it is hangs on the former
        elif instruction in _HALVED:
            argument >>= 1
        found.append((_ATTRIBUTE if instruction == _METHOD else instruction, argument))
    return found


def _same_const(one: Any, other: Any) -> bool:
    if isinstance(one, CodeType) and isinstance(other, CodeType):
        return _same(one, other)
    return type(one) is type(other) and (one == other or repr(one) == repr(other))
