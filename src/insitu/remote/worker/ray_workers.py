"""Where jobs run on a Ray cluster: `protocol.Workers` by replicas on its nodes.

    workers = RayWorkers(["demo"], address="ray://head:10001", replicas=2, trust="team")
    await workers.start()
    ended = await workers.run(task, told=print)
    await workers.stop()

This is the server's side, in its event loop, without Ray and without torch: the link that speaks to
Ray is a process of its own (`ray_cluster`). When that ends, what ran is LOST, what waited waits on,
and another one joins the cluster as soon as its head is there again.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from insitu.errors import ServerError
from insitu.remote.protocol import (
    Ended,
    Fault,
    ModelState,
    Progress,
    Status,
    Task,
    Told,
    Trust,
)
from insitu.remote.worker import jail, ray_messages
from insitu.remote.worker.ray_messages import Body, Head, Line
from insitu.remote.worker.ray_process import LinkProcess
from insitu.remote.worker.specs import UNKNOWN, ModelSpec, spec_of

log = logging.getLogger("insitu")

CANCEL_S = 1.8
"""A cancelled job is over after so long, whether or not its replica has said so."""
AGAIN_S = (0.5, 10.0)
TRIES = 3
"""So often is a head of our own started, on a machine that is busy, before the server gives up."""
STOP_S = 20.0


@dataclass
class _Job:
    """A job that runs, or waits for a replica."""

    task: Task
    told: Callable[[Told], None]
    over: "asyncio.Future[Ended]"
    began: bool = False
    sent: int = 0
    """How many links it was given to."""
    loading: bool = False


@dataclass
class _Model:
    """What is known of a model's replicas."""

    spec: ModelSpec
    replicas: list[Head] = field(default_factory=list)
    refused: str = ""
    asked: bool = False
    """Its replicas are wanted: from the start, or since a job asked for it."""
    seen: str = UNKNOWN
    """The kind that the last replica had which had opened it."""

    @property
    def kind(self) -> str:
        """As it was named, or was when there was a replica."""
        return self.spec.kind or self.seen


