"""A server that breaks off, drags its feet, or means harm: a sentence, and memory within bounds."""

import base64
import hashlib
import json
import pickle
import socket
import threading
import time
import tracemalloc

import pytest
import torch
from fake_server import FakeServer, dripping, packed

import insitu
from insitu.remote.client import events as client_events
from insitu.remote.client.connection import Connection
from insitu.remote.client.events import Events, Parser
from insitu.remote.client.job import RemoteJob

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def connection(server, monkeypatch):
    monkeypatch.setattr("insitu.remote.client.patience.GIVE_UP_S", 0.5)
    with Connection(server.url, "secret-key") as made:
        yield made


def send(connection, body=b"a request"):
    return RemoteJob.sent(connection, body)


def event(number, kind, told):
    data = told if isinstance(told, bytes) else json.dumps(told).encode()
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode(), data)


def peak_of(act):
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# Answers ----------------------------------------------------------------------------------------


def test_a_redirect_is_not_followed_and_the_key_stays_here(server, connection):
    with FakeServer() as other:
        for status in (301, 302, 307, 308):
            server.answers["GET", "/v1/info"] = lambda request, status=status: request.answer(
                status, b"", {"Location": f"{other.url}/v1/info\x1b[2J"}
            )
            with pytest.raises(insitu.ServerRefusedError, match="elsewhere") as caught:
                connection.json("GET", "/v1/info")
            assert other.url in caught.value.why
            assert "\x1b" not in str(caught.value)
        assert other.asked == []


def test_the_key_is_sent_as_a_bearer_and_no_cookie_comes_back(
    server, connection, tmp_path, monkeypatch
):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password mine\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.answers["GET", "/v1/whoami"] = lambda request: request.answer(
        200, {}, {"Set-Cookie": "spy=1; Path=/"}
    )
    connection.json("GET", "/v1/whoami")
    connection.json("GET", "/v1/info")
    for _, _, headers, _ in server.asked:
        assert headers["Authorization"] == "Bearer secret-key"
        assert headers["X-Protocol"] == "1"
        assert headers["Accept-Encoding"] == "identity"
        assert "Cookie" not in headers


def test_a_refusal_is_told_in_the_servers_own_lines(server, connection):
    server.answers["POST", "/v1/jobs"] = lambda request: request.refuse(
        403, "the key may not run\x1b[31m.", "it is for reading.", "ask\nada."
    )
    with pytest.raises(insitu.ServerRefusedError) as caught:
        send(connection)
    assert str(caught.value) == (
        "the key may not run[31m.\nWhy: it is for reading.\nNext: ask ada."
    )
    assert caught.value.status == 403


@pytest.mark.parametrize(("said", "seconds"), [("7", 7), ("99999", 3600), ("soon", 1), ("", 1)])
def test_a_full_queue_says_when_to_try_again(server, connection, said, seconds):
    server.answers["POST", "/v1/jobs"] = lambda request: request.refuse(
        429, "the queue is full.", headers={"Retry-After": said}
    )
    with pytest.raises(insitu.QueueFullError, match="queue is full") as caught:
        send(connection)
    assert caught.value.retry_after == seconds
    assert pickle.loads(pickle.dumps(caught.value)).retry_after == seconds


@pytest.mark.parametrize("status", [400, 401, 404, 409, 413, 418, 429, 500, 503])
def test_a_refusal_without_words_has_three_lines_all_the_same(server, connection, status):
    server.answers["GET", "/v1/info"] = lambda request: request.answer(status, b"<html>no</html>")
    with pytest.raises(insitu.ServerRefusedError, match=f"answered {status}") as caught:
        connection.json("GET", "/v1/info")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 10737418240\r\n\r\n",
        b"\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\n",
    ],
)
def test_an_endless_answer_is_not_kept(server, connection, head):
    server.answers["GET", "/v1/models"] = lambda request: (
        request.wfile.write(b"HTTP/1.1 200 OK\r\n" + head),
        dripping(b"x" * 65_536, 5)(request),
    )

    def ask():
        with pytest.raises(insitu.ServerError, match="answer of"):
            connection.rows("/v1/models", "models")

    assert peak_of(ask) < 60 * 2**20


