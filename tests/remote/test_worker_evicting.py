"""Models that come and go: who gives way, how long that may take, and what a model weighs."""

import asyncio
import os
import signal
import time

import pytest
from worker_runs import running

from insitu.remote.protocol import Status
from insitu.remote.worker import devices, host, sizes
from insitu.remote.worker.pool import Pool
from insitu.remote.worker.specs import ModelSpec

pytestmark = pytest.mark.slow  # whole models are opened, again and again

PAIR = [ModelSpec(name, source="demo") for name in ("one", "two")]
NAP = "import time; time.sleep(0.4)"


def states(runs):
    return {it.name: it.state for it in runs.pool.models()}


def test_a_model_that_is_to_give_way_is_given_no_more_jobs(tmp_path):
    """Else the other one waits for ever, while the line goes on feeding the first."""
    with running(tmp_path, PAIR, preload=False, memory_bytes=1) as runs:
        runs.job("print(1)", model="one")
        rooms = []

        async def fed():
            busy = set()
            other = asyncio.ensure_future(runs.run("print('other')", model="two"))
            while not other.done():
                if runs.pool.room("one"):
                    busy.add(asyncio.ensure_future(runs.run(NAP, model="one")))
                rooms.append(runs.pool.room("one"))
                await asyncio.wait([other], timeout=0.02)
                busy = {it for it in busy if not it.done()}
            found = [(await it).phase for it in busy]
            return (await other).lines, found

        lines, left = runs.wait(fed(), timeout_s=150)
        assert lines == ["other"]
        assert set(left) <= {"COMPLETED"}
        assert 0 in rooms
        assert runs.job("print('and back')", model="one").lines == ["and back"]


def test_a_model_that_was_to_give_way_takes_jobs_again_when_nobody_wants_its_place(tmp_path):
    with running(tmp_path, PAIR, preload=False, memory_bytes=1) as runs:

        async def gave_up():
            first = asyncio.ensure_future(runs.run("while True: pass", model="one", id="first"))
            while states(runs)["one"] != "ready":
                await asyncio.sleep(0.02)
            other = asyncio.ensure_future(runs.run("print(2)", model="two", id="other"))
            while runs.pool.room("one"):
                await asyncio.sleep(0.02)
            await runs.pool.cancel("other")
            assert (await other).phase == "CANCELLED"
            while not runs.pool.room("one"):
                await asyncio.sleep(0.02)
            await runs.pool.cancel("first")
            await first
            return states(runs)

        assert runs.wait(gave_up(), timeout_s=150) == {"one": "ready", "two": "absent"}
        assert runs.job("print(1)", model="one").lines == ["1"]


def test_a_model_that_crashes_while_another_waits_for_its_place_is_there_again(tmp_path):
    with running(tmp_path, PAIR, preload=False, memory_bytes=1) as runs:

        async def crashed():
            first = asyncio.ensure_future(runs.run("while True: pass", model="one"))
            while states(runs)["one"] != "ready":
                await asyncio.sleep(0.02)
            other = asyncio.ensure_future(runs.run("print(2)", model="two"))
            while runs.pool.room("one"):
                await asyncio.sleep(0.02)
            os.kill(runs.pool._hosts["one"].pid, signal.SIGKILL)
            phase = (await first).phase
            again = await runs.run("print(3)", model="one")
            return phase, (await other).lines, again.lines

        assert runs.wait(crashed(), timeout_s=150) == ("LOST", ["2"], ["3"])


def test_the_next_job_runs_within_five_seconds_of_a_crash_loading_aside(tmp_path):
    """From the death of the model's process to the end of the next job, twice."""
    with running(tmp_path) as runs:
        runs.job("print(1)")

        async def crashed():
            times = {}

            def hear(said):
                times[said] = time.monotonic()

            lost = asyncio.ensure_future(runs.run("while True: pass"))
            await asyncio.sleep(0.3)
            began = time.monotonic()
            os.kill(runs.pool._hosts["demo"].pid, signal.SIGKILL)
            assert (await lost).phase == "LOST"
            ran = await runs.run("print('next')", hear=hear)
            took = time.monotonic() - began
            assert ran.lines == ["next"]
            return took - (times[Status("RUNNING")] - times[Status("LOADING")])

        for _ in range(2):
            assert runs.wait(crashed()) < 5


