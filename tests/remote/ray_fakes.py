"""Ray without Ray: replicas in this process, called by a handle as fragile as Ray's.

with clusters(folder) as there: there.job(["log", "hello"]).lines
"""

import asyncio
import itertools
import socket
from contextlib import contextmanager
from functools import partial

from fake_workers import FakeWorkers, request
from worker_runs import Ran

from insitu.remote.protocol import Limits, Local, Task
from insitu.remote.worker.ray_link import Link, Lost
from insitu.remote.worker.ray_messages import Line
from insitu.remote.worker.ray_replica import Replica
from insitu.remote.worker.ray_workers import RayWorkers


class FakePool(FakeWorkers):
    def __init__(self, specs, *, hang_on_cancel=False, **settings):
        super().__init__([it.name for it in specs], hang_on_cancel=hang_on_cancel)
        self.settings = settings

    async def answer(self, job, number, payload):
        if (job, number) not in self.answers or self.answers[job, number].done():
            raise ValueError("nothing waits")
        await super().answer(job, number, payload)


class FakeHandle:
    """Calls go to a replica of this process until it dies; only plain bytes go either way."""

    def __init__(self, cluster, settings):
        self.cluster = cluster
        self.replica = Replica(settings, partial(FakePool, **cluster.pools))
        self.dead = asyncio.get_running_loop().create_future()
        self.killed = False
        self.calls = []

    def __repr__(self):
        return f"<replica {self.cluster.handles.index(self)}>"

    @property
    def pool(self):
        return self.replica._pool

    async def call(self, name, *args):
        self.calls.append(name)
        assert all(type(it) in (bytes, str, int) for it in args), args
        if self.cluster.before is not None:
            await self.cluster.before(self, name)
        work = asyncio.ensure_future(getattr(self.replica, name)(*args))
        try:
            await asyncio.wait({work, self.dead}, return_when=asyncio.FIRST_COMPLETED)
            if self.dead.done():
                raise Lost("its process was killed")
            answer = work.result()
            for it in answer if isinstance(answer, list) else [answer]:
                assert type(it) is bytes, it
            return answer
        finally:
            work.cancel()

    def die(self):
        """As by SIGKILL: nothing answers any more."""
        if not self.dead.done():
            self.dead.set_result(None)
        for job in self.replica._jobs.values():
            if job.running is not None:
                job.running.cancel()

    def kill(self):
        self.killed = True
        self.die()


class FakeCluster:
    def __init__(self, before=None, **pools):
        self.before = before
        self.pools = pools
        self.handles = []
        self.room = None
        """How many replicas find a node; all, where it is None."""

    def place(self, settings):
        handle = FakeHandle(self, settings)
        self.handles.append(handle)
        return handle

    @property
    def alive(self):
        return [it for it in self.handles if not it.dead.done()]


class FakeLink:
    """What `LinkProcess` is, in this process."""

    def __init__(self, there, local):
        there.links.append(self)
        self.end, self.theirs = socket.socketpair()
        self.over = asyncio.ensure_future(self.serve(there))

    async def serve(self, there):
        line = await Line.over(self.theirs)
        try:
            said, _ = await line.heard()
            if there.down:
                line.send({"do": "failed", "why": "nothing answers there."})
                return
            models = [{**it, "device": said["device"]} for it in said["models"]]
            self.link = Link(
                line, there.cluster, models, replicas=said["replicas"], lazy=said["lazy"]
            )
            await self.link.serve()
        finally:
            line.close()

    def die(self):
        self.over.cancel()

    def ended(self, patient):
        pass


class There:
    """Workers on a fake cluster, in a loop of their own."""

    def __init__(self, folder, cluster, **settings):
        self.folder, self.cluster = folder, cluster
        self.loop = asyncio.new_event_loop()
        self.links = []
        self.down = False
        link = partial(FakeLink, self)
        settings = {"address": "fake", "device": "cpu", **settings}
        self.workers = RayWorkers(["demo"], link=link, **settings)
        self._ids = itertools.count()

    def wait(self, work, timeout_s=30):
        return self.loop.run_until_complete(asyncio.wait_for(work, timeout_s))

    def job(self, *acts, **more):
        return self.wait(self.run(*acts, **more))

    async def run(self, *acts, id=None, answer=None, model="demo", limits=None):
        name = id or f"job{next(self._ids)}"
        asked, result = self.folder / f"{name}.request", self.folder / f"{name}.result"
        asked.write_bytes(request(*acts))
        told, sent = [], []

        def hear(said):
            told.append(said)
            if isinstance(said, Local) and answer is not None:
                reply = self.workers.answer(name, said.number, answer(said.payload))
                sent.append(asyncio.ensure_future(reply))

        ended = await self.workers.run(Task(name, model, asked, result, limits or Limits()), hear)
        await asyncio.gather(*sent)
        return Ran(name, ended, told, result.read_bytes() if result.exists() else b"")

    async def until(self, condition, time_s=20):
        async with asyncio.timeout(time_s):
            while not condition():
                await asyncio.sleep(0.01)

    def ready(self):
        return self.workers.models()[0].state == "ready"

    def running(self):
        return sum(len(it.pool.running) for it in self.cluster.alive)


@contextmanager
def clusters(folder, *, cluster=None, start=True, **settings):
    """Workers of a fake cluster, started and ready; nothing runs on when it is over."""
    there = There(folder, cluster or FakeCluster(), **settings)
    try:
        if start:
            there.wait(there.workers.start())
            if settings.get("preload", True):
                there.wait(there.until(there.ready))
        yield there
    finally:
        there.wait(there.workers.stop())
        there.wait(there.until(lambda: all(it.over.done() for it in there.links)))
        there.wait(asyncio.sleep(0.05))
        left = [repr(it) for it in asyncio.all_tasks(there.loop)]
        there.loop.close()
    assert left == []
    assert there.cluster.alive == []
