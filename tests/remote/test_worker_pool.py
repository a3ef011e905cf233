"""Jobs in processes: what they say, how they end, and that nothing of one reaches the next."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from worker_runs import running

from insitu.remote.protocol import Limits, Local, Log, Progress, Status, Task, Token
from insitu.remote.worker.model_process import children_of
from insitu.remote.worker.specs import ModelSpec, environment, spec_of

TRACE = """
with model.trace("The Eiffel Tower is in the city of"):
    logits = model.lm_head.output.save()
result.write(logits.detach().numpy().tobytes())
"""
RAW = "import os, struct; from insitu.remote.worker import frames\nfd = link._fd\n"
LOOP = "while True: pass"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with running(tmp_path_factory.mktemp("pool")) as runs:
        assert runs.job("print('warm')").lines == ["warm"]
        yield runs


def host(runs, model="demo"):
    return runs.pool._hosts[model]


def test_a_job_tells_prints_logs_progress_and_tokens_in_order(runs):
    ran = runs.job(
        """
import sys
print("a")
link.log("b", ("x", "y"))
print("c", file=sys.stderr)
link.progress("reading", 1, 3, "files")
link.token(0, (5, 7))
print("no end of line", end="")
result.write(b"it")
"""
    )
    assert ran.phase == "COMPLETED"
    assert ran.told == [
        Status("RUNNING"), Log("a"), Log("b", ("x", "y")), Log("c"),
        Progress("reading", 1.0, 3.0, "files"), Token(0, (5, 7)), Log("no end of line"),
    ]  # fmt: skip
    assert ran.result == b"it"


def test_a_job_gives_what_the_model_gives_here(runs):
    from insitu import LanguageModel

    demo = LanguageModel("demo")
    with demo.trace("The Eiffel Tower is in the city of"):
        logits = demo.lm_head.output.save()
    there = torch.frombuffer(bytearray(runs.job(TRACE).result), dtype=torch.float32)
    torch.testing.assert_close(there, logits.detach().flatten())


def test_an_error_of_the_block_is_its_fault(runs):
    ran = runs.job("print('before')\n[][3]")
    assert ran.phase == "ERROR"
    assert (ran.ended.fault.kind, ran.text) == ("IndexError", "list index out of range")
    assert ran.lines == ["before"]


@pytest.mark.parametrize("raised", ["SystemExit(2)", "KeyboardInterrupt()", "BaseException('b')"])
def test_every_kind_of_exception_ends_a_job_with_a_fault(runs, raised):
    ran = runs.job(f"raise {raised}")
    assert (ran.phase, ran.ended.fault.kind) == ("ERROR", raised.partition("(")[0])


def test_an_error_whose_text_fails_is_still_told(runs):
    ran = runs.job("class E(Exception):\n    def __str__(self): return 1 / 0\nraise E()")
    assert ran.phase == "ERROR"
    assert "ZeroDivisionError" in ran.text


@pytest.mark.parametrize(
    ("source", "phase", "said"),
    [
        ("import os; os._exit(7)", "ERROR", "the code 7"),
        ("import os; os.kill(os.getpid(), 11)", "ERROR", "SIGSEGV"),
        ("import ctypes; ctypes.string_at(0)", "ERROR", "SIGSEGV"),
        ("import os; os.abort()", "ERROR", "SIGABRT"),
        ("import os; os.kill(os.getpid(), 9)", "LOST", "was killed"),
        ("import os; os.close(link._fd); os._exit(0)", "ERROR", "without a word"),
    ],
)
def test_a_process_that_ends_without_a_word_is_told_of(runs, source, phase, said):
    ran = runs.job("print('last words')\n" + source)
    assert ran.phase == phase
    assert said in ran.text
    assert len(ran.text.splitlines()) == 3
    assert ran.lines == ["last words"]


def test_local_values_go_and_come(runs):
    ran = runs.job(
        "a = link.local(4, b'one')\nb = link.local(5, b'')\nresult.write(a + b)",
        answer=lambda payload: payload.upper() + b".",
    )
    assert [it for it in ran.told if isinstance(it, Local)] == [
        Local(0, 4, b"one"), Local(1, 5, b""),
    ]  # fmt: skip
    assert ran.result == b"ONE.."


def test_the_clock_stops_while_the_client_works(runs):
    async def slow():
        task = None

        def hear(said):
            nonlocal task
            if isinstance(said, Local):
                task = asyncio.ensure_future(late(said))

        async def late(said):
            await asyncio.sleep(1.0)
            await runs.pool.answer("slow", said.number, b"late")

        source = "result.write(link.local(0, b''))"
        ran = await runs.run(source, id="slow", hear=hear, limits=Limits(wall_s=0.6))
        await task
        return ran

    assert runs.wait(slow()).result == b"late"


def test_a_client_that_does_not_answer_ends_the_job(runs):
    ran = runs.job("link.local(0, b'')", limits=Limits(local_s=0.3))
    assert ran.phase == "TIMEOUT"
    assert "0.3 s" in ran.text


def test_all_local_parts_together_have_a_bound(runs):
    async def slowly():
        tasks = []

        async def late(said):
            await asyncio.sleep(0.2)
            await runs.pool.answer("sum", said.number, b"")

        def hear(said):
            if isinstance(said, Local):
                tasks.append(asyncio.ensure_future(late(said)))

        limits = Limits(local_s=5, local_total_s=0.5)
        ran = await runs.run("while True: link.local(0, b'')", id="sum", hear=hear, limits=limits)
        await asyncio.gather(*tasks, return_exceptions=True)
        return ran, len(tasks)

    ran, parts = runs.wait(slowly())
    assert ran.phase == "TIMEOUT"
    assert parts == 3


def test_an_answer_nobody_waits_for_is_refused(runs):
    with pytest.raises(ValueError, match="no job nowhere is running"):
        runs.wait(runs.pool.answer("nowhere", 0, b""))


def test_cancelling_a_loop_takes_less_than_two_seconds(runs):
    async def cancelled():
        job = asyncio.ensure_future(runs.run(LOOP, id="loop"))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        await runs.pool.cancel("loop")
        return (await job).phase, time.monotonic() - began

    phase, took = runs.wait(cancelled())
    assert phase == "CANCELLED"
    assert took < 2


@pytest.mark.parametrize("trust", ["self"])
def test_a_loop_that_catches_everything_ends_at_its_deadline(runs, trust):
    source = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    ran = runs.job(source, limits=Limits(wall_s=0.3))
    assert (ran.phase, ran.ended.fault.kind) == ("TIMEOUT", "TimeoutError")


def test_a_memory_bomb_is_seen_from_outside(runs):
    bomb = "kept = []\nwhile True: kept.append(bytearray(b'x' * 5_000_000))"
    ran = runs.job(bomb, limits=Limits(memory_bytes=300 * 2**20))
    assert (ran.phase, ran.ended.fault.kind) == ("ERROR", "MemoryError")


def test_more_lines_than_allowed_are_counted(runs):
    ran = runs.job("for i in range(500): print(i)", limits=Limits(log_lines=100))
    assert ran.phase == "COMPLETED"
    assert ran.lines[:2] == ["0", "1"]
    assert ran.lines[-1] == "401 more log lines were left out: a job may send 100."
    assert len(ran.lines) == 100


def test_a_million_events_are_bounded(runs):
    limits = Limits(events=3000, log_lines=100)
    ran = runs.job("for i in range(10**6): link.token(i, (1,))", limits=limits)
    assert ran.phase == "COMPLETED"
    assert sum(isinstance(it, Token) for it in ran.told) == 2900
    assert "997,100 more tokens" in ran.lines[-1]


def test_a_long_line_is_cut(runs):
    ran = runs.job("print('x' * 10**6)", limits=Limits(line_chars=100))
    assert ran.lines == ["x" * 60 + " … (999,940 characters more)"]


@pytest.mark.parametrize(
    "source",
    [
        RAW + "os.write(fd, b'garbage' * 100)",
        RAW + "os.write(fd, struct.pack('<2sBxII', b'In', 0, 2**32 - 1, 0))",
        RAW + "frames.send(fd, 'answer', {'number': 0})",
        RAW + "frames.send(fd, 'log', {'text': 5, 'tags': []})",
        RAW + "frames.send(fd, 'local', {'number': 7, 'index': 0})",
        RAW + "for n in (0, 1): frames.send(fd, 'local', {'number': n, 'index': 0})",
        RAW + "while True: frames.send(fd, 'log', {'text': '', 'tags': []})",
        RAW + "frames.write_all(fd, frames.packed('local', {'number': 0, 'index': 0}, 2**31))",
    ],
)
def test_a_hostile_message_ends_that_job_alone(runs, source):
    limits = Limits(log_lines=10, local_bytes=1000, wall_s=20)
    ran = runs.job(source + "\nwhile True: pass", limits=limits)
    assert (ran.phase, ran.ended.fault.kind) == ("ERROR", "RuntimeError")
    assert ran.text.startswith("the job was ended: it sent the server what it may not.")
    assert runs.job("print(1)").lines == ["1"]


def test_what_comes_after_the_end_is_not_told(runs):
    source = RAW + "frames.send(fd, 'ended', {'phase': 'COMPLETED', 'fault': None}); print('more')"
    ran = runs.job(source)
    assert (ran.phase, ran.lines) == ("COMPLETED", [])


def test_a_result_larger_than_allowed_says_so(runs):
    ran = runs.job("result.write(b'x' * 2000)", limits=Limits(result_bytes=1000))
    assert ran.phase == "ERROR"
    assert ran.text.startswith("the result is larger than 1,000 bytes.")


def test_values_too_large_for_local_say_so(runs):
    ran = runs.job("link.local(0, b'x' * 2000)", limits=Limits(local_bytes=1000))
    assert ran.phase == "ERROR"
    assert "2,000 bytes of values" in ran.text


SPOIL = """
import builtins, random, sys
builtins.spoiled = True
torch.set_default_dtype(torch.float64)
torch.manual_seed(123); random.seed(5)
torch.relu = None
model.transformer.h[0].mlp._module.forward = None
with torch.no_grad():
    for p in model._module.parameters(): p.zero_()
