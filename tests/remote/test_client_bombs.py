"""Answers that inflate, connections that die without a word: through the client as users have it.

Faults 13 and 25 from the other side: the server means harm, or its machine is gone.
"""

import functools
import json
import struct
import time

import pytest
import torch
import zstandard
from fake_server import packed

import insitu
from insitu import ServerError
from insitu.remote.client.connection import Connection

PROMPT = "The Eiffel Tower is in the city of"
MOST_MB = 96


def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))


def peak_mb(act):
    """By how much memory grows at most while something is done: torch's and zstd's too."""
    with open("/proc/self/clear_refs", "w") as forget:
        forget.write("5")
    before = kilobytes("VmRSS")
    act()
    return (kilobytes("VmHWM") - before) / 1024


# What inflates ------------------------------------------------------------------------------------


def piece(kind, data):
    return struct.pack("<BQ", kind, len(data)) + data


@functools.cache
def zeros(size):
    """So many zeros in a zstd frame: a gigabyte is 33 KB."""
    packer = zstandard.ZstdCompressor(level=3).compressobj()
    some = bytes(2**20)
    return b"".join([*(packer.compress(some) for _ in range(size // 2**20)), packer.flush()])


def container(*texts, behind=0):
    """A container whose header and list are these texts, or claim these lengths; then zeros."""
    inner = b""
    for text in texts:
        inner += struct.pack("<Q", text) if isinstance(text, int) else (
            struct.pack("<Q", len(text)) + text
        )  # fmt: skip
    head = piece(1, zstandard.ZstdCompressor().compress(inner))
    return b"INSITU\1" + head + (piece(1, zeros(behind)) if behind else b"")


def listing(*shape):
    return json.dumps(
        {"t0": {"dtype": "U8", "shape": [*shape], "data_offsets": [0, shape[0]]}}
    ).encode()


NAMES = b'{"kind":"result","names":{"h":{"at":0}},"values":[{"tensor":"t0"}]}'
DEEP = b'{"kind":"result","names":{"h":' + b"[" * 100_000 + b"]" * 100_000 + b'},"values":[]}'
MANY = b'{"kind":"result","names":{},"values":[' + b"0," * 1_500_000 + b"0]}"
BOMBS = {
    "a header of a gigabyte": container(2**30, behind=2**30),
    "a list of a gigabyte": container(NAMES, 2**30, behind=2**30),
    "tensors of three gigabytes": container(NAMES, listing(3 * 2**30), behind=2**30),
    "a gigabyte behind the end": container(NAMES, listing(2**20), behind=2**30),
    "a header that is deep": container(DEEP, b"{}"),
    "a header of many values": container(MANY, b"{}"),
}


def block(far, server):
    with far.trace(PROMPT, remote=server.url):
        h = far.transformer.h[1].output.save()
    return h


@pytest.mark.parametrize("name", BOMBS)
def test_a_result_that_inflates_is_a_sentence_and_little_memory(far, server, name):
    server.plan = lambda job: job.end(result=BOMBS[name])

    def act():
        with pytest.raises(ServerError) as caught:
            block(far, server)
        assert len(str(caught.value).splitlines()) == 3
        assert len(str(caught.value)) < 1_000

    assert peak_mb(act) < MOST_MB


@pytest.mark.parametrize("follows", [True, False])
@pytest.mark.parametrize("name", BOMBS)
def test_values_for_a_part_that_inflate_are_a_sentence(far, server, name, follows):
    server.follows = follows
    server.plan = lambda job: (job.ask(0, 0, BOMBS[name]), job.end(result=packed()))

    def run():
        with pytest.raises(ServerError, match="cannot be read") as caught:
            with far.trace(PROMPT, remote=server.url):
                h = far.transformer.h[1].output
                with insitu.local():
                    print("never", h)
        assert server.url in caught.value.what

    assert peak_mb(run) < MOST_MB


def test_values_that_are_within_bounds_and_no_more_are_taken(far, server):
    wide = torch.zeros(2_000_000)
    server.plan = lambda job: job.end(result=packed(h=wide))
    assert torch.equal(block(far, server), wide)


# Connections that die without a word --------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    """A server may be silent for 0.3 s."""
    for method in (Connection.open, Connection.ask):
        monkeypatch.setitem(method.__kwdefaults__, "read_s", 0.3)
    monkeypatch.setattr("insitu.remote.client.events.SILENCE_S", 0.3)


def dying(times, head=b"", after=0.8):
    """An answer that begins and then says nothing, without an end; the first so many times."""
    left = iter(range(times))

    def act(request):
        if next(left, None) is None:
            return NotImplemented
        request.close_connection = True
        request.wfile.write(head)
        request.wfile.flush()
        time.sleep(after)
        return None

    return act


def test_a_result_whose_connection_dies_is_fetched_on(far, server, short):
    values = torch.randn(200_000)
    server.plan = lambda job: job.end(result=packed(h=values))
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(packed(h=values))}\r\n\r\n".encode()
    server.answers["GET", "/v1/jobs/[^/]+/result"] = dying(
        2, head + packed(h=values)[:50_000], after=0.8
    )
    assert torch.equal(block(far, server), values)
    ranges = [headers.get("Range") for _, path, headers, _ in server.asked if "result" in path]
    assert ranges[0] is None
    assert ranges[-1] is not None


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_local_part_whose_connection_dies_runs_once(far, server, short, method):
    values, seen = torch.randn(100_000), []
    given = []
    server.plan = lambda job: (
        given.append(job.ask(0, 0, packed(h=values))),
        job.end(result=packed()),
    )
    server.answers[method, "/v1/jobs/[^/]+/local/0"] = dying(1)
    with far.trace(PROMPT, remote=server.url):
        h = far.transformer.h[1].output
        with insitu.local():
            seen.append(h)
    assert len(seen) == 1
    assert torch.equal(seen[0], values)
    assert given[0] is not None


def test_a_block_whose_answer_never_came_is_sent_again_and_runs_once(far, server, short):
    server.plan = lambda job: job.end(result=packed(h=1))
    server.answers["POST", "/v1/jobs"] = dying(1)
    assert block(far, server) == 1
    sent = [
        headers["Idempotency-Key"] for _, path, headers, _ in server.asked if path == "/v1/jobs"
    ]
    assert len(sent) == 2
    assert len(set(sent)) == 1
    assert len(server.jobs) == 1


def test_a_stream_that_says_nothing_is_given_up_in_the_end(far, server, short, monkeypatch):
    monkeypatch.setattr("insitu.remote.client.patience.GIVE_UP_S", 1.0)
    server.plan = lambda job: None
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    server.answers["GET", "/v1/jobs/[^/]+/events"] = dying(100, head)
    began = time.monotonic()
    with pytest.raises(insitu.ServerUnreachableError) as caught:
        block(far, server)
    assert time.monotonic() - began < 15
    assert "takes it up again" in caught.value.next
