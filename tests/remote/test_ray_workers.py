"""Workers on Ray, of which everything but Ray itself is real: a fake handle calls the replicas."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_workers import request
from loopback_server import running
from ray_fakes import FakeCluster, There, clusters

import insitu
from insitu.errors import MissingPackageError, ServerError, UsageError
from insitu.remote.protocol import (
    Ended,
    Fault,
    Limits,
    Local,
    Log,
    ModelState,
    Progress,
    Status,
    Token,
)
from insitu.remote.server import options, serve
from insitu.remote.worker import ray_link, ray_messages, ray_process, ray_replica, ray_workers
from insitu.remote.worker.running import no_writer
from insitu.remote.worker.specs import ModelSpec

SAID = [
    Status("RUNNING"), Status("LOADING", "a\nb"), Log("tensor(5.4688) ü \u2028"),
    Log("", ("x", "y")), Progress("reading", 1.5, 3.0, "files"), Progress("", 0.0),
    Token(3, (5, -1, 7)), Local(0, 4, b""), Local(1, 2, bytes(range(256))),
    Ended("COMPLETED"), Ended("CANCELLED"),
    Ended("ERROR", Fault("IndexError", "a\nb\nc", (("cell 4", 7, "block"), ("f.py", 1, "g")))),
    Ended("TIMEOUT", Fault("TimeoutError", "late")), Ended("LOST", Fault("RuntimeError", "")),
]  # fmt: skip


@pytest.fixture
def there(tmp_path):
    with clusters(tmp_path) as there:
        yield there


@pytest.fixture
def quick(monkeypatch):
    """What is tried again is tried at once."""
    monkeypatch.setattr(ray_link, "AGAIN_S", (0.01, 0.02))
    monkeypatch.setattr(ray_workers, "AGAIN_S", (0.01, 0.02))


@pytest.mark.parametrize("said", SAID, ids=lambda it: type(it).__name__)
def test_what_a_job_says_is_the_same_behind_the_wire(said):
    data = ray_messages.packed(*ray_messages.written(said))
    assert type(data) is bytes
    head, body = ray_messages.unpacked(data)
    assert ray_messages.read(head, bytes(body)) == said


def test_specs_limits_and_states_are_the_same_behind_the_wire():
    spec = ModelSpec("vlm", "/models/vlm", "VisionLanguageModel", {"dtype": "bfloat16"}, ("a", "b"))
    assert ray_messages.spec_from(ray_messages.spec_head(spec)) == spec
    limits = Limits(wall_s=3.5, queue=7)
    assert ray_messages.limits_of(vars(limits)) == limits
    state = ModelState("demo", "ready", ("a",), bytes=5, about={"class": "GPT2"})
    assert ray_messages.state_from(vars(state)) == state


def test_a_job_on_a_replica_tells_and_gives_what_it_would_here(there):
    ran = there.job(
        ["log", "a"], ["log", "b", "x", "y"], ["token", 0, [5, 7]], ["size", 3]
    )  # fmt: skip
    assert ran.phase == "COMPLETED"
    assert ran.told == [Status("RUNNING"), Log("a"), Log("b", ("x", "y")), Token(0, (5, 7))]
    assert ran.result == b"\1\1\1"
    assert (there.folder / "job0.result").stat().st_mode & 0o777 == 0o600
    assert there.cluster.handles[0].replica._jobs == {}


def test_thousands_of_lines_come_in_order(there):
    ran = there.job(["logs", 5_000], ["size", 1])
    assert ran.lines == [f"line {n}" for n in range(5_000)]


def test_a_large_result_comes_in_pieces(there, monkeypatch):
    monkeypatch.setattr(ray_replica, "PIECE_BYTES", 1000)
    ran = there.job(["size", 12_345])
    assert ran.result == b"\1" * 12_345
    assert there.cluster.handles[0].calls.count("result") == 13


def test_an_error_keeps_its_place(there):
    ran = there.job(["fail", "list index out of range"])
    assert ran.ended == Ended(
        "ERROR", Fault("IndexError", "list index out of range", (("cell 4", 7, "block"),))
    )
    assert ran.result == b""


def test_a_pool_that_fails_ends_the_job_without_its_words(there):
    ran = there.job(["crash"])
    assert (ran.phase, ran.text) == ("LOST", ray_replica.FAILED)
    assert there.job(["size", 1]).phase == "COMPLETED"


def test_local_values_go_to_the_replica_that_waits_for_them(tmp_path):
    with clusters(tmp_path, replicas=2) as there:

        async def four():
            jobs = [
                there.run(["local", 0, 10 * n], ["sleep", 0.05], answer=lambda it: bytes(it) * 2)
                for n in range(4)
            ]
            return await asyncio.gather(*jobs)

        for n, ran in enumerate(there.wait(four())):
            assert ran.phase == "COMPLETED"
            assert [len(it.payload) for it in ran.told if isinstance(it, Local)] == [10 * n]


def test_an_answer_nobody_waits_for_is_refused(there):
    async def refused():
        with pytest.raises(ValueError, match="no job nowhere"):
            await there.workers.answer("nowhere", 0, b"")
        job = asyncio.ensure_future(there.run(["local", 0, 1], id="one"))
        await there.until(lambda: there.running() == 1)
        with pytest.raises(ValueError, match="does not wait for an answer 7"):
            await there.workers.answer("one", 7, b"")
        await there.until(lambda: "one" in there.workers._jobs)
        await asyncio.sleep(0.1)
        await there.workers.answer("one", 0, b"it")
        with pytest.raises(ValueError, match="one"):
            await there.workers.answer("one", 0, b"it")
        return await job

    assert there.wait(refused()).phase == "COMPLETED"


def test_a_job_is_cancelled_where_it_runs(there):
    async def cancelled():
        job = asyncio.ensure_future(there.run(["sleep", 60], id="long"))
        await there.until(lambda: there.running() == 1)
        began = time.monotonic()
        await there.workers.cancel("long")
        return (await job).phase, time.monotonic() - began

    phase, took = there.wait(cancelled())
    assert (phase, took < 1) == ("CANCELLED", True)
    assert there.job(["size", 1]).phase == "COMPLETED"


def test_a_replica_that_does_not_cancel_holds_nobody_up(tmp_path):
    with clusters(tmp_path, cluster=FakeCluster(hang_on_cancel=True)) as there:

        async def cancelled():
            job = asyncio.ensure_future(there.run(["sleep", 5], id="long"))
            await there.until(lambda: there.running() == 1)
            began = time.monotonic()
            await there.workers.cancel("long")
            return (await job).phase, time.monotonic() - began

        phase, took = there.wait(cancelled())
        assert (phase, took < 2) == ("CANCELLED", True)


def test_a_job_that_waits_for_a_replica_is_cancelled_too(tmp_path):
    async def never(handle, name):
        if name == "start":
            await asyncio.Event().wait()

    cluster = FakeCluster(before=never)
    with clusters(tmp_path, cluster=cluster, preload=False) as there:

        async def cancelled():
            job = asyncio.ensure_future(there.run(["size", 1], id="early"))
            await there.until(lambda: cluster.handles)
            await there.workers.cancel("early")
            return await job

        ran = there.wait(cancelled())
        assert (ran.phase, ran.told) == ("CANCELLED", [Status("LOADING")])


def test_a_run_that_is_abandoned_ends_on_its_replica(there):
    async def abandoned():
        job = asyncio.ensure_future(there.run(["sleep", 60]))
        await there.until(lambda: there.running() == 1)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        await there.until(lambda: there.running() == 0)

    there.wait(abandoned())
    assert there.job(["size", 1]).phase == "COMPLETED"


def test_a_replica_that_dies_loses_its_jobs_alone_and_another_takes_its_place(tmp_path, quick):
    with clusters(tmp_path, replicas=2) as there:

        async def killed():
            jobs = [asyncio.ensure_future(there.run(["log", "mine"], ["sleep", 0.5], ["size", 1]))]
            await there.until(lambda: there.running() == 1)
            jobs.append(asyncio.ensure_future(there.run(["sleep", 0.5], ["size", 1])))
            await there.until(lambda: there.running() == 2)
            await asyncio.sleep(0.1)
            victim = next(it for it in there.cluster.alive if "job0" in it.pool.running)
            assert "job1" not in victim.pool.running
            victim.die()
            return await asyncio.gather(*jobs)

        lost, other = there.wait(killed())
        assert (lost.phase, lost.lines, lost.result) == ("LOST", ["mine"], b"")
        assert lost.text.startswith("the job was lost: the replica of the model 'demo' was gone")
        assert len(lost.text.splitlines()) == 3
        assert other.phase == "COMPLETED"
        there.wait(there.until(lambda: there.workers.room("demo") == 4))
        assert len(there.cluster.handles) == 3
        assert there.job(["size", 1]).phase == "COMPLETED"


def test_a_job_that_has_not_begun_goes_to_the_next_replica(tmp_path, quick):
    async def once(handle, name):
        if name == "begin" and handle is handle.cluster.handles[0]:
            handle.die()

    with clusters(tmp_path, cluster=FakeCluster(before=once)) as there:
        ran = there.job(["log", "here"], ["size", 1])
        assert (ran.phase, ran.lines) == ("COMPLETED", ["here"])
        assert len(there.cluster.handles) == 2


def test_a_job_that_kills_its_replicas_is_lost(tmp_path, quick):
    async def always(handle, name):
        if name == "begin":
            handle.die()

    with clusters(tmp_path, cluster=FakeCluster(before=always)) as there:
        ran = there.job(["size", 1])
        assert (ran.phase, "twice" in ran.text) == ("LOST", True)


def test_replicas_share_jobs_and_room_is_what_all_have(tmp_path):
    with clusters(tmp_path, replicas=2) as there:
        there.wait(there.until(lambda: there.workers.room("demo") == 4))

        async def four():
            jobs = [asyncio.ensure_future(there.run(["sleep", 0.5], ["size", 1])) for _ in range(4)]
            await there.until(lambda: there.running() == 4)
            rooms = there.workers.room("demo"), there.workers.models()[0].jobs
            await asyncio.gather(*jobs)
            return rooms

        assert there.wait(four()) == (0, 4)
        assert [it.pool.most_at_once for it in there.cluster.handles] == [2, 2]
        assert there.workers.room("demo") == 4
        assert there.workers.room("no such") == 0
        state = there.workers.models()[0]
        assert (state.state, state.about["replicas"]) == ("ready", 2)


def test_replicas_are_made_when_first_asked_for(tmp_path):
    with clusters(tmp_path, preload=False) as there:
        assert there.cluster.handles == []
        assert there.workers.models()[0].state == "absent"
        assert there.workers.room("demo") == 1
        ran = there.job(["size", 1])
        assert (ran.phase, ran.told) == ("COMPLETED", [Status("LOADING"), Status("RUNNING")])
        assert there.workers.models()[0].state == "ready"


def test_a_job_that_was_told_how_far_its_model_is_has_not_begun(there):
    """Where its link dies, it goes to the next one."""

    async def told():
        job = asyncio.ensure_future(there.run(["sleep", 60], id="one"))
        await there.until(lambda: "one" in there.workers._jobs)
        held = there.workers._jobs["one"]
        held.began = False
        there.workers._tell(held, Status("LOADING"))
        there.workers._tell(held, Progress("Loading weights", 3, 9, "tensors"))
        before = held.began
        there.workers._tell(held, Status("RUNNING"))
        after = held.began
        await there.workers.cancel("one")
        await job
        return before, after

    assert there.wait(told()) == (False, True)


def test_a_models_kind_is_unknown_until_a_replica_has_opened_it(tmp_path, quick):
    with clusters(tmp_path, preload=False) as there:
        assert there.workers.models()[0].kind == "unknown"
        assert there.job(["size", 1]).phase == "COMPLETED"
        assert there.workers.models()[0].kind == "LanguageModel"
        there.down = True
        there.links[-1].die()
        there.wait(there.until(lambda: not there.workers.models()[0].about["replicas"]))
        assert there.workers.models()[0].kind == "LanguageModel"
        there.down = False
        there.wait(there.until(lambda: there.workers.room("demo") > 0))
    named = ModelSpec("vlm", "/models/vlm", "VisionLanguageModel")
    assert ray_workers.RayWorkers([named, "demo"]).models()[0].kind == "VisionLanguageModel"


def test_a_link_that_dies_loses_what_ran_and_what_waited_goes_on(tmp_path, quick):
    held = asyncio.Event()

    async def hold(handle, name):
        if name == "start" and handle is handle.cluster.handles[0]:
            await held.wait()

    with clusters(tmp_path, cluster=FakeCluster(before=hold), preload=False) as there:

        async def broken():
            waits = asyncio.ensure_future(there.run(["log", "late"], ["size", 1]))
            await there.until(lambda: there.cluster.handles)
            there.links[-1].die()
            return await waits

        ran = there.wait(broken())
        assert (ran.phase, ran.lines) == ("COMPLETED", ["late"])

        async def amid():
            runs = asyncio.ensure_future(there.run(["log", "first"], ["sleep", 60]))
            await there.until(lambda: there.running() == 1)
            await asyncio.sleep(0.1)
            there.down = True
            there.links[-1].die()
            lost = await runs
            room = there.workers.room("demo")
            await there.until(lambda: len(there.links) > 3)
            state = there.workers.models()[0]
            there.down = False
            return lost, room, state

        lost, room, state = there.wait(amid())
        assert (lost.phase, lost.lines, room) == ("LOST", ["first"], 0)
        assert lost.text.startswith("the job was lost: the Ray cluster was gone")
        assert len(lost.text.splitlines()) == 3
        assert (state.state, "fault" in state.about) == ("loading", True)
        there.wait(there.until(lambda: there.workers.room("demo") > 0))
        assert there.job(["size", 1]).phase == "COMPLETED"


def test_a_job_that_two_links_died_of_is_lost(tmp_path, quick):
    async def never(handle, name):
        if name == "start":
            handle.cluster.link.die()
            await asyncio.Event().wait()

    cluster = FakeCluster(before=never)
    with clusters(tmp_path, cluster=cluster, preload=False) as there:
        cluster.link = type("Last", (), {"die": lambda self: there.links[-1].die()})()
        ran = there.job(["size", 1])
        assert (ran.phase, len(there.links) >= 2) == ("LOST", True)


def test_a_cluster_that_is_not_there_is_told_of_at_the_start(tmp_path):
    there = There(tmp_path, FakeCluster(), address="ray://nowhere:10001")
    there.down = True
    with pytest.raises(ServerError) as caught:
        there.wait(there.workers.start())
    lines = str(caught.value).splitlines()
    assert lines[0] == "the server cannot join the Ray cluster at ray://nowhere:10001."
    assert lines[1:] == [
        "Why: nothing answers there.",
        "Next: See that `ray status` answers there; leave --address out to start one here.",
    ]
    there.wait(there.workers.stop())
    there.wait(asyncio.sleep(0.05))
    there.loop.close()


def test_a_node_of_another_version_is_refused(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(ray_replica.insitu, "__version__", "9.9")
    monkeypatch.setattr(ray_link, "insitu", type("It", (), {"__version__": "0.1.0"}))
    with clusters(tmp_path, preload=False) as there:
        ran = there.job(["size", 1])
        assert ran.phase == "ERROR"
        assert "has Insitu 9.9.\nWhy: this server has 0.1.0" in ran.text
        state = there.workers.models()[0]
        assert (state.state, state.about["fault"]) == ("failed", ran.text)
        assert there.workers.room("demo") == 1  # the next one is told too


def test_a_node_without_what_the_jail_needs_is_refused(tmp_path, quick):
    async def refuse(handle, name):
        if name == "start":
            error = UsageError("this machine has no landlock.", "Its kernel is old.", "Update it.")
            handle.pool.start = lambda: (_ for _ in ()).throw(error)

    with clusters(tmp_path, cluster=FakeCluster(before=refuse), preload=False) as there:
        ran = there.job(["size", 1])
        assert (ran.phase, ran.text.splitlines()[0]) == ("ERROR", "this machine has no landlock.")


def test_a_model_that_is_not_served_is_named(there):
    ran = there.job(["size", 1], model="gpt9")
    assert (ran.phase, ran.text.splitlines()[0]) == ("ERROR", "this server has no model 'gpt9'.")


def test_a_request_that_is_gone_is_told(there):
    async def gone():
        job = asyncio.ensure_future(there.run(["size", 1], id="gone"))
        await asyncio.sleep(0)
        (there.folder / "gone.request").unlink()
        return await job

    ran = there.wait(gone())
    assert (ran.phase, ran.ended.fault.kind) == ("ERROR", "OSError")


def test_stopping_ends_what_runs(tmp_path):
    with clusters(tmp_path) as there:

        async def stopped():
            job = asyncio.ensure_future(there.run(["sleep", 60]))
            await there.until(lambda: there.running() == 1)
            await there.workers.stop()
            return await job

        assert there.wait(stopped()).phase == "CANCELLED"
        assert [it.killed for it in there.cluster.handles] == [True]
        assert there.cluster.handles[0].pool.stopped


def test_what_replicas_are_told_is_what_the_server_was_started_with(tmp_path):
    with clusters(tmp_path, trust="team", threads=3, apart=True) as there:
        assert there.cluster.handles[0].pool.settings == {
            "trust": "team", "threads": 3, "apart": True, "device": "cpu",
        }  # fmt: skip


def test_a_whole_server_runs_on_replicas(tmp_path):
    """Nothing above the interface knows."""
    there = There(tmp_path, FakeCluster(), replicas=2)
    there.loop.close()
    with running(tmp_path / "server", workers=there.workers) as (_, client):
        jobs = [client.send(request(["log", str(n)], ["local", 0, 5])) for n in range(6)]
        seen = set()
        for _ in jobs:
            waits = next(job for job in jobs if job not in seen and _waits(client, job))
            seen.add(waits)
            assert client.post(f"/v1/jobs/{waits}/local/0", _values()).status_code == 204
        for n, job in enumerate(jobs):
            events = client.events(job)
            assert [it["text"] for _, kind, it in events if kind == "log"] == [str(n)]
            assert events[-1][2]["phase"] == "COMPLETED"
        long = client.send(request(["sleep", 60]))
        client.until(long, "RUNNING")
        assert client.delete(f"/v1/jobs/{long}").status_code == 202
        assert client.events(long)[-1][2]["phase"] == "CANCELLED"
        assert client.get("/v1/models").json()[0]["about"]["replicas"] == 2


def _waits(client, job):
    """Wait a moment for a job to come to its local() part."""
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        if client.phase(job) == "RUNNING":
            time.sleep(0.2)
            return True
        time.sleep(0.02)
    return False


def _values():
    from insitu.remote.wire import container

    return container.pack({"kind": "local", "values": {}})


def test_ray_that_is_not_installed_is_told_in_three_lines(monkeypatch, tmp_path):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    said = options.parsed(["serve", "demo", "--backend", "ray", "--replicas", "2"])
    with pytest.raises(MissingPackageError) as caught:
        serve._workers(said, tmp_path)
    assert str(caught.value).splitlines() == [
        "the package ray is not installed.",
        "Why: insitu serve --backend ray puts the models on a Ray cluster; nothing else needs it.",
        'Next: Install it: pip install "insitu[ray]".',
    ]


def test_what_belongs_to_ray_is_refused_without_it(tmp_path):
    said = options.parsed(["serve", "demo", "--address", "auto"])
    with pytest.raises(UsageError, match=r"--address and --replicas are for models on Ray"):
        serve._workers(said, tmp_path)


@pytest.mark.parametrize("word", ["0", "-1", "two", "1.5"])
def test_a_number_of_replicas_is_at_least_one(word, capsys):
    with pytest.raises(SystemExit):
        options.parsed(["serve", "demo", "--backend", "ray", "--replicas", word])
    assert "is no number from 1" in capsys.readouterr().err


PROGRAM = """
import sys
import insitu.remote.server.serve, insitu.remote.worker.ray_workers
heavy = {"torch", "numpy", "transformers", "ray", "grpc"} & sys.modules.keys()
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