def test_models_that_do_not_fit_wait_for_their_first_job_instead_of_throwing_others_out(tmp_path):
    with running(tmp_path, PAIR, memory_bytes=1) as runs:
        assert runs.job("print(1)", model="one").lines == ["1"]
        runs.wait(asyncio.sleep(0.5))
        assert states(runs) == {"one": "ready", "two": "absent"}
        assert runs.job("print(2)", model="two").lines == ["2"]


def test_a_model_that_takes_for_ever_to_load_fails_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "LOAD_S", 0.3)
    with running(tmp_path, preload=False) as runs:
        ran = runs.job("print(1)")
        assert [it for it in ran.told if isinstance(it, Status)] == [Status("LOADING")]
        assert (ran.phase, ran.ended.fault.kind) == ("ERROR", "TimeoutError")
        assert ran.text.startswith("demo was not loaded within 0.3 s.\nWhy: ")
        assert len(ran.text.splitlines()) == 3
        assert states(runs) == {"demo": "failed"}
        monkeypatch.setattr(host, "LOAD_S", 60)
        assert runs.job("print(2)").lines == ["2"]


# what a model weighs -----------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub's cache with one model in it, its files links as there."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--mylab--large"
    for name in ("blobs", "refs", "snapshots/abc", "snapshots/old"):
        (model / name).mkdir(parents=True)
    (model / "refs" / "main").write_text("abc")
    for name, size in {
        "a.safetensors": 3_000,
        "b.safetensors": 4_000,
        "pytorch_model.bin": 9_000,
    }.items():
        blob = model / "blobs" / name
        blob.write_bytes(b"x" * size)
        (model / "snapshots" / "abc" / name).symlink_to(blob)
    return model


def test_a_model_of_the_hub_weighs_what_its_files_do(hub, tmp_path, monkeypatch):
    assert sizes.files_bytes(ModelSpec("mylab/large")) == 7_000
    assert sizes.files_bytes(ModelSpec("large", source="mylab/large")) == 7_000
    assert sizes.files_bytes(ModelSpec(str(hub / "snapshots" / "abc"))) == 7_000
    old = ModelSpec("mylab/large", settings={"revision": "old"})
    assert sizes.files_bytes(old) == 0
    assert sizes.files_bytes(ModelSpec("mylab/unknown")) == 0
    assert sizes.files_bytes(ModelSpec("../../etc")) == 0
    assert 10**5 < sizes.files_bytes(ModelSpec("one", source="demo")) < 10**9
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    hub.parent.joinpath("models--mylab--large").rename(tmp_path / "aside")
    (tmp_path / "home" / "hub").mkdir()
    (tmp_path / "aside").rename(tmp_path / "home" / "hub" / "models--mylab--large")
    weighed = sizes.files_bytes(ModelSpec("mylab/large"))
    assert weighed == 0  # its links point to where it was; what is not there weighs nothing


def test_on_a_device_its_own_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "_memories", lambda: (10_000, 20_000))
    assert (devices.auto(), devices.memory_bytes("cuda")) == ("cuda", 10_000)
    assert devices.memory_bytes("cuda:1") == 20_000
    assert devices.memory_bytes("auto") == 30_000
    assert devices.memory_bytes("cuda:7") is None
    assert devices.memory_bytes("cpu") is None

    async def most(device):
        pool = Pool(["demo"], device=device, preload=False)
        await pool.start()
        await pool.stop()
        return pool._memory

    assert asyncio.run(most("cuda:1")) == 16_000
    assert asyncio.run(most("cpu")) > 10**9


TORCH = """
class cuda:
    def is_available(): return {available}
    def device_count(): return 2
    def get_device_properties(n):
        class it: total_memory = 1000 + n
        return it
"""


@pytest.mark.parametrize(
    ("nodes", "available", "found"),
    [([], True, ()), (["nvidia0"], True, (1000, 1001)), (["nvidia0"], False, ())],
)
def test_torch_is_asked_for_its_devices_in_another_process_and_only_where_there_may_be_some(
    tmp_path, monkeypatch, nodes, available, found
):
    (tmp_path / "torch.py").write_text(TORCH.format(available=available))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(devices, "_nodes", lambda: nodes)
    devices._memories.cache_clear()
    try:
        assert devices._memories() == found
    finally:
        devices._memories.cache_clear()
