"""Model processes that are killed at bad moments."""

import asyncio
import os
import signal

from worker_runs import running


def test_a_model_that_is_killed_while_it_loads_is_loaded_again(tmp_path):
    """Found by the soak: the jobs that waited for it were told that it cannot be loaded."""
    with running(tmp_path, preload=False) as runs:
        (host,) = runs.pool._hosts.values()

        async def killed_amid():
            running = asyncio.ensure_future(runs.run("print(1)"))
            while host.state != "loading":
                await asyncio.sleep(0.01)
            os.kill(host.pid, signal.SIGKILL)
            return await running

        ran = runs.wait(killed_amid())
        assert (ran.phase, ran.lines) == ("COMPLETED", ["1"])
        assert host.state == "ready"


def test_a_model_that_never_opens_is_not_tried_for_ever(tmp_path):
    with running(tmp_path, preload=False) as runs:
        (host,) = runs.pool._hosts.values()

        async def killed_again_and_again():
            running = asyncio.ensure_future(runs.run("print(1)"))
            pids = set()
            while not running.done():
                if host.state == "loading" and host.pid not in pids:
                    pids.add(host.pid)
                    os.kill(host.pid, signal.SIGKILL)
                await asyncio.sleep(0.01)
            return running.result(), pids

        ran, pids = runs.wait(killed_again_and_again())
        assert ran.phase == "ERROR"
        assert "its process ended while it opened the model" in ran.text
        assert len(pids) == 2