def test_an_answer_that_drips_is_given_up(server, connection, monkeypatch):
    def drip(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(100):
            request.wfile.write(b"x")
            time.sleep(0.02)

    server.answers["GET", "/v1/info"] = drip
    with connection.open("GET", "/v1/info") as answer:
        with pytest.raises(insitu.ServerUnreachableError, match="no whole answer"):
            answer.body(10_000, within_s=0.2)


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5_000,
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x80\x04\x95garbage\r\n\r\n",
        b"HTTP/1.1 99999 \r\n\r\n",
        b"",
    ],
)
def test_what_is_no_answer_is_a_sentence(server, connection, raw):
    server.answers["GET", "/v1/info"] = lambda request: request.raw(raw)
    with pytest.raises(insitu.ServerError) as caught:
        connection.json("GET", "/v1/info")
    assert len(str(caught.value).splitlines()) == 3
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"nul", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b"9" * 10_000, b'"x"']
)
def test_an_answer_that_is_no_object_is_a_sentence(server, connection, body):
    server.answers["GET", "/v1/info"] = lambda request: request.answer(200, body)
    with pytest.raises(insitu.ServerError, match="sent an answer to /v1/info"):
        connection.json("GET", "/v1/info")


def test_an_answer_is_not_unpacked_by_the_library(server, connection):
    server.answers["GET", "/v1/info"] = lambda request: request.answer(
        200, b"\x1f\x8b\x08", {"Content-Encoding": "gzip"}
    )
    with pytest.raises(insitu.ServerError, match="encoding that was not asked for"):
        connection.json("GET", "/v1/info")


@pytest.mark.parametrize("id", ["../../etc/passwd", "a/b", "", None, 7, "x" * 65, "a\nb", "é"])
def test_an_id_cannot_lead_elsewhere(server, connection, id):
    server.answers["POST", "/v1/jobs"] = lambda request: request.answer(202, {"id": id})
    with pytest.raises(insitu.ServerError, match="as the id of a job"):
        send(connection)
    assert [path for _, path, *_ in server.asked] == ["/v1/jobs"]


def test_nobody_there_is_told_at_once(connection):
    with socket.socket() as held:  # bound, and nobody listens
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        began = time.monotonic()
        with Connection(url) as nobody, pytest.raises(ConnectionError) as caught:
            send(nobody)
    assert time.monotonic() - began < 4  # it would be tried again for five seconds
    assert caught.value.what == f"the server at {url} does not answer."
    assert "refused" in caught.value.why
    assert "insitu serve demo" in caught.value.next


# Events -----------------------------------------------------------------------------------------

