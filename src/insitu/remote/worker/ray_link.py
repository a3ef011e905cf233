"""Gives each job to a replica, tells what it says, and keeps as many replicas as were asked for.

    await Link(line, cluster, models, replicas=2).serve()

It knows nothing of Ray (`ray_cluster` does), and no job: only bytes that go from one to the other.
"""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import insitu
from insitu.remote.protocol import Ended, Fault
from insitu.remote.worker import ray_messages
from insitu.remote.worker.ray_messages import Body, Head, Line, unpacked, written
from insitu.remote.worker.ray_replica import FAILED, HEAR_S

log = logging.getLogger("insitu")

SLACK_S = 30.0
"""A replica that does not answer for so long, beyond what it may take, is replaced."""
AGAIN_S = (0.2, 5.0)
"""How long after its end a replica is made anew: at first, and at most."""
REFUSED_S = 60.0
WAITS_S = 30.0
STOP_S = 5.0
CANCEL_S = 10.0


class Lost(Exception):
    """A replica that does not answer any more, or never did."""


class Handle(Protocol):
    """A replica, wherever it is."""

    def call(self, name: str, *args: Any) -> Awaitable[Any]:
        """Call a method of it.

        Raises:
            Lost: it is gone.
        """

    def kill(self) -> None:
        """End it at once, if it is still there."""


class Cluster(Protocol):
    """Where replicas are."""

    def place(self, settings: bytes) -> Handle:
        """A new replica; its first call waits until a node has room for it."""


@dataclass
class Job:
    """A job that the server has given."""

    id: str
    head: Head
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    began: bool = False
    """Something was told of it that only a running job says."""
    slot: "Slot | None" = None
    handle: Handle | None = None
    """The replica that has it; in that slot there may be another by now."""


class Slot:
    """A place for one replica, and the next one where it dies."""

    def __init__(self, link: "Link", settings: Mapping[str, Any]) -> None:
        self.name: str = settings["spec"]["name"]
        self.jobs: set[str] = set()
        self.state: Head = {}
        self.refused = ""
        """Why there is none, where another would be refused as well."""
        self._why = ""
        self._link = link
        self._settings = json.dumps(settings).encode()
        self.handle: Handle | None = None
        """The replica, while there is one."""
        self._gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def up(self) -> bool:
        """Whether it takes jobs."""
        return bool(self.state) and not self._gone.done()

    @property
    def free(self) -> int:
        """How many jobs more it may run."""
        return int(self.state.get("width", 0)) - len(self.jobs)

    async def keep(self) -> None:
        """Have a replica here, for as long as this runs."""
        again_s = AGAIN_S[0]
        while True:
            self._gone = asyncio.get_running_loop().create_future()
            try:
                self.handle = self._link.cluster.place(self._settings)
                seen = await self._started(self.handle)
                while self._take(seen):
                    again_s = AGAIN_S[0]
                    async with asyncio.timeout(HEAR_S + SLACK_S):
                        seen = await self.handle.call("watch", seen)
            except TimeoutError:
                self._down("it does not answer")
            except Lost as error:
                self._down(str(error))
            except Exception as error:  # of Ray's own; the next one may do better
                log.exception("a replica failed")
                self._down(repr(error))
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, REFUSED_S if self.refused else AGAIN_S[1])

    async def _started(self, handle: Handle) -> Any:
        say = f"a replica of {self.name} waits for a node that has room for it"
        waits = asyncio.get_running_loop().call_later(WAITS_S, log.warning, say)
        try:
            return await handle.call("start")
        finally:
            waits.cancel()

    def _take(self, said: bytes) -> bool:
        state = json.loads(said)
        self.refused = state.get("refused", "")
        if not self.refused and state["insitu"] != insitu.__version__:
            self.refused = (
                f"the node {state['node']} has Insitu {state['insitu']}.\n"
                f"Why: this server has {insitu.__version__}; both must be the same.\n"
                "Next: install the same version on every node of the Ray cluster."
            )
        if self.refused:
            self._down(self.refused)
            return False
        self.state, self._why = state, ""
        self._link.changed()
        return True

    def _down(self, why: str) -> None:
        if why != self._why:  # one that is refused is refused again
            log.warning("a replica of %s is gone: %s", self.name, why)
        self._why = why
        self.state = {}
        if self.handle is not None:
            self.handle.kill()
            self.handle = None
        if not self._gone.done():
            self._gone.set_result(None)
        self._link.changed()

    async def call(self, job: Job, name: str, *args: Any) -> Any:
        """Call the replica about a job of it.

        Raises:
            Lost: the replica that had the job is gone, or goes meanwhile.
        """
        if self.handle is None or self.handle is not job.handle:
            raise Lost
        reply = asyncio.ensure_future(self.handle.call(name, job.id, *args))
        try:
            await asyncio.wait({reply, self._gone}, return_when=asyncio.FIRST_COMPLETED)
            if reply.done():
                return reply.result()
            raise Lost
        finally:
            if not reply.done():
                reply.cancel()
            elif not reply.cancelled():
                reply.exception()

    async def stop(self) -> None:
        """End its replica and the replica's processes."""
        handle, self.handle = self.handle, None
        if handle is None:
            return
        try:
            async with asyncio.timeout(STOP_S if self.up else 0):
                await handle.call("stop")
        except (TimeoutError, Lost):
            pass  # it ends either way
        handle.kill()


