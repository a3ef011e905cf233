"""Jobs on a real Ray: two nodes on this machine, and `insitu serve demo --backend ray`."""

import asyncio
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
import torch
from ray_nodes import cluster, environment, until
from worker_runs import Runs

import insitu
from insitu import CONFIG, LanguageModel
from insitu.remote.client.connection import Connection
from insitu.remote.protocol import Local, Log
from insitu.remote.worker.ray_workers import RayWorkers

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray")

START_S = 600
"""A replica imports torch and Ray; on a busy machine that takes a while."""
WHERE = "import os; print(os.getppid())\n"
"""Prints the model's process, of which each replica has its own."""
LOOP = "print('here')\nwhile True: pass"
PROMPT = "The Eiffel Tower is in the city of"


class RayRuns(Runs):
    """Runs whose replicas can be looked at."""

    def replicas(self):
        return self.pool._models["demo"].replicas

    async def until(self, condition, time_s=START_S):
        async with asyncio.timeout(time_s):
            while not condition():
                await asyncio.sleep(0.05)

    async def until_ready(self, count):
        def ready():
            assert "failed" not in {it["model"]["state"] for it in self.replicas()}
            return sum(it["model"]["state"] == "ready" for it in self.replicas()) == count

        await self.until(ready)

    async def begun(self, id, source=LOOP):
        """A job, once it has printed its first line."""
        begun = asyncio.Event()
        hear = lambda said: isinstance(said, Log) and begun.set()  # noqa: E731
        job = asyncio.ensure_future(self.run(source, id=id, hear=hear))
        async with asyncio.timeout(60):
            await begun.wait()
        return job


@contextmanager
def workers(folder, address, replicas):
    loop = asyncio.new_event_loop()
    pool = RayWorkers(
        ["demo"], address=address, replicas=replicas, device="cpu", execute="run_source:execute"
    )
    runs = RayRuns(pool, loop, folder)
    try:
        runs.wait(pool.start(), START_S)
        runs.wait(runs.until_ready(replicas), START_S)
        yield runs
    finally:
        runs.wait(pool.stop())
        loop.close()


@pytest.fixture(scope="module")
def there():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment("").items():
            if name.startswith(("RAY_AUTH", "RAY_USAGE")):
                patch.setenv(name, value)
        with cluster(2) as there:
            yield there


@pytest.fixture(scope="module")
def runs(there, tmp_path_factory):
    with workers(tmp_path_factory.mktemp("ray"), there.address, 2) as runs:
        yield runs


def test_two_replicas_share_the_jobs(runs):
    async def four():
        source = WHERE + "import time; time.sleep(1)\nresult.write(b'it')"
        return await asyncio.gather(*(runs.run(source) for _ in range(4)))

    ran = runs.wait(four())
    assert [(it.phase, it.result) for it in ran] == [("COMPLETED", b"it")] * 4
    assert len({it.lines[0] for it in ran}) == 2
    assert runs.pool.room("demo") >= 4


def test_a_job_gives_what_the_model_gives_here(runs):
    ran = runs.job(
        f"with model.trace({PROMPT!r}):\n    logits = model.lm_head.output.save()\n"
        "result.write(logits.detach().numpy().tobytes())"
    )
    there = torch.frombuffer(bytearray(ran.result), dtype=torch.float32)
    torch.testing.assert_close(there, logits_here().flatten())


def logits_here():
    demo = LanguageModel("demo")
    with demo.trace(PROMPT):
        logits = demo.lm_head.output.save()
    return logits.detach()


def test_a_local_part_and_a_large_result_come_whole(runs):
    size = 30_000_000
    ran = runs.job(
        f"got = link.local(3, b'v' * {size})\nresult.write(got + b'.')",
        answer=lambda payload: bytes(payload) * 2,
    )
    assert [(it.index, len(it.payload)) for it in ran.told if isinstance(it, Local)] == [(3, size)]
    assert ran.result == b"v" * (2 * size) + b"."