STATUS = {"phase": "RUNNING"}


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"data: {}\n\n", "without a number"),
        (b"id: 0\ndata: {}\n\n", "without a number"),
        (b"id: " + b"9" * 5_000 + b"\ndata: {}\n\n", "without a number"),
        ("id: ²\ndata: {}\n\n".encode(), "without a number"),
        (event(1, "status", b"{"), "no JSON"),
        (event(1, "status", b"[" * 100_000), "no JSON"),
        (event(1, "status", [1]), "no JSON object"),
        (event(1, "status", {"phase": "DANCING"}), "phase"),
        (event(1, "status", {"phase": 3}), "text"),
        (event(1, "status", {**STATUS, "time": "noon"}), "time"),
        (event(1, "status", {**STATUS, "time": 10**400}), "time"),
        (event(1, "log", {"text": ["x"]}), "text"),
        (event(1, "log", {"text": "x", "tags": "train"}), "tags"),
        (event(1, "queue", {"done": True}), "done"),
        (event(1, "token", {"step": -1, "ids": []}), "step"),
        (event(1, "token", {"step": 1, "ids": ["x"]}), "tokens"),
        (event(1, "token", {"step": 1, "ids": [0] * 200_000}), "ids"),
        (event(1, "local", {"number": 1, "index": -1, "bytes": 3}), "index"),
        (event(1, "local", {"number": 0, "index": 0, "bytes": 2**40}), "bytes"),
        (event(1, "local", {"number": 0, "index": 0, "bytes": 3, "payload": "!"}), "base64"),
        (event(1, "local", {"number": 0, "index": 0, "bytes": 3, "payload": 7}), "base64"),
        (event(1, "local", {"number": 0, "index": 0, "bytes": 9, "payload": "AAAA"}), "payload"),
        (event(1, "end", {"phase": "RUNNING"}), "as the end"),
        (event(1, "end", {"phase": "COMPLETED", "result": 3}), "result"),
        (event(1, "end", {"phase": "COMPLETED", "result": {"bytes": 2**33}}), "bytes"),
        (event(1, "end", {"phase": "COMPLETED", "result": {"bytes": 3, "sha256": "é"}}), "sha256"),
        (event(1, "end", {"phase": "COMPLETED"}), "without a result"),
        (event(1, "end", {"phase": "ERROR", "fault": "bad"}), "fault"),
        (event(1, "end", {"phase": "ERROR", "fault": {"place": [["f", "3", "g"]]}}), "place"),
    ],
)
def test_a_garbled_event_is_a_sentence(server, connection, data, match):
    server.plan = lambda job: None
    server.answers["GET", "/v1/jobs/[^/]+/events"] = lambda request: request.raw(PLAIN + data)
    with pytest.raises(insitu.ServerError, match=match) as caught:
        send(connection).run()
    assert "sent" in caught.value.what
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "piece", [b"x" * 65_536, b": ", b"data: " + b"x" * 200 + b"\n", b"data: " + b"[" * 65_530]
)
def test_an_endless_line_or_event_is_not_kept(server, connection, piece):
    server.plan = lambda job: None
    server.answers["GET", "/v1/jobs/[^/]+/events"] = lambda request: (
        request.wfile.write(PLAIN),
        dripping(piece if len(piece) > 1_000 else piece * 10_000, 10)(request),
    )

    def follow():
        with pytest.raises(insitu.ServerError, match="event of more than 1,048,576 bytes"):
            send(connection).run()

    assert peak_of(follow) < 20 * 2**20


def test_an_endless_log_is_bounded(server, connection, monkeypatch):
    monkeypatch.setattr("insitu.remote.client.told.LOG_CHARS", 100_000)
    server.plan = lambda job: (
        [job.say("log", text="x" * 20_000) for _ in range(200)],
        job.end(result=packed(x=1)),
    )
    job = send(connection)
    job.run()
    assert len(job.logs) == 25
    assert {len(line) for line in job.logs[:-1]} == {4_000}
    assert "no more of it is shown" in job.logs[-1]


def test_a_stream_that_breaks_off_in_an_event_is_taken_up_before_it(server, connection):
    whole = event(1, "log", {"text": "one"}) + event(2, "log", {"text": "two"})
    server.plan = lambda job: (
        job.say("log", text="one").say("log", text="two").end(result=packed(x=1))
    )
    cuts = iter(range(5, len(whole), 7))

    def cut(request):
        at = next(cuts, None)
        if at is None or request.headers["Last-Event-ID"] != "0":
            return NotImplemented
        head = b"%x\r\n" % len(whole)
        return request.raw(CHUNKED + head + whole[:at])

    server.answers["GET", "/v1/jobs/[^/]+/events"] = cut
    job = send(connection)
    job.run()
    assert [line for line in job.logs if "connection" not in line] == ["one", "two"]


def test_numbers_that_go_back_are_not_told_twice(server, connection):
    end = {"phase": "ERROR", "fault": {"kind": "ValueError", "text": "done", "place": []}}
    said = [event(n, "log", {"text": str(n)}) for n in (1, 2, 1, 2, 5, 4, 3, 6)]
    server.plan = lambda job: None
    server.answers["GET", "/v1/jobs/[^/]+/events"] = lambda request: request.raw(
        PLAIN + b"".join(said) + event(7, "end", end)
    )
    job = send(connection)
    with pytest.raises(ValueError, match="done"):
        job.run()
    assert job.logs == ["1", "2", "5", "6"]


def test_a_parser_takes_bytes_however_they_are_cut():
    data = (
        b": here\r\n\r\nretry: 5\nid: 1\nevent: log\ndata: {\ndata: }\n\n"
        + event(2, "status", STATUS)
        + b"event: nothing\n\n"
    )
    for size in range(1, len(data)):
        parser = Parser()
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        said = [one for piece in pieces for one in parser.feed(piece)]
        assert [(one.number, one.kind, one.told) for one in said] == [
            (1, "log", {}), (2, "status", STATUS),
        ]  # fmt: skip


