"""What a connection has open is closed when it is, and not when a collection comes by."""

import threading
import time

import pytest
import torch
from fake_server import FakeServer, packed

from insitu import ServerUnreachableError
from insitu.remote.client.connection import Connection
from insitu.remote.client.job import RemoteJob


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


def still_open(server, within_s=5.0):
    """How many connections a server has that it would close if the client did."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not [one for one in server.sockets if one.fileno() >= 0]:
            break
        time.sleep(0.01)
    return len([one for one in server.sockets if one.fileno() >= 0])


def test_an_error_that_is_kept_keeps_no_connection_open(server):
    server.answers["GET", "/broken"] = lambda request: request.raw(b"nothing that is HTTP\r\n\r\n")
    with Connection(server.url) as connection:
        with pytest.raises(ServerUnreachableError) as kept:
            connection.json("GET", "/broken")
        connection.json("GET", "/v1/info")
        assert still_open(server, 0.2) == 1, "it is kept for the next request"
    assert still_open(server) == 0
    assert kept.value.__context__ is not None, "it leads to the pool of the connections"


def test_a_job_that_is_followed_beyond_its_connection_leaves_nothing_open(server):
    go, values = threading.Event(), torch.randn(50_000)
    server.plan = lambda job: (go.wait(10), job.end(result=packed(x=values)))
    with Connection(server.url) as connection:
        job = RemoteJob.sent(connection, b"a request").start()
    go.set()
    job.shows_bar = False
    assert torch.equal(job.result(timeout_s=10)["x"], values)
    assert still_open(server) == 0
