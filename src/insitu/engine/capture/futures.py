"""`from __future__` imports, as code carries them (flags) and as text can name them.

names_of(code.co_flags)             # ("annotations",)
flags_of(("annotations",))          # for compile()
"""

import __future__

from collections.abc import Iterable


def names_of(flags: int) -> tuple[str, ...]:
    """The imports that held for code with these flags."""
    return tuple(name for name in __future__.all_feature_names if flags & _flag(name))


def flags_of(names: Iterable[str]) -> int:
    """The compiler flags of imports.

    Raises:
        AttributeError: this Python knows none of that name.
    """
    return sum(map(_flag, names))


def _flag(name: str) -> int:
    flag: int = getattr(__future__, name).compiler_flag
    return flag


EVERY = flags_of(__future__.all_feature_names)
"""Every flag of these imports."""
