"""The beginning of a container, read without torch: what a server has to know of a request.

read_header(file, header_most=2**22)["model"]
"""

from typing import Any, BinaryIO

from insitu.remote.wire.bounds import Inflated, json_value, refusal

MAGIC = b"INSITU"
VERSION = 1
HEADER_BYTES = 4 * 2**20
"""The most that a header may take where nothing else is said."""
LENGTH_BYTES = 8

Data = bytes | bytearray | memoryview | BinaryIO


def read_header(data: Data, *, header_most: int = HEADER_BYTES) -> dict[str, Any]:
    """The header alone; what follows it is not read, and not checked.

    Raises:
        WireError: it is no container, or its header is larger than that.
    """
    return header_of(opened(data, header_most + LENGTH_BYTES), header_most)


def opened(data: Data, most: int) -> Inflated:
    """What a container holds, to be read to its end or to a bound.

    Raises:
        WireError: it is no container.
    """
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


def length_of(reader: Inflated, what: str, most: int) -> int:
    """The length of what comes next, which may be so long at most."""
    length = int.from_bytes(reader.exactly(LENGTH_BYTES, f"length of the {what}"), "little")
    if length > most:
        raise refusal(f"its {what} takes {length:,} bytes, and {most:,} are allowed")
    return length


def header_of(reader: Inflated, most: int) -> dict[str, Any]:
    """The header, from the beginning of what a container holds."""
    header = json_value(reader.exactly(length_of(reader, "header", most), "header"), "header")
    if not isinstance(header, dict):
        raise refusal("its header is no JSON object")
    return header
