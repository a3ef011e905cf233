"""The names a captured body runs in: it reads and writes its caller's, as plain code would.

    names = Names(frame, body, before=names_of_the_body_written_before)
    body.run(names)
    names.write_back()
    names.close()

A body runs later than where it is written. A name it reads is, in this order: what the body itself
has stored; what an earlier body of the same trace has stored (it is waited for); the value the
caller had when the body was captured, if the caller has given the name another since (so a loop's
variable is that of its round); the caller's own, as it is now; a global of the caller's.
"""

import builtins
import contextlib
import dis
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from types import CodeType, FrameType
from typing import Any

from insitu.engine.capture.frame_names import assign, release
from insitu.engine.capture.skip import without_skip

VALUE = ".value"
"""Holds the value of a target that is not a plain name, as in `with … as (a, b):`."""

_OURS = frozenset({"__builtins__", "__name__", "__warningregistry__", VALUE})
_OWN = 3
"""Of these, what every body has from the beginning."""
_NOTHING: frozenset[str] = frozenset()
_MISSING: Any = object()
_GLOBAL = ("LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL")
_READS = ("LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS")
_STORES = ("STORE_NAME", "STORE_GLOBAL")
_DELETES = ("DELETE_NAME", "DELETE_GLOBAL")
_IMPORTING = ("__package__", "__path__", "__spec__")


@dataclass(frozen=True)
class Body:
    """A captured body, compiled. One for each place in the code, for all its runs."""

    code: CodeType
    names: frozenset[str]
    """What it reads, stores or deletes of its caller's names, in nested functions too."""
    stored: frozenset[str]
    """What it stores or deletes itself."""
    target: str | None
    """Where the value after `as` goes: `names[body.target] = value` before a run."""
    line: int
    text: str
    """Its source, from column 0; empty when only its bytecode is known."""
    in_function: bool
    """Whether the caller is a function; else a module, a class, or what `exec` runs."""
    local: frozenset[str]
    """Those of its names that are the caller's own; others are globals."""
    around: frozenset[str]
    """All names of a calling function's own."""
    cells: frozenset[str]
    """Those shared with functions inside or around the caller."""
    deletes: frozenset[str]
    lent: frozenset[str]
    """Names that its class bodies and imports look up without asking."""
    ending: tuple[type[BaseException], ...] = ()
    """What it raises at its end."""

    def run(self, names: "Names") -> None:
        """Run it once."""
        names.begin()
        try:
            exec(self.code, names)
        except self.ending:
            pass
        except BaseException as error:
            without_skip(error)
            raise
        finally:
            names.ended = True


@dataclass
class _Use:
    """The names that instructions use."""

    reads: set[str] = field(default_factory=set)
    stores: set[str] = field(default_factory=set)
    deletes: set[str] = field(default_factory=set)
    lent: set[str] = field(default_factory=set)

    def add(self, steps: Iterable[dis.Instruction], nested: bool = False) -> "_Use":
        """Take in the instructions of the body, or of a function or class in it."""
        for step in steps:
            ours = not nested or step.opname in _GLOBAL
            if step.opname in _READS:
                self.reads.add(step.argval)
                if not ours:
                    self.lent.add(step.argval)
            elif step.opname in _STORES and ours:
                self.stores.add(step.argval)
            elif step.opname in _DELETES and ours:
                self.deletes.add(step.argval)
            elif step.opname == "IMPORT_NAME":
                self.lent.update(_IMPORTING)
            elif isinstance(step.argval, CodeType):
                self.add(dis.get_instructions(step.argval), nested=True)
        return self


def body_of(
    caller: CodeType,
    code: CodeType,
    target: str | None,
    line: int,
    text: str = "",
    steps: Iterable[dis.Instruction] | None = None,
) -> Body:
    """A body, from its code and that of its caller; `steps` are its own part of the code."""
    use = _Use().add(dis.get_instructions(code) if steps is None else steps)
    stored = use.stores | use.deletes | ({target} if target else set())
    names = use.reads | stored
    cells = {*caller.co_cellvars, *caller.co_freevars}
    around = {*caller.co_varnames, *cells}
    if in_function := bool(caller.co_flags & CO_OPTIMIZED):
        local = names & around
    else:
        local = names - {s.argval for s in dis.get_instructions(caller) if s.opname in _GLOBAL}
    return Body(
        code, frozenset(names - {VALUE}), frozenset(stored - {VALUE}), target, line, text,
        in_function=in_function,
        local=frozenset(local - {VALUE}),
        around=frozenset(around),
        cells=frozenset(names & cells),
        deletes=frozenset(use.deletes),
        lent=frozenset(use.lent),
    )  # fmt: skip


