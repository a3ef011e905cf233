"""A job is followed, answered and fetched; lost connections lose nothing; errors are the user's."""

import asyncio
import json
import signal
import threading
import time

import pytest
import torch
from fake_server import FakeServer, packed

import insitu
from insitu.events import Job
from insitu.remote.client.connection import Connection
from insitu.remote.client.job import Caller, RemoteJob
from insitu.remote.client.shown import show
from insitu.remote.wire import container
from insitu.remote.wire.values import decode_all


@pytest.fixture
def server():
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def connection(server):
    with Connection(server.url, "secret-key") as made:
        yield made


def send(connection, caller=None, body=b"a request"):
    return RemoteJob.sent(connection, body, caller, title="a title")


def test_a_job_gives_what_it_saved(server, connection):
    logits = torch.randn(3, 4)
    server.plan = lambda job: job.status("RUNNING").end(result=packed(logits=logits, n=3))
    job = send(connection)
    values = job.run()
    assert torch.equal(values["logits"], logits)
    assert values["n"] == 3
    assert job.result() is values
    assert isinstance(job, Job)
    assert (job.title, job.phase, job.is_over) == ("a title", "COMPLETED", True)
    assert server.jobs[job.id].request == b"a request"


def test_a_small_result_comes_with_the_end_and_a_large_one_is_fetched(server, connection, capfd):
    small, large = packed(x=1), packed(x=torch.randn(50_000))
    server.plan = lambda job: job.end(result=large if job.request == b"large" else small)
    assert send(connection, body=b"small").run() == {"x": 1}
    assert not any(path.endswith("/result") for path in server.paths("GET"))
    assert "Downloading" not in "".join(capfd.readouterr())
    job = send(connection, body=b"large")
    assert job.run()["x"].shape == (50_000,)
    shown = capfd.readouterr().err
    assert "Downloading result: 100%|" in shown
    assert "185k/185k" in shown or "186k/186k" in shown
    bar = [event for event in job.events if event.unit == "bytes"]
    assert (bar[-1].done, bar[-1].text) == (len(large), "Downloading result")


def test_a_job_need_not_block(server, connection):
    go = threading.Event()

    def plan(job):
        job.status("RUNNING").say("log", text="hello", tags=["train"])
        go.wait(10)
        job.end(result=packed(x=1))

    server.plan = plan
    job = send(connection).start()
    with pytest.raises(insitu.JobTimeoutError, match=r"not over after 0\.1 s"):
        job.result(timeout_s=0.1)
    assert not job.wait(0.01)
    while not job.logs:
        time.sleep(0.005)
    assert (job.phase, job.logs) == ("RUNNING", ["hello"])
    go.set()
    assert job.result(timeout_s=10) == {"x": 1}


def test_every_event_is_told_as_it_was_said(server, connection):
    server.plan = lambda job: (
        job.status("RECEIVED")
        .say("queue", done=3, of=9)
        .say("log", text="a\x1b[2J\rline\ud800", tags=["warning"])
        .say("progress", text="loading", done=1, of=4, unit="GB")
        .say("token", step=0, ids=[5, 6])
        .say("a later kind", text="unknown")
        .end(result=packed(x=1))
    )
    tokens = []
    job = send(connection, Caller(token=lambda step, ids: tokens.append((step, ids))))
    heard = []
    stop = job.listen(heard.append)
    job.run()
    stop()
    assert [event.kind for event in heard] == [
        "status", "queue", "log", "progress", "progress", "status",
    ]  # fmt: skip
    assert (heard[1].done, heard[1].of) == (3, 9)
    assert (heard[2].text, heard[2].tags) == ("a[2Jline?", ("warning",))
    assert (heard[3].text, heard[3].of, heard[3].unit) == ("loading", 4, "GB")
    assert tokens == [(0, (5, 6))]
    assert job.events == heard


def test_a_lost_connection_loses_nothing_and_repeats_nothing(server, connection):
    def plan(job):
        job.drops = {2, 5, 6, 40}
        for number in range(60):
            job.say("log", text=str(number))
        job.end(result=packed(x=1))

    server.plan = plan
    job = send(connection)
    assert job.run() == {"x": 1}
    lines = [event.text for event in job.events if event.kind == "log" and not event.tags]
    assert lines == [str(number) for number in range(60)]
    lost = [event for event in job.events if "connection" in event.tags]
    assert len(lost) == 4
    assert lost[0].text == "connection lost, reconnecting"


