"""Jobs over HTTP: sent, followed, answered, cancelled, fetched; each user's own."""

import base64
import hashlib
import json
import threading
import time

import pytest
from fake_workers import FakeWorkers, events_in, request
from loopback_server import Client, running

from insitu.remote.protocol import Limits
from insitu.remote.server.callers import Door
from insitu.remote.server.keys import Keys
from insitu.remote.wire import container


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with running(tmp_path_factory.mktemp("server")) as found:
        yield found


@pytest.fixture
def client(pair):
    return pair[1]


def phases(events):
    return [data["phase"] for _, kind, data in events if kind == "status"]


def three_lines(answer, status):
    """An answer is an error of three lines, and no more."""
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    said = answer.json()
    assert list(said) == ["what", "why", "next"]
    assert all(said.values())
    return said


def test_a_job_passes_and_tells_each_phase(client):
    job = client.send(request(["log", "hello", "a"], ["token", 0, [7, 8]]))
    events = client.events(job)
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    assert phases(events) == ["RECEIVED", "APPROVED", "RUNNING", "COMPLETED"]
    assert [data["text"] for _, kind, data in events if kind == "log"] == ["hello"]
    assert [data["ids"] for _, kind, data in events if kind == "token"] == [[7, 8]]
    _, kind, end = events[-1]
    assert (kind, end["phase"], end["fault"]) == ("end", "COMPLETED", None)
    inline = base64.b64decode(end["payload"])
    fetched = client.get(f"/v1/jobs/{job}/result").content
    assert inline == fetched
    assert hashlib.sha256(fetched).hexdigest() == end["result"]["sha256"]
    assert container.unpack(fetched, most=10_000)[0]["kind"] == "result"


def test_events_are_sent_again_from_any_number(client):
    job = client.send(request(*(["log", str(n)] for n in range(20))))
    everything = client.events(job)
    for after in (0, 1, 7, len(everything) - 1, len(everything)):
        assert client.events(job, after) == everything[after:]
    three_lines(client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "x"}), 400)


def test_events_come_while_the_job_runs(client):
    job = client.send(request(["log", "first"], ["sleep", 0.5], ["log", "second"]))
    with client.get(f"/v1/jobs/{job}/events", stream=True) as answer:
        arrived = {}
        for line in answer.iter_lines(chunk_size=1):
            for word in (b"first", b"second"):
                if word in line:
                    arrived[word] = time.monotonic()
    assert arrived[b"second"] - arrived[b"first"] > 0.3


def test_a_fault_is_the_users_error_and_a_crash_is_nobodys_secret(client):
    job = client.send(request(["fail", "index 9999 is out of bounds"]))
    end = client.events(job)[-1][2]
    assert end["phase"] == "ERROR"
    assert end["fault"] == {
        "kind": "IndexError",
        "text": "index 9999 is out of bounds",
        "place": [["cell 4", 7, "block"]],
    }
    assert client.get(f"/v1/jobs/{job}").json()["fault"]["kind"] == "IndexError"
    three_lines(client.get(f"/v1/jobs/{job}/result"), 409)
    crashed = client.events(client.send(request(["crash"])))[-1][2]
    assert crashed["phase"] == "LOST"
    assert "secret" not in str(crashed)


@pytest.mark.parametrize("size", [10, 65_536, 65_537, 1_000_000])
def test_a_local_part_gets_its_values_and_gives_them_back(client, size):
    job = client.send(request(["local", 0, size]))
    client.until(job, "RUNNING")
    while client.get(f"/v1/jobs/{job}/local/0").status_code != 200:
        time.sleep(0.005)
    assert client.get(f"/v1/jobs/{job}/local/0").content == b"v" * size
    three_lines(client.post(f"/v1/jobs/{job}/local/1", b"x"), 409)
    assert client.post(f"/v1/jobs/{job}/local/0", b"y" * 123).status_code == 204
    three_lines(client.post(f"/v1/jobs/{job}/local/0", b"z"), 409)
    events = client.events(job)
    (local,) = [data for _, kind, data in events if kind == "local"]
    assert (local["number"], local["index"], local["bytes"]) == (0, 0, size)
    assert local["answered"]
    assert "payload" not in local
    result = client.get(f"/v1/jobs/{job}/result").content
    assert container.unpack(result, most=10_000)[0]["values"] == {"got": 123}


def test_small_values_come_inside_the_event(client):
    job = client.send(request(["local", 0, 5]))
    with client.get(f"/v1/jobs/{job}/events", stream=True) as answer:
        for line in answer.iter_lines(chunk_size=1):
            if b'"payload"' in line and b'"number"' in line:
                assert base64.b64encode(b"vvvvv") in line
                client.post(f"/v1/jobs/{job}/local/0", b"")
                break
        else:
            raise AssertionError("no values")
    client.until(job, "COMPLETED")


def first_of(answer, count):
    """So many bytes of a stream."""
    found = b""
    while len(found) < count and (piece := answer.raw.read1(count - len(found))):
        found += piece
    return found


@pytest.mark.parametrize("size", [10, 65_537, 3_000_001])
def test_values_follow_their_event_for_who_takes_them_so(client, size):
    """Again for everybody who comes, until they are answered; what comes after is in its place."""
    job = client.send(request(["local", 0, size], ["log", "after"]))
    headers = {"Accept": "application/x-insitu-events, text/event-stream"}
    url = f"/v1/jobs/{job}/events"
    for _ in range(2):
        with client.get(url, stream=True, headers=headers) as answer:
            assert answer.headers["Content-Type"] == "application/x-insitu-events"
            text = b""
            while not (b"event: local" in text and text.endswith(b"\n\n")):
                text += first_of(answer, 1)
            said = json.loads(text.rpartition(b"data: ")[2])
            assert (said["bytes"], said["follows"], "payload" in said) == (size, True, False)
            assert first_of(answer, size) == b"v" * size
            if not client.get(f"/v1/jobs/{job}/local/0").ok:
                raise AssertionError("it does not wait any more")
            if _ == 1:
                assert client.post(f"/v1/jobs/{job}/local/0", b"y" * size).status_code == 204
                rest = first_of(answer, 100_000)
    assert [data["text"] for _, kind, data in events_in(rest.decode()) if kind == "log"] == [
        "after"
    ]
    text = client.get(url, headers=headers).text
    (local,) = [data for _, kind, data in events_in(text) if kind == "local"]
    assert local["answered"]
    assert "follows" not in local
    result = client.get(f"/v1/jobs/{job}/result").content
    assert container.unpack(result, most=10_000)[0]["values"] == {"got": size}


def test_values_of_a_local_part_may_be_sent_without_their_length(client):
    job = client.send(request(["local", 0, 5]))
    while not client.get(f"/v1/jobs/{job}/local/0").ok:
        time.sleep(0.005)
    pieces = (b"y" * 1000 for _ in range(1_500))
    assert client.post(f"/v1/jobs/{job}/local/0", pieces).status_code == 204
    client.until(job, "COMPLETED")
    result = client.get(f"/v1/jobs/{job}/result").content
    assert container.unpack(result, most=10_000)[0]["values"] == {"got": 1_500_000}


def test_a_replayed_request_is_the_same_job_and_another_body_is_refused(pair, client):
    body = request(["log", "once"])
    before = len(pair[1].get("/v1/jobs").json())
    first = client.send(body, **{"Idempotency-Key": "k1"})
    assert {client.send(body, **{"Idempotency-Key": "k1"}) for _ in range(5)} == {first}
    said = three_lines(
        client.post("/v1/jobs", request(["log", "2"]), headers={"Idempotency-Key": "k1"}), 409
    )
    assert first in said["why"] + said["next"]
    assert len(client.get("/v1/jobs").json()) == before + 1
    assert client.send(body, **{"Idempotency-Key": "k2"}) != first
    three_lines(client.post("/v1/jobs", body, headers={"Idempotency-Key": "é".encode()}), 400)


def test_the_same_request_many_times_at_once_is_one_job(pair):
    body, found = request(["log", "x"]), []

    def send():
        mine = Client(pair[0].url)
        found.append(mine.send(body, **{"Idempotency-Key": "at-once"}))
        mine.close()

    threads = [threading.Thread(target=send) for _ in range(8)]
    for it in threads:
        it.start()
    for it in threads:
        it.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_cancel_ends_a_running_job_within_two_seconds_and_a_waiting_one_at_once(pair, client):
    jobs = [client.send(request(["sleep", 60])) for _ in range(3)]
    client.until(jobs[2], "QUEUED")
    assert client.get(f"/v1/jobs/{jobs[2]}").json()["queue"] == {"done": 1, "of": 1}
    began = time.monotonic()
    for job in reversed(jobs):
        assert client.delete(f"/v1/jobs/{job}").status_code == 202
    for job in jobs:
        client.until(job, "CANCELLED", time_s=2)
    assert time.monotonic() - began < 2
    assert jobs[2] not in pair[0].workers.order
    assert client.delete(f"/v1/jobs/{jobs[0]}").json()["phase"] == "CANCELLED"
    assert phases(client.events(jobs[2]))[-1] == "CANCELLED"


