"""What one user can hold of a server: memory, streams, disk; and keys that end amid a stream."""

import asyncio
import json
import os
import socket
import time

import pytest
from fake_workers import FakeWorkers, request
from loopback_server import Client, running

from insitu.remote.protocol import Ended, Limits, Local, Log, Progress, Status
from insitu.remote.server import jobs, stream
from insitu.remote.server.callers import Door
from insitu.remote.server.jobs import Job
from insitu.remote.server.keys import Keys
from insitu.remote.server.refusal import Refusal, StoreTrouble
from insitu.remote.server.store import ADD_JOB, Store

MEGABYTE = 2**20


def waiting_for_values(client):
    """A job that has come to its `local()` part."""
    job = client.send(request(["local", 0, 5]))
    while not client.get(f"/v1/jobs/{job}/local/0").ok:
        time.sleep(0.005)
    return job


def begun(server, job, size, *pieces):
    """A connection that has sent the beginning of so many bytes of values."""
    found = socket.create_connection(("127.0.0.1", server.port))
    found.settimeout(10)
    head = f"POST /v1/jobs/{job}/local/0 HTTP/1.1\r\nHost: localhost\r\nX-Protocol: 1\r\n"
    found.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
    for it in pieces:
        found.sendall(it)
    return found


def until(condition, time_s=5):
    end = time.monotonic() + time_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# memory ------------------------------------------------------------------------------------------


