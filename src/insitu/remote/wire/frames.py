"""Bytes as zstd frames: compressed where that shrinks them, and else only wrapped.

    for piece in framed(head, level=3): file.write(piece)
    for piece in framed(memory_of_a_tensor, level=None): file.write(piece)

A stream is any number of frames, one behind the other, which every zstd reader takes. Random
float32 shrinks by 8 % at 180 MB/s, so large parts are tried on samples first (float32 activations:
2 GB/s wrapped).
"""

from collections.abc import Iterator

import zstandard

SMALL_BYTES = 2**18
"""What is no larger goes into the frame of the header."""

_BLOCK_BYTES = 2**17  # the most that a block of zstd may hold
_HEAD = b"\x28\xb5\x2f\xfd\x00\x38"  # magic; no size, no checksum; a window of 128 KiB
_RAW, _LAST = 0b000, 0b001
_SAMPLE_BYTES = 2**14
_SAMPLES = 3
_LARGE_LEVEL = 1
_WORTH = 0.7  # bfloat16 comes to 0.78 at 250 MB/s, token ids to 0.25


def framed(data: bytes | memoryview, level: int) -> Iterator[bytes | memoryview]:
    """One frame, in pieces; compressed whatever comes of it."""
    yield zstandard.ZstdCompressor(level=level).compress(data)


def framed_large(data: memoryview) -> Iterator[bytes | memoryview]:
    """One frame of something large, in pieces; compressed where a sample of it shrinks."""
    if not _shrinks(data):
        yield from _wrapped(data)
        return
    packer = zstandard.ZstdCompressor(level=_LARGE_LEVEL).compressobj()
    for start in range(0, len(data), _BLOCK_BYTES * 8):
        yield packer.compress(data[start : start + _BLOCK_BYTES * 8])
    yield packer.flush()


def _shrinks(data: memoryview) -> bool:
    packer = zstandard.ZstdCompressor(level=_LARGE_LEVEL)
    step = max(1, (len(data) - _SAMPLE_BYTES) // max(1, _SAMPLES - 1))
    starts = range(0, len(data) - _SAMPLE_BYTES + 1, step)
    samples = [data[start : start + _SAMPLE_BYTES] for start in starts] or [data]
    packed = sum(len(packer.compress(sample)) for sample in samples)
    return packed < _WORTH * sum(map(len, samples))


def _wrapped(data: memoryview) -> Iterator[bytes | memoryview]:
    """A frame of raw blocks: three bytes before each 128 KiB, and no copy of them."""
    yield _HEAD
    for start in range(0, len(data), _BLOCK_BYTES):
        block = data[start : start + _BLOCK_BYTES]
        last = _LAST if start + _BLOCK_BYTES >= len(data) else 0
        yield (last | _RAW | len(block) << 3).to_bytes(3, "little")
        yield block
