"""`insitu serve` as a process: killed, drained, stopped; and what keeps it from starting."""

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from fake_workers import FakeWorkers, request
from loopback_server import Client, Process, running

from insitu import cli
from insitu.errors import ServerError, UsageError
from insitu.remote.protocol import Limits
from insitu.remote.server import options, serve
from insitu.remote.server.keys import Keys


@pytest.fixture
def started(tmp_path):
    """Start `insitu serve` with words, on a data folder; all are ended after the test."""
    made = []

    def start(*words, folder="data", port=0):
        made.append(Process(tmp_path / folder, *words, port=port))
        return made[-1]

    yield start
    for it in made:
        it.end()


def test_queued_jobs_survive_sigkill_and_running_ones_say_that_they_were_lost(started):
    """Fault 19: 2 running, 50 queued."""
    first = started()
    client = first.ready()
    lost = [client.send(request(["log", "began"], ["sleep", 60])) for _ in range(2)]
    keyed = {"Idempotency-Key": "kept"}
    body = request(["log", "0"])
    kept = [client.send(body, **keyed)]
    kept += [client.send(request(["log", str(n)])) for n in range(1, 50)]
    for job in lost:
        client.until(job, "RUNNING")
    seen = client.get(f"/v1/jobs/{kept[0]}").json()
    assert seen["phase"] == "QUEUED"
    first.kill()
    client.close()

    client = started().ready()
    for job in lost:
        events = client.events(job)
        assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
        assert events[-1][2]["phase"] == "LOST"
        assert events[-1][2]["fault"]["text"].startswith("The server was stopped while your job")
        assert client.get(f"/v1/jobs/{job}/result").status_code == 409
    assert client.send(body, **keyed) == kept[0]  # a replay is still the same job
    for n, job in enumerate(kept):
        events = client.events(job)
        assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
        assert [data["text"] for _, kind, data in events if kind == "log"] == [str(n)]
        assert events[-1][2]["phase"] == "COMPLETED"
    listed = client.get("/v1/jobs").json()
    assert len(listed) == 52  # none twice, none gone
    client.close()


@pytest.mark.slow
def test_sigterm_lets_running_jobs_end_and_keeps_those_that_wait(started):
    first = started("--json-logs")
    # with JSON logs the words to people go to stderr too
    end = time.monotonic() + 60
    while " at http" not in first.log.read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    (first.folder / "stdout.txt").write_text(first.log.read_text())
    client = first.ready()
    running_jobs = [client.send(request(["sleep", 2], ["log", "done"])) for _ in range(2)]
    waiting = client.send(request(["log", "later"]))
    client.until(running_jobs[1], "RUNNING")
    first.signal()
    time.sleep(0.3)
    answer = client.post("/v1/jobs", request())
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert client.get("/readyz").status_code == 503
    assert client.events(running_jobs[0])[-1][2]["phase"] == "COMPLETED"
    assert first.process.wait(15) == 0
    client.close()
    lines = [it for it in first.log.read_text().splitlines() if it.startswith("{")]
    assert {"job accepted", "job ended"} <= {json.loads(it)["text"] for it in lines}

    client = started().ready()
    assert client.events(waiting)[-1][2]["phase"] == "COMPLETED"
    assert client.phase(running_jobs[1]) == "COMPLETED"
    client.close()


@pytest.mark.slow
def test_a_job_that_outlasts_the_drain_is_told_that_it_was_lost(started):
    first = started("--drain", "1")
    client = first.ready()
    job = client.send(request(["sleep", 600]))
    client.until(job, "RUNNING")
    first.signal()
    assert first.process.wait(15) == 0
    client.close()
    client = started().ready()
    end = client.events(job)[-1][2]
    assert end["phase"] == "LOST"
    assert "send it again" in end["fault"]["text"]
    client.close()


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_at_once(started, second):
    it = started()
    client = it.ready()
    job = client.send(request(["sleep", 600]))
    client.until(job, "RUNNING")
    with client.get(f"/v1/jobs/{job}/events", stream=True):
        it.signal()
        time.sleep(0.3)
        began = time.monotonic()
        it.signal(second)
        assert it.process.wait(10) == 1
        assert time.monotonic() - began < 4
    client.close()


@pytest.mark.slow
def test_a_reader_that_takes_nothing_costs_the_server_little_memory(started):
    """Fault 25: twenty readers of 10,000 long lines, none of which reads."""
    it = started()
    client = it.ready()
    job = client.send(request(["lines", 10_000, 3_900]))
    client.until(job, "COMPLETED", time_s=60)
    before = memory_mb(it.process.pid)
    readers = []
    for _ in range(20):
        readers.append(socket.create_connection(("127.0.0.1", int(it.url.rsplit(":", 1)[1]))))
        readers[-1].sendall(
            f"GET /v1/jobs/{job}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
    time.sleep(3)
    grown = memory_mb(it.process.pid) - before
    assert grown < 150  # 39 MB each, were they held
    assert client.get("/livez").ok
    for reader in readers:
        reader.close()
    client.close()


def memory_mb(pid):
    with open(f"/proc/{pid}/status") as status:
        line = next(it for it in status if it.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.slow
def test_a_million_events_and_a_huge_log_do_not_hold_the_server_up(started):
    """Fault 11."""
    it = started()
    client = it.ready()
    began = time.monotonic()
    job = client.send(request(["logs", 500_000], ["progresses", 500_000]))
    slowest = 0.0
    while client.phase(job) not in ("COMPLETED", "LOST"):
        asked = time.monotonic()
        assert client.get("/livez").ok
        slowest = max(slowest, time.monotonic() - asked)
        assert time.monotonic() - began < 120
    events = client.events(job)
    logs = [data["text"] for _, kind, data in events if kind == "log"]
    assert logs[9_999:10_001] == [
        "line 9999",
        "What follows is left out: a job may tell 10,000 lines.",
    ]
    assert len(events) <= Limits().events
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    assert slowest < 2
    client.close()


@pytest.mark.slow
def test_fifty_clients_with_twenty_jobs_each_are_all_served(tmp_path, capsys):
    keys = Keys(tmp_path / "keys.sqlite")
    names = {f"u{n}": keys.add(f"u{n}") for n in range(50)}
    keys.close()
    it = Process(tmp_path, "--trust", "team")
    try:
        it.ready(next(iter(names.values()))).close()
        took, ended = {name: [] for name in names}, []

        def work(name, key):
            client = Client(it.url, key)
            for n in range(20):
                began = time.perf_counter()
                events = client.events(client.send(request(["log", f"{name} {n}"])))
                took[name].append(time.perf_counter() - began)
                assert [d["text"] for _, kind, d in events if kind == "log"] == [f"{name} {n}"]
                ended.append(events[-1][2]["phase"])
            client.close()

        threads = [threading.Thread(target=work, args=pair) for pair in names.items()]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        all_s = time.perf_counter() - began
        assert ended == ["COMPLETED"] * 1000
        every = sorted(t for each in took.values() for t in each)
        means = sorted(sum(each) / len(each) for each in took.values())
        with capsys.disabled():
            print(f"\n1,000 jobs in {all_s:.1f} s: {1000 / all_s:.0f} a second, p50 "
                  f"{every[500] * 1000:.0f} ms, p99 {every[990] * 1000:.0f} ms, slowest client / "
                  f"fastest {means[-1] / means[0]:.2f}")  # fmt: skip
        assert means[-1] < 2 * means[0]
    finally:
        it.end()


@pytest.mark.slow
def test_a_flood_by_one_user_leaves_the_other_a_fair_share(tmp_path):
    """Fault 21, on a server: the other's wait is less than twice what it is without the flood."""
    keys = Keys(tmp_path / "keys.sqlite")
    flood, ada = keys.add("flood"), keys.add("ada")
    keys.close()
    it = Process(tmp_path, "--trust", "team")
    try:
        other = it.ready(ada)
        done = threading.Event()

        def send_and_send():
            mine = Client(it.url, flood)
            while not done.is_set():
                if mine.post("/v1/jobs", request(["sleep", 0.1])).status_code == 429:
                    time.sleep(0.005)
            mine.close()

        threads = [threading.Thread(target=send_and_send) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        waits = []
        for _ in range(20):
            began = time.perf_counter()
            other.events(other.send(request(["sleep", 0.1])))
            waits.append(time.perf_counter() - began - 0.1)
        done.set()
        for thread in threads:
            thread.join()
        assert sum(waits) / len(waits) < 2 * 0.1  # a place is free after one job's time at most
        other.close()
    finally:
        it.end()


# what keeps it from starting ---------------------------------------------------------------------


def said(tmp_path, *words):
    return options.parsed(
        ["serve", "demo", "--data", str(tmp_path / "data"), "--port", "0", *words]
    )


@pytest.mark.parametrize(
    ("words", "what"),
    [(("--trust", "team"), "a server with --trust team asks for keys, and there are none."),
     (("--trust", "public"), "a server with --trust public asks for keys, and there are none."),
     (("--host", "0.0.0.0"), "a server at 0.0.0.0 asks for keys, and there are none."),
     (("--key", "short"), "the key of --key is too short.")],
)  # fmt: skip
def test_a_server_that_anybody_could_use_does_not_start(tmp_path, words, what):
    with pytest.raises(UsageError) as error:
        serve.run(said(tmp_path, *words), FakeWorkers())
    assert error.value.what == what


def test_a_random_key_may_begin_with_dashes(tmp_path):
    for key in ("-abc", "--p7_Qz-w", "--lazy9"):
        assert said(tmp_path, "--key", key, "--lazy").key == key
    for words in (("--key", "--lazy"), ("--key", "--keep=1d")):
        with pytest.raises(SystemExit):
            said(tmp_path, *words)


def test_a_port_that_is_taken_is_a_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError) as error:
            serve.run(said(tmp_path, "--port", str(port)), FakeWorkers())
    assert error.value.what == f"the server cannot listen at 127.0.0.1:{port}."


def test_two_servers_do_not_share_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    with serve._owned(tmp_path / "data"), pytest.raises(ServerError) as error:
        serve.run(said(tmp_path), FakeWorkers())
    assert error.value.what == f"another server uses the folder {tmp_path / 'data'}."


def test_workers_that_do_not_start_end_the_server_with_their_words(tmp_path, capsys):
    class Broken(FakeWorkers):
        async def start(self):
            raise ServerError("the jail does not hold.", "No landlock here.", "Use --trust self.")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ServerError, match="the jail does not hold"):
        serve.run(said(tmp_path, "--key", "k" * 32), Broken())
    signal.signal(signal.SIGTERM, before)
    shown = capsys.readouterr().out
    assert shown.startswith("trust: self.")
    assert re.search(r'set_default_api_key.*\n  with model.trace\("…", remote="http://127', shown)
    assert "k" * 32 not in shown


@pytest.mark.parametrize(("text", "days"), [("12h", 0.5), ("30d", 30), ("2w", 14), ("3", 3)])
def test_times_are_read(text, days):
    assert options.days(text) == days


@pytest.mark.parametrize("text", ["", "d", "-1d", "0d", "1y", "inf"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no time"):
        options.days(text)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named 'uvicorn', for {name}", name="uvicorn")

    monkeypatch.setattr(cli.importlib, "import_module", missing)
    with pytest.raises(SystemExit, match=r"uvicorn is not installed\.\n(.*\n)*.*insitu\[serve\]"):
        cli.main(["serve", "demo"])


@pytest.mark.slow
def test_the_demo_needs_no_starlette():
    code = "import sys, insitu.cli\nassert not {'starlette', 'uvicorn', 'sqlite3'} & {*sys.modules}"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr


def test_a_restart_without_a_jobs_model_says_so(tmp_path):
    with running(tmp_path, FakeWorkers(room=0)) as (_, client):
        job = client.send(request())
        client.until(job, "QUEUED")
    with running(tmp_path, FakeWorkers(("other",))) as (_, client):
        end = client.events(job)[-1][2]
    assert (end["phase"], end["fault"]["text"]) == (
        "LOST", "The server was started again without this job's model.",
    )  # fmt: skip
