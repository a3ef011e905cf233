"""Source that came along, made into functions, classes and modules again.

    loaded = Loaded(header["code"])
    Decoder(header["values"], tensors, root, loaded).decode(there)

Everything is compiled under its own file name and lines, so tracebacks read as they do at home. The
modules are known to each other and to the block, not to `sys.modules`: what they import is looked
for here first, by an `__import__` of their own. `close()` gives the names in `linecache` back.
"""

import ast
import builtins
import contextlib
import dis
import functools
import importlib
import linecache
import sys
import threading
from collections.abc import Iterator, Mapping
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from insitu.engine.capture.futures import flags_of
from insitu.engine.capture.parsing import parse
from insitu.remote.wire.bounds import refusal
from insitu.remote.wire.modules import absolute

_TAGS = ("name", "source", "piece", "partial", "method")
_WITHIN = "__insitu_within__"
_placing = threading.RLock()


def compiled(piece: Mapping[str, Any]) -> CodeType:
    """A piece as the code of a function that is given its closure, and returns what it defines."""
    text, line = str(piece["text"]), int(piece["line"])
    inside = text[:1].isspace()  # of something: as it is, under an `if` of its own
    before = "\n" * max(line - 2, 0) + "if 1:\n" if inside else "\n" * (line - 1)
    statement: Any = parse(before + text, str(piece["file"])).body[0]
    node: Any = statement.body[0] if isinstance(statement, ast.If) else statement
    if piece["kind"] == "function":
        _bare(node.value if isinstance(node, ast.Expr) else node)
    if isinstance(node, ast.Expr):
        body: list[ast.stmt] = [ast.Return(node.value)]
    else:
        own = [] if node.name in piece["cells"] else [ast.Global([node.name])]
        body = [*own, node, ast.Return(ast.Name(node.name, ast.Load()))]
    around = ast.FunctionDef(
        name=_WITHIN,
        args=ast.arguments([], [ast.arg(name) for name in piece["cells"]], None, [], [], None, []),
        body=body,
        decorator_list=[],
    )
    around.lineno, around.col_offset = node.lineno, 0
    around.end_lineno, around.end_col_offset = node.end_lineno, 0
    if sys.version_info >= (3, 12):
        around.type_params = []
    module = ast.fix_missing_locations(ast.Module([around], []))
    flags = flags_of(piece["futures"])
    code: CodeType = compile(module, str(piece["file"]), "exec", flags, dont_inherit=True)
    return code


def _bare(node: Any) -> None:
    """Leave out what a definition evaluates: its function is made without running it."""
    node.args.defaults = []
    node.args.kw_defaults = [None] * len(node.args.kwonlyargs)
    node.decorator_list, node.returns = [], None
    every = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    for one in (*every, node.args.vararg, node.args.kwarg):
        if one is not None:
            one.annotation = None