def test_a_queue_tells_places_as_they_change(client):
    busy = [client.send(request(["sleep", 0.8])) for _ in range(2)]
    waiting = [client.send(request()) for _ in range(2)]
    events = client.events(waiting[1])
    places = [(data["done"], data["of"]) for _, kind, data in events if kind == "queue"]
    assert places[0] == (2, 2)
    assert phases(events) == ["RECEIVED", "APPROVED", "QUEUED", "RUNNING", "COMPLETED"]
    for job in busy:
        client.until(job, "COMPLETED")


def test_garbage_is_a_sentence(client):
    zstd_bomb = b"\x28\xb5\x2f\xfd" + b"\0" * 100
    for body in (
        b"",
        b"x" * 1000,
        zstd_bomb,
        b"\x80\x04.",
        b"INSITU\x01",
        b"INSITU\x01" + zstd_bomb,
    ):
        three_lines(client.post("/v1/jobs", body), 400)
    for header in ({}, {"kind": "result"}, {"kind": "request", "protocol": 2, "model": "demo"},
                   {"kind": "request", "protocol": 1, "model": ["demo"]}):  # fmt: skip
        three_lines(client.post("/v1/jobs", container.pack(header)), 400)
    said = three_lines(client.post("/v1/jobs", request(model="llama")), 404)
    assert "demo" in said["why"]
    assert client.send(request(model="org/demo"))  # a further name of it


def test_unknown_routes_methods_and_jobs_are_sentences(client):
    three_lines(client.get("/v2/jobs"), 404)
    three_lines(client.post("/v1/info", b""), 405)
    for job in ("x", "0" * 32, "../../etc/passwd", "%2e%2e", "0" * 5000):
        assert client.get(f"/v1/jobs/{job}").status_code in (404, 405)
        three_lines(client.get(f"/v1/jobs/{job}/result"), 404)
    three_lines(client.get("/v1/info", headers={"X-Protocol": "2"}), 400)


def test_a_server_tells_of_itself(client):
    assert client.get("/v1/info").json()["limits"]["queue"] == 100
    assert client.get("/v1/models").json()[0]["known_as"] == ["org/demo"]
    assert client.get("/v1/env").json()["starlette"]
    assert client.get("/v1/whoami").json()["name"] == "self"
    assert client.get("/livez").ok
    assert client.get("/readyz").ok
    client.events(client.send(request()))
    metrics = dict(
        line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#"
    )
    assert float(metrics['insitu_jobs_ended_total{phase="COMPLETED"}']) >= 1
    assert metrics['insitu_model_loaded{model="demo"}'] == "1"


def test_it_is_ready_when_the_models_are(tmp_path):
    workers = FakeWorkers()
    workers.state = "loading"
    with running(tmp_path, workers) as (_, client):
        said = three_lines(client.get("/readyz"), 503)
        assert said["why"] == "demo is loading."
        assert client.get("/livez").ok
        workers.state = "ready"
        assert client.get("/readyz").ok


def test_a_web_page_cannot_use_a_server_without_keys(client):
    body = request()
    for headers in (
        {"Host": "evil.example"},
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"X-Protocol": None},
    ):
        three_lines(client.post("/v1/jobs", body, headers=headers), 403)
    three_lines(client.get("/v1/jobs", headers={"Host": "evil.example:80"}), 403)
    assert client.get("/v1/jobs", headers={"Host": "localhost:1"}).ok


ROUTES = [
    ("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs/{}"), ("DELETE", "/v1/jobs/{}"),
    ("GET", "/v1/jobs/{}/events"), ("GET", "/v1/jobs/{}/result"), ("GET", "/v1/jobs/{}/local/0"),
    ("POST", "/v1/jobs/{}/local/0"), ("GET", "/v1/info"), ("GET", "/v1/models"), ("GET", "/v1/env"),
    ("GET", "/v1/whoami"), ("GET", "/metrics"),
]  # fmt: skip