def own_memory_mb():
    with open("/proc/self/status") as status:
        line = next(it for it in status if it.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def test_the_values_of_a_part_are_held_once_however_often_they_are_sent(tmp_path):
    """One body a part: who sends it again takes the place of what he sent before."""
    with running(tmp_path) as (server, client):
        job = waiting_for_values(client)
        before = own_memory_mb()
        sent = []
        for _ in range(12):
            pieces = [b"x" * MEGABYTE] * 20
            try:
                sent.append(begun(server, job, 200 * MEGABYTE, *pieces))
            except ConnectionError:  # it was refused while it was being sent
                continue
        grown = own_memory_mb() - before
        said = [it.recv(1_000) for it in sent[:-1]]
        assert {it[:12] for it in said} <= {b"HTTP/1.1 409"}
        assert all(b"sent again" in it for it in said)
        for it in sent:
            it.close()
        assert client.post(f"/v1/jobs/{job}/local/0", b"y").status_code == 204
        assert client.until(job, "COMPLETED") == "COMPLETED"
    assert grown < 100  # 240 MB, were they all held


def test_values_that_broke_off_amid_their_way_can_be_sent_again_at_once(tmp_path):
    """A client whose connection died does not wait until the server has noticed."""
    with running(tmp_path) as (server, client):
        job = waiting_for_values(client)
        with begun(server, job, 1_000, b"half") as half:
            time.sleep(0.1)
            began = time.monotonic()
            assert client.post(f"/v1/jobs/{job}/local/0", b"whole").status_code == 204
            assert time.monotonic() - began < 2
            assert half.recv(100).startswith(b"HTTP/1.1 409")
        assert client.until(job, "COMPLETED") == "COMPLETED"


def test_values_that_still_come_for_a_job_that_ends_are_let_go(tmp_path):
    """Else each job that is cancelled would leave so much in memory."""
    with running(tmp_path) as (server, client):
        job = waiting_for_values(client)
        with begun(server, job, 1_000, b"half") as half:
            time.sleep(0.1)
            client.delete(f"/v1/jobs/{job}")
            said = half.recv(1_000)
        assert said.startswith(b"HTTP/1.1 409")
        assert b"does not wait" in said


# streams -----------------------------------------------------------------------------------------


def test_streams_of_jobs_that_have_ended_are_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr("insitu.remote.server.state.STREAMS_PER_USER", 3)
    with running(tmp_path) as (server, client):
        job = client.send(request(["lines", 3_000, 3_900]))
        client.until(job, "COMPLETED")
        asked = f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\nX-Protocol: 1\r\n\r\n"
        readers = []
        for _ in range(3):
            it = socket.socket()
            it.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            it.connect(("127.0.0.1", server.port))
            it.sendall(asked.encode())
            readers.append(it)
        until(lambda: len(server.server.streams) == 3)
        answer = client.get(f"/v1/jobs/{job}/events")
        assert answer.status_code == 429
        assert answer.headers["Retry-After"]
        for it in readers:
            it.close()
        until(lambda: not server.server.streams)


@pytest.mark.parametrize("lines", [True, False])
def test_a_key_that_is_revoked_ends_its_open_streams(tmp_path, monkeypatch, lines):
    """Whether the job tells something or is silent."""
    monkeypatch.setattr(stream, "HEARTBEAT_S", 0.3)
    monkeypatch.setattr(stream, "LOOK_S", 0.1)
    keys = Keys(tmp_path / "keys.sqlite")
    ada = keys.add("ada")
    acts = [it for n in range(40) for it in (["log", f"line {n}"], ["sleep", 0.1])]
    with running(tmp_path / "data", door=Door(keys=keys)) as (server, _):
        client = Client(server.url, ada)
        job = client.send(request(*(acts if lines else [["sleep", 4]])))
        with client.get(f"/v1/jobs/{job}/events", stream=True) as answer:
            got = answer.iter_content(1)
            next(got)
            time.sleep(0.5)
            keys.revoke("ada")
            revoked = time.monotonic()
            with pytest.raises(Exception, match=r"ended prematurely|broken|IncompleteRead"):
                while True:
                    next(got)
            assert time.monotonic() - revoked < 2
        until(lambda: not server.server.streams)
        client.close()
    keys.close()


def test_a_model_that_is_never_loaded_ends_its_jobs(tmp_path):
    class Loading(FakeWorkers):
        async def run(self, task, told):
            told(Status("LOADING"))
            await asyncio.sleep(60)

    with running(tmp_path, Loading(), Limits(loading_s=0.5)) as (_, client):
        end = client.events(client.send(request()))[-1][2]
    assert end["phase"] == "TIMEOUT"
    assert end["fault"]["text"].startswith("its model was not loaded within 0.5 s.\nWhy: ")


# what is told ------------------------------------------------------------------------------------


def with_job(path, limits, act):
    """The rows of a job after `await act(store, job)`."""

    async def run():
        store = Store(path / "jobs.sqlite", 50)
        store.open(asyncio.get_running_loop())
        try:
            await store.write((ADD_JOB, ("j1", "ada", "demo", "RECEIVED", 1.0)))
            job = Job("j1", "ada", "demo", store, limits)
            await act(store, job)
            while store.pending():
                await asyncio.sleep(0.005)
            return [(row["kind"], json.loads(row["data"])) for row in store.events("j1", 0, 10_000)]
        finally:
            await asyncio.to_thread(store.close)

    return asyncio.run(run())


def test_places_in_the_queue_are_bounded_and_take_nothing_of_what_the_job_may_tell(tmp_path):
    async def act(store, job):
        for n in range(5_000):
            job.stands_at(1 + n % 9, 10)
        for n in range(50):
            job.told(Log(f"line {n}"))

    rows = with_job(tmp_path, Limits(events=jobs.SPARE + 50), act)
    assert sum(kind == "queue" for kind, _ in rows) <= jobs.PLACES
    assert [data["text"] for kind, data in rows if kind == "log"] == [
        f"line {n}" for n in range(50)
    ]


def test_a_queue_that_grows_behind_a_job_is_no_news_to_it(tmp_path):
    async def act(store, job):
        for n in range(100):
            job.stands_at(3, 3 + n)
        job.stands_at(2, 100)

    rows = with_job(tmp_path, Limits(), act)
    assert [(data["done"], data["of"]) for kind, data in rows if kind == "queue"] == [
        (3, 3), (2, 100),
    ]  # fmt: skip


def test_what_a_job_tells_is_bounded_in_bytes_and_says_so(tmp_path):
    async def act(store, job):
        for n in range(1_000):
            job.told(Progress("é" * 1_000, n))  # 6 bytes each, as JSON
        job.told(Local(0, 0, b"v"))
        await store.write(*job.end_rows(Ended("COMPLETED"), (1, "s")))

    rows = with_job(tmp_path, Limits(told_bytes=100_000), act)
    kinds = [kind for kind, _ in rows]
    assert sum(len(json.dumps(data)) for _, data in rows) < 110_000
    assert 10 < kinds.count("progress") < 20
    assert [data["text"] for kind, data in rows if kind == "log"] == [
        "What follows is left out: a job may tell 100,000 bytes."
    ]
    assert kinds[-3:] == ["local", "status", "end"]


def test_bytes_that_wait_for_a_disk_are_bounded_too(tmp_path, monkeypatch):
    monkeypatch.setattr("insitu.remote.server.store.PENDING_BYTES", 100_000)

    async def act(store, job):
        lock = store._quick
        lock.execute("BEGIN IMMEDIATE")
        for _ in range(100):
            job.told(Log("x" * 3_900))
        assert store.pending() < 40
        with pytest.raises(StoreTrouble):
            await store.write((ADD_JOB, ("j2", "ada", "demo", "RECEIVED", 1.0)))
        lock.execute("ROLLBACK")
        while store.pending():
            await asyncio.sleep(0.01)
        job.told(Log("after"))

    texts = [data["text"] for kind, data in with_job(tmp_path, Limits(), act) if kind == "log"]
    assert texts[-2:] == [jobs.GAP, "after"]


# files -------------------------------------------------------------------------------------------


def modes(folder):
    """What others than the owner may do with each file and folder."""
    found = {it: it.stat().st_mode & 0o077 for it in (folder, *folder.rglob("*"))}
    return {str(it.relative_to(folder)): oct(mode) for it, mode in found.items() if mode}


def test_nobody_else_on_the_machine_can_read_a_servers_files(tmp_path):
    """Under the usual umask; the files of earlier versions too."""
    before = os.umask(0o022)
    try:
        with running(tmp_path / "new") as (_, client):
            job = client.send(request(["size", 100], ["log", "secret"]))
            client.events(job)
            client.send(request(["sleep", 0.5]))
            assert modes(tmp_path / "new") == {}
        assert modes(tmp_path / "new") == {}
        Keys(tmp_path / "keys" / "keys.sqlite").add("ada")
        assert modes(tmp_path / "keys") == {}
        old = tmp_path / "old"
        old.mkdir()
        (old / "jobs.sqlite").touch()
        with running(old) as (_, client):
            client.events(client.send(request()))
            modes_now = modes(old)
        modes_now.pop(".")  # a folder that was made by somebody else is theirs
        assert modes_now == {}
    finally:
        os.umask(before)


# answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503, 507])
def test_whoever_is_to_come_again_is_told_when(status):
    headers = Refusal(status, "a", "b", "c").response().headers
    assert 1 <= int(headers["Retry-After"]) <= 60
    assert Refusal(status, "a", "b", "c", {"Retry-After": "7"}).response().headers[
        "Retry-After"
    ] == "7"  # fmt: skip


def test_a_server_that_is_not_ready_says_when_to_ask_again(tmp_path):
    workers = FakeWorkers()
    workers.state = "loading"
    with running(tmp_path, workers) as (_, client):
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]


