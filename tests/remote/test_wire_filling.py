"""Memory for bytes that were announced: as much as comes, where it stays."""

import os
import tracemalloc

import pytest

from insitu.remote.server.memory import keep_freed
from insitu.remote.wire.filling import AT_ONCE_BYTES, Filling


@pytest.mark.parametrize("size", [0, 1, 1000, AT_ONCE_BYTES, AT_ONCE_BYTES + 1, 3 * AT_ONCE_BYTES])
@pytest.mark.parametrize("step", [999_983, 10**9])
def test_what_is_put_in_is_what_is_there(size, step):
    data = os.urandom(min(size, 5000)) * (size // 5000 + 1)
    filling = Filling(size)
    rest = memoryview(data)[:size]
    while rest:
        assert not filling.is_full
        left = filling.take(rest[:step])
        assert not left
        rest = rest[step:]
    assert filling.is_full
    assert filling.data == data[:size]
    assert bytes(filling.take(memoryview(b"more"))) == b"more"


def test_room_is_where_bytes_stay():
    filling = Filling(5)
    filling.room()[:2] = b"ab"
    assert not filling.took(2)
    filling.room()[:] = b"cde"
    assert filling.took(3)
    assert filling.data == b"abcde"


def test_a_number_alone_takes_little_memory():
    tracemalloc.start()
    filling = Filling(2**40)
    filling.take(memoryview(bytes(100)))
    assert tracemalloc.get_traced_memory()[1] < 2 * AT_ONCE_BYTES
    for _ in range(6):
        filling.take(memoryview(bytes(2**20)))
    assert tracemalloc.get_traced_memory()[0] < 4 * AT_ONCE_BYTES
    tracemalloc.stop()


def test_memory_is_kept_where_the_system_can():
    pid = os.fork()  # what it changes is the whole process's
    if pid == 0:
        os._exit(keep_freed() is True)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