def test_values_behind_an_event_come_whole_however_the_stream_is_cut():
    values = bytes(range(10)) + b"\n\nid: 9\nevent: end\ndata: {}\n\n"
    follows = {"number": 0, "index": 0, "bytes": len(values), "follows": True}
    none = {**follows, "bytes": 0}
    data = (
        event(1, "local", follows) + values + event(2, "log", {}) + event(3, "local", none)
        + event(4, "log", {"follows": True, "bytes": 7}) + b"id: 5\nevent: end\ndata: {}\n\n"
    )  # fmt: skip
    for size in range(1, len(data) + 1):
        parser = Parser()
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        said = [one for piece in pieces for one in parser.feed(piece)]
        assert [(one.number, one.values) for one in said] == [
            (1, values), (2, None), (3, b""), (4, None), (5, None),
        ]  # fmt: skip


@pytest.mark.parametrize("size", [2**40, -1, "many", None, 2.5, True])
def test_values_of_a_strange_size_are_refused(size):
    told = {"number": 0, "index": 0, "bytes": size, "follows": True}
    with pytest.raises(insitu.ServerError, match=r"not in its protocol|bytes as"):
        list(Parser().feed(event(1, "local", told)))


def test_values_that_were_only_said_take_little_memory():
    told = {"number": 0, "index": 0, "bytes": 2**28, "follows": True}
    parser = Parser()
    tracemalloc.start()
    assert not list(parser.feed(event(1, "local", told) + bytes(1000)))
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_long_line_in_many_pieces_takes_linear_time():
    parser = Parser()
    began = time.process_time()
    for _ in range(20_000):
        assert not list(parser.feed(b"x" * 50))
    assert time.process_time() - began < 2


def test_a_job_that_the_server_has_forgotten_is_lost(server, connection):
    server.answers["GET", "/v1/jobs/[^/]+/events"] = lambda request: request.refuse(404)
    with pytest.raises(insitu.JobLostError, match="knows no job job-0"):
        send(connection).run()


def test_a_key_that_is_revoked_meanwhile_ends_the_following(server, connection):
    server.answers["GET", "/v1/jobs/[^/]+/events"] = lambda request: request.refuse(401)
    with pytest.raises(insitu.ServerRefusedError):
        list(Events(connection, "job-0", print))


# Results ----------------------------------------------------------------------------------------

LARGE = packed(x=torch.arange(200_000, dtype=torch.float32).sin())


@pytest.fixture
def quiet(monkeypatch):
    class Silent:
        n = 0

        def __init__(self, total, *, is_shown):
            pass

        def __enter__(self):
            return lambda done: None

        def __exit__(self, *_):
            pass

    monkeypatch.setattr("insitu.remote.client.download._Bar", Silent)


def serve_result(server, answer, result=LARGE, **told):
    server.plan = lambda job: job.end(result=result, **told)
    server.answers["GET", "/v1/jobs/[^/]+/result"] = answer


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_download_is_taken_up_where_it_broke_off(server, connection, quiet, knows_ranges):
    cuts = iter([0, 1, 7, 100_000, len(LARGE) - 1])

    def cut(request):
        at = next(cuts, None)
        begin = 0
        if knows_ranges and request.headers.get("Range"):
            begin = int(request.headers["Range"][6:-1])
            assert request.headers["If-Range"] == f'"{hashlib.sha256(LARGE).hexdigest()}"'
        if at is None:
            return (
                request.result(server.jobs["job-0"]) if knows_ranges else request.answer(200, LARGE)
            )
        head = f"Content-Length: {len(LARGE) - begin}\r\n"
        if begin:
            part = f"{begin}-{len(LARGE) - 1}/{len(LARGE)}"
            head = f"206 Partial\r\nContent-Range: bytes {part}\r\n{head}"
        else:
            head = f"200 OK\r\n{head}"
        return request.raw(b"HTTP/1.1 " + head.encode() + b"\r\n" + LARGE[begin : max(at, begin)])

    serve_result(server, cut)
    value = send(connection).run()["x"]
    assert torch.equal(value, torch.arange(200_000, dtype=torch.float32).sin())
    assert server.paths("GET").count("/v1/jobs/job-0/result") == 6


