"""Faults that a server of the demo model survives: real jobs in the jail. Those that take a while.

One server with short limits (`tools/soak_server.py`: 8 s a job, 5 s a local() part, 1 GB) for all.
"""

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
import soak_jobs
import torch
from demo_server import demo_server
from soak_server import LIMITS, Place
from test_worker_inline import BREAKS_ONCE

import insitu
from insitu import CONFIG, JobLostError, JobTimeoutError, LanguageModel
from insitu.remote.client import tracer as client
from insitu.remote.client.connection import Connection

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
JOBS = 1_000
PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    it = Place(tmp_path_factory.mktemp("faults") / "server")
    it.start()
    with CONFIG.APP.override(REMOTE_LOGGING=False):
        yield it
    assert it.stop() == 0
    assert it.everything() == []


@pytest.fixture(scope="module")
def demo():
    return LanguageModel("demo")


@pytest.fixture
def ada(place):
    with Connection(place.url, place.keys["ada"]) as server:
        yield server


@pytest.fixture
def grace(place):
    with Connection(place.url, place.keys["grace"]) as server:
        yield server


def is_right(demo, server, n=5):
    """Whether a job gives what it gives here."""
    return soak_jobs.is_same(soak_jobs.trace(demo, server, n), soak_jobs.trace(demo, None, n))


def until(condition, time_s=30):
    end = time.monotonic() + time_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def calm(place):
    """How many processes there are once no spare is being made any more."""
    count, since = 0, time.monotonic()
    while time.monotonic() - since < 1:
        if (now := len(place.everything())) != count:
            count, since = now, time.monotonic()
        time.sleep(0.05)
    return count


def ended(act, kind):
    """What a job raises, and how long it took."""
    began = time.monotonic()
    with pytest.raises(kind) as error:
        act()
    return error.value, time.monotonic() - began


def begun(demo, server, act=None):
    """A job that runs for ever, once it does."""
    with demo.trace(PROMPT, remote=server, blocking=False) as tracer:
        n = 0
        while True:
            n += 1
    until(lambda: tracer.job.phase == "RUNNING")
    return tracer.job


GONE = """
import os, signal, sys
import insitu
from insitu import LanguageModel
from insitu.remote.client.connection import Connection
model = LanguageModel("demo", dispatch=False)
with model.trace("Hello", remote=Connection(*sys.argv[1:])):
    h = model.transformer.h[1].output
    with insitu.local():
        os.kill(os.getpid(), signal.SIGKILL)
        h = h + 1
    model.transformer.h[1].output[:] = h
"""


def test_a_client_that_dies_inside_a_local_part_holds_its_place_for_so_long_alone(
    demo, place, ada, tmp_path
):
    """Fault 2."""
    script = tmp_path / "gone.py"
    script.write_text(GONE)
    died = subprocess.run(
        [sys.executable, str(script), place.url, place.keys["grace"]], timeout=120, check=False
    )
    assert died.returncode == -signal.SIGKILL
    (id,) = place.rows("SELECT id FROM jobs WHERE user = 'grace' ORDER BY created DESC LIMIT 1")[0]

    def row():
        return place.rows(f"SELECT phase, fault FROM jobs WHERE id = '{id}'")[0]

    until(lambda: row()[0] == "TIMEOUT", LIMITS.local_s + 2)
    assert json.loads(row()[1])["text"].startswith("a local() part was not answered in time.")
    assert is_right(demo, ada)


def test_loops_without_an_end_are_ended_at_the_deadline(demo, ada):
    """Faults 3 and 4: Python that catches everything, and C that asks for nothing."""
    _, took = ended(lambda: soak_jobs.endless(demo, ada, 1), JobTimeoutError)
    assert took < LIMITS.wall_s + 2

    def in_c():
        with demo.trace(PROMPT, remote=ada):
            total = sum(range(10**13)).save()  # noqa: F841

    _, took = ended(in_c, JobTimeoutError)
    assert took < LIMITS.wall_s + 2
    assert is_right(demo, ada)


def test_a_memory_bomb_is_told_of(demo, ada):
    """Fault 5."""
    error, _ = ended(lambda: soak_jobs.bomb(demo, ada, 1), (RuntimeError, MemoryError))
    assert "memory" in str(error)
    assert is_right(demo, ada)