sys.modules.pop("json", None)
model._module.register_forward_hook(lambda *a: 1 / 0)
"""
LOOK = (
    TRACE
    + """
import builtins, random
print(hasattr(builtins, "spoiled"), torch.get_default_dtype(), torch.rand(1).item())
print(random.random(), torch.relu(torch.ones(1)).item(), len(model._module._forward_hooks))
"""
)


def test_the_next_job_is_pristine_bit_for_bit(runs):
    before = runs.job(LOOK)
    for _ in range(3):  # more than there are processes that wait
        assert runs.job(SPOIL).phase == "COMPLETED"
        after = runs.job(LOOK)
        assert after.result == before.result
        assert after.lines == before.lines
    assert before.lines[0].startswith("False torch.float32")


def test_nothing_crosses_between_jobs_side_by_side(runs):
    async def one(mine):
        source = f"secret = {mine}\nprint({mine})\nresult.write(b'{mine}' * 100)"
        ran = await runs.run(source)
        return ran.lines == [str(mine)] and ran.result == str(mine).encode() * 100

    async def many():
        return [await asyncio.gather(*(one(10 * i + j) for j in range(2))) for i in range(20)]

    assert all(all(pair) for pair in runs.wait(many()))


def test_a_block_has_no_environment_of_the_server(runs, monkeypatch):
    monkeypatch.setenv("INSITU_API_KEY", "secret")
    assert "INSITU_API_KEY" not in environment("self")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert "HF_TOKEN" not in environment("team")
    assert runs.job("import os; print(dict(os.environ))").lines == [
        "{'TOKENIZERS_PARALLELISM': 'false'}"
    ]


def test_what_a_block_starts_ends_with_it(runs):
    ran = runs.job(
        """
