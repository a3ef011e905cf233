"""Clients that are slow, huge, silent or gone; disks that are full; databases that are locked."""

import asyncio
import errno
import re
import socket
import sqlite3
import time

import pytest
import requests
from fake_workers import FakeWorkers, request
from loopback_server import running

from insitu.remote.protocol import Limits
from insitu.remote.server import download, files, patience, stream
from insitu.remote.server.files import collected
from insitu.remote.server.refusal import Refusal

HEAD = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nX-Protocol: 1\r\n"


def connected(server, text="", receive_bytes=None):
    """A plain connection that has sent a text."""
    found = socket.socket()
    if receive_bytes is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    found.settimeout(10)
    found.connect(("127.0.0.1", server.port))
    found.sendall(text.encode())
    return found


def rest_of(connection):
    """What comes until the server closes."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def until(condition, time_s=5):
    end = time.monotonic() + time_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def requests_kept(server):
    return [*(server.server.folder.path / "requests").iterdir()]


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_read(tmp_path):
    with running(tmp_path) as (server, _):
        with connected(server, HEAD + f"Content-Length: {65 * 2**20}\r\n\r\n") as it:
            said = it.recv(10_000)
        assert said.startswith(b"HTTP/1.1 413")
        assert b'"what":"the body is larger than 67,108,864 bytes."' in said


def test_a_body_that_grows_is_refused_while_it_is_read(tmp_path):
    with running(tmp_path, limits=Limits(request_bytes=100_000)) as (server, client):
        with connected(server, HEAD + "Transfer-Encoding: chunked\r\n\r\n") as it:
            for _ in range(11):
                it.sendall(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            said = it.recv(10_000)  # the body has not ended
        assert said.startswith(b"HTTP/1.1 413")
        assert requests_kept(server) == []
        assert client.send(request())  # and the place in the queue was given back


def body(*parts, pause_s=0.0):
    async def come():
        for part in parts:
            await asyncio.sleep(pause_s)
            yield part

    return come()


@pytest.mark.parametrize("said", [None, 0, 5, 3000])
def test_values_are_collected_whole_whatever_was_said_of_their_length(said):
    parts = [b"a" * 1000, b"b" * 1500, b"c" * 500]
    if said in (0, 5):
        with pytest.raises(Refusal) as error:
            asyncio.run(collected(body(*parts), 3000, said))
        assert error.value.status == 413
    else:
        assert asyncio.run(collected(body(*parts), 3000, said)) == b"".join(parts)


@pytest.mark.parametrize("said", [None, 3000])
def test_values_that_grow_too_large_are_refused_as_they_come(said):
    with pytest.raises(Refusal) as error:
        asyncio.run(collected(body(*[b"x" * 1000] * 4), 3000, said))
    assert error.value.status == 413


def test_values_that_come_too_slowly_are_refused(monkeypatch):
    monkeypatch.setattr(files, "GAP_S", 0.1)
    began = time.monotonic()
    with pytest.raises(Refusal) as error:
        asyncio.run(collected(body(b"x", b"y", pause_s=0.5), 10, 2))
    assert error.value.status == 408
    assert time.monotonic() - began < 0.4
    monkeypatch.setattr(files, "GAP_S", 5)
    monkeypatch.setattr(files, "FIRST_S", 0.3)
    with pytest.raises(Refusal, match=r"too slowly: [3-8] bytes"):
        asyncio.run(collected(body(*[b"x"] * 50, pause_s=0.05), 100, 50))


def test_who_goes_on_sending_after_the_answer_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "LINGER_S", 0.3)
    with running(tmp_path, limits=Limits(request_bytes=1_000)) as (server, _):
        it = connected(server, HEAD + "Transfer-Encoding: chunked\r\n\r\n")
        began = time.monotonic()
        with it, pytest.raises(OSError, match=r"reset|pipe"):
            while time.monotonic() < began + 5:
                it.sendall(b"3e8\r\n" + b"x" * 1_000 + b"\r\n")
                time.sleep(0.005)


def test_a_body_that_is_drip_fed_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "FIRST_S", 0.4)
    with running(tmp_path) as (server, _):
        with connected(server, HEAD + "Content-Length: 1000000\r\n\r\n") as it:
            began = time.monotonic()
            while time.monotonic() < began + 0.5:
                it.sendall(b"x")
                time.sleep(0.02)
            said = it.recv(10_000)
        assert said.startswith(b"HTTP/1.1 408")
        assert requests_kept(server) == []


def test_a_body_that_stops_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "GAP_S", 0.2)
    with running(tmp_path) as (server, _):
        with connected(server, HEAD + "Content-Length: 1000000\r\n\r\nxx") as it:
            assert it.recv(10_000).startswith(b"HTTP/1.1 408")
        with connected(server, HEAD + "Content-Length: 1000000\r\n\r\nxx"):
            pass  # the client goes away: its file goes too
        until(lambda: requests_kept(server) == [])
        assert server.server.desk.line.full_for("self") == ""


def test_a_header_that_is_drip_fed_or_endless_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "HEADER_S", 0.3)
    with running(tmp_path) as (server, client):
        with connected(server, HEAD) as slow, connected(server) as silent:
            began = time.monotonic()
            assert rest_of(slow) == rest_of(silent) == b""
            assert time.monotonic() - began < 3
        with connected(server, HEAD) as endless, pytest.raises(OSError, match=r"reset|pipe"):
            for n in range(1_000_000):
                endless.sendall(b"x-%d: " % n + b"y" * 10_000 + b"\r\n")
        assert client.get("/livez").ok
        assert client.get("/livez").ok  # and a kept connection is not cut between requests


def test_a_quiet_stream_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.1)
    with running(tmp_path) as (_, client):
        job = client.send(request(["sleep", 0.55]))
        text = client.get(f"/v1/jobs/{job}/events").text
        assert len(re.findall(r"^: \d+\n", text, re.MULTILINE)) >= 3


def test_a_reader_that_takes_nothing_is_let_go_and_holds_no_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "SEND_S", 0.5)
    limits = Limits(log_lines=5_000)
    with running(tmp_path, FakeWorkers(), limits) as (server, client):
        job = client.send(request(["lines", 3_000, 3_900]))
        client.until(job, "COMPLETED")
        lines = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
        with connected(server, lines, receive_bytes=4_096):
            until(lambda: server.server.streams)
            (it,) = server.server.streams
            until(lambda: not server.server.streams)
            assert it.after < 2_500  # of 3,006: what did not fit into the sockets was not read
        events = client.events(job)
        assert len(events) == 3_005
        assert [number for number, _, _ in events] == list(range(1, 3_006))


def test_a_reader_that_takes_none_of_the_values_is_let_go_and_another_gets_them(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(stream, "SEND_S", 0.3)
    with running(tmp_path, FakeWorkers()) as (server, client):
        job = client.send(request(["local", 0, 20_000_000]))
        accept = "Accept: application/x-insitu-events"
        lines = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n{accept}\r\n\r\n"
        with connected(server, lines, receive_bytes=4_096):
            until(lambda: server.server.streams)
            until(lambda: not server.server.streams)
            sent = server.server.desk.counts.bytes_out
            assert sent < 10_000_000  # what did not fit into the sockets was not copied
        assert client.get(f"/v1/jobs/{job}/local/0").content == b"v" * 20_000_000
        assert client.post(f"/v1/jobs/{job}/local/0", b"y").status_code == 204
        assert client.until(job, "COMPLETED") == "COMPLETED"


def test_a_reader_that_goes_away_leaves_no_stream(tmp_path):
    with running(tmp_path) as (server, client):
        job = client.send(request(["sleep", 30]))
        for _ in range(5):
            with client.get(f"/v1/jobs/{job}/events", stream=True):
                until(lambda: server.server.streams)
        until(lambda: not server.server.streams)
        client.delete(f"/v1/jobs/{job}")
        client.until(job, "CANCELLED")


def test_streams_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("insitu.remote.server.state.STREAMS_PER_USER", 2)
    with running(tmp_path) as (_, client):
        job = client.send(request(["sleep", 30]))
        path = f"/v1/jobs/{job}/events"
        with client.get(path, stream=True), client.get(path, stream=True):
            assert client.get(path).status_code == 429
        client.delete(f"/v1/jobs/{job}")
        client.until(job, "CANCELLED")


def test_a_locked_database_is_a_sentence_and_the_job_ends_all_the_same(tmp_path):
    with running(tmp_path) as (server, client):
        server.server.store._writer.execute("PRAGMA busy_timeout = 50")
        running_job = client.send(request(["sleep", 0.2], ["log", "while it was locked"]))
        client.until(running_job, "RUNNING")
        other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        answer = client.post("/v1/jobs", request())
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert answer.json()["what"] == "the server's database is busy."
        assert client.phase(running_job) == "RUNNING"  # what can be read is answered
        time.sleep(0.3)
        other.execute("ROLLBACK")
        other.close()
        events = client.events(running_job)
        assert events[-1][2]["phase"] == "COMPLETED"
        assert [data["text"] for _, kind, data in events if kind == "log"] == [
            "while it was locked"
        ]
        assert requests_kept(server) == []


def test_a_disk_that_is_nearly_full_takes_no_jobs(tmp_path):
    with running(tmp_path, free_bytes=2**60) as (_, client):
        answer = client.post("/v1/jobs", request())
        assert answer.status_code == 507
        assert answer.json()["what"] == "the server has no room for another job."


def test_a_disk_that_is_full_amid_a_request_is_a_sentence(tmp_path, monkeypatch):
    async def full(write, *given):
        raise OSError(errno.ENOSPC, "No space left on device")

    with running(tmp_path) as (server, client):
        with monkeypatch.context() as patch:
            patch.setattr(files.asyncio, "to_thread", full)
            answer = client.post("/v1/jobs", b"x" * 3_000_000)
        assert answer.status_code == 507
        assert answer.json()["why"] == "The disk of its data folder is full."
        assert requests_kept(server) == []
        assert client.send(request())


# results -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "first", "size"),
    [(None, 0, 100), ("bytes=0-", 0, 100), ("bytes=10-19", 10, 10), ("bytes=90-1000", 90, 10),
     ("bytes=-5", 95, 5), ("bytes=-1000", 0, 100), ("bytes=0-1,5-6", 0, 100), ("lines=1-2", 0, 100),
     ("bytes=-", 0, 100), ("bytes=" + "9" * 40 + "-", 0, 100)],
)  # fmt: skip
def test_a_range_is_what_it_says(header, first, size):
    span = download.span_of(header, 100)
    assert (span.first, span.size) == (first, size)


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=5-4", "bytes=-0"])
def test_a_range_outside_is_refused(header):
    with pytest.raises(Refusal) as error:
        download.span_of(header, 100)
    assert error.value.status == 416
    assert error.value.headers["Content-Range"] == "bytes */100"


def test_a_result_comes_whole_in_parts_and_again_from_where_it_broke(tmp_path):
    with running(tmp_path) as (server, client):
        job = client.send(request(["size", 3_000_001]))
        sha = client.events(job)[-1][2]["result"]["sha256"]
        path = f"/v1/jobs/{job}/result"
        whole = client.get(path)
        assert whole.content == b"\1" * 3_000_001
        assert whole.headers["ETag"] == f'"{sha}"'
        assert whole.headers["Content-Length"] == "3000001"
        part = client.get(path, headers={"Range": "bytes=3000000-", "If-Range": f'"{sha}"'})
        assert (part.status_code, part.content) == (206, b"\1")
        assert part.headers["Content-Range"] == "bytes 3000000-3000000/3000001"
        other = client.get(path, headers={"Range": "bytes=3000000-", "If-Range": '"other"'})
        assert (other.status_code, len(other.content)) == (200, 3_000_001)
        assert client.get(path, headers={"If-None-Match": f'"{sha}"'}).status_code == 304
        assert client.get(path, headers={"Range": "bytes=3000001-"}).status_code == 416
        head = client.http.head(server.url + path, timeout=10)
        assert (head.headers["Content-Length"], head.content) == ("3000001", b"")


def test_a_result_that_is_too_large_is_the_jobs_error(tmp_path):
    with running(tmp_path, limits=Limits(result_bytes=1_000)) as (_, client):
        end = client.events(client.send(request(["size", 1_001])))[-1][2]
        assert end["phase"] == "ERROR"
        assert end["fault"]["text"] == "The result is larger than 1,000 bytes; save less."
        assert [*(tmp_path / "results").iterdir()] == []


@pytest.mark.slow
def test_a_hundred_megabytes_come_at_two_hundred_a_second(tmp_path, capsys):
    with running(tmp_path) as (_, client):
        job = client.send(request(["size", 100 * 2**20]))
        client.events(job)
        speeds = []
        for _ in range(5):
            began = time.perf_counter()
            with client.get(f"/v1/jobs/{job}/result", stream=True) as answer:
                size = sum(len(it) for it in answer.iter_content(2**20))
            speeds.append(size / 2**20 / (time.perf_counter() - began))
            assert size == 100 * 2**20
    with capsys.disabled():
        print(f"\n100 MB: {max(speeds):.0f} MB/s at best, {sorted(speeds)[2]:.0f} median")
    assert max(speeds) >= 200


def test_nothing_listens_after_a_server_was_stopped(tmp_path):
    with running(tmp_path) as (server, client):
        url = server.url
        assert client.get("/livez").ok
    with pytest.raises(requests.ConnectionError):
        requests.get(url + "/livez", timeout=2)
    assert server.workers.stopped