def test_bombs_of_processes_and_threads_make_nothing(demo, place, ada, monkeypatch):
    """Fault 6, by a client whose allow-list was taken out."""
    monkeypatch.setattr(client.allowed, "check", lambda *args, **more: None)
    assert is_right(demo, ada)
    before = calm(place)
    with demo.trace(PROMPT, remote=ada):
        every = ().__class__.__base__.__subclasses__()
        found = next(it for it in every if it.__name__ == "_wrap_close").__init__
        os = found.__globals__["sys"].modules["os"]
        made = 0
        for _ in range(100):
            try:
                os.fork()
                made += 1
            except OSError:
                pass
        made = (made + 0).save()
    assert made == 0
    with pytest.raises(Exception) as error:
        with demo.trace(PROMPT, remote=ada):
            every = ().__class__.__base__.__subclasses__()
            found = next(it for it in every if it.__name__ == "_wrap_close").__init__
            os = found.__globals__["sys"].modules["os"]
            threading = os.sys.modules["threading"]
            for _ in range(10_000):
                threading.Thread(target=threading.Event().wait).start()
    assert "thread" in str(error.value)
    until(lambda: len(place.everything()) <= before)
    assert is_right(demo, ada)


def test_damaged_requests_are_answered_with_a_sentence_by_what_runs_them_too(demo, ada):
    """Fault 12, with real workers."""
    sys.path.append(str(ROOT))
    from benchmarks.remote_blocks import damaged

    answers, phases, bad = damaged(demo, ada, 300)
    assert bad == 0
    assert set(answers) <= {202, 400, 404}
    assert phases["ERROR"] > 20


def test_a_model_process_that_dies_loses_its_jobs_and_is_there_again(demo, place, ada):
    """Fault 17: the next job within five seconds, loading aside."""
    job = begun(demo, ada)
    began = time.monotonic()
    os.kill(place.model_process(), signal.SIGKILL)
    error, took = ended(lambda: job.result(timeout_s=10), JobLostError)
    assert took < 2
    assert "ended while it ran" in str(error)
    with demo.trace(PROMPT, remote=ada) as tracer:
        answer = (1 + 1).save()
    assert time.monotonic() - began - loading_s(place, tracer.job.id) < 5
    assert answer == 2
    assert is_right(demo, ada)


def loading_s(place, job):
    """How long a job waited for its model to be loaded."""
    rows = place.rows(f"SELECT data FROM events WHERE job = '{job}' AND kind = 'status'")
    times = {it["phase"]: it["time"] for it in (json.loads(row[0]) for row in rows)}
    return times["RUNNING"] - times["LOADING"] if "LOADING" in times else 0.0


def test_a_device_that_computes_no_more_costs_no_later_job(demo, tmp_path):
    """Fault 18: its error stays with the process that holds the model, which another replaces."""
    mark = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(BREAKS_ONCE.format(mark=str(mark)))
    with demo_server("demo", "--apart", PYTHONPATH=str(tmp_path)) as (url, key):
        with Connection(url, key) as server:
            assert is_right(demo, server)
            mark.touch()
            for _ in range(3):
                assert is_right(demo, server)
            assert not mark.exists()


def test_a_result_that_is_too_large_is_told_of_and_nothing_of_it_stays(demo, team_server):
    """Fault 11: 2.1 GB that do not compress, of which a server keeps 2."""
    url, key = team_server
    with Connection(url, key) as server:
        with pytest.raises(Exception) as error:
            with demo.trace(PROMPT, remote=server):
                huge = torch.empty(2_200_000_000, dtype=torch.uint8)
                huge = huge.random_(0, 256).save()
        assert re.match(
            r"the values take 2,2.* bytes, and 2,147,483,648 may be sent", str(error.value)
        )
        row = next(iter(insitu.jobs(remote=server)))  # the newest
        assert (row["phase"], row["result"]) == ("ERROR", None)
        assert is_right(demo, server)


def test_a_job_process_that_dies_is_lost_alone(demo, place, ada, grace):
    """Fault 17: the job beside it goes on."""
    found = []
    beside = threading.Thread(target=lambda: found.append(soak_jobs.generate(demo, grace, 3)))
    job = begun(demo, ada)
    beside.start()
    pid = max(place.job_processes(), key=cpu_s)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(JobLostError):
        job.result(timeout_s=10)
    beside.join()
    assert found == [soak_jobs.generate(demo, None, 3)]


def cpu_s(pid):
    try:
        return sum(
            map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        )
    except OSError:
        return 0


def test_what_waits_survives_a_killed_server_and_what_runs_is_told(demo, place, ada, grace):
    """Fault 19, with real workers: 2 running, 18 queued."""
    running = [begun(demo, ada), begun(demo, grace)]
    waiting = []
    for n in range(9):
        for server in (ada, grace):
            with demo.trace(PROMPT, remote=server, blocking=False) as tracer:
                answer = (torch.ones(2) * n).save()  # noqa: F841
            waiting.append((n, tracer.job))
    place.restart()
    for job in running:
        with pytest.raises(JobLostError, match="stopped while your job ran"):
            job.result(timeout_s=60)
    for n, job in waiting:
        assert torch.equal(job.result(timeout_s=60)["answer"], torch.ones(2) * n)


