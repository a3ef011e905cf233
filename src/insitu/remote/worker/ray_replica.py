"""A replica on a Ray node: one pool of one model, called by handle.

    replica = ray.remote(Replica).remote(settings)
    await replica.begin.remote(task, request); await replica.hear.remote("5f…")

Jobs run as they do without Ray: a fork of the model's process each, in its jail, with its clocks.
Every argument and every answer is bytes (`ray_messages`). A job's files have no name, so that a
replica that is killed leaves none behind.
"""

import asyncio
import json
import logging
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import insitu
from insitu.errors import InsituError
from insitu.remote.protocol import Ended, Fault, Task, Told, Workers
from insitu.remote.worker.pool import Pool
from insitu.remote.worker.ray_messages import limits_of, packed, spec_from, written

log = logging.getLogger("insitu")

FAILED = "The server failed while your job ran; send it again."
HEAR_S = 5.0
"""After so long without news a question for them is answered all the same."""
_LOOK_S = 0.05
_BATCH_BYTES = 2**20
PIECE_BYTES = 8 * 2**20
"""Of a result, in one answer."""


@dataclass
class _Job:
    """A job of this replica."""

    request: int
    result: int
    running: asyncio.Task[None] | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)
    told: list[bytes] = field(default_factory=list)


class Replica:
    """A pool of one model; what an actor holds.

    Args:
        said: the settings, as `Link` sends them.
        pool: makes the pool; another one in tests.
    """

    def __init__(self, said: bytes, pool: Callable[..., Workers] = Pool) -> None:
        settings = json.loads(said)
        self._spec = spec_from(settings.pop("spec"))
        self._pool = pool([self._spec], **settings)
        self._jobs: dict[str, _Job] = {}
        self._width = 0

    async def start(self) -> bytes:
        """Begin to load the model; what is refused here is refused again by the same node."""
        try:
            await self._pool.start()
        except InsituError as error:
            return json.dumps({"refused": str(error)}).encode()
        self._width = self._pool.room(self._spec.name)
        return self._state()

    async def watch(self, seen: bytes) -> bytes:
        """How the model does, once that is something else than `seen`; after a while anyhow."""
        until = asyncio.get_running_loop().time() + HEAR_S
        while (now := self._state()) == seen and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(_LOOK_S)
        return now

    def _state(self) -> bytes:
        model = asdict(self._pool.models()[0])
        del model["jobs"]
        about = {"insitu": insitu.__version__, "node": platform.node(), "pid": os.getpid()}
        return json.dumps({"model": model, "width": self._width, **about}).encode()

    # A job ---------------------------------------------------------------------------------------

    async def begin(self, id: str, limits: bytes, request: bytes) -> bytes:
        """Run a job; `hear` tells what it says."""
        held = _nameless(request)
        try:
            job = _Job(held, _nameless(b""))
        except OSError:
            os.close(held)
            raise
        task = Task(
            id, self._spec.name, _path(job.request), _path(job.result),
            limits_of(json.loads(limits)),
        )  # fmt: skip
        self._jobs[task.id] = job
        job.running = asyncio.ensure_future(self._run(job, task))
        return b""

    async def _run(self, job: _Job, task: Task) -> None:
        def hear(it: Told | Ended, **more: Any) -> None:
            head, body = written(it)
            job.told.append(packed({**head, **more}, body))
            job.news.set()

        try:
            ended = await self._pool.run(task, hear)
        except Exception:  # a fault of the pool's own; its job must end all the same
            log.exception("the pool failed")
            ended = Ended("LOST", Fault("ServerError", FAILED))
        hear(ended, bytes=os.fstat(job.result).st_size)

    async def hear(self, id: str) -> list[bytes]:
        """What a job has said since it was last asked; the last one is how it ended."""
        job = self._jobs[id]
        try:
            async with asyncio.timeout(HEAR_S):
                await job.news.wait()
        except TimeoutError:
            return []
        count = size = 0
        while count < len(job.told) and size < _BATCH_BYTES:
            size += len(job.told[count])
            count += 1
        told, job.told = job.told[:count], job.told[count:]
        if not job.told:
            job.news.clear()
        return told

    async def result(self, id: str, at: int) -> bytes:
        """A piece of a job's result."""
        return await asyncio.to_thread(os.pread, self._jobs[id].result, PIECE_BYTES, at)

    async def cancel(self, id: str) -> bytes:
        """End a job, if it is there."""
        await self._pool.cancel(id)
        return b""

    async def answer(self, id: str, number: int, payload: bytes) -> bytes:
        """The values of a `local()` part; `no` where nothing waits for them."""
        try:
            await self._pool.answer(id, number, payload)
        except ValueError:
            return b"no"
        return b"yes"

    async def forget(self, id: str) -> bytes:
        """A job that is over, or that nobody waits for any more."""
        job = self._jobs.pop(id, None)
        if job is not None:
            if job.running is not None and not job.running.done():
                await self._pool.cancel(id)
                await job.running
            os.close(job.request)
            os.close(job.result)
        return b""

    async def stop(self) -> bytes:
        """End every job and process."""
        await self._pool.stop()
        for id in [*self._jobs]:
            await self.forget(id)
        return b""


def _nameless(data: bytes) -> int:
    """A file without a name, that nobody writes to from here; the path of its number opens it.

    Nobody may: a pool asks the kernel whether a result has a writer left.
    """
    writing, name = tempfile.mkstemp(prefix="insitu-job-")
    try:
        with open(writing, "wb") as file:
            file.write(data)
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.unlink(name)


def _path(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")
