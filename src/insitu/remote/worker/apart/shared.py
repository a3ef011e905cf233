"""Memory that two processes see: where the tensors of a message lie.

    segment = Segment(fd)                       # of the same file on both sides: Segment.file()
    segment.begin()
    at = segment.put(tensor)                    # one copy, from whatever device
    segment.take(at, torch.float32, (1, 8))     # on the other side: a copy of its own

One side writes, the other reads, and they take turns, so that every message begins at the first
byte. A segment is sealed at its full size before anybody else has it: a reader cannot be made to
fault by cutting it off. Its memory is taken when it is first touched, and given back after a
large message.
"""

import fcntl
import math
import mmap
import os

import torch

BYTES = 4 * 2**30
"""Of one message's tensors, at most."""
_ALIGNED = 64
_KEPT = 16 * 2**20
_AXES = 64
_SEALS = 0x1 | 0x2 | 0x4
"""Against further seals, shrinking and growing."""


class SegmentError(ValueError):
    """A place that is not in the segment, or a tensor that does not fit."""


class Segment:
    """One direction's memory, by its file, which is closed when it has been mapped."""

    def __init__(self, fd: int) -> None:
        size = os.fstat(fd).st_size
        try:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
                raise SegmentError("shared memory whose size could change")
            self._memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self.size = size
        self._bytes = torch.frombuffer(self._memory, dtype=torch.uint8)
        self._used = 0

    @staticmethod
    def file(size: int = BYTES) -> int:
        """The file of a new one, sealed."""
        fd = os.memfd_create("insitu", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return fd

    # Writing ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The last message has been read: begin another."""
        if self._used > _KEPT:
            self._memory.madvise(mmap.MADV_REMOVE, 0, self._used)
        self._used = 0

    def put(self, tensor: torch.Tensor) -> int:
        """Copy a tensor's values in, row by row as it is indexed; where they begin."""
        at, length = self._used, tensor.numel() * tensor.dtype.itemsize
        if at + length > self.size:
            raise SegmentError(
                f"tensors of {at + length:,} bytes in one message, where {self.size:,} have room"
            )
        if length:
            self._view(at, tensor.dtype, tuple(tensor.shape)).copy_(tensor)
        self._used = -(-(at + length) // _ALIGNED) * _ALIGNED
        return at

    def put_bytes(self, data: bytes) -> int:
        """Copy bytes in; where they begin."""
        if self._used + len(data) > self.size:
            raise SegmentError(f"a message of {len(data):,} bytes")
        at, self._used = self._used, self._used + len(data)
        self._memory[at : at + len(data)] = data
        return at

    # Reading ------------------------------------------------------------------------------------

    def take(self, at: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of its own with the values at a place.

        Raises:
            SegmentError: they do not lie within.
        """
        length = math.prod(shape) * dtype.itemsize
        most = math.prod(axis or 1 for axis in shape)  # what is empty is bounded too
        if len(shape) > _AXES or at < 0 or at % _ALIGNED or at + length > self.size:
            raise SegmentError("a tensor that does not lie in the shared memory")
        if most * dtype.itemsize > self.size:
            raise SegmentError("a tensor that does not lie in the shared memory")
        if not length:
            return torch.empty(shape, dtype=dtype)
        if dtype is torch.bool:  # a byte is any number, a truth value 0 or 1
            return self._view(at, torch.uint8, shape).ne(0)
        return self._view(at, dtype, shape).clone()

    def take_bytes(self, at: int, length: int) -> bytes:
        """A copy of bytes at a place.

        Raises:
            SegmentError: they do not lie within.
        """
        if at < 0 or length < 0 or at + length > self.size:
            raise SegmentError("bytes that do not lie in the shared memory")
        return self._memory[at : at + length]

    def _view(self, at: int, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        length = math.prod(shape) * dtype.itemsize
        return self._bytes[at : at + length].view(dtype).view(shape)
