"""What has been found out about a code object, kept while that code lives.

    facts(frame.f_code).bodies[frame.f_lasti]

Two code objects that compare equal may be different places, so a code object is known by its id;
when it dies (a cell was run again), what was known of it goes with it.
"""

import weakref
from types import CodeType
from typing import Any

from insitu.engine.capture.scope import Body

known: "dict[int, Facts]" = {}


class Facts:
    """What is known of one code object, by instruction."""

    __slots__ = ("bodies", "entered", "enters", "reference", "rests", "tree", "uses")

    def __init__(self, code: CodeType) -> None:
        key = id(code)
        forget = known.pop  # the module's own names are gone when the interpreter ends
        self.reference = weakref.ref(code, lambda _: forget(key, None))
        self.bodies: dict[int, Body] = {}
        self.entered: dict[int, bool] = {}
        self.rests: dict[int, Body] = {}
        self.uses: dict[int, str] = {}
        self.enters: dict[str, bool] = {}
        self.tree: Any = None
        """The tree this code was compiled from, when it is a body captured before."""


def facts(code: CodeType) -> Facts:
    """What is known of a code object; one and the same record for all threads."""
    found = known.get(id(code))
    return found if found is not None else known.setdefault(id(code), Facts(code))