import subprocess
for new in (False, True):
    print(subprocess.Popen(["sleep", "600"], start_new_session=new).pid)
"""
    )
    pids = [int(line) for line in ran.lines]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        runs.wait(asyncio.sleep(0.05))
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_room_is_what_the_cores_give(runs):
    async def rooms():
        before = runs.pool.room("demo")
        job = asyncio.ensure_future(runs.run(LOOP, id="busy"))
        await asyncio.sleep(0.1)
        during = runs.pool.room("demo")
        await runs.pool.cancel("busy")
        await job
        return before, during

    before, during = runs.wait(rooms())
    assert (before >= 2, during) == (True, before - 1)
    assert runs.pool.room("no such") == 0


def test_a_model_that_is_not_served_is_named(runs):
    ran = runs.job("print(1)", model="gpt9")
    assert ran.phase == "ERROR"
    assert ran.text.startswith("this server has no model 'gpt9'.")


def test_a_request_that_is_gone_is_told(runs, tmp_path):
    task = Task("gone", "demo", tmp_path / "no", tmp_path / "result", Limits())
    ended = runs.wait(runs.pool.run(task, lambda said: None))
    assert (ended.phase, ended.fault.kind) == ("ERROR", "OSError")


def test_a_run_that_is_abandoned_ends_its_process(runs):
    async def abandoned():
        job = asyncio.ensure_future(runs.run("import os; print(os.getpid())\n" + LOOP, id="gone"))
        await asyncio.sleep(0.2)
        job.cancel()
        await asyncio.gather(job, return_exceptions=True)
        for _ in range(100):
            if not host(runs).jobs:
                return True
            await asyncio.sleep(0.02)
        return False

    assert runs.wait(abandoned())


def test_a_crash_of_the_model_process_loses_its_jobs_and_the_next_runs(runs):
    async def crashed():
        job = asyncio.ensure_future(runs.run("import os; print(os.getpid())\n" + LOOP))
        await asyncio.sleep(0.3)
        os.kill(host(runs).pid, signal.SIGKILL)
        began = time.monotonic()
        lost = await job
        return lost, time.monotonic() - began

    lost, took = runs.wait(crashed())
    assert (lost.phase, took < 2) == ("LOST", True)
    assert lost.text.startswith("the job was lost: the process of the model 'demo' ended")
    child = int(lost.lines[0])
    assert runs.job("print('again')").lines == ["again"]
    assert not Path(f"/proc/{child}").exists()


def test_a_job_with_threads_multiplies_after_the_fork(tmp_path):
    with running(tmp_path, threads=2) as runs:
        source = """