def test_a_server_that_restarts_is_waited_for(server, connection):
    refusals = iter([502, 503, 429])

    def busy(request):
        status = next(refusals, None)
        return NotImplemented if status is None else request.refuse(status)

    server.answers["GET", "/v1/jobs/[^/]+/events"] = busy
    job = send(connection)
    assert job.run() == {"x": 1}
    assert job.logs == ["connection lost, reconnecting"]


def test_a_server_that_stays_away_is_given_up(server, connection, monkeypatch):
    monkeypatch.setattr("insitu.remote.client.patience.GIVE_UP_S", 0.3)
    server.plan = lambda job: job.status("RUNNING")
    server.answers["GET", "/v1/jobs/[^/]+/events"] = lambda request: request.raw(b"")
    job = send(connection)
    began = time.monotonic()
    with pytest.raises(insitu.ServerUnreachableError, match=r"insitu.job\('job-0'\)"):
        job.run()
    assert 0.2 < time.monotonic() - began < 3
    assert job.phase == "LOST"
    assert server.paths("DELETE") == []  # it may well be running on


def test_a_dead_connection_is_noticed_by_its_silence(server, connection, monkeypatch):
    monkeypatch.setattr("insitu.remote.client.events.SILENCE_S", 0.3)
    quiet = iter([True])

    def half_open(request):
        if not next(quiet, False):
            return NotImplemented
        request.raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: here\n\n")
        request.wfile.flush()
        time.sleep(1)
        return None

    server.answers["GET", "/v1/jobs/[^/]+/events"] = half_open
    job = send(connection)
    assert job.run() == {"x": 1}
    assert job.logs == ["connection lost, reconnecting"]


def test_a_local_part_runs_in_the_callers_thread(server, connection):
    answers = []

    def plan(job):
        answers.append(job.ask(0, 2, packed(x=1)))
        answers.append(job.ask(1, 0, packed(x=torch.randn(100_000))))
        job.end(result=packed(x=1))

    server.plan = plan
    ran = []

    def local(index, payload):
        ran.append((index, len(payload), threading.current_thread()))
        return b"back %d" % index

    send(connection, Caller(local)).run()
    here = threading.main_thread()
    assert [(index, thread) for index, _, thread in ran] == [(2, here), (0, here)]
    assert answers == [b"back 2", b"back 0"]
    assert server.paths("GET").count("/v1/jobs/job-0/local/1") == 1
    send(connection, Caller(local)).start().result(10)
    assert ran[-1][2] is not here


def test_values_come_behind_their_event_without_another_request(server, connection):
    server.follows = True
    values = [torch.randn(70_000), torch.randn(300_000)]
    answers, ran = [], []

    def plan(job):
        for n, value in enumerate(values):
            answers.append(job.ask(n, n, packed(x=value)))
            job.say("log", text=f"after {n}", tags=[])
        job.end(result=packed(x=1))

    def local(index, payload):
        ran.append(decode_all(*container.unpack(payload, most=2**22))["x"])
        return [b"in", memoryview(b" pieces"), b" %d" % index]

    server.plan = plan
    job = send(connection, Caller(local))
    assert job.run() == {"x": 1}
    assert all(map(torch.equal, ran, values))
    assert answers == [b"in pieces 0", b"in pieces 1"]
    assert job.logs == ["after 0", "after 1"]
    assert not [path for path in server.paths("GET") if "/local/" in path]


def test_values_that_broke_off_come_again(server, connection):
    server.follows = True
    value = torch.randn(100_000)
    server.plan = lambda job: (job.ask(0, 0, packed(x=value)), job.end(result=packed(x=1)))
    left = [0, 40, 200_000]

    def broken(request):
        if not left:
            return NotImplemented
        job = server.jobs["job-0"]
        with job.changed:
            job.changed.wait_for(lambda: job.events, 10)
        told = {**job.events[0][1], "follows": True}
        text = f"id: 1\nevent: local\ndata: {json.dumps(told)}\n\n".encode()
        request.send_response(200)
        request.send_header("Content-Length", "1000000")
        request.end_headers()
        return request.raw(text + job.values[0][: left.pop()])

    server.answers["GET", "/v1/jobs/[^/]+/events"] = broken
    ran = []

    def local(index, payload):
        ran.append(decode_all(*container.unpack(payload, most=2**22))["x"])
        return b"back"

    assert send(connection, Caller(local)).run() == {"x": 1}
    assert len(ran) == 1
    assert torch.equal(ran[0], value)


def test_who_only_watches_is_sent_no_values(server, connection):
    server.follows = True
    server.plan = lambda job: job.end(result=packed(x=1))
    send(connection).run()
    accepted = [headers["Accept"] for _, path, headers, _ in server.asked if "events" in path]
    assert accepted == ["text/event-stream"]


def test_a_part_that_is_answered_does_not_run_again(server, connection):
    server.plan = lambda job: job.say("local", number=0, index=0, bytes=3, answered=True).end(
        result=packed(x=1)
    )
    ran = []
    send(connection, Caller(lambda index, payload: ran.append(index) or b"")).run()
    assert ran == []


def test_an_answer_that_had_arrived_before_its_acknowledgement_is_not_an_error(server, connection):
    server.plan = lambda job: (job.ask(0, 0, packed(x=1)), job.end(result=packed(x=1)))
    broken = iter([True])

    def take_and_break(request):
        if next(broken, False):
            job = server.jobs["job-0"]
            with job.changed:
                job.given[0] = request.body
                job.changed.notify_all()
            return request.raw(b"")
        return NotImplemented

    server.answers["POST", "/v1/jobs/[^/]+/local/0"] = take_and_break
    assert send(connection, Caller(lambda index, payload: b"back")).run() == {"x": 1}
    assert server.paths("POST").count("/v1/jobs/job-0/local/0") == 2


@pytest.mark.parametrize("blocking", [True, False])
def test_an_error_in_a_local_part_cancels_the_job_and_is_raised_unchanged(
    server, connection, blocking
):
    server.plan = lambda job: job.ask(0, 0, packed(x=1))
    mine = KeyError("mine")

    def local(index, payload):
        raise mine

    job = send(connection, Caller(local))
    with pytest.raises(KeyError) as caught:
        job.run() if blocking else job.start().result(10)
    assert caught.value is mine
    assert server.paths("DELETE") == [f"/v1/jobs/{job.id}"]
    assert job.phase == "CANCELLED"
    depths = []
    for _ in range(2):
        with pytest.raises(KeyError) as again:
            job.result()
        depths.append(len(again.traceback))
    assert depths[0] == depths[1]


def test_ctrl_c_cancels_a_job_that_blocks(server, connection):
    server.plan = lambda job: job.status("RUNNING")
    job = send(connection)
    threading.Timer(0.3, lambda: signal.pthread_kill(threading.main_thread().ident, 2)).start()
    with pytest.raises(KeyboardInterrupt):
        job.run()
    assert server.paths("DELETE") == [f"/v1/jobs/{job.id}"]
    assert server.jobs[job.id].is_cancelled


def test_cancel_ends_a_job(server, connection):
    server.plan = lambda job: job.status("RUNNING")
    job = send(connection).start()
    job.cancel()
    with pytest.raises(insitu.JobLostError, match="was cancelled"):
        job.result(10)
    assert job.phase == "CANCELLED"
    server.answers["DELETE", "/v1/jobs/[^/]+"] = lambda request: request.refuse(409)
    job.cancel()  # it is over: nothing to say


def test_an_error_there_is_the_users_error_here(server, connection):
    fault = {
        "kind": "IndexError",
        "text": "index 9 is out of range",
        "place": [["cell.py", 3, "<module>"]],
    }
    server.plan = lambda job: job.end("ERROR", fault=fault)
    job = send(connection)
    with pytest.raises(IndexError, match="out of range") as caught:
        job.run()
    assert any(job.id in note for note in caught.value.__notes__)
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno) == ("cell.py", 2)


def test_an_error_of_an_unknown_class_is_told_in_words(server, connection):
    fault = {"kind": "lab.MyError", "text": "\x1b]0;title\x07bad", "place": []}
    server.plan = lambda job: job.end("ERROR", fault=fault)
    job = send(connection)
    with pytest.raises(insitu.RemoteError, match=r"lab\.MyError") as caught:
        job.run()
    assert "\x1b" not in str(caught.value)
    assert (caught.value.job, caught.value.kind) == (job.id, "lab.MyError")


@pytest.mark.parametrize(
    ("phase", "kind"),
    [("LOST", insitu.JobLostError), ("TIMEOUT", TimeoutError), ("CANCELLED", insitu.JobLostError)],
)
def test_an_end_without_a_result_is_an_error(server, connection, phase, kind):
    server.plan = lambda job: job.end(phase)
    with pytest.raises(kind, match="job-0"):
        send(connection).run()


def test_a_job_can_be_awaited_and_its_events_be_iterated(server, connection):
    server.plan = lambda job: job.status("RUNNING").say("log", text="one").end(result=packed(x=1))

    async def work():
        job = send(connection)
        phases = [event.phase or event.text async for event in job]
        several = await asyncio.gather(*(send(connection) for _ in range(5)))
        return phases, await job, several

    phases, value, several = asyncio.run(work())
    assert phases == ["RUNNING", "one", "COMPLETED"]
    assert value == {"x": 1}
    assert several == [{"x": 1}] * 5


def test_a_request_is_sent_once_however_often_it_is_posted(server, connection):
    broken = iter([True, True])

    def take_and_break(request):
        if next(broken, False):
            server.accept(request.headers["Idempotency-Key"], request.body)
            return request.raw(b"")
        return NotImplemented

    server.answers["POST", "/v1/jobs"] = take_and_break
    assert send(connection).run() == {"x": 1}
    assert len(server.jobs) == 1
    assert len(server.paths("POST")) == 3
    (key,) = {
        headers["Idempotency-Key"]
        for _, _, headers, _ in server.asked
        if headers.get("Idempotency-Key")
    }
    assert len(key) == 32


def test_a_request_larger_than_the_server_takes_is_not_sent(server, connection):
    with pytest.raises(insitu.ServerRefusedError, match="the server takes 67,108,864"):
        send(connection, body=bytes(2**26 + 1))
    assert server.paths("POST") == []
    assert send(connection, body=bytes(2**21)).run() == {"x": 1}


def test_lines_are_shown_as_the_reference_shows_them(server, connection, capsys, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    server.plan = lambda job: (
        job.status("RECEIVED", "APPROVED", "QUEUED", "RUNNING")
        .say("log", text="tensor(5.4688)")
        .end(result=packed(x=1))
    )
    job = send(connection)
    show(job)
    job.run()
    monkeypatch.delenv("TZ")
    time.tzset()
    assert capsys.readouterr().out == (
        "2025-03-17 15:10:19,417 job-0 - RECEIVED: "
        "Your job has been received and is waiting approval.\n"
        "2025-03-17 15:10:20,417 job-0 - APPROVED: "
        "Your job was approved and is waiting to be run.\n"
        "2025-03-17 15:10:22,417 job-0 - RUNNING: Your job has started running.\n"
        "2025-03-17 15:10:23,417 job-0 - LOG: tensor(5.4688)\n"
        "2025-03-17 15:10:24,417 job-0 - COMPLETED: Your job has been completed.\n"
    )


def test_places_in_the_queue_are_not_repeated(server, connection, capsys):
    def plan(job):
        job.status("RECEIVED", "QUEUED")
        for place in (9, 9, 9, 8, 7, 6, 1, 1):
            job.say("queue", done=place, of=9)
        job.status("RUNNING").end("ERROR", fault={"kind": "ValueError", "text": "no", "place": []})

    server.plan = plan
    job = send(connection)
    show(job)
    with pytest.raises(ValueError, match="no"):
        job.run()
    words = [line.partition(" - ")[2] for line in capsys.readouterr().out.splitlines()]
    assert words[1:3] == [
        "QUEUED: Your job is number 9 of 9 in the queue.",
        "QUEUED: Your job is number 1 of 9 in the queue.",
    ]
    assert [word.partition(":")[0] for word in words] == [
        "RECEIVED", "QUEUED", "QUEUED", "RUNNING", "ERROR",
    ]  # fmt: skip


def test_how_far_a_model_is_that_is_waited_for_is_told_every_five_seconds(
    server, connection, capsys
):
    def plan(job):  # the fake server's clock goes on by a second with each event
        job.status("LOADING")
        for n in range(1, 6):
            job.say("progress", text="Opening the model", done=n, of=None, unit="s")
        for n in range(1, 6):
            job.say("progress", text="Loading weights", done=n * 300, of=1500, unit="tensors")
        job.status("RUNNING")
        for n in range(9):
            job.say("progress", text="Generating", done=n, of=None, unit="tokens")
        job.end(result=packed(x=1))

    server.plan = plan
    job = send(connection)
    show(job)
    job.run()
    words = [line.partition(" - ")[2] for line in capsys.readouterr().out.splitlines()]
    assert words == [
        "LOADING: The model is being loaded.",
        "LOADING: Opening the model: 5 s.",
        "LOADING: Loading weights: 1,500 of 1,500 tensors.",
        "RUNNING: Your job has started running.",
        "COMPLETED: Your job has been completed.",
    ]


def test_nothing_is_shown_when_it_is_switched_off(server, connection, capsys):
    job = send(connection)
    show(job)
    with insitu.CONFIG.APP.override(REMOTE_LOGGING=False):
        job.run()
    assert capsys.readouterr().out == ""
