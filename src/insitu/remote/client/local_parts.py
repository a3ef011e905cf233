"""The `local()` parts of a block, run here when the server comes to them.

    parts = LocalParts(taken.parts, frame)
    answer = parts.run(0, payload)          # a container comes down, a container goes up

A part reads the names of its caller, those that earlier parts assigned, and those that the server
hands over; it assigns in the caller's frame, as plain code would.
"""

import json
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch

from insitu.engine.capture.scope import Names
from insitu.engine.save import keeping
from insitu.errors import NotSendableError, WireError
from insitu.remote.blocks.taken import Part
from insitu.remote.client import named
from insitu.remote.protocol import Limits
from insitu.remote.wire import container
from insitu.remote.wire.values import decode_all, encode_all

HERE = "local"
"""`remote="local"`: encoded, decoded and run in this process, through the code of a server."""


class LocalParts:
    """The parts of one block, and the names they have given values so far."""

    def __init__(self, parts: Sequence[Part], frame: FrameType, limits: Limits) -> None:
        self._parts = parts
        self._names = [Names(frame, part.body) for part in parts]
        self._limits = limits
        self._live = True
        self.url = HERE
        """Of the server."""
        self.known: dict[str, Any] = {}
        """What parts have assigned, and what the server has handed over."""

    def leave_the_frame(self) -> None:
        """The caller goes on before the block has ended: read its names as they are now."""
        self._names = [names.fresh() for names in self._names]
        self._live = False

    def close(self) -> None:
        """No part runs any more."""
        for names in self._names:
            names.close()

    def run(self, index: int, payload: bytes | bytearray) -> list[bytes | memoryview]:
        """Run a part on what the server hands over; what it assigned is what is sent back.

        Its values may stay in the payload, where they are; what is given back is in pieces, some
        of which are memory of the values assigned.

        Raises:
            ServerError: the block has no such part, or it has not asked for these values.
        """
        if index >= len(self._parts):
            raise named.no_such_part(index, len(self._parts), self.url)
        part = self._parts[index]
        given = self._read(payload)
        named.check_given(given, part.wanted, part.sites, self.url)
        before = {name: _print(value) for name, value in given.items() if name not in part.sites}
        self._run(part, self._names[index], given)
        gives = {name: self.known[name] for name in part.gives if name in self.known}
        changed = [
            name for name, was in before.items() if name not in gives and _print(given[name]) != was
        ]
        return _answer(gives, {name: given[name] for name in changed})

    def _read(self, payload: bytes | bytearray) -> dict[str, Any]:
        try:
            header, tensors = container.unpack(
                payload, most=self._limits.local_bytes, header_most=self._limits.header_bytes
            )
            return decode_all(header, tensors)
        except WireError as error:
            raise named.unreadable(error.why, self.url) from error

    def _run(self, part: Part, names: Names, given: dict[str, Any]) -> None:
        self.known.update((name, it) for name, it in given.items() if name not in part.sites)
        uses = {name: self.known[name] for name in part.body.names if name in self.known}
        names.update(uses | given)
        try:
            with keeping():
                part.body.run(names)
        finally:
            stored = part.body.stored
            self.known.update((name, names[name]) for name in stored if names.bound(name))
            for name in [name for name in (*uses, *given) if name not in stored]:
                names.pop(name, None)
            if self._live:
                names.write_back()


def _print(value: Any) -> Any:
    """Something that is another when a value has been changed in place."""
    if isinstance(value, torch.Tensor):
        return value._version
    if isinstance(value, (list, dict, set)):
        header, tensors = encode_all({"value": value})
        return json.dumps(header, sort_keys=True), [
            (id(it), it._version) for it in tensors.values()
        ]
    return None


def _answer(gives: dict[str, Any], changed: dict[str, Any]) -> list[bytes | memoryview]:
    try:
        header, tensors = encode_all({**gives, **changed})
        kept: list[str] = []
    except NotSendableError:
        kept = [name for name, value in gives.items() if not _can_be_sent(value)]
        rest = {name: value for name, value in gives.items() if name not in kept}
        header, tensors = encode_all({**rest, **changed})
    return container.parts(
        {"kind": "local", "changed": list(changed), "kept": kept, **header}, tensors
    )


def _can_be_sent(value: Any) -> bool:
    try:
        encode_all({"value": value})
    except NotSendableError:
        return False
    return True
