"""One container for everything that is sent: a JSON header, and tensors beside it.

    data = pack({"kind": "result"}, {"t0": logits})
    header, tensors = unpack(data, most=2**31, header_most=2**22)

    b"INSITU" | version, one byte | zstd( length of the header, 8 bytes | header | safetensors )

Numbers are little-endian, the header is UTF-8. Both sides read it as written by a stranger: see
`bounds`. docs/protocol.md tells the format in full.
"""

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from torch import Tensor

from insitu.errors import WireError
from insitu.remote.wire.bounds import Inflated, json_text, json_value, refusal
from insitu.remote.wire.frames import SMALL_BYTES, framed, framed_large
from insitu.remote.wire.tensors import Plan, bytes_of, described, made, planned

MAGIC = b"INSITU"
VERSION = 1
HEADER_BYTES = 4 * 2**20
"""The most that a header may take where nothing else is said."""

_LENGTH = 8
Data = bytes | bytearray | memoryview | BinaryIO


def pack(
    header: dict[str, Any], tensors: Mapping[str, Tensor] | None = None, *, level: int = 3
) -> bytes:
    """A container in memory.

    Args:
        header: what JSON can hold.
        tensors: of any dtype, by name.
        level: of the compression of the header and of small tensors.
    """
    return b"".join(_pieces(header, tensors or {}, level, None))


def write(
    file: BinaryIO,
    header: dict[str, Any],
    tensors: Mapping[str, Tensor] | None = None,
    *,
    most: int | None = None,
    level: int = 3,
) -> None:
    """Write a container into a file, tensor by tensor.

    Raises:
        WireError: it would inflate to more than `most` bytes; nothing has been written.
    """
    for piece in _pieces(header, tensors or {}, level, most):
        file.write(piece)


def unpack(
    data: Data, *, most: int, header_most: int = HEADER_BYTES
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a container, of which not a byte is trusted.

    Args:
        data: the container, or a file that is read to its end.
        most: how many bytes it may inflate to.
        header_most: how many of them may be its header, and how many the list of its tensors.

    Raises:
        WireError: it is no container, or larger than that.
    """
    reader = _opened(data, most)
    header = _header(reader, header_most)
    length = _length(reader, "list of tensors", header_most)
    plans = planned(json_value(reader.exactly(length, "list of tensors"), "list of tensors"))
    reader.reserve(sum(plan.size_bytes for plan in plans), "tensors")
    tensors = {plan.name: made(plan, reader) for plan in plans}
    reader.ended()
    return header, tensors


def read_header(data: Data, *, header_most: int = HEADER_BYTES) -> dict[str, Any]:
    """The header alone; what follows it is not read, and not checked.

    Raises:
        WireError: it is no container, or its header is larger than that.
    """
    return _header(_opened(data, header_most + _LENGTH), header_most)


# Writing -----------------------------------------------------------------------------------------


def _pieces(
    header: dict[str, Any], tensors: Mapping[str, Tensor], level: int, most: int | None
) -> Iterator[bytes | memoryview]:
    plans = described(tensors)
    listed = _padded(json_text(_listed(plans)))
    text = json_text(header)
    _check_size(2 * _LENGTH + len(text) + len(listed) + sum(p.size_bytes for p in plans), most)
    yield MAGIC + bytes([VERSION])
    waiting = bytearray(len(text).to_bytes(_LENGTH, "little") + text)
    waiting += len(listed).to_bytes(_LENGTH, "little") + listed
    for plan in plans:
        memory = bytes_of(tensors[plan.name])
        if len(memory) <= SMALL_BYTES:
            waiting += memory
            if len(waiting) <= 4 * SMALL_BYTES:
                continue
            memory = memoryview(b"")
        if waiting:
            yield from framed(bytes(waiting), level)
            waiting = bytearray()
        if memory:
            yield from framed_large(memory)
    if waiting:
        yield from framed(bytes(waiting), level)


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


# Reading -----------------------------------------------------------------------------------------


def _opened(data: Data, most: int) -> Inflated:
    if isinstance(data, (bytes, bytearray, memoryview)):
        start = bytes(data[: len(MAGIC) + 1])
        source: Any = memoryview(data)[len(start) :]
    else:
        start, source = data.read(len(MAGIC) + 1), data
    if start[: len(MAGIC)] != MAGIC or len(start) <= len(MAGIC):
        raise refusal("it does not begin as a container of Insitu's does")
    if start[len(MAGIC)] != VERSION:
        raise refusal(f"it is a container of version {start[len(MAGIC)]}, and {VERSION} is known")
    return Inflated(source, most)


def _length(reader: Inflated, what: str, most: int) -> int:
    length = int.from_bytes(reader.exactly(_LENGTH, f"length of the {what}"), "little")
    if length > most:
        raise refusal(f"its {what} takes {length:,} bytes, and {most:,} are allowed")
    return length


def _header(reader: Inflated, most: int) -> dict[str, Any]:
    header = json_value(reader.exactly(_length(reader, "header", most), "header"), "header")
    if not isinstance(header, dict):
        raise refusal("its header is no JSON object")
    return header
