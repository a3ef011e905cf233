"""Python's text as a tree, from any thread: `parse(text)`.

CPython before 3.11.8 and 3.12.2 counts the depth of the trees it makes for all threads together:
two that parse at once may be told of a SystemError, "AST constructor recursion depth mismatch",
though nothing is wrong with either text. Ours take turns; one that meets another's is tried again.
"""

import ast
from threading import RLock

_TRIES = 5
_turn = RLock()


def parse(text: str, name: str = "<unknown>") -> ast.Module:
    """What `ast.parse` gives.

    Raises:
        SyntaxError, ValueError: it is no text of this Python.
    """
    with _turn:
        for _ in range(_TRIES - 1):
            try:
                return ast.parse(text, name)
            except SystemError:
                continue
        return ast.parse(text, name)
