"""Text on its way to a view or a twin: what JSON and HTML cannot hold, or no eye sees, is named.

words(["The", "\\ud800"])       # ["The", "\\\\ud800"]: JSON cannot carry half a character
readable("\\x1b[31mred")        # "\\\\x1b[31mred", for a twin
"""

import re
from collections.abc import Iterable
from typing import Any

_UNSEEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u200b\\u200e\\u200f\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]"
)
"""Control characters, those that turn the direction of writing, and halves of characters."""


def word(given: Any, most: int | None = None) -> str:
    """A thing as a text that JSON can carry, cut after so many characters."""
    text = str(given)[:most]
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def words(given: Iterable[Any], most: int | None = None) -> list[str]:
    """Things as such texts."""
    return [word(it, most) for it in given]


def readable(text: str) -> str:
    """A text with what cannot be seen named; ends of lines and tabs stay."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