class RayWorkers:
    """Replicas on a Ray cluster, each a pool of one model.

    Args:
        models: names, folders or specs of the models that tasks may name; a folder must be there on
            every node.
        address: `auto`, `host:port` or `ray://host:port` of a cluster; empty starts a head on
            loopback, which ends with the server.
        replicas: of each model.
        further: what else each replica's pool is told: `trust`, `device`, `threads`, `apart`,
            `execute`.
        preload: begin to load the models at `start`.
        link: starts the process that speaks to Ray; another one in tests.
    """

    def __init__(
        self,
        models: Sequence[str | ModelSpec],
        *,
        address: str = "",
        replicas: int = 1,
        preload: bool = True,
        link: Callable[[bool], Any] = LinkProcess,
        **further: Any,
    ) -> None:
        specs = [spec_of(model) for model in models]
        self._models = {it.name: _Model(it, asked=preload) for it in specs}
        self._address = address
        self._replicas = replicas
        self._lazy = not preload
        self._device = further.pop("device", "auto")
        self._trust: Trust = further.setdefault("trust", "self")
        self._further = further
        self._start_link = link
        self._jobs: dict[str, _Job] = {}
        self._answers: dict[tuple[str, int], asyncio.Future[bool]] = {}
        self._line: Line | None = None
        self._why = ""
        self._keeping: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Join the cluster, or start one; models load in the background.

        Raises:
            ServerError: there is no cluster at the address, or none can be started.
        """
        if not self._address:
            await asyncio.to_thread(jail.require, self._trust)
        self._joined = asyncio.Event()
        self._keeping = asyncio.create_task(self._keep(), name="insitu-ray")
        joined = asyncio.ensure_future(self._joined.wait())
        try:
            await asyncio.wait({self._keeping, joined}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            joined.cancel()
        if self._keeping.done():
            raise self._not_joined()

    def _not_joined(self) -> ServerError:
        why = self._why or "Ray's process ended without a word."
        if not self._address:
            return ServerError(
                "the server cannot start a Ray of its own.",
                why,
                "Try `ray start --head`, which says more, and join that: --address auto.",
            )
        return ServerError(
            f"the server cannot join the Ray cluster at {self._address}.",
            why,
            "See that `ray status` answers there; leave --address out to start one here.",
        )

    async def stop(self) -> None:
        """End every job, leave the cluster, and wait until the link's process is gone."""
        self._stopping = True
        for job in list(self._jobs.values()):
            self._finish(job, Ended("CANCELLED"))
        self._say({"do": "stop", "job": ""})
        if self._keeping is not None:
            if self._line is not None:
                await asyncio.wait({self._keeping}, timeout=STOP_S)
            self._keeping.cancel()
            await asyncio.wait({self._keeping})

    def models(self) -> list[ModelState]:
        """Every model that tasks may name."""
        return [self._state(it) for it in self._models.values()]

    def _state(self, model: _Model) -> ModelState:
        spec = model.spec
        jobs = sum(job.task.model in (spec.name, *spec.known_as) for job in self._jobs.values())
        about: Head = {"replicas": len(model.replicas), "nodes": _nodes(model)}
        if not model.replicas:
            fault = model.refused or ("" if self._line else self._why)
            about |= {"fault": fault} if fault else {}
            state = "failed" if model.refused else "loading" if model.asked else "absent"
            found = ModelState(spec.name, state, spec.known_as, model.kind)  # type: ignore[arg-type]
        else:
            found = min(map(_of_replica, model.replicas), key=lambda it: _ORDER.index(it.state))
        kind = model.kind if found.kind == UNKNOWN else found.kind
        return ModelState(
            found.name, found.state, found.known_as, kind, found.bytes, jobs,
            {**found.about, **about},
        )  # fmt: skip

    def room(self, model: str) -> int:
        """How many tasks more may run on a model now; none while there is no cluster."""
        it = self._named(model)
        if it is None or self._line is None or self._stopping:
            return 0
        running = self._state(it).jobs
        if not it.replicas:  # a job asks for them, or is told why there are none
            return max(0, self._replicas - running)
        return max(0, sum(int(replica["width"]) for replica in it.replicas) - running)

    async def run(self, task: Task, told: Callable[[Told], None]) -> Ended:
        """Run a task to its end, whatever happens to it; `told` is called as it speaks."""
        model = self._named(task.model)
        if model is None or self._stopping:
            return Ended("ERROR", _unknown(task.model, [*self._models]))
        job = _Job(task, told, asyncio.get_running_loop().create_future())
        self._jobs[task.id] = job
        model.asked = True
        try:
            if self._state(model).state != "ready":
                self._tell(job, Status("LOADING"))
            self._send(job)
            return await asyncio.shield(job.over)
        finally:
            if not job.over.done():  # `run` itself was cancelled
                self._say({"do": "cancel", "job": task.id})
            self._jobs.pop(task.id, None)

    async def cancel(self, job: str) -> None:
        """Make a running task's `run` return CANCELLED within two seconds."""
        if (it := self._jobs.get(job)) is not None:
            self._say({"do": "cancel", "job": job})
            await asyncio.wait({it.over}, timeout=CANCEL_S if self._line is not None else 0)
            self._finish(it, Ended("CANCELLED"))

    async def answer(self, job: str, number: int, payload: bytes | bytearray) -> None:
        """The values that a `local()` part has given back.

        Raises:
            ValueError: the job is over, or does not wait for that answer.
        """
        if job not in self._jobs or self._line is None or (job, number) in self._answers:
            raise ValueError(f"no job {job} is running that waits for an answer {number}.")
        taken = self._answers[job, number] = asyncio.get_running_loop().create_future()
        over = self._jobs[job].over
        try:
            self._line.send({"do": "answer", "job": job, "number": number}, payload)
            await asyncio.wait({taken, over}, return_when=asyncio.FIRST_COMPLETED)
            if not taken.done() or not taken.result():
                raise ValueError(f"the job {job} does not wait for an answer {number}.")
        finally:
            del self._answers[job, number]

    # The link ------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Have a link, for as long as the server runs; it ends where the first ones fail."""
        again_s, tries = AGAIN_S[0], 1 if self._address else TRIES
        while not self._stopping:
            try:
                if await self._linked():
                    again_s = AGAIN_S[0]
            except Exception:  # the next one may do better; nothing else would join again
                log.exception("the link to Ray failed")
            tries -= 1
            if self._stopping or (tries <= 0 and not self._joined.is_set()):
                return
            log.warning("Ray is gone: %s; trying again", self._why or "its process ended")
            await asyncio.sleep(again_s)
            again_s = min(2 * again_s, AGAIN_S[1])

    async def _linked(self) -> bool:
        """One link, to its end; whether it had joined."""
        link = self._start_link(not self._address)
        line = await Line.over(link.end)
        joined = False
        try:
            line.send(self._hello())
            while (heard := await line.heard()) is not None:
                if heard[0]["do"] == "connected":
                    joined = True
                    self._connected(line)
                self._hear(*heard)
        finally:
            line.close()
            self._lost()
            await asyncio.shield(asyncio.to_thread(link.ended, joined))
        return joined

    def _hello(self) -> Head:
        models = [
            {"spec": ray_messages.spec_head(it.spec), **self._further}
            for it in self._models.values()
        ]
        return {
            "do": "open", "address": self._address, "replicas": self._replicas, "models": models,
            "lazy": self._lazy, "device": self._device,
        }  # fmt: skip

    def _connected(self, line: Line) -> None:
        self._line, self._why = line, ""
        self._joined.set()
        if self._stopping:
            line.send({"do": "stop", "job": ""})
        for job in list(self._jobs.values()):
            self._send(job)

    def _lost(self) -> None:
        """There is no link any more: what ran is lost, what has not begun is sent to the next."""
        self._line = None
        for model in self._models.values():
            model.replicas = []
        for job in list(self._jobs.values()):
            if job.began or job.sent > 1:
                self._finish(job, Ended("LOST", _gone(self._why)))

    def _send(self, job: _Job) -> None:
        if self._line is None:
            return
        job.sent += 1
        task, model = job.task, self._named(job.task.model)
        assert model is not None
        self._line.send(
            {
                "do": "run", "job": task.id, "model": model.spec.name, "request": str(task.request),
                "result": str(task.result), "limits": asdict(task.limits),
            }
        )  # fmt: skip

    def _say(self, head: Head) -> None:
        if self._line is not None:
            self._line.send(head)

    def _hear(self, head: Head, body: Body) -> None:
        match head.pop("do"):
            case "state":
                model = self._models[head["name"]]
                model.replicas, model.refused = head["replicas"], head["refused"]
                kinds = [_of_replica(it).kind for it in model.replicas]
                model.seen = next((it for it in kinds if it != UNKNOWN), model.seen)
            case "told":
                job = self._jobs.get(head.pop("job"))
                if job is not None and not job.over.done():
                    self._tell(job, ray_messages.read(head, body))
            case "answered":
                taken = self._answers.get((head["job"], head["number"]))
                if taken is not None and not taken.done():
                    taken.set_result(head["good"])
            case "failed":
                self._why = head["why"]

    def _tell(self, job: _Job, said: Told | Ended) -> None:
        if isinstance(said, Ended):
            self._finish(job, said)
            return
        is_loading = isinstance(said, Status) and said.phase == "LOADING"
        if not (is_loading and job.loading):
            job.told(said)
        job.loading = job.loading or is_loading
        if not job.began and not isinstance(said, Progress):  # how far the model is
            job.began = not is_loading

    def _finish(self, job: _Job, ended: Ended) -> None:
        if not job.over.done():
            job.over.set_result(ended)

    def _named(self, model: str) -> _Model | None:
        if model in self._models:
            return self._models[model]
        known = (it for it in self._models.values() if model in it.spec.known_as)
        return next(known, None)


_ORDER = ("ready", "loading", "absent", "failed")


def _of_replica(replica: Head) -> ModelState:
    return ray_messages.state_from({**replica["model"], "jobs": 0})


def _nodes(model: _Model) -> list[str]:
    return sorted({it["node"] for it in model.replicas})


def _unknown(model: str, served: list[str]) -> Fault:
    return Fault(
        "insitu.ModelNotFoundError",
        f"this server has no model {model!r}.\n"
        f"Why: it was started for {', '.join(sorted(served))}.\n"
        "Next: name one of those, or start a server for it: insitu serve MODEL.",
    )


def _gone(why: str) -> Fault:
    return Fault(
        "RuntimeError",
        "the job was lost: the Ray cluster was gone while it ran.\n"
        f"Why: {why or 'its head does not answer, or the process that speaks to it has ended.'}\n"
        "Next: send it again; it runs as soon as the cluster is there again.",
    )