def test_wrong_revoked_expired_and_anothers_keys_open_nothing(tmp_path):
    keys = Keys(tmp_path / "keys.sqlite")
    ada, eve, old = keys.add("ada"), keys.add("eve"), keys.add("old", days=1e-9)
    reader, gone, admin = keys.add("reader", ("read",)), keys.add("gone"), keys.add("x", ("admin",))
    keys.revoke("gone")
    with running(tmp_path / "data", door=Door(keys=keys)) as (server, nobody):
        clients = {key: Client(server.url, key) for key in (ada, eve, reader, admin)}
        job = clients[ada].send(request(["log", "mine"]))
        clients[ada].events(job)
        for key in (None, "", "wrong", old, gone, ada[:-1]):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            for method, path in ROUTES:
                answer = nobody.http.request(
                    method, server.url + path.format(job), headers=headers, data=b"", timeout=10
                )
                three_lines(answer, 401)
        for method, path in ROUTES:
            if "{}" in path:  # another's is told as one that never was
                answers = [
                    clients[eve].http.request(method, server.url + path.format(id), timeout=10)
                    for id in (job, "0" * 32)
                ]
                assert three_lines(answers[0], 404)["why"] == three_lines(answers[1], 404)["why"]
        assert clients[eve].get("/v1/jobs").json() == []
        three_lines(clients[reader].post("/v1/jobs", request()), 403)
        assert clients[admin].get(f"/v1/jobs/{job}").json()["user"] == "ada"
        three_lines(clients[admin].get(f"/v1/jobs/{job}/result"), 404)
        assert nobody.get("/livez").ok
        keys.revoke("ada")  # while the server runs
        three_lines(clients[ada].get("/v1/jobs"), 401)
        for it in clients.values():
            it.close()
    keys.close()


def test_nothing_crosses_between_users_over_many_alternating_jobs(tmp_path):
    keys = Keys(tmp_path / "keys.sqlite")
    names = {name: keys.add(name) for name in ("ada", "bob")}
    with running(tmp_path / "data", FakeWorkers(room=4), door=Door(keys=keys)) as (server, _):
        clients = {name: Client(server.url, key) for name, key in names.items()}
        sent = {name: [] for name in names}
        for n in range(20):
            for name, it in clients.items():
                sent[name].append((it.send(request(["log", f"{name} {n}"])), f"{name} {n}"))
            for name, it in clients.items():
                job, text = sent[name][-1]
                logs = [data["text"] for _, kind, data in it.events(job) if kind == "log"]
                assert logs == [text]
        for name, it in clients.items():
            listed = it.get("/v1/jobs").json()
            assert {row["id"] for row in listed} == {job for job, _ in sent[name]}
            assert {row["user"] for row in listed} == {name}
            it.close()
    keys.close()


def test_a_full_queue_is_answered_at_once_with_when_to_come_again(tmp_path):
    limits = Limits(queue=4, queue_per_user=3)
    with running(tmp_path, FakeWorkers(room=1), limits) as (_, client):
        jobs = [client.send(request(["sleep", 60])) for _ in range(4)]  # one runs, three wait
        longest = []
        for _ in range(4):  # what else the machine does may hold one up
            took = []
            for _ in range(25):
                began = time.perf_counter()
                answer = client.post("/v1/jobs", b"x" * 5_000_000)
                took.append(time.perf_counter() - began)
                said = three_lines(answer, 429)
                assert 1 <= int(answer.headers["Retry-After"]) <= 30
            longest.append(max(took))
        assert said["what"] == "3 jobs of yours wait already."
        assert min(longest) < 0.05
        for job in jobs:
            client.delete(f"/v1/jobs/{job}")
        assert client.send(request())


def test_workers_that_do_not_cancel_do_not_keep_the_job(tmp_path, monkeypatch):
    monkeypatch.setattr("insitu.remote.server.desk.CANCEL_S", 0.3)
    with running(tmp_path, FakeWorkers(room=1, hang_on_cancel=True)) as (_, client):
        job = client.send(request(["sleep", 60]))
        client.until(job, "RUNNING")
        client.delete(f"/v1/jobs/{job}")
        client.until(job, "CANCELLED", time_s=2)
        assert client.events(client.send(request()))[-1][2]["phase"] == "COMPLETED"