class Link:
    """Carries jobs from a server to replicas and what they say back.

    Args:
        line: to the server.
        models: the settings of each model's replicas.
        replicas: of each.
        lazy: replicas are made when a job first asks for their model.
    """

    def __init__(
        self,
        line: Line,
        cluster: Cluster,
        models: Sequence[Mapping[str, Any]],
        *,
        replicas: int = 1,
        lazy: bool = False,
    ) -> None:
        self.cluster = cluster
        self._line = line
        self._jobs: dict[str, Job] = {}
        self._changed = asyncio.Event()
        self._slots = {
            it["spec"]["name"]: [Slot(self, it) for _ in range(replicas)] for it in models
        }
        self._kept: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lazy = lazy

    async def serve(self) -> None:
        """Until the server says stop, or is gone."""
        self._line.send({"do": "connected"})
        if not self._lazy:
            for name in self._slots:
                self._keep(name)
        try:
            while (heard := await self._line.heard()) is not None and heard[0]["do"] != "stop":
                self._take(*heard)
        finally:
            for task in self._tasks:
                task.cancel()
            slots = [it for slots in self._slots.values() for it in slots]
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await asyncio.gather(*(it.stop() for it in slots))

    def _take(self, head: Head, body: Body) -> None:
        job = self._jobs.get(head["job"])
        if head["do"] == "run":
            job = self._jobs[head["job"]] = Job(head["job"], head)
            self._keep(head["model"])
            self._soon(self._carry(job))
        elif head["do"] == "cancel" and job is not None:
            job.cancelled.set()
            self._soon(self._cancel(job))
        elif head["do"] == "answer":
            self._soon(self._answer(job, head, bytes(body)))

    def changed(self) -> None:
        """A replica has come or gone, or is done with a job."""
        self._changed.set()
        self._changed = asyncio.Event()
        for name, slots in self._slots.items():
            replicas = [it.state for it in slots if it.up]
            why = next((it.refused for it in slots if it.refused), "")
            self._line.send({"do": "state", "name": name, "replicas": replicas, "refused": why})

    def _keep(self, name: str) -> None:
        if name not in self._kept:
            self._kept.add(name)
            for slot in self._slots[name]:
                self._soon(slot.keep())

    def _soon(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # A job ---------------------------------------------------------------------------------------

    async def _carry(self, job: Job) -> None:
        """See a job to its end, and tell the server how it ended."""
        try:
            ended = await self._ended(job)
        except Exception:  # no job is left without an end
            log.exception("a job could not be carried")
            ended = Ended("LOST", Fault("ServerError", FAILED))
        self._jobs.pop(job.id, None)
        self._tell(job, *written(ended))

    async def _ended(self, job: Job) -> Ended:
        for _ in range(2):  # a replica that has just died is not the job's fault
            slot = await self._slot(job)
            ended = slot if isinstance(slot, Ended) else await self._on(slot, job)
            if ended is not None:
                return ended
        return Ended("LOST", _died(job.head["model"], "twice before it began"))

    async def _slot(self, job: Job) -> "Slot | Ended":
        """The replica with the most room, once there is one."""
        slots = self._slots[job.head["model"]]
        while not job.cancelled.is_set():
            up = [it for it in slots if it.up]
            if up:
                return max(up, key=lambda it: it.free)
            refused = [it.refused for it in slots if it.refused]
            if len(refused) == len(slots):
                return Ended("ERROR", Fault("RuntimeError", refused[0]))
            waits = [asyncio.ensure_future(it.wait()) for it in (self._changed, job.cancelled)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for it in waits:
                    it.cancel()
        return Ended("CANCELLED")

    async def _on(self, slot: Slot, job: Job) -> Ended | None:
        """Run it on one replica; None where that died before the job began."""
        slot.jobs.add(job.id)
        job.slot, job.handle = slot, slot.handle
        try:
            request = await asyncio.to_thread(Path(job.head["request"]).read_bytes)
            limits = json.dumps(job.head["limits"]).encode()
            await slot.call(job, "begin", limits, request)
            if job.cancelled.is_set():
                await slot.call(job, "cancel")
            return await self._followed(slot, job)
        except Lost:
            return Ended("LOST", _died(slot.name, "while the job ran")) if job.began else None
        except OSError as error:
            return Ended("ERROR", Fault("OSError", f"the job's files: {error.strerror}"))
        finally:
            job.slot = None
            slot.jobs.discard(job.id)
            self._soon(_forgotten(slot, job))

    async def _followed(self, slot: Slot, job: Job) -> Ended:
        while True:
            for data in await slot.call(job, "hear"):
                head, body = unpacked(data)
                if head["said"] != "ended":
                    job.began |= head.get("phase") != "LOADING"
                    self._tell(job, head, body)
                    continue
                size = head.pop("bytes")
                ended = ray_messages.read(head)
                assert isinstance(ended, Ended)
                is_good = ended.phase == "COMPLETED"
                return await self._fetched(slot, job, size) if is_good else ended
            await self._line.drained()

    async def _fetched(self, slot: Slot, job: Job, size: int) -> Ended:
        """Write the job's result where the server wants it."""
        if job.cancelled.is_set():
            return Ended("CANCELLED")
        with open(job.head["result"], "wb", opener=_private) as file:
            at = 0
            while at < size:
                piece = await slot.call(job, "result", at)
                if not piece:
                    return Ended("LOST", _died(slot.name, "before its result was here"))
                await asyncio.to_thread(file.write, piece)
                at += len(piece)
        return Ended("COMPLETED")

    async def _cancel(self, job: Job) -> None:
        slot = job.slot
        if slot is None:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                await slot.call(job, "cancel")
        except Lost:
            return
        except TimeoutError:
            log.warning("a replica of %s does not cancel", slot.name)

    async def _answer(self, job: Job | None, head: Head, body: bytes) -> None:
        said = b"no"
        if job is not None and job.slot is not None:
            try:
                said = await job.slot.call(job, "answer", head["number"], body)
            except Lost:
                said = b"no"
        self._line.send({**head, "do": "answered", "good": said == b"yes"})

    def _tell(self, job: Job, head: Head, body: Body) -> None:
        self._line.send({**head, "do": "told", "job": job.id}, body)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


async def _forgotten(slot: Slot, job: Job) -> None:
    try:
        await slot.call(job, "forget")
    except Lost:
        return


def _died(model: str, when: str) -> Fault:
    return Fault(
        "RuntimeError",
        f"the job was lost: the replica of the model {model!r} was gone {when}.\n"
        "Why: its process, its node or the way there has failed; nothing of its result is kept.\n"
        "Next: send it again.",
    )
