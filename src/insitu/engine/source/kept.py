"""Plans and rewritten code, kept while the code they come from lives.

    plan_of(GPT2Attention.forward)      # found and named once (1.5 ms), for all instances
    code_of(GPT2Attention.forward)      # compiled once (0.6 ms), when first wanted in a pass

Code objects that compare equal may come from two files, so they are known by their ids.
"""

import weakref
from types import CodeType, FunctionType

from insitu.engine.source.names import Plan, named
from insitu.engine.source.rewrite import rewritten
from insitu.engine.source.text import define


class _Kept:
    """What is known of one code object."""

    __slots__ = ("code", "plan", "reference")

    def __init__(self, code: CodeType, plan: Plan) -> None:
        key = id(code)
        self.reference = weakref.ref(code, lambda _: _known.pop(key, None))
        self.plan = plan
        self.code: CodeType | None = None


_known: dict[int, _Kept] = {}


def plan_of(function: FunctionType) -> Plan:
    """The operations of a function.

    Raises:
        SourceError: its text cannot be had.
    """
    return _kept(function).plan


def code_of(function: FunctionType) -> CodeType:
    """A function's code with a stop at each operation."""
    kept = _kept(function)
    if kept.code is None:
        kept.code = rewritten(kept.plan, function.__code__)
    return kept.code


def _kept(function: FunctionType) -> _Kept:
    code = function.__code__
    found = _known.get(id(code))
    if found is None:
        found = _known.setdefault(id(code), _Kept(code, named(define(function))))
    return found