def test_a_server_with_keys_asks_which_protocol_is_spoken(tmp_path):
    keys = Keys(tmp_path / "keys.sqlite")
    key = keys.add("ada")
    with running(tmp_path / "data", door=Door(keys=keys)) as (server, _):
        client = Client(server.url, key)
        del client.http.headers["X-Protocol"]
        for answer in (client.get("/v1/info"), client.post("/v1/jobs", request())):
            assert answer.status_code == 400
            assert answer.json()["what"] == "the request has no header X-Protocol."
        assert client.get("/metrics").ok  # which Prometheus asks for, with a key alone
        assert client.get("/v1/info", headers={"X-Protocol": "1"}).ok
        client.close()
    keys.close()


# readiness ---------------------------------------------------------------------------------------


def test_a_model_that_gave_way_to_another_does_not_make_the_server_unready(tmp_path):
    workers = FakeWorkers(models=("one", "two"))
    with running(tmp_path, workers) as (_, client):
        assert client.get("/readyz").ok
        for state in ("absent", "loading", "ready"):
            workers.state = state
            assert client.get("/readyz").ok, state
        workers.state = "failed"
        assert client.get("/readyz").json()["why"] == "one is failed."


def test_a_model_that_is_never_loaded_keeps_the_server_unready(tmp_path):
    workers = FakeWorkers()
    workers.state = "absent"
    with running(tmp_path, workers) as (server, client):
        assert client.get("/readyz").status_code == 503
        server.server.lazy = True
        assert client.get("/readyz").ok