def test_a_result_that_never_comes_whole_is_given_up(server, connection, quiet):
    serve_result(server, lambda request: request.raw(b""))
    job = send(connection)
    with pytest.raises(insitu.ServerUnreachableError):
        job.run()
    del server.answers["GET", "/v1/jobs/[^/]+/result"]
    assert job.result()["x"].shape == (200_000,)  # asked again, it is there


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "not the one that was announced"),
        (lambda data: data[:5000] + b"\0" * 100 + data[5100:], "not the one|cannot be read"),
        (lambda data: data + b"x", "sent a result of"),
        (lambda data: data[:-1], "sent a result of"),
        (lambda data: b"", "sent a result of"),
        (lambda data: b"\x80\x04." * (len(data) // 3 + 1), "sent a result of"),
    ],
)
def test_another_result_than_the_announced_one_is_refused(server, connection, quiet, change, match):
    serve_result(server, lambda request: request.answer(200, change(LARGE)))
    with pytest.raises(insitu.ServerError, match=match):
        send(connection).run()


def test_ten_gigabytes_are_refused_before_they_are_read(server, connection, quiet):
    def huge(request):
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10737418240\r\n\r\n")
        dripping(b"x" * 65_536, 5)(request)

    serve_result(server, huge)

    def fetch():
        with pytest.raises(insitu.ServerError, match="10,737,418,240 bytes after it had announced"):
            send(connection).run()

    assert peak_of(fetch) < 30 * 2**20


def test_a_part_that_was_not_asked_for_is_refused(server, connection, quiet):
    answers = iter(
        [
            lambda request: request.raw(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE) + LARGE[:1000]
            ),
            lambda request: request.answer(206, LARGE[10:], {"Content-Range": "bytes 10-20/21"}),
        ]
    )
    serve_result(server, lambda request: next(answers)(request))
    with pytest.raises(insitu.ServerError, match="another part"):
        send(connection).run()


@pytest.mark.parametrize(
    "payload", [b"", b"x" * 1000, b"\x80\x04.", packed(x=1)[:-3], b"INSITU\x01" + b"\0" * 50]
)
def test_a_container_that_is_none_is_refused(server, connection, payload):
    server.plan = lambda job: job.end(result=payload)
    with pytest.raises(insitu.ServerError, match="result of job job-0 cannot be read"):
        send(connection).run()


def test_a_sum_that_is_wrong_is_refused_in_a_small_result_too(server, connection):
    server.plan = lambda job: job.end(result=packed(x=1), sha256="0" * 64)
    with pytest.raises(insitu.ServerError, match="not the one that was announced"):
        send(connection).run()


def test_nothing_that_comes_is_unpickled(server, connection, quiet, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pickle was loaded")

    for module, name in (
        (pickle, "loads"),
        (pickle, "load"),
        (pickle, "Unpickler"),
        (torch, "load"),
    ):
        monkeypatch.setattr(module, name, refuse)
    bad = pickle.dumps(OSError("x")) * 5_000
    server.plan = lambda job: job.say("log", text=base64.b64encode(bad).decode()[:1000]).end(
        result=bad if job.request == b"bad" else LARGE
    )
    assert send(connection).run()["x"].shape == (200_000,)
    with pytest.raises(insitu.ServerError, match="cannot be read"):
        send(connection, b"bad").run()


def test_a_slow_reader_holds_back_the_server_and_not_its_own_memory(server, connection):
    job = None

    def plan(made):
        for number in range(3_000):
            made.say("log", text=f"{number} " + "x" * 1_000)
        made.end(result=packed(x=1))

    server.plan = plan
    job = send(connection)
    job.listen(lambda event: time.sleep(0.0003))
    assert peak_of(job.run) < 60 * 2**20
    assert len(job.logs) == 3_000


def test_nothing_is_left_behind(server):
    before = threading.active_count()
    with Connection(server.url) as connection:
        for _ in range(20):
            send(connection).start().result(10)
    until = time.monotonic() + 5
    while any(thread.name.startswith("insitu-") for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert threading.active_count() <= before + 30  # those of the fake server
    assert client_events.SILENCE_S == 45
