"""One container for everything that is sent: a JSON header, and tensors beside it.

    data = pack({"kind": "result"}, {"t0": logits})
    header, tensors = unpack(data, most=2**31, header_most=2**22)

    b"INSITU" | version, one byte | pieces, zstd or plain, that hold one behind the other:
    length of the header, 8 bytes | header | safetensors

Numbers are little-endian, the header is UTF-8. Both sides read it as written by a stranger: see
`bounds`. docs/protocol.md tells the format in full.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from torch import Tensor

from insitu.errors import WireError
from insitu.remote.wire.bounds import json_text, json_value
from insitu.remote.wire.header import (
    HEADER_BYTES,
    LENGTH_BYTES,
    MAGIC,
    VERSION,
    Data,
    header_of,
    length_of,
    opened,
)
from insitu.remote.wire.pieces import SMALL_BYTES, large, packed
from insitu.remote.wire.tensors import Plan, bytes_of, described, made, planned

_TOLD_BYTES = 4 * 2**20


def pack(
    header: dict[str, Any], tensors: Mapping[str, Tensor] | None = None, *, level: int = 3
) -> bytes:
    """A container in memory.

    Args:
        header: what JSON can hold.
        tensors: of any dtype, by name.
        level: of the compression of the header and of small tensors.
    """
    return b"".join(piece for piece, _ in _pieces(header, tensors or {}, level, None))


def parts(header: dict[str, Any], tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """A container, to be sent part by part: large tensors are in it with the memory they have."""
    return [piece for piece, _ in _pieces(header, tensors, 3, None)]


def write(
    file: BinaryIO,
    header: dict[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    most: int | None = None,
    level: int = 3,
    told: Callable[[int], None] | None = None,
) -> None:
    """Write a container into a file, tensor by tensor.

    Args:
        file: where to.
        header: what JSON can hold.
        tensors: of any dtype, by name.
        most: how many bytes it may inflate to.
        level: of the compression of the header and of small tensors.
        told: how many bytes of tensors more have been written, now and then.

    Raises:
        WireError: it would inflate to more than `most` bytes; nothing has been written.
    """
    for piece, size in _pieces(header, tensors or {}, level, most):
        if told is None:
            file.write(piece)
        elif isinstance(piece, bytes):
            file.write(piece)
            told(size)
        else:
            for at in range(0, len(piece), _TOLD_BYTES):
                part = piece[at : at + _TOLD_BYTES]
                file.write(part)
                told(len(part))


def unpack(
    data: Data, *, most: int, header_most: int = HEADER_BYTES
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a container, of which not a byte is trusted.

    Args:
        data: the container, or a file that is read to its end. A bytearray is given away:
            large tensors may stay in it, where they are.
        most: how many bytes it may inflate to.
        header_most: how many of them may be its header, and how many the list of its tensors.

    Raises:
        WireError: it is no container, or larger than that.
    """
    reader = opened(data, most)
    header = header_of(reader, header_most)
    length = length_of(reader, "list of tensors", header_most)
    plans = planned(json_value(reader.exactly(length, "list of tensors"), "list of tensors"))
    reader.reserve(sum(plan.size_bytes for plan in plans), "tensors")
    tensors = {plan.name: made(plan, reader) for plan in plans}
    reader.ended()
    return header, tensors


# Writing -----------------------------------------------------------------------------------------


def _pieces(
    header: dict[str, Any], tensors: Mapping[str, Tensor], level: int, most: int | None
) -> Iterator[tuple[bytes | memoryview, int]]:
    """The container piece by piece, each with how many bytes of tensors are in it."""
    plans = described(tensors)
    listed = _padded(json_text(_listed(plans)))
    text = json_text(header)
    _check_size(2 * LENGTH_BYTES + len(text) + len(listed) + sum(p.size_bytes for p in plans), most)
    waiting = bytearray(len(text).to_bytes(LENGTH_BYTES, "little") + text)
    waiting += len(listed).to_bytes(LENGTH_BYTES, "little") + listed
    before = MAGIC + bytes([VERSION])
    at = small = 0
    for plan in plans:
        memory = bytes_of(tensors[plan.name])
        if len(memory) <= SMALL_BYTES:
            waiting += memory
            small += len(memory)
            if len(waiting) <= 4 * SMALL_BYTES:
                continue
            memory = memoryview(b"")
        if waiting:
            before += packed(bytes(waiting), level)
            waiting = bytearray()
        for piece, size in large(memory, at + len(before)) if memory else ():
            yield (before + piece if isinstance(piece, bytes) else piece), small + size
            at, before, small = at + len(before) + len(piece), b"", 0
    if waiting:
        before += packed(bytes(waiting), level)
    if before:
        yield before, small


def _listed(plans: list[Plan]) -> dict[str, Any]:
    """The header of safetensors."""
    found: dict[str, Any] = {}
    own = {plan.name: plan.own for plan in plans if plan.own}
    if own:
        found["__metadata__"] = own
    start = 0
    for plan in plans:
        end = start + plan.size_bytes
        found[plan.name] = {"dtype": plan.code, "shape": plan.shape, "data_offsets": [start, end]}
        start = end
    return found


def _padded(text: bytes) -> bytes:
    return text + b" " * (-len(text) % 8)


def _check_size(size_bytes: int, most: int | None) -> None:
    if most is not None and size_bytes > most:
        raise WireError(
            f"the values take {size_bytes:,} bytes, and {most:,} may be sent.",
            "tensors are sent whole, as the block left them.",
            "save less: a slice, a mean over positions, or .to(torch.bfloat16).",
        )