def test_the_server_has_neither_torch_nor_ray():
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr


def test_the_files_of_a_job_have_no_name_and_no_writer():
    before = set(os.listdir("/proc/self/fd"))
    held = ray_replica._nameless(b"it")
    path = ray_replica._path(held)
    assert os.readlink(path).endswith(" (deleted)")
    assert (path.read_bytes(), no_writer(path)) == (b"it", True)
    with path.open("wb") as writing:
        assert not no_writer(path)
        writing.write(b"other")
    assert (path.read_bytes(), no_writer(path)) == (b"other", True)
    os.close(held)
    assert set(os.listdir("/proc/self/fd")) == before


def test_processes_of_a_link_are_found_by_its_session():
    process = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60"], start_new_session=True)
    end = time.monotonic() + 10
    while len(found := ray_process._session(process.pid)) < 3 and time.monotonic() < end:
        time.sleep(0.01)
    assert process.pid in found
    for pid in found:
        os.kill(pid, 9)
    process.wait()
    while ray_process._session(process.pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert ray_process._session(process.pid) == []


def test_folders_of_servers_that_were_killed_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_process.tempfile, "gettempdir", lambda: "/tmp")
    gone = subprocess.Popen(["true"])
    gone.wait()
    old = Path(f"/tmp/insitu-ray-{gone.pid}-x")
    (old / "session").mkdir(parents=True)
    new = Path(ray_process._new_folder())
    other = Path(ray_process._new_folder())
    assert not old.exists()
    assert new.exists()
    assert len(str(new)) < 45
    for it in (new, other):
        it.rmdir()


def test_a_head_of_our_own_asks_for_a_token_and_no_key_goes_there(monkeypatch):
    for name in ("INSITU_SERVER_KEY", "INSITU_API_KEY", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "secret")
    own = ray_process._environment(local=True)
    assert "secret" not in own.values()
    assert (own["RAY_AUTH_MODE"], own["RAY_USAGE_STATS_ENABLED"]) == ("token", "0")
    assert len(own["RAY_AUTH_TOKEN"]) == 64
    assert own["RAY_AUTH_TOKEN"] != ray_process._environment(local=True)["RAY_AUTH_TOKEN"]
    joined = ray_process._environment(local=False)
    assert "RAY_AUTH_TOKEN" not in joined
    assert joined["RAY_ADDRESS"] == "secret"
    assert insitu.__version__
