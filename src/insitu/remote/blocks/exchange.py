"""A `local()` part, from the server's side: values go down, what it assigned comes up.

names["__insitu_local__"] = Exchange(block, link, limits).come_to
"""

import sys
from typing import Any

import torch

from insitu.errors import UsageError
from insitu.remote.blocks.block import Block
from insitu.remote.protocol import Limits
from insitu.remote.wire import container
from insitu.remote.wire.values import decode_all, encode_all


class Kept:
    """Stands on the server for a value that stayed on the user's machine."""

    _name: str

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise UsageError(
            f"{self._name} is used on the server, and its value stayed on your machine.",
            "a local() part assigned it, and it is no data that could be sent: tensors, numbers, "
            "text, and containers of them.",
            f"use {self._name} in local() parts alone, or give the server what it needs of it.",
        )

    __getattr__ = __setattr__ = __getitem__ = __setitem__ = __call__ = __iter__ = _refuse
    __len__ = __bool__ = __add__ = __radd__ = __mul__ = __rmul__ = __sub__ = __rsub__ = _refuse
    __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = __lt__ = __gt__ = __neg__ = _refuse


class Exchange:
    """The `local()` parts of one run."""

    def __init__(self, block: Block, link: Any, limits: Limits) -> None:
        self._block = block
        self._link = link
        self._limits = limits
        self._theirs: dict[str, Any] = {}
        """Values that came from the user's machine, which has them already."""

    def come_to(self, index: int, *sites: Any) -> None:
        """The block has come to a part: have it run there, and take over what it assigned."""
        names: Any = sys._getframe(1).f_locals
        values = dict(zip(self._block.sites[index], sites, strict=True))
        asked = {}
        for name in self._block.wanted[index]:
            try:
                value = names[name]
            except KeyError:
                continue
            if name not in self._theirs or self._theirs[name] is not value:
                asked[name] = value
        header, tensors = encode_all({**values, **asked})
        payload = container.parts({"kind": "local", **header}, tensors)
        answer = self._link.local(index, *payload)
        header, tensors = container.unpack(
            answer, most=self._limits.local_bytes, header_most=self._limits.header_bytes
        )
        self._take(names, asked, header, decode_all(header, tensors))

    def _take(
        self, names: Any, asked: dict[str, Any], header: dict[str, Any], given: dict[str, Any]
    ) -> None:
        changed = set(map(str, header.get("changed", ())))
        for name, value in given.items():
            if name in changed and name in asked:
                _change(asked[name], value)
            else:
                names[name] = self._theirs[name] = _beside(asked.get(name), value)
        for name in map(str, header.get("kept", ())):
            names[name] = self._theirs[name] = Kept(name)


def _beside(there: Any, value: Any) -> Any:
    """A tensor on the device of the one it replaces."""
    if isinstance(there, torch.Tensor) and isinstance(value, torch.Tensor):
        return value.to(there.device)
    return value


def _change(there: Any, value: Any) -> None:
    """Give a value the content that the part has changed it to, in its place."""
    if isinstance(there, torch.Tensor):
        with torch.no_grad():
            there.copy_(value)
    elif isinstance(there, list):
        there[:] = value
    elif isinstance(there, (dict, set)):
        there.clear()
        there.update(value)
