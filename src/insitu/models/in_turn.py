"""A tokenizer that several threads share: `InTurn(tokenizer)`.

A fast tokenizer of transformers keeps how it pads and truncates in itself, set by each call.
A pipeline pads one call to the longest prompt and the next to the most there is; of two threads one
would be given the other's padding, and draw another image.
"""

import threading
from typing import Any

TURN = threading.RLock()
"""Held by whoever encodes a prompt."""


class InTurn:
    """A tokenizer whose calls, and those of its methods, wait for each other."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Encode, alone."""
        with TURN:
            return self._tokenizer(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._tokenizer, name)
        if not callable(found):
            return found

        def alone(*args: Any, **kwargs: Any) -> Any:
            with TURN:
                return found(*args, **kwargs)

        return alone