class Names(dict[str, Any]):
    """The globals and locals of a captured body; the dict itself holds what the body stores."""

    __slots__ = (
        "_awaited", "_before", "_begun", "_body", "_frame", "_frozen", "_home", "_lent", "_place",
        "_seen", "ended", "wait",
    )  # fmt: skip

    def __init__(self, frame: FrameType, body: Body, before: "Names | None" = None) -> None:
        self._home = home = frame.f_globals
        self["__builtins__"] = frame.f_builtins
        self["__name__"] = home.get("__name__")
        self[VALUE] = None
        self._body = body
        self._frame: FrameType | None = frame
        own = frame.f_locals
        self._place: Any = frame if body.in_function else own
        self._seen = self._frozen = {name: own[name] for name in body.local if name in own}
        self._lent: dict[str, Any] = {}
        self._begun = self.ended = False
        self._before = before
        self._awaited: frozenset[str] = (
            _NOTHING if before is None else before._awaited | before._body.stored
        )
        self.wait: Callable[[str], None] | None = None
        """Called with a name that an earlier body stores and has not stored yet."""

    @classmethod
    def standing_alone(cls, body: Body, values: Mapping[str, Any]) -> "Names":
        """The names of a body that has no caller: all values are given."""
        names = cls.__new__(cls)
        own = {"__builtins__": vars(builtins), "__name__": "__main__"}
        names.update(own, **{VALUE: None})
        names._home = names._place = {**own, **values}
        names._body, names._frame, names.wait = body, None, None
        names._seen, names._frozen, names._lent = {}, {}, {}
        names._before, names._awaited = None, _NOTHING
        names._begun = names.ended = False
        return names

    # Reading ---------------------------------------------------------------------------------

    def __missing__(self, name: str) -> Any:
        if name in self._lent:  # it was here: the body has deleted it
            raise KeyError(name)
        if name in self._awaited and (found := self._of_earlier(name)) is not _MISSING:
            return found
        if name in self._frozen:
            return self._frozen[name]
        if name in self._body.around or not self._body.in_function:
            return self._live(name)
        return self._home[name]

    def _live(self, name: str) -> Any:
        """The caller's own name, as it is now."""
        if not self._body.in_function:
            if self._place is not self._home and name in self._place:
                return self._place[name]
            return self._home[name]
        if self._frame is None:
            raise KeyError(name)
        return self._frame.f_locals[name]

    def _of_earlier(self, name: str) -> Any:
        if self.wait is not None and not self.is_due(name):
            self.wait(name)
        for names in self._storing(name):
            if names.bound(name):
                if name in self._body.deletes:
                    self[name] = self._lent[name] = names[name]
                return names[name]
            if name in names._lent and name not in names:
                raise KeyError(name)
        return _MISSING

    def _storing(self, name: str) -> list["Names"]:
        """The earlier bodies whose word on a name counts here, the latest first."""
        found: list[Names] = []
        names = self._before
        while names is not None:
            if names._place is self._place and names.stores(name):
                if name in self._body.names and not self._saw_the_same(names, name):
                    break  # the caller has assigned it between the two
                found.append(names)
            names = names._before
        return found

    def _saw_the_same(self, other: "Names", name: str) -> bool:
        return other._seen.get(name, _MISSING) is self._seen.get(name, _MISSING)

    def is_due(self, name: str) -> bool:
        """Whether no earlier body is still to be waited for before this name can be read."""
        for names in self._storing(name):
            if names.bound(name):
                return True
            if not names.ended:
                return False
        return True

    def stores(self, name: str) -> bool:
        """Whether the body has code that stores or deletes a name."""
        return name in self._body.stored

    def bound(self, name: str) -> bool:
        """Whether the body has stored a name."""
        return name in self and self._lent.get(name, _MISSING) is not self[name]

    @property
    def wanted(self) -> frozenset[str]:
        """The names that the body reads, stores or deletes."""
        return self._body.names

    def given(self) -> dict[str, Any]:
        """Those of them that have a value now, as a run would find it."""
        found: dict[str, Any] = {}
        for name in sorted(self._body.names):
            with contextlib.suppress(KeyError):
                found[name] = self[name]
        return found

    # Writing ---------------------------------------------------------------------------------

    def write_back(self) -> None:
        """Assign in the caller what the body has stored, and delete there what it has deleted."""
        write_back((self,))

    def _write_outside(self) -> tuple[dict[str, Any], list[str]]:
        """The same outside of functions; for one, what to assign and to delete in its frame."""
        body, lent = self._body, self._lent
        own: dict[str, Any] = {}
        if not lent and len(self) == _OWN:
            return own, []
        of_frame = body.local if body.in_function else _NOTHING
        for name, value in self.items():
            if name in _OURS or (lent and lent.get(name, _MISSING) is value):
                continue
            if name in of_frame:
                own[name] = value
            elif not body.in_function or name in body.stored:
                self._outside(name)[name] = value
        if not lent:
            return own, []
        deleted = [name for name in lent if name not in self]
        for name in deleted:
            if name not in of_frame:
                self._outside(name).pop(name, None)
        return own, [name for name in deleted if name in of_frame]

    def _outside(self, name: str) -> Any:
        """Where a name of the caller's is kept that is not in a function's frame."""
        body = self._body
        is_global = name in body.names and name not in body.local
        return self._home if body.in_function or is_global else self._place

    # Beginning and end -----------------------------------------------------------------------

    def begin(self) -> None:
        """The body is about to run: from now on, what changes is not the caller's doing."""
        self.ended = False
        if self._begun:
            return
        self._begun = True
        body, seen = self._body, self._seen
        if not body.in_function:
            now = self._place
            self._frozen = {n: v for n, v in seen.items() if n not in now or now[n] is not v}
        elif body.cells and self._frame is not None and not body.cells.isdisjoint(seen):
            now = self._frame.f_locals
            self._frozen = {
                n: v
                for n, v in seen.items()
                if n not in body.cells or now.get(n, _MISSING) is not v
            }
        for name in body.lent:
            self._lend(name)
        for name in body.deletes:  # what cannot be found in the dict cannot be deleted from it
            if name not in self._awaited or not self._storing(name):
                self._lend(name)

    def _lend(self, name: str) -> None:
        if name not in self:
            with contextlib.suppress(KeyError):
                self[name] = self._lent[name] = self[name]

    def fresh(self) -> "Names":
        """The same names for another run, later, when the caller has gone on."""
        if (frame := self._leave()) is not None:
            release(frame)
        names = Names.__new__(Names)
        names._home, names._place, names._body = self._home, self._place, self._body
        names._seen = names._frozen = self._seen
        names._lent, names._frame, names.wait = {}, None, None
        names._before, names._awaited = None, _NOTHING
        names._begun = names.ended = False
        names.update(self)
        return names

    def close(self) -> None:
        """The body has run for the last time. Functions it has left behind see what is now."""
        close((self,))

    def _empty(self) -> None:
        for name in [name for name in self if name not in _OURS]:
            self.pop(name)
        self._frozen = self._lent = {}

    def _leave(self) -> FrameType | None:
        """Forget the caller, and give its frame if it is a function's."""
        frame, self._frame = self._frame, None
        self._before = self.wait = None
        self._awaited = _NOTHING
        if frame is None or not self._body.in_function:
            return None
        self._place = None
        return frame


def write_back(bodies: Iterable[Names]) -> None:
    """Assign in their callers what several bodies have stored, in their order.

    A function's frame is written once for all of them.
    """
    frames: dict[int, tuple[FrameType, dict[str, Any], dict[str, None]]] = {}
    for names in bodies:
        own, gone = names._write_outside()
        frame = names._frame
        if frame is None or not (own or gone):
            continue
        _, changed, deleted = frames.setdefault(id(frame), (frame, {}, {}))
        for name in gone:
            changed.pop(name, None)
            deleted[name] = None
        if deleted:
            for name in own:
                deleted.pop(name, None)
        changed.update(own)
    for frame, changed, deleted in frames.values():
        assign(frame, changed, deleted)


def close(bodies: Iterable[Names]) -> None:
    """Several bodies have run for the last time.

    What a function's frame holds of its names is let go of once for all of them.
    """
    frames = set()
    for names in bodies:
        if not names._body.in_function:
            names._empty()
        if (frame := names._leave()) is not None:
            frames.add(frame)
    for frame in frames:
        release(frame)