x = torch.rand(1500, 1500)
print(torch.get_num_threads(), (x @ x).isfinite().all().item())
"""
        for _ in range(3):
            ran = runs.job(source, limits=Limits(wall_s=30))
            assert ran.lines == ["2 True"], ran.text


def test_several_models_are_loaded_on_demand_and_evicted_by_memory(tmp_path):
    models = [ModelSpec(name, source="demo") for name in ("one", "two")]
    with running(tmp_path, models, preload=False, memory_bytes=1) as runs:
        assert [it.state for it in runs.pool.models()] == ["absent", "absent"]
        first = runs.job("print(1)", model="one")
        assert first.told[0] == Status("LOADING")
        assert [it.state for it in runs.pool.models()] == ["ready", "absent"]
        runs.job("print(1)", model="two")
        assert [it.state for it in runs.pool.models()] == ["absent", "ready"]
        assert runs.pool.models()[1].bytes > 10**6


def test_a_model_that_cannot_be_opened_fails_its_jobs_with_the_reason(tmp_path):
    with running(tmp_path, [str(tmp_path / "none")], preload=False) as runs:
        ran = runs.job("print(1)", model=str(tmp_path / "none"))
        assert (ran.phase, ran.ended.fault.kind) == ("ERROR", "insitu.ModelNotFoundError")
        assert runs.pool.models()[0].state == "failed"


def test_a_model_on_a_device_runs_its_jobs_in_its_own_process(tmp_path):
    with running(tmp_path, device="auto") as runs:  # the CPU, where there is nothing else
        assert runs.job(TRACE).phase == "COMPLETED"
        assert runs.pool.room("demo") == 1
        pid = host(runs).pid
        assert runs.job("import os; print(os.getpid())").lines == [str(pid)]

        async def cancelled():
            job = asyncio.ensure_future(runs.run(LOOP, id="loop"))
            await asyncio.sleep(0.2)
            await runs.pool.cancel("loop")
            return await job

        assert runs.wait(cancelled()).phase == "CANCELLED"
        assert runs.job("print('again')").lines == ["again"]


def test_stopping_leaves_no_process_file_or_shared_memory(tmp_path):
    def here():
        return set(os.listdir("/proc/self/fd")), children_of(os.getpid()), os.listdir("/dev/shm")

    before = here()
    with running(tmp_path) as runs:

        async def mixed():
            endless = asyncio.ensure_future(runs.run(LOOP, id="endless"))
            for source in ("print(1)", "[][0]", "import os; os._exit(1)"):
                await runs.run(source)
            child = host(runs).pid
            await runs.pool.stop()
            return (await endless).phase, child

        phase, child = runs.wait(mixed())
        assert phase == "CANCELLED"
        assert not Path(f"/proc/{child}").exists()
        assert children_of(child) == set()
    assert here() == before


def test_a_folder_is_known_by_its_last_part(tmp_path):
    (tmp_path / "llm").mkdir()
    spec = spec_of(str(tmp_path / "llm"))
    assert spec.known_as == ("llm",)
    assert spec_of("openai-community/gpt2").known_as == ()
