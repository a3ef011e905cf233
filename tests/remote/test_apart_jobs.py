"""Jobs whose model computes in another process: jailed, killed, hostile, and what comes after."""

import os
import signal
import time
from pathlib import Path

import pytest
from test_jail import FOUND, PROBES, probing
from worker_runs import running

from insitu.remote.protocol import Limits
from insitu.remote.server.options import parsed
from insitu.remote.worker.model_process import children_of
from insitu.remote.worker.pool import Pool

pytestmark = pytest.mark.skipif(
    not (FOUND.landlock and FOUND.seccomp), reason="needs a kernel with landlock and seccomp"
)

TRACE = """
with model.trace("The Eiffel Tower is in the city of"):
    model.transformer.h[2].output[:, -1] *= 2
    logits = model.lm_head.output.save()
result.write(logits.detach().numpy().tobytes())
"""
RAW = """
import json, os
def call(number, *args):
    return json.dumps(["call", [], number, ["(", *args], ["{"], True, False]).encode()
bridge = model.lm_head._module.forward.__closure__
bridge = next(c.cell_contents for c in bridge if type(c.cell_contents).__name__ == "Bridge")
fd = bridge._channel.fd
"""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    with running(tmp_path_factory.mktemp("apart"), trust="team", apart=True) as runs:
        yield runs


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """What a fork of the model's own process gives."""
    with running(tmp_path_factory.mktemp("fork"), trust="team") as runs:
        ran = runs.job(TRACE)
        assert ran.phase == "COMPLETED", ran.text
        return ran.result


def processes(runs):
    """The process that forks the jobs, and the one that computes."""
    forks = runs.pool._hosts["demo"].pid
    return forks, next(pid for pid in children_of(forks) if "device_process" in name_of(pid))


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # a fork that has just ended
        return ""


def test_a_job_gives_what_a_fork_gives(jobs, right):
    for _ in range(3):
        ran = jobs.job(TRACE)
        assert ran.phase == "COMPLETED", ran.text
        assert ran.result == right


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_refused_in_the_jail_too(jobs, name):
    ran = jobs.job(probing(PROBES[name]))
    assert ran.phase == "COMPLETED", ran.text
    assert ran.lines[0].startswith("refused"), ran.lines


def test_a_job_has_six_files_and_no_environment(jobs):
    ran = jobs.job(
        """
import os
found = []
for fd in range(200):
    try:
        os.fstat(fd)
        found.append(fd)
    except OSError:
        pass
print(len(found), dict(os.environ))
"""
    )
    count, environment = ran.lines[0].split(" ", 1)
    assert environment == "{'TOKENIZERS_PARALLELISM': 'false'}"
    assert int(count) <= 9  # nothing thrice, link, result, and what leads to the model


ENDLESS = {
    "at a site": "with model.trace('a'):\n    model.transformer.h[2].output\n    while True: pass",
    "beside the pass": "while True: pass",
    "in the model": "while True: model.transformer.h[0].mlp._module(torch.zeros(1, 64, 128))",
    "in steps": (
        "while True:\n    with model.generate('a', max_new_tokens=60) as tracer:\n"
        "        for _ in tracer.iter[:]: model.transformer.h[2].output[:] = 0"
    ),
    "catching all": (
        "with model.trace('a'):\n    while True:\n        try:\n"
        "            while True: model.transformer.h[2]._module(model.transformer.h[1].output)\n"
        "        except BaseException: pass"
    ),
}


@pytest.mark.parametrize("where", ENDLESS)
def test_a_job_is_ended_in_time_and_the_next_is_right(jobs, right, where):
    began = time.monotonic()
    ran = jobs.job(ENDLESS[where], limits=Limits(wall_s=0.5))
    assert ran.phase == "TIMEOUT"
    assert time.monotonic() - began < 2.5
    assert jobs.job(TRACE).result == right


def test_a_forward_under_way_ends_by_itself_and_the_next_job_waits(jobs, right):
    long = "model.transformer.h[0].mlp._module(torch.zeros(1, 200_000, 128))"
    ran = jobs.job(long, limits=Limits(wall_s=0.3))
    assert ran.phase == "TIMEOUT"
    assert jobs.job(TRACE).result == right