def test_cancelling_a_loop_takes_less_than_two_seconds(runs):
    async def cancelled():
        job = await runs.begun("loop")
        began = time.monotonic()
        await runs.pool.cancel("loop")
        return (await job).phase, time.monotonic() - began

    phase, took = runs.wait(cancelled())
    assert (phase, took < 2) == ("CANCELLED", True)
    assert runs.job("print(1)").lines == ["1"]


def test_a_replica_that_is_killed_loses_its_job_alone(runs):
    async def killed():
        jobs = [await runs.begun("one"), await runs.begun("two")]
        victim = runs.replicas()[0]["pid"]
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        done, (left,) = await asyncio.wait(jobs, return_when=asyncio.FIRST_COMPLETED)
        took = time.monotonic() - began
        await runs.pool.cancel("one" if left is jobs[0] else "two")
        return victim, took, done.pop().result(), await left

    victim, took, lost, other = runs.wait(killed(), 120)
    assert (lost.phase, lost.lines, other.phase) == ("LOST", ["here"], "CANCELLED")
    assert lost.text.startswith("the job was lost: the replica of the model 'demo' was gone")
    assert took < 15
    assert runs.job("print('next')").lines == ["next"]
    runs.wait(runs.until_ready(2), START_S)
    assert victim not in {it["pid"] for it in runs.replicas()}
    assert not Path(f"/proc/{victim}").exists()


def test_a_lost_node_loses_its_job_and_the_rest_goes_on(runs, there):
    async def lost():
        jobs = {id: await runs.begun(id, WHERE + LOOP) for id in ("one", "two")}
        there.nodes[1].kill()
        done, (left,) = await asyncio.wait(
            jobs.values(), return_when=asyncio.FIRST_COMPLETED, timeout=60
        )
        await runs.pool.cancel("one" if left is jobs["one"] else "two")
        return done.pop().result(), await left

    gone, other = runs.wait(lost(), 150)
    assert (gone.phase, other.phase) == ("LOST", "CANCELLED")
    assert runs.job("print('next')").lines == ["next"]
    until(lambda: not Path(f"/proc/{gone.lines[0]}").exists())
    there.nodes.pop()
    there.add()
    runs.wait(runs.until_ready(2), START_S)


def test_a_head_that_is_started_again_is_joined_again(runs, there):
    async def amid():
        job = await runs.begun("amid")
        there.end()
        async with asyncio.timeout(90):
            return await job

    lost = runs.wait(amid(), 120)
    assert (lost.phase, len(lost.text.splitlines())) == ("LOST", 3)
    runs.wait(runs.until(lambda: runs.pool.room("demo") == 0))
    there.head()
    runs.wait(runs.until_ready(1), START_S)
    assert runs.job("print('again')").lines == ["again"]


def test_a_cluster_is_reached_through_its_client_port_too(runs, there, tmp_path):
    runs.wait(runs.pool.stop())  # its replica has the cluster's place
    with workers(tmp_path, f"ray://127.0.0.1:{there.client}", 1) as through:
        ran = through.job("result.write(link.local(0, b'one'))", answer=lambda it: bytes(it) * 2)
        assert (ran.phase, ran.result) == ("COMPLETED", b"oneone")

        async def cancelled():
            job = await through.begun("loop")
            began = time.monotonic()
            await through.pool.cancel("loop")
            return (await job).phase, time.monotonic() - began

        phase, took = through.wait(cancelled())
        assert (phase, took < 2) == ("CANCELLED", True)


# insitu serve --------------------------------------------------------------------------------


class Place:
    """`insitu serve demo --backend ray`, which starts its own head."""

    def __init__(self, folder, *words):
        self.key = secrets.token_urlsafe(32)
        self.log = folder / "serve.log"
        command = [sys.executable, "-m", "insitu", "serve", "demo", "--backend", "ray"]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--port", "0", "--data", str(folder / "data"), *words],
                stdout=out, stderr=out,
                env={**os.environ, "INSITU_SERVER_KEY": self.key, "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        try:
            until(self._is_ready, START_S)
        except BaseException:
            self.process.kill()
            raise

    def _is_ready(self):
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r" at (http://\S+)", self.log.read_text())
        if found is None:
            return False
        self.url = found[1]
        try:
            return requests.get(f"{self.url}/readyz", timeout=5).ok
        except requests.ConnectionError:
            return False

    def link(self):
        return next(iter(children(self.process.pid)), None)

    def folders(self):
        return list(Path("/tmp").glob(f"insitu-ray-{self.process.pid}-*"))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(90)


