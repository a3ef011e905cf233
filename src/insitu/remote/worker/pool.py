"""Where jobs run on this machine: `protocol.Workers` by processes, one for each model and job.

    pool = Pool(["demo"], trust="team")
    await pool.start()
    ended = await pool.run(task, told=print)
    await pool.stop()

Everything here runs in the server's event loop, and computes nothing.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from insitu.remote.worker import devices, jail, sizes
from insitu.remote.worker.host import Host
from insitu.remote.worker.running import Running
from insitu.remote.worker.specs import ModelSpec, Settings, spec_of

_RESTART_S = 0.2
_TELL_S = 1.0
"""How often a job that waits for its model is told how far that is."""
_OF_MEMORY = 0.8


class Pool:
    """Model processes, loaded when a task first asks for them.

    Args:
        models: names, folders or specs of the models that tasks may name.
        trust: how far blocks are trusted; `jail.says` tells what each mode stops.
        device: `"cpu"`, or where a model goes with trust `self`.
        threads: of each job; by default a share of the cores.
        folder: the working folder of model processes.
        preload: begin to load the models at `start`.
        memory_bytes: what the weights of all loaded models may take together; when another is
            needed, the one that has been idle longest goes. 80 % of the device's by default.
        execute: what a job process calls, `module:function`.
        apart: models compute in processes of their own, which no job shares memory with; so they do
            on a GPU where blocks are not one's own.
    """

    def __init__(  # noqa: PLR0913 - the seam that the command line fills
        self,
        models: Sequence[str | ModelSpec],
        *,
        trust: Trust = "self",
        device: str = "cpu",
        threads: int | None = None,
        folder: Path | None = None,
        preload: bool = True,
        memory_bytes: int | None = None,
        execute: str = "insitu.remote.blocks.run:execute",
        apart: bool = False,
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
        each = threads or max(1, cores // 4)
        most = max(2, cores // each)
        self._trust: Trust = trust
        self._device = device
        self._preload = preload
        self._memory = memory_bytes or 0
        self._jobs: dict[str, Running] = {}
        self._tasks: set[asyncio.Task[bool]] = set()
        self._stopping = False
        apart = apart or (trust != "self" and not device.startswith("cpu"))
        settings = Settings(ModelSpec(""), trust, device, each, most, execute, apart)
        if settings.inline or apart:
            settings = replace(settings, jobs=1)
        self._settings = [replace(settings, spec=spec_of(model)) for model in models]
        self._folder = folder
        self._hosts: dict[str, Host] = {}

    async def start(self) -> None:
        """Take tasks; models load in the background.

        Raises:
            UsageError: this machine cannot give the trust mode that was asked for.
        """
        await asyncio.to_thread(jail.require, self._trust)
        self._stopping = False
        self._freed = asyncio.Event()  # of the next change; each change has its own
        self._coming: list[Host] = []
        """Those that make room for themselves or are loaded, the first first."""
        if not self._memory:
            device = await asyncio.to_thread(devices.memory_bytes, self._device)
            self._memory = int(_OF_MEMORY * (device or _machine_bytes()))
        self._hosts = {it.spec.name: Host(it, self._folder, self._changed) for it in self._settings}
        for host in self._hosts.values():
            host.weighs = await asyncio.to_thread(sizes.files_bytes, host.settings.spec)
            if self._preload:
                self._soon(self._load(host, evict=False))

    async def stop(self) -> None:
        """End every job and process, and wait until they are gone."""
        self._stopping = True
        for job in list(self._jobs.values()):
            job.end("CANCELLED")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(host.stop() for host in self._hosts.values()))

    def models(self) -> list[ModelState]:
        """Every model that tasks may name."""
        return [host.model for host in self._hosts.values()]

    def room(self, model: str) -> int:
        """How many tasks more may run on a model now."""
        host = self._named(model)
        if host is None or self._stopping or host.is_leaving:
            return 0
        return max(0, host.settings.jobs - self._jobs_of(host))

    def _jobs_of(self, host: Host) -> int:
        """How many run on a model, or will when it is loaded."""
        return sum(1 for job in self._jobs.values() if self._named(job.task.model) is host)

    async def run(self, task: Task, told: Callable[[Told], None]) -> Ended:
        """Run a task to its end, whatever happens to it; `told` is called as it speaks."""
        host = self._named(task.model)
        if host is None or self._stopping:
            return Ended("ERROR", _unknown(task.model, self._hosts))
        job = await self._run(host, task, told)
        if job.may_run_again and not self._stopping:
            job = await self._run(host, task, told)
        return job.over.result()

    async def _run(self, host: Host, task: Task, told: Callable[[Told], None]) -> Running:
        early = self._trust == "self"
        job = Running(task, told, lambda: host.kill(task.id), early=early)
        self._jobs[task.id] = job
        try:
            if host.state != "ready":
                told(Status("LOADING"))
            failed = await self._begin(host, job, told)
            if failed is not None:
                job.fails(failed)
            if not job.over.done():
                told(Status("RUNNING"))
            await asyncio.shield(job.over)
            return job
        finally:
            job.end("CANCELLED")  # where `run` itself was cancelled
            self._jobs.pop(task.id, None)
            if not self._stopping:  # somebody may wait until its model is idle
                self._tell_freed()

    async def cancel(self, job: str) -> None:
        """Make a running task's `run` return CANCELLED within two seconds."""
        if job in self._jobs:
            self._jobs[job].end("CANCELLED")

    async def answer(self, job: str, number: int, payload: bytes | bytearray) -> None:
        """The values that a `local()` part has given back.

        Raises:
            ValueError: the job is over, or does not wait for that answer.
        """
        if job not in self._jobs:
            raise ValueError(f"no job {job} is running.")
        await self._jobs[job].answer(number, payload)

    # Models come and go --------------------------------------------------------------------------

    async def _begin(self, host: Host, job: Running, told: Callable[[Told], None]) -> Ended | None:
        """Load the model and submit the job; an end where that cannot be."""
        for attempt in range(2):  # a process that has just died is started once more
            loading = self._soon(self._load(host, evict=True))
            await _either(loading, job, host, told)
            if job.over.done():
                return None
            if not loading.result():
                if host.was_killed and attempt == 0:
                    continue
                fault = host.fault or Fault(
                    "RuntimeError", "the model's process cannot be started."
                )
                return Ended("ERROR", fault)
            host.used_at = asyncio.get_running_loop().time()
            try:
                host.submit(job)
            except ConnectionError:
                continue
            except OSError as error:
                return Ended("ERROR", Fault("OSError", f"the job's files: {error.strerror}"))
            return None
        return Ended(
            "LOST", Fault("RuntimeError", "the model's process ended twice; send it again.")
        )

    async def _load(self, host: Host, *, evict: bool) -> bool:
        """Wait until a model takes jobs; False where it cannot be, or has no room.

        Args:
            evict: others give way for it, as long as a job wants it.
        """
        if host.is_stopping:
            await host.stop()
        if host.state == "ready":
            return True
        if host in self._coming:
            await self._settled(host)
            return await self._load(host, evict=evict)
        self._coming.append(host)
        try:
            if not await self._has_room(host, evict):
                return False
            if host.state == "failed":  # it may be there by now
                await host.stop()
            return await host.load() and await self._is_right(host, evict)
        finally:
            self._coming.remove(host)
            self._stays()
            self._tell_freed()

    async def _settled(self, host: Host) -> None:
        """Wait until it has been loaded, or not."""
        while host in self._coming:
            await self._freed.wait()

    async def _has_room(self, host: Host, evict: bool) -> bool:
        """Evict models, the longest idle first, until this one fits.

        Those that have jobs are given no more, so that they will be idle: a job is bounded.
        """
        while not self._fits(host):
            freed = self._freed
            if not evict or not self._jobs_of(host):
                return False
            others = [it for it in self._hosts.values() if it is not host and it.state == "ready"]
            idle = [it for it in others if not self._jobs_of(it)]
            if not others and self._coming[0] is host:
                return True  # it does not fit at all: perhaps it does
            if others:
                leaving = min(idle or others, key=lambda it: (not it.is_leaving, it.used_at))
                leaving.is_leaving = True
            if idle:
                await leaving.stop()
                continue
            await freed.wait()
        return True

    async def _is_right(self, host: Host, evict: bool) -> bool:
        """Whether a model stays of which only now is known what it weighs."""
        idle = [it for it in self._hosts.values() if it is not host and not self._jobs_of(it)]
        for other in sorted(idle, key=lambda it: it.used_at):
            if self._fits(host):
                return True
            if not evict:
                await host.stop()
                return False
            if other.state == "ready":
                other.is_leaving = True
                await other.stop()
        return True

    def _fits(self, host: Host) -> bool:
        """Whether there is room for it beside what is there, and what was to come before it."""
        before = self._coming[: self._coming.index(host)]
        there = [it for it in self._hosts.values() if it.state in ("ready", "loading")]
        held = sum(it.weighs for it in {*before, *there} - {host})
        return not held or held + host.weighs <= self._memory

    def _stays(self) -> None:
        """Nobody's place is wanted when nobody comes."""
        for host in self._hosts.values() if not self._coming else ():
            host.is_leaving = host.is_stopping

    def _changed(self, host: Host) -> None:
        self._tell_freed()
        if host.died and not self._stopping:
            host.died = False
            self._soon(self._again(host))

    def _tell_freed(self) -> None:
        """Somebody may wait for a model that is idle, is loaded or is gone."""
        freed, self._freed = self._freed, asyncio.Event()
        freed.set()

    async def _again(self, host: Host) -> bool:
        await asyncio.sleep(_RESTART_S)
        return await self._load(host, evict=False)

    def _soon(self, work: "asyncio.Future[bool] | object") -> asyncio.Task[bool]:
        task: asyncio.Task[bool] = asyncio.ensure_future(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _named(self, model: str) -> Host | None:
        if model in self._hosts:
            return self._hosts[model]
        known = (it for it in self._hosts.values() if model in it.settings.spec.known_as)
        return next(known, None)


async def _either(
    loading: "asyncio.Future[bool]", job: Running, host: Host, told: Callable[[Told], None]
) -> None:
    """Wait for a model or for the end of its job, which is told how far the model is."""
    either: set[asyncio.Future[Any]] = {loading, job.over}
    now = asyncio.get_running_loop().time
    since, last = now(), None
    while not any(it.done() for it in either):
        await asyncio.wait(either, timeout=_TELL_S, return_when=asyncio.FIRST_COMPLETED)
        said = _how_far(host, round(now() - since), last)
        if said is not None and said != last and not job.over.done():
            told(said)
            last = said


def _how_far(host: Host, seconds: int, last: Progress | None) -> Progress | None:
    """What a job is told that has waited so long for its model; a bar it was shown is filled."""
    reading = host.progress
    if reading is not None and host.state in ("loading", "ready"):
        was_shown = last is not None and last.text == reading.text
        if reading.done < (reading.of or 0) or (was_shown and last != reading):
            return reading
    if host.state == "ready":
        return None
    text = "Opening the model" if host.state == "loading" else "Waiting for room in memory"
    return Progress(text, seconds, None, "s")


def _unknown(model: str, hosts: dict[str, Host]) -> Fault:
    return Fault(
        "insitu.ModelNotFoundError",
        f"this server has no model {model!r}.\n"
        f"Why: it was started for {', '.join(sorted(hosts)) or 'none'}.\n"
        "Next: name one of those, or start a server for it: insitu serve MODEL.",
    )


def _machine_bytes() -> int:
    with contextlib.suppress(ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**36
