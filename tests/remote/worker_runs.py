"""A pool in a loop of its own: `runs.job("print(1)")` gives how it ended and what it told."""

import asyncio
import itertools
import os
from contextlib import contextmanager
from pathlib import Path

from insitu.remote.protocol import Limits, Local, Log, Task
from insitu.remote.worker.pool import Pool

HERE = str(Path(__file__).parent)


class Ran:
    def __init__(self, id, ended, told, result):
        self.id, self.ended, self.told, self.result = id, ended, told, result

    @property
    def phase(self):
        return self.ended.phase

    @property
    def text(self):
        return self.ended.fault.text if self.ended.fault else ""

    @property
    def lines(self):
        return [it.text for it in self.told if isinstance(it, Log)]


class Runs:
    def __init__(self, pool, loop, folder):
        self.pool, self.loop, self.folder = pool, loop, folder
        self._ids = itertools.count()

    def wait(self, work, timeout_s=60):
        return self.loop.run_until_complete(asyncio.wait_for(work, timeout_s))

    def job(self, source, *, timeout_s=60, **more):
        return self.wait(self.run(source, **more), timeout_s)

    async def run(self, source, *, limits=None, model="demo", answer=None, hear=None, id=None):
        """`answer(payload)` gives what a local() part is answered; None leaves it waiting."""
        name = id or f"job{next(self._ids)}"
        request, result = self.folder / f"{name}.request", self.folder / f"{name}.result"
        request.write_bytes(source if isinstance(source, bytes) else source.encode())
        told, sent = [], []

        def hears(said):
            told.append(said)
            if isinstance(said, Local) and answer is not None:
                reply = self.pool.answer(name, said.number, answer(said.payload))
                sent.append(asyncio.ensure_future(reply))
            if hear is not None:
                hear(said)

        task = Task(name, model, request, result, limits or Limits())
        ended = await self.pool.run(task, hears)
        await asyncio.gather(*sent)
        return Ran(name, ended, told, result.read_bytes() if result.exists() else b"")


@contextmanager
def running(folder, models=("demo",), **settings):
    """Runs of a pool whose jobs are Python source (`run_source.py`)."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = HERE if before is None else f"{HERE}{os.pathsep}{before}"
    loop = asyncio.new_event_loop()
    settings.setdefault("execute", "run_source:execute")
    pool = Pool(list(models), **settings)
    runs = Runs(pool, loop, folder)
    try:
        runs.wait(pool.start())
        yield runs
    finally:
        runs.wait(pool.stop())
        loop.close()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