def children(parent):
    found = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False
    )
    return [int(it) for it in found.stdout.split()]


def descendants(parent):
    for pid in children(parent):
        yield pid
        yield from descendants(pid)


def listening(pids):
    """The addresses where processes listen for connections."""
    said = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout
    lines = [it.split() for it in said.splitlines()]
    return [it[3] for it in lines if set(map(int, re.findall(r"pid=(\d+)", it[-1]))) & pids]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("serve"), "--trust", "team", "--device", "cpu")
    try:
        with CONFIG.APP.override(REMOTE_LOGGING=False):
            yield place
    finally:
        if place.process.poll() is None:
            place.process.kill()


@pytest.fixture
def server(place):
    with Connection(place.url, place.key) as server:
        yield server


def test_a_jailed_job_on_ray_gives_what_it_gives_here(place, server):
    demo = LanguageModel("demo")
    with demo.trace(PROMPT, remote=server):
        logits = demo.lm_head.output.save()
    torch.testing.assert_close(logits.detach(), logits_here())
    with demo.trace(PROMPT, remote=server):
        hidden = demo.transformer.h[1].output
        with insitu.local():
            seen = tuple(hidden.shape)
            hidden = hidden * 0
        demo.transformer.h[1].output[:] = hidden
        zero = demo.transformer.h[1].output.abs().sum().save()
    assert (zero.item(), len(seen)) == (0.0, 3)


def test_a_jailed_job_on_ray_reaches_nothing(place, server):
    demo = LanguageModel("demo")
    pid = place.process.pid
    with demo.trace(PROMPT, remote=server):
        every = ().__class__.__base__.__subclasses__()
        found = next(it for it in every if it.__name__ == "_wrap_close").__init__
        os_there = found.__globals__["sys"].modules["os"]
        reached = []
        for name in ("/etc/passwd", f"/proc/{pid}/environ", "/proc/1/environ"):
            try:
                os_there.open(name, 0)
                reached.append(name)
            except OSError:
                pass
        names = sorted(os_there.environ)
        reached = (reached + [it for it in names if it.startswith(("RAY", "INSITU"))]).save()
    assert reached == []


def test_a_head_of_our_own_listens_on_loopback_alone(place):
    pids = {place.link(), *descendants(place.link())}
    found = listening(pids)
    assert len(found) > 3
    assert all(it.startswith(("127.0.0.1:", "[::ffff:127.0.0.1]:", "[::1]:")) for it in found)


def test_a_server_on_ray_whose_link_is_killed_goes_on(place, server):
    demo = LanguageModel("demo")
    with demo.trace(PROMPT, remote=server, blocking=False) as tracer:
        n = 0
        while True:
            n += 1
    until(lambda: tracer.job.phase == "RUNNING")
    os.kill(place.link(), signal.SIGKILL)
    with pytest.raises(insitu.JobLostError, match="the Ray cluster was gone"):
        tracer.job.result(timeout_s=60)
    until(lambda: place._is_ready(), START_S)
    with demo.trace(PROMPT, remote=server):
        logits = demo.lm_head.output.save()
    torch.testing.assert_close(logits.detach(), logits_here())


def test_a_server_on_ray_leaves_nothing_behind(place):
    pids = [place.link(), *descendants(place.link())]
    assert len(pids) > 5
    assert len(place.folders()) == 1
    assert place.stop() == 0, place.log.read_text()
    assert place.folders() == []
    until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()], 10)  # init reaps
    assert not Path("/tmp/ray").exists()


def test_a_killed_server_on_ray_leaves_nothing_behind(tmp_path):
    place = Place(tmp_path, "--device", "cpu")
    pids = [place.link(), *descendants(place.link())]
    place.process.kill()
    place.process.wait()
    until(lambda: not [pid for pid in pids if Path(f"/proc/{pid}").exists()])
    until(lambda: not place.folders())
