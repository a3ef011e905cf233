"""Jobs in the model process itself (a GPU, trust `self`): bounded, and gone with their server."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker_runs import running

from insitu.remote.protocol import Limits
from insitu.remote.worker.apart.keeper import Keeper
from insitu.remote.worker.running import Running

HERE = Path(__file__).parent
SMALL = Limits(memory_bytes=300 * 2**20)
GONE_S = 10

ORPHANS = """
import asyncio, os, pathlib, sys
sys.path.insert(0, sys.argv[1])
from worker_runs import running
more = {"inline": {"device": "auto"}, "apart": {"apart": True}, "forks": {}}[sys.argv[3]]
more["trust"] = sys.argv[4]
with running(pathlib.Path(sys.argv[2]), **more) as runs:
    async def go():
        await runs.run("print('there')\\nwhile True: pass", id="loop", hear=kill)
    def kill(said):
        if getattr(said, "text", "") == "there":
            os.kill(os.getpid(), 9)
    runs.wait(go(), 200)
"""


def processes_in(folder):
    """Processes whose working folder that is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink() == folder:
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended, or is not ours
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "trust"), [("inline", "self"), ("apart", "self"), ("forks", "team")]
)
def test_nothing_outlives_a_server_that_was_killed(tmp_path, how, trust):
    """An endless block in the model process itself reads no socket that could tell it."""
    words = [str(HERE), str(tmp_path), how, trust]
    ran = subprocess.run([sys.executable, "-c", ORPHANS, *words], cwd=tmp_path, check=False)
    assert ran.returncode == -signal.SIGKILL
    deadline = time.monotonic() + GONE_S
    while processes_in(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = processes_in(tmp_path)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


BOMBS = {
    "of Python": "kept = []\nwhile True: kept.append(bytearray(10_000_000))",
    "of torch": "kept = [torch.ones(10**6) for _ in range(10**6)]",
    "in one call": "kept = bytearray(2**40)",
}


def test_a_memory_bomb_in_the_model_process_is_a_sentence_and_the_next_job_runs(tmp_path):
    with running(tmp_path, device="auto") as runs:
        first = runs.job("import os; print(os.getpid())", timeout_s=200)
        for name, bomb in BOMBS.items():
            ran = runs.job(bomb, limits=SMALL)
            assert ran.phase == "ERROR", name
            assert "memory" in ran.text, name
        after = runs.job("import os; kept = bytearray(2**20); print(os.getpid())", limits=SMALL)
    assert after.lines == first.lines


class Loop:
    """A loop that looks at nothing."""

    def add_reader(self, *_):
        pass

    remove_reader = add_reader


def files():
    return len(os.listdir("/proc/self/fd"))


def test_a_job_whose_files_cannot_all_be_opened_leaves_none_open(tmp_path, monkeypatch):
    from insitu.remote.protocol import Task

    (tmp_path / "request").write_bytes(b"")
    task = Task("a", "demo", tmp_path / "request", tmp_path / "result", Limits())
    monkeypatch.setattr("asyncio.get_running_loop", lambda: FakeLoop())
    job = Running(task, print, print, early=True)
    before = files()

    def none(*_):
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socketpair", none)
        with pytest.raises(OSError, match="too many"):
            job.open()
    assert files() == before
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "add_reader", none)
        with pytest.raises(OSError, match="too many"):
            job.open()
    job._close()
    assert files() == before


class FakeLoop(Loop):
    def create_future(self):
        return None


def test_a_device_process_that_cannot_be_told_of_a_job_leaves_no_file_open(monkeypatch):
    keeper = object.__new__(Keeper)
    keeper.control, other = socket.socketpair()
    message = {"job": "a", "limits": {"memory_bytes": 1}}
    with keeper.control, other:
        before = files()
        calls = iter([os.open(os.devnull, os.O_RDONLY)])
        monkeypatch.setattr(
            "insitu.remote.worker.apart.keeper.Segment.file", lambda: next(calls, None) or fails()
        )
        with pytest.raises(OSError, match="too many"):
            keeper.hand(message)
        assert files() == before


def fails():
    raise OSError(24, "too many open files")


BREAKS_ONCE = """
import os
from insitu.remote.worker import device_health

def works(device):
    try:
        os.remove({mark!r})
    except FileNotFoundError:
        return True
    return False

device_health.works = works
"""


@pytest.mark.parametrize("how", [{"trust": "self", "device": "auto"}, {"apart": True}])
def test_a_device_that_computes_no_more_takes_its_process_along_and_no_other_job(
    tmp_path, monkeypatch, how
):
    """Fault 18: some errors of a GPU stay with a process; here its look at the device says so."""
    mark = tmp_path / "broken"
    (tmp_path / "sitecustomize.py").write_text(BREAKS_ONCE.format(mark=str(mark)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running(tmp_path, **how) as runs:
        host = runs.pool._hosts["demo"]
        assert runs.job("print(1)").phase == "COMPLETED"
        pid = host.pid
        mark.touch()
        assert runs.job("print(2)").lines == ["2"]
        then = runs.job("print(model.transformer.h[0].attn is not None)")
        assert then.phase == "COMPLETED", then.text
        assert then.lines == ["True"]
        assert not mark.exists()
        assert host.pid != pid