def test_a_locked_database_holds_jobs_up_and_loses_none(demo, place, ada):
    """Fault 20."""
    lock = sqlite3.connect(place.data / "jobs.sqlite", isolation_level=None)
    with demo.trace(PROMPT, remote=ada, blocking=False) as tracer:
        time.sleep(1.0)
        answer = (1 + 1).save()
    until(lambda: tracer.job.phase == "RUNNING")
    lock.execute("BEGIN IMMEDIATE")
    time.sleep(4)
    answer = requests.post(
        f"{place.url}/v1/jobs", data=b"", headers={"X-Protocol": "1", "Authorization": "Bearer x"},
        timeout=10,
    )  # fmt: skip
    assert answer.status_code == 401  # it answers all the same
    lock.execute("ROLLBACK")
    lock.close()
    assert tracer.job.result(timeout_s=30)["answer"] == 2
    assert is_right(demo, ada)


def test_a_flood_leaves_the_other_user_a_fair_share(demo, place, ada, grace):
    """Fault 21, with real workers: their jobs take twice as long as alone, at most.

    Jobs that sleep: how many processors there are is not the matter, but whose turn it is.
    """
    over = threading.Event()

    def flood():
        with contextlib.closing(Connection(place.url, place.keys["grace"])) as server:
            while not over.is_set():
                with contextlib.suppress(insitu.QueueFullError):
                    nap(demo, server, blocking=False)
                time.sleep(0.1)  # this process shares the processors with the server

    def takes(count):
        """As the server sees it: from being taken in to the end, mean of so many."""
        for _ in range(count):
            assert nap(demo, ada) == 2
        ((mean,),) = place.rows(
            "SELECT AVG(ended - created) FROM (SELECT * FROM jobs WHERE user = 'ada' "
            f"ORDER BY created DESC LIMIT {count})"
        )
        return mean

    alone = takes(6)
    flooding = threading.Thread(target=flood)
    flooding.start()
    until(lambda: place.rows("SELECT count(*) FROM jobs WHERE phase = 'QUEUED'")[0][0] > 6)
    amid = takes(12)
    over.set()
    flooding.join()
    until(lambda: place.rows("SELECT count(*) FROM jobs WHERE ended IS NULL")[0][0] == 0)
    assert amid < 2 * alone


def nap(model, remote, blocking=True):
    """A job of half a second."""
    with model.trace(PROMPT, remote=remote, blocking=blocking):
        time.sleep(0.5)
        answer = (1 + 1).save()
    return answer if blocking else None


def test_a_thousand_alternating_jobs_of_two_users_have_nothing_of_each_other(demo, ada, grace):
    """Faults 22 and 23: globals, torch, seeds, hooks, dtype, weights; bit for bit, 1,000 jobs."""
    first = look(demo, ada)
    for n in range(JOBS // 2):
        spoil(demo, grace, n)
        now = look(demo, ada)
        assert all(torch.equal(one, other) for one, other in zip(first[0], now[0], strict=True)), n
        assert now[1] == first[1], n


def spoil(model, remote, n):
    """Changes all that a block can reach."""
    with model.trace(PROMPT, remote=remote):
        model.lm_head.output  # everything has run; this job itself may end well
        done = (n + 0).save()
        model.transformer.h[n % 6].mlp.c_fc.weight.data.mul_(0)
        model.lm_head.weight.data[:] = n
        model.transformer.h[0]._module.register_forward_hook(lambda *_: 1 / 0)
        model._module.eval = None
        torch.manual_seed(n)
        torch.set_default_dtype(torch.float64)
        torch.relu = torch.softmax = torch.nn.functional.linear = None
        torch.Tensor.__add__ = None
        torch.use_deterministic_algorithms(True)
        insitu.spoiled = True
        CONFIG.APP.REMOTE_LOGGING = False
    assert done == n


def look(model, remote):
    """What a job finds: numbers, and how things are set."""
    with model.trace(PROMPT, remote=remote):
        hidden = model.transformer.h[3].output.save()
        logits = model.lm_head.output.save()
        drawn = torch.rand(4).save()
        added = (torch.ones(2) + torch.relu(torch.ones(2))).save()
        weight = model.lm_head.weight.detach().sum().save()
        said = [
            str(torch.get_default_dtype()), hasattr(insitu, "spoiled"),
            len(model.transformer.h[0]._module._forward_hooks),
            torch.are_deterministic_algorithms_enabled(), torch.softmax is None,
            CONFIG.APP.REMOTE_LOGGING,
        ].save()  # fmt: skip
    return [hidden, logits, drawn, added, weight], said


def test_a_soak_of_a_minute_loses_and_leaks_nothing(tmp_path, capsys):
    """`make soak` for half an hour, here for a minute; in a process of its own, for its forks."""
    words = ["--minutes", "1", "--folder", str(tmp_path / "soak")]
    ran = subprocess.run(
        [sys.executable, ROOT / "tools/soak.py", *words],
        capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    with capsys.disabled():
        print("\n" + ran.stdout)
    assert ran.returncode == 0