def test_what_a_job_changes_does_not_reach_the_next(jobs, right):
    ran = jobs.job(
        """
with torch.no_grad():
    model.lm_head.weight[:] = 1
    model.transformer.wpe.weight.data[:] = 0
torch.set_default_dtype(torch.float64)
torch.manual_seed(5)
with model.trace("The Eiffel Tower is in the city of"):
    model.transformer.h[0].mlp.c_fc.weight.data.zero_()
    changed = model.lm_head.output.save()
print(changed.std().item())
"""
    )
    assert ran.phase == "COMPLETED", ran.text
    assert float(ran.lines[0]) < 1e-3
    assert jobs.job(TRACE).result == right


SPOILS = """
import insitu
n = {n}
torch.manual_seed(n)
with torch.no_grad():
    model.transformer.h[n % 6].mlp.c_fc.weight.data.mul_(0)
    model.lm_head.weight.data[:] = n
    model.transformer.wpe.weight[:] += n
model._module.train()
model.transformer.h[0]._module.register_forward_hook(lambda *_: None)
with model.trace("The Eiffel Tower " * 9):
    model.transformer.h[1].output[:] = n
    model.transformer.h[2].output[:, 0] = float("nan")
    if n % 3 == 0:
        raise ValueError("amid a pass")
with model.generate("a", max_new_tokens=2):
    kept = model.lm_head.output
torch.set_default_dtype(torch.float64)
torch.relu = torch.softmax = torch.nn.functional.linear = None
torch.use_deterministic_algorithms(True)
insitu.spoiled = True
print("spoiled")
"""
LOOKS = """
import insitu
with model.trace("The Eiffel Tower is in the city of"):
    hidden = model.transformer.h[3].output.save()
    logits = model.lm_head.output.save()
with model.generate("Once upon a time", max_new_tokens=3):
    ids = model.generator.output.save()
found = [hidden, logits, ids, torch.rand(4), torch.relu(torch.ones(2)), model.lm_head.weight.sum()]
for it in found:
    result.write(it.detach().contiguous().numpy().tobytes())
print(torch.get_default_dtype(), hasattr(insitu, "spoiled"), model._module.training,
      len(model.transformer.h[0]._module._forward_hooks), torch.softmax is None,
      torch.are_deterministic_algorithms_enabled())
"""
ALTERNATING = 20


def test_alternating_jobs_have_nothing_of_each_other(jobs):
    """Faults 22 and 23 beside a process that stays: bit for bit, and in the same process."""
    first = jobs.job(LOOKS)
    assert first.phase == "COMPLETED", first.text
    before = processes(jobs)
    assert first.lines == ["torch.float32 False False 0 False False"]
    for n in range(ALTERNATING):
        spoilt = jobs.job(SPOILS.format(n=n))
        assert spoilt.lines == ["spoiled"] or "amid a pass" in spoilt.text, spoilt.text
        now = jobs.job(LOOKS)
        assert (now.result, now.lines) == (first.result, first.lines), n
    assert processes(jobs) == before


SENT = {
    "garbage": "os.write(fd, b'garbage')",
    "a wrong module": "os.write(fd, call(10**9))",
    "a wrong number": "os.write(fd, json.dumps(['fetch', [], [4]]).encode())",
    "an answer out of turn": "os.write(fd, b'[\"go\", []]')",
    "a weight whose name is a list": (
        "os.write(fd, json.dumps(['fetch', [[], [], None, [[1, ['x'], 1]]], []]).encode())"
    ),
    "a layer without end": (
        "kv = ['n', 'float32', [1, 1, 1, 4], 0, None]\n"
        "cache = ['c', -1, {'cache': 'DynamicCache', 'layers': []}]\n"
        "os.write(fd, call(0, cache)); os.read(fd, 65536)\n"
        "ask = ['ask', [], -1, 'update', ['(', kv, kv, {'float': 'inf'}], ['{']]\n"
        "os.write(fd, json.dumps(ask).encode())"
    ),
    "too large a tensor": ("os.write(fd, call(0, ['n', 'float32', [2**39], 0, -1]))"),
}


@pytest.mark.parametrize("what", SENT)
def test_a_hostile_message_ends_the_job_and_not_the_model(jobs, right, what):
    before = processes(jobs)
    ran = jobs.job(f"{RAW}{SENT[what]}\nwhile True: pass", limits=Limits(wall_s=20))
    assert ran.phase == "ERROR", ran.phase
    assert ran.text.startswith(
        "the job was ended: it sent the server what it may not.\nWhy: it sent"
    )
    assert processes(jobs) == before
    assert jobs.job(TRACE).result == right


def test_a_job_that_sends_and_never_reads_is_ended(jobs, right):
    flood = "while True: os.write(fd, b'[\"fetch\", [], []]')"
    ran = jobs.job(RAW + flood, limits=Limits(wall_s=1.0))
    assert ran.phase == "TIMEOUT"
    assert jobs.job(TRACE).result == right


def test_memory_that_a_block_takes_in_the_model_is_bounded(jobs, right):
    bomb = """
h = torch.zeros(1, 1_000_000, 128)
model.transformer.h[0].mlp._module(h)
"""
    ran = jobs.job(bomb, limits=Limits(memory_bytes=2**30))
    assert ran.phase == "ERROR"
    assert "memory" in ran.text
    assert jobs.job(TRACE).result == right


@pytest.mark.slow
def test_a_model_that_dies_is_opened_again(jobs, right):
    assert jobs.job(TRACE).result == right
    forks, computes = processes(jobs)
    os.kill(computes, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while jobs.pool._hosts["demo"].pid == forks:
        assert time.monotonic() < deadline
        jobs.wait(pause(0.1))
    ran = jobs.job(TRACE)
    assert ran.phase == "COMPLETED", ran.text
    assert ran.result == right
    assert not os.path.exists(f"/proc/{computes}")


async def pause(seconds):
    import asyncio

    await asyncio.sleep(seconds)


def test_a_job_whose_model_dies_is_lost_and_says_so(jobs):
    _, computes = processes(jobs)

    def hear(said):
        if getattr(said, "text", "") == "there":
            os.kill(computes, signal.SIGKILL)

    source = "with model.trace('a'):\n    model.transformer.h[1].output\n    print('there')\n"
    source += "    import time; time.sleep(0.5)\n    model.lm_head.output"
    ran = jobs.job(source, hear=hear)
    assert ran.phase in ("LOST", "ERROR")
    assert "process of the model" in ran.text


@pytest.mark.slow
def test_nothing_is_left_of_a_pool_that_has_stopped(tmp_path):
    with running(tmp_path, trust="self", apart=True) as runs:
        assert runs.job(TRACE).phase == "COMPLETED"
        both = processes(runs)
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in both) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in both)


@pytest.mark.slow
def test_a_public_job_runs_beside_its_model(tmp_path, right):
    if not FOUND.namespaces:
        pytest.skip("needs namespaces")
    with running(tmp_path, trust="public", apart=True) as runs:
        assert runs.job(TRACE).result == right
        assert runs.job(probing(PROBES["an internet socket"])).lines[0].startswith("refused")
        ran = runs.job("import os; print(os.getppid())")
        assert ran.lines == ["1"]


def test_models_on_a_gpu_are_served_that_way_unless_blocks_are_ones_own():
    def settings(**how):
        return Pool(["demo"], **how)._settings[0]

    assert settings(trust="team", device="cuda").apart
    assert settings(trust="public", device="cuda:1").apart
    assert not settings(trust="self", device="cuda").apart
    assert settings(trust="self", device="cuda").inline
    assert not settings(trust="team", device="cpu").apart
    assert settings(trust="self", device="cpu", apart=True).jobs == 1


def test_a_server_is_told_to_keep_jobs_apart():
    assert parsed(["serve", "demo", "--apart"]).apart
    assert not parsed(["serve", "demo"]).apart