class Loaded:
    """The code of one request."""

    def __init__(self, header: Any) -> None:
        if not isinstance(header, dict):
            raise refusal("its code is no JSON object")
        self.raised: BaseException | None = None
        """What the user's own code has raised while it was made."""
        self.decoder: Any = None
        """Reads the values that the code's names stand for."""
        self._modules: dict[str, Any] = header["modules"]
        self._pieces: list[Any] = header["pieces"]
        self._cells_told: list[Any] = header["cells"]
        self._spaces_told: list[Any] = header["spaces"]
        self._made: dict[int, Any] = {}
        self._open: set[int] = set()
        self._cells: dict[int, CellType] = {}
        self._spaces: dict[int, dict[str, Any]] = {}
        self._imported: dict[str, ModuleType] = {}
        self._waiting: list[Any] = []
        self._lines: list[str] = []
        self.builtins = {**vars(builtins), "__import__": self._import}
        """For whatever runs beside this code: its imports find it."""

    def close(self) -> None:
        """Forget the texts that tracebacks were shown with."""
        for file in self._lines:
            linecache.cache.pop(file, None)
        self._lines.clear()

    # Asked by the decoder ------------------------------------------------------------------------

    def knows(self, told: Mapping[str, Any]) -> bool:
        """Whether a value is code."""
        return any(tag in told for tag in _TAGS)

    def give(self, told: Mapping[str, Any]) -> Any:
        """The function, class or module that is told of."""
        if "piece" in told:
            return self._piece(told["piece"])
        if "partial" in told:
            function, args, settings = map(self.decoder.part, told["partial"])
            return functools.partial(function, *args, **settings)
        if "method" in told:
            return getattr(self.decoder.part(told["of_value"]), str(told["method"]))
        if "name" not in told:
            return self._module(str(told["source"]))
        module, _, name = str(told["name"]).partition(":")
        found: Any = self._module(module) if "source" in told else importlib.import_module(module)
        for part in name.split(".") if name else ():
            found = getattr(found, part)
        return found

    def settle(self) -> None:
        """Fill in the names, cells and defaults of all functions that were made."""
        later = []
        while self._waiting:
            fill = self._waiting.pop(0)
            try:
                fill()
            except _NotYet:
                later.append(fill)
        self._waiting = later

    # Pieces --------------------------------------------------------------------------------------

    def _piece(self, number: Any) -> Any:
        if type(number) is not int or not 0 <= number < len(self._pieces):
            raise refusal("it points behind the end of its code")
        if number in self._made:
            return self._made[number]
        piece = self._pieces[number]
        names = self._space(piece["space"])
        cells = {str(name): self._cell(at) for name, at in piece["cells"].items()}
        self._show(piece)
        code = next(it for it in compiled(piece).co_consts if isinstance(it, CodeType))
        if piece["kind"] == "function":
            found = self._function(number, piece, code, names, cells)
        else:
            found = self._run(number, code, names, cells)
        return found

    def _function(
        self,
        number: int,
        piece: Mapping[str, Any],
        code: CodeType,
        names: dict[str, Any],
        cells: Mapping[str, CellType],
    ) -> FunctionType:
        """A function, made without running anything."""
        own = next(it for it in code.co_consts if isinstance(it, CodeType))
        closure = tuple(cells[name] for name in own.co_freevars)
        own = own.replace(co_qualname=str(piece["qualname"]))
        function = FunctionType(own, names, own.co_name, None, closure)
        self._made[number] = function

        def finish() -> None:
            part = self.decoder.part
            if "defaults" in piece:
                function.__defaults__ = part(piece["defaults"])
            if "kwdefaults" in piece:
                function.__kwdefaults__ = part(piece["kwdefaults"])
            if "attributes" in piece:
                vars(function).update(part(piece["attributes"]))

        self._waiting.append(finish)
        return function

    def _run(
        self, number: int, code: CodeType, names: dict[str, Any], cells: Mapping[str, CellType]
    ) -> Any:
        """A class, or what decorators make of a function: its statement is run."""
        if number in self._open:
            raise _NotYet
        self._open.add(number)
        try:
            self._fill_now(code, names)
            self.settle()  # decorators may call what uses them
            values = []
            for name in code.co_varnames[: code.co_argcount]:
                self._fill_cell(cells[name])
                values.append(_content(cells[name]))
            within = FunctionType(code, names, code.co_name)
            before = dict(names)
            with self._placed(str(names["__name__"]), names):
                found = self._made[number] = within(*values)
            for name in names.keys() - before.keys():  # what it is to stand for is filled in
                del names[name]
            names.update(before)
        except Exception as error:
            self.raised = error
            raise
        finally:
            self._open.discard(number)
        return found

    def _fill_now(self, code: CodeType, names: dict[str, Any]) -> None:
        """Give names what they stand for that are used while a class or decorator is made."""
        told = self._told_of(names)
        wanted = set(_read_by(code))
        for inner in code.co_consts:
            if isinstance(inner, CodeType) and not inner.co_flags & 1:  # the body of a class
                wanted.update(_read_by(inner))
        for name in sorted(wanted & told.keys()):
            if name not in names:
                with contextlib.suppress(_NotYet):
                    names[name] = self.decoder.part(told[name])

    def _told_of(self, names: dict[str, Any]) -> dict[str, Any]:
        number = next(n for n, one in self._spaces.items() if one is names)
        told: dict[str, Any] = self._spaces_told[number]["names"]
        return told

    def _space(self, number: Any) -> dict[str, Any]:
        """The globals that functions of one module share."""
        if number not in self._spaces:
            told = self._spaces_told[number]
            names = self._spaces[number] = vars(ModuleType(str(told["name"])))
            names["__builtins__"] = self.builtins

            def fill() -> None:
                waits = False
                for name, value in told["names"].items():
                    try:
                        if name not in names:
                            names[str(name)] = self.decoder.part(value)
                    except _NotYet:
                        waits = True
                if waits:
                    raise _NotYet

            self._waiting.append(fill)
        return self._spaces[number]

    def _cell(self, number: Any) -> CellType:
        if number not in self._cells:
            if type(number) is not int or not 0 <= number < len(self._cells_told):
                raise refusal("it points behind the end of its closures")
            cell = self._cells[number] = CellType()
            self._waiting.append(lambda: self._fill_cell(cell))
        return self._cells[number]

    def _fill_cell(self, cell: CellType) -> None:
        number = next(n for n, one in self._cells.items() if one is cell)
        told = self._cells_told[number]
        if told is not None and _content(cell) is _EMPTY:
            cell.cell_contents = self.decoder.part(told["value"])

    # Modules -------------------------------------------------------------------------------------

    def _import(
        self,
        name: str,
        globals: Any = None,
        locals: Any = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        package = str((globals or {}).get("__package__") or "")
        full = absolute(name, level, package) if level else name
        if full not in self._modules and full.partition(".")[0] not in self._tops():
            return builtins.__import__(name, globals, locals, fromlist, level)
        found = self._module(full)
        for part in fromlist or ():
            if part != "*" and not hasattr(found, part) and f"{full}.{part}" in self._modules:
                self._module(f"{full}.{part}")
        return found if fromlist or level else self._module(full.partition(".")[0])

    def _tops(self) -> set[str]:
        return {name.partition(".")[0] for name in self._modules}

    def _module(self, name: str) -> ModuleType:
        """A module that came along, run when it is first asked for."""
        if name in self._imported:
            return self._imported[name]
        parent, _, last = name.rpartition(".")
        around = self._module(parent) if parent else None
        if name in self._imported:  # the package has imported it
            return self._imported[name]
        told = self._modules.get(name, _NO_FILE if self._is_package(name) else None)
        if told is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        module = self._imported[name] = ModuleType(name)
        names = vars(module)
        names.update(
            __builtins__=self.builtins,
            __file__=str(told["file"]),
            __package__=name if told["package"] else parent,
        )
        if told["package"]:
            names["__path__"] = []
        self._show({**told, "line": 1})
        try:
            with self._placed(name, names):
                exec(compile(str(told["text"]), str(told["file"]), "exec", 0, True), names)
        except BaseException as error:
            self.raised = error
            del self._imported[name]
            raise
        if around is not None:
            setattr(around, last, module)
        return module

    def _is_package(self, name: str) -> bool:
        return any(one.startswith(f"{name}.") for one in self._modules)

    @contextlib.contextmanager
    def _placed(self, name: str, names: dict[str, Any]) -> Iterator[None]:
        """While a module or class is made, it is found where dataclasses look for it.

        Nothing that is there is put aside, and nothing stays.
        """
        if name in sys.modules:
            yield
            return
        with _placing:
            stand_in = ModuleType(name)
            stand_in.__dict__.update(names)
            sys.modules[name] = self._imported.get(name, stand_in)
            try:
                yield
            finally:
                sys.modules.pop(name, None)

    def _show(self, piece: Mapping[str, Any]) -> None:
        """Let tracebacks show the text, where there is none of that name."""
        file, line = str(piece["file"]), int(piece["line"])
        rows = str(piece["text"]).splitlines(keepends=True)
        known = linecache.cache.get(file)
        if known is not None and file not in self._lines:
            return
        old: list[str] = list(known[2]) if known is not None else []  # type: ignore[misc]
        old += ["\n"] * (line - 1 + len(rows) - len(old))
        old[line - 1 : line - 1 + len(rows)] = rows
        linecache.cache[file] = (sum(map(len, old)), None, old, file)
        if file not in self._lines:
            self._lines.append(file)


class _NotYet(Exception):
    """A name stands for a class that is being made just now."""


def _read_by(code: CodeType) -> Iterator[str]:
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            yield step.argval


_EMPTY: Any = object()
_NO_FILE: dict[str, Any] = {"text": "", "file": "", "package": True}


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY
