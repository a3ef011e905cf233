"""How far a model is that is being loaded, from the loop that reads its weights to a job."""

import asyncio
from types import SimpleNamespace

import pytest
from transformers.utils import logging
from worker_runs import running

from insitu import LanguageModel
from insitu.remote.protocol import Progress, Status
from insitu.remote.worker import frames, loading, pool


@pytest.fixture
def every(monkeypatch):
    """Nothing is left out for coming too soon."""
    monkeypatch.setattr(loading, "EVERY_S", 0.0)


def test_a_loop_over_weights_tells_how_far_it_is(every):
    said, seen = [], []
    with loading.told(lambda *it: said.append(it)):
        for name in logging.tqdm({"a": 1, "b": 2, "c": 3}.keys(), desc="Loading weights"):
            seen.append((name, len(said)))
    assert seen == [("a", 0), ("b", 1), ("c", 2)], "one is done when the next is asked for"
    assert said == [("Loading weights", n, 3, "tensors") for n in (1.0, 2.0, 3.0)]


def test_a_bar_that_is_moved_by_hand_tells_too(every):
    said = []
    with loading.told(lambda *it: said.append(it)):
        with logging.tqdm(total=8, desc="Reading", disable=True) as bar:
            bar.update(5)
            bar.set_description("a word of the bar's own")
            bar.update(3)
        assert list(logging.tqdm(iter("ab"), disable=True)) == ["a", "b"]
    assert said == [("Reading", 5.0, 8, ""), ("Reading", 8.0, 8, "")]


def test_few_words_are_made_and_the_last_is_among_them():
    said = []
    with loading.told(lambda *it: said.append(it)):
        list(logging.tqdm(range(10_000), desc="Loading weights", disable=True))
    assert said[0][1] == 1
    assert said[-1][1] == 10_000
    assert len(said) < 20


def test_what_transformers_does_is_as_before_afterwards():
    mine = lambda factory, args, options: factory(*args, **options)  # noqa: E731
    before = logging.set_tqdm_hook(mine)
    try:
        with pytest.raises(KeyError), loading.told(pytest.fail):
            raise KeyError
        assert logging.set_tqdm_hook(mine) is mine
    finally:
        logging.set_tqdm_hook(before)


def test_a_real_model_counts_all_of_its_tensors(every):
    ours, theirs = frames.control_pair()
    with ours, theirs, loading.told(loading.over(theirs)):
        model = LanguageModel("demo", dispatch=True)
        got = []
        ours.settimeout(0.0)
        try:
            while True:
                got.append(frames.receive_control(ours)[0])
        except BlockingIOError:
            pass
    assert {it["said"] for it in got} == {"progress"}
    assert got[-1]["done"] == got[-1]["of"] == len(got)
    tied = {id(it) for it in model._module.parameters()}
    assert len(tied) <= len(got) <= len(tied) + 2, "the tied one may be counted twice"


def test_a_job_that_waits_is_told_what_it_waits_for(monkeypatch):
    monkeypatch.setattr(pool, "_TELL_S", 0.02)
    host = SimpleNamespace(state="absent", progress=None)
    job, said = SimpleNamespace(), []

    async def until(text):
        before = len(said)
        while not any(it.text == text for it in said[before:]):
            await asyncio.sleep(0.005)

    async def waits():
        loop = asyncio.get_running_loop()
        job.over, loaded = loop.create_future(), loop.create_future()
        waiting = asyncio.ensure_future(pool._either(loaded, job, host, said.append))
        await until("Waiting for room in memory")
        host.state = "loading"
        await until("Opening the model")
        host.progress = Progress("Loading weights", 3, 9, "tensors")
        await until("Loading weights")
        await asyncio.sleep(0.1)
        host.progress = Progress("Loading weights", 9, 9, "tensors")
        await until("Opening the model")
        loaded.set_result(True)
        await waiting

    asyncio.run(asyncio.wait_for(waits(), 20))
    read = [it for it in said if it.text == "Loading weights"]
    assert [it.done for it in read] == [3, 9], "nothing is told twice, and the end is told"
    assert Progress("Opening the model", 0, None, "s") in said


def test_a_job_that_is_over_is_told_no_more(monkeypatch):
    monkeypatch.setattr(pool, "_TELL_S", 0.02)
    host = SimpleNamespace(state="loading", progress=Progress("Loading weights", 3, 9, "tensors"))
    job, said = SimpleNamespace(), []

    async def waits():
        loop = asyncio.get_running_loop()
        job.over, loaded = loop.create_future(), loop.create_future()
        waiting = asyncio.ensure_future(pool._either(loaded, job, host, said.append))
        while not said:
            await asyncio.sleep(0.005)
        host.progress, host.state = Progress("Loading weights", 9, 9, "tensors"), "ready"
        job.over.set_result(None)
        await waiting

    asyncio.run(asyncio.wait_for(waits(), 20))
    assert said == [Progress("Loading weights", 3, 9, "tensors")]


def test_a_job_hears_of_its_model_before_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "_TELL_S", 0.05)
    with running(tmp_path, preload=False) as runs:
        assert runs.pool.models()[0].kind == "unknown"
        told = runs.job("print(1)").told
        assert told[0] == Status("LOADING")
        begins = told.index(Status("RUNNING"))
        assert begins > 1
        assert all(isinstance(it, Progress) for it in told[1:begins])
        assert {it.text for it in told[1:begins]} <= {"Opening the model", "Loading weights"}
        assert not any(isinstance(it, Progress) for it in told[begins:])
        assert runs.pool.models()[0].kind == "LanguageModel"
