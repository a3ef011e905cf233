"""Takes jobs in, gives them to workers in turn, and sees each to its end.

desk = Desk(store, folder, workers, limits)
await desk.open(); job = await desk.accept("ada", "demo", id, None); await desk.close()
"""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from insitu.remote.protocol import ENDS, Ended, Fault, Limits, Task, Workers
from insitu.remote.server.files import Folder, sha256_of
from insitu.remote.server.jobs import Job
from insitu.remote.server.queue import Line, Waiting
from insitu.remote.server.quota import Quota
from insitu.remote.server.refusal import Refusal, StoreTrouble, queue_full
from insitu.remote.server.store import ADD_JOB, ADD_KEY, RETRY_S, Statement, Store, forgotten

log = logging.getLogger("insitu")

TICK_S = 0.25
"""Places in the queue are told at most so often, and room is asked for."""
SWEEP_S = 60.0
CANCEL_S = 3.0
"""Workers may take this long to cancel; then the job is cancelled without them."""
GRACE_S = 15.0
"""Beyond its wall and local time, before a job is ended over its worker's head."""
ROWS_KEPT = 7
"""Jobs are listed this many times as long as their results are kept."""

LOST_RESTART = "The server was stopped while your job ran; send it again."
LOST_MODEL = "The server was started again without this job's model."
LOST_FILE = "The server no longer has this job's request; send it again."
LOADING_TOO_LONG = """its model was not loaded within {limits.loading_s:g} s.
Why: the server waits no longer than that for a model, or for room for it in memory.
Next: send it again later, or ask who runs the server; GET /v1/models tells how its models are."""
LOST_WORKER = "The server failed while your job ran; send it again."


@dataclass
class Counts:
    """What has happened since the start, for `/metrics`."""

    ended: Counter[str] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    accepted: int = 0
    waited_s: float = 0.0
    begun: int = 0
    ran_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    recent_s: float = 1.0
    """About how long a job takes, the last ones weighing most."""


class Desk:
    """The jobs of this server."""

    def __init__(self, store: Store, folder: Folder, workers: Workers, limits: Limits) -> None:
        self.store = store
        self.folder = folder
        self.workers = workers
        self.limits = limits
        self.quota = Quota(store, folder, limits)
        self.line = Line(limits.queue, limits.queue_per_user)
        self.counts = Counts()
        self.live: dict[str, Job] = {}
        self.draining = False
        self._starting: Counter[str] = Counter()
        """Given to a model's workers, which do not know it yet."""
        self._running: dict[str, asyncio.Task[None]] = {}
        self._beside: set[asyncio.Task[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._moved = False

    async def open(self) -> None:
        """Take up what an earlier server has left; workers have been started."""
        self.store.committed = self._wake
        self.quota.open()
        left = self.store.unended(ENDS)
        self.folder.remove_strays({row["id"] for row in left})
        models = {it.name for it in self.workers.models()}
        for row in left:
            job = Job(
                row["id"], row["user"], row["model"], self.store, self.limits, row["last"] or 0
            )
            job.created, job.began, job.phase = row["created"], row["began"], row["phase"]
            job.rows_bytes = row["told"] or 0
            self.live[job.id] = job
            if row["phase"] in ("LOADING", "RUNNING"):
                await self._end(job, _lost(LOST_RESTART))
            elif job.model not in models:
                await self._end(job, _lost(LOST_MODEL))
            elif not self.folder.request(job.id).exists():
                await self._end(job, _lost(LOST_FILE))
            else:
                self.line.add(Waiting(job.id, job.user, job.model))
        self._moved = True
        self._ticking = asyncio.create_task(self._tick(), name="insitu-desk")
        self.dispatch()

    async def close(self, bound_s: float = 0.0) -> None:
        """Take no more, let what runs end within a bound, stop; what waits stays in the store."""
        self.draining = True
        running = [*self._running.values()]
        if running and bound_s > 0:
            await asyncio.wait(running, timeout=bound_s)
        await asyncio.gather(*(self._stopped(id) for id in [*self._running]))
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking

    async def _stopped(self, id: str) -> None:
        task = self._running[id]
        with contextlib.suppress(Exception):
            async with asyncio.timeout(CANCEL_S):
                await self.workers.cancel(id)
        await asyncio.wait([task], timeout=CANCEL_S)
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_S)

    # taking in -----------------------------------------------------------------------------------

    def admit(self, user: str) -> None:
        """Keep a place for a user's next job; `line.release` gives it back.

        Raises:
            Refusal: the server is going down, its disk or its queue is full.
        """
        if self.draining:
            raise Refusal(
                503,
                "the server is being stopped and takes no more jobs.",
                "It finishes those that run; those that wait are run when it is started again.",
                "Send the job again in a minute.",
                {"Retry-After": "60"},
            )
        full = self.line.full_for(user)
        if full:
            raise queue_full(full, self.retry_after_s())
        self.folder.room()
        self.line.hold(user)

    def retry_after_s(self) -> int:
        """About when a place is free."""
        width = max(1, len(self._running))
        return int(min(30, max(1, self.counts.recent_s * self.limits.queue_per_user / width)))

    async def accept(self, user: str, model: str, id: str, once: tuple[str, str] | None) -> Job:
        """A job whose request is in the folder; `once` is its idempotency key and body's digest.

        Raises:
            StoreTrouble: it could not be written; it is not accepted.
        """
        job = Job(id, user, model, self.store, self.limits)
        first = (ADD_JOB, (id, user, model, "RECEIVED", job.created))
        keyed = () if once is None else ((ADD_KEY, (user, *once, id)),)
        phases = (*job.phase_row("RECEIVED"), *job.phase_row("APPROVED"))
        self.live[id] = job
        try:
            await self.store.write(first, *keyed, *phases, jobs=(id,))
        except BaseException:
            del self.live[id]
            raise
        self.counts.accepted += 1
        self.line.add(Waiting(id, user, model))
        self.dispatch()
        if id not in self._running and job.ended is None:
            job.phase_is("QUEUED")
            self._moved = True
        return job

    # running -------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Start every job that may start now."""
        while not self.draining and (it := self.line.next(self._room)) is not None:
            job = self.live[it.job]
            self.counts.begun += 1
            self.counts.waited_s += time.time() - job.created
            self._starting[job.model] += 1
            job.began_here, job.given_at = time.time(), time.monotonic()
            self._running[job.id] = asyncio.create_task(self._run(job), name=f"job {job.id}")
            self._moved = True

    def _room(self, model: str) -> int:
        return self.workers.room(model) - self._starting[model]

    async def _run(self, job: Job) -> None:
        ended = _lost(LOST_WORKER)
        try:
            ended = await self._ran(job)
        except asyncio.CancelledError:  # this server is being stopped
            ended = _lost(LOST_RESTART)
        except Exception:
            log.exception("workers failed", extra={"job": job.id})
        if self.draining and ended.phase == "CANCELLED" and not job.cancelled:
            ended = _lost(LOST_RESTART)
        await self._end(job, ended)

    async def _ran(self, job: Job) -> Ended:
        request, result = self.folder.request(job.id), self.folder.result(job.id)
        job.limits = self.quota.of_a_job()
        task = Task(job.id, job.model, request, result, job.limits)
        self._starting[job.model] -= 1
        if job.cancelled:
            return Ended("CANCELLED")
        running = asyncio.ensure_future(self.workers.run(task, job.told))
        try:
            while not running.done():
                await asyncio.wait([running], timeout=TICK_S)
                if not running.done() and (over := self._overdue(job)) is not None:
                    log.error("a worker did not end a job", extra={"job": job.id})
                    return over
            return running.result()
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait([running], timeout=CANCEL_S)

    def _overdue(self, job: Job) -> Ended | None:
        """How a job ends whose workers do not end it."""
        now, limits = time.monotonic(), self.limits
        if job.cancelled_at is not None and time.time() - job.cancelled_at > CANCEL_S:
            return Ended("CANCELLED")
        if job.began_at is None:
            since, bound, text = job.given_at or now, limits.loading_s, LOADING_TOO_LONG
        else:
            bound = limits.wall_s + limits.local_total_s + GRACE_S
            since, text = job.began_at, f"The job ran for more than {limits.wall_s:.0f} s."
        if now - since <= bound:
            return None
        return Ended("TIMEOUT", Fault("TimeoutError", text.format(limits=limits)))

    async def _end(self, job: Job, ended: Ended) -> None:
        result = None
        if ended.phase == "COMPLETED":
            ended, result = await self._kept(job, ended)
        if result is None:
            self.folder.result(job.id).unlink(missing_ok=True)
        rows = job.end_rows(ended, result)
        self._running.pop(job.id, None)
        if job.began_here:
            self.line.ended(job.user)
            self.counts.ran_s += (took := time.time() - job.began_here)
            self.counts.recent_s += 0.2 * (took - self.counts.recent_s)
        self.counts.ended[ended.phase] += 1
        log.info("job ended", extra={"job": job.id, "user": job.user, "phase": ended.phase})
        self._moved = True
        self.dispatch()
        await self._written(job, rows)
        self.quota.grew(job.user, result[0] if result else 0, job.rows_bytes)
        await self._tidied(self.quota.keep)  # many results may come between two ticks
        self.folder.remove_request(job.id)
        self.live.pop(job.id, None)
        job.news.tell()

    async def _written(self, job: Job, rows: tuple[Statement, ...]) -> None:
        """An end is written, however long the disk refuses it; until then the job is not over."""
        while True:
            try:
                return await self.store.write(*rows, jobs=(job.id,))
            except StoreTrouble as trouble:
                log.error("an end cannot be written: %s", trouble.refusal.why)
                await asyncio.sleep(RETRY_S)

    async def _kept(self, job: Job, ended: Ended) -> tuple[Ended, tuple[int, str] | None]:
        try:
            result = await asyncio.to_thread(sha256_of, self.folder.result(job.id))
        except OSError as error:
            text = f"The job was run, and its result could not be kept: {error.strerror}."
            return Ended("LOST", Fault("ServerError", text)), None
        if result[0] > job.limits.result_bytes:
            text = f"The result is larger than {job.limits.result_bytes:,} bytes; save less."
            return Ended("ERROR", Fault("insitu.ResultTooLargeError", text)), None
        return ended, result

    # while it runs --------------------------------------------------------------------------

    async def cancel(self, job: Job) -> None:
        """End a job of this process; one that waits at once."""
        job.cancelled = True
        if self.line.remove(job.id):
            await self._end(job, Ended("CANCELLED"))
        elif job.id in self._running and job.cancelled_at is None:
            job.cancelled_at = time.time()
            cancelling = asyncio.create_task(self._cancelled(job.id))
            self._beside.add(cancelling)
            cancelling.add_done_callback(self._beside.discard)

    async def _cancelled(self, id: str) -> None:
        try:
            await self.workers.cancel(id)
        except Exception:  # `_overdue` ends the job without them
            log.exception("workers did not cancel", extra={"job": id})

    async def answer(self, job: Job, number: int, payload: bytes | bytearray) -> None:
        """The values that a client's `local()` part gave back.

        Raises:
            Refusal: nothing waits for them.
        """
        if job.waiting is None or job.waiting.number != number:
            raise not_waiting(number)
        job.waiting = None  # a second answer is one too many
        try:
            await self.workers.answer(job.id, number, payload)
        except ValueError:  # it has ended there, and will be told of here
            raise not_waiting(number) from None

    def _wake(self, jobs: set[str]) -> None:
        for id in jobs:
            if (job := self.live.get(id)) is not None:
                job.news.tell()

    # now and then ---------------------------------------------------------------------------

    async def _tick(self) -> None:
        swept = 0.0
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.dispatch()
                if self._moved:
                    self._moved = False
                    self._tell_places()
                await self._tidied(self.quota.keep)
                if time.monotonic() - swept > SWEEP_S:
                    swept = time.monotonic()
                    await self._tidied(self._sweep)
            except Exception:  # the next tick may do better; nothing else would dispatch
                log.exception("a tick failed")

    def _tell_places(self) -> None:
        places = self.line.places()
        for id, place in places.items():
            if (job := self.live.get(id)) is not None:
                job.stands_at(place, len(places))

    async def _tidied(self, tidy: Callable[[], Awaitable[None]]) -> None:
        try:
            await tidy()
        except StoreTrouble as trouble:  # the next tick tries it again
            log.error("what is old cannot be forgotten: %s", trouble.refusal.why)
        except OSError as error:
            log.error("what is old cannot be removed: %s", error)

    async def _sweep(self) -> None:
        await self.quota.remove_old()
        before = time.time() - ROWS_KEPT * self.folder.keep_s
        old = self.store.rows(
            "SELECT id, user, rows_bytes, result_bytes * kept FROM jobs WHERE ended < ? LIMIT 100",
            (before,),
        )
        for id, user, size, result in old:
            await self.store.write(*forgotten(id))
            self.quota.grew(user, -(result or 0), -size)


def not_waiting(number: int) -> Refusal:
    """A `local()` part that is over, or has not begun."""
    return Refusal(
        409,
        f"the job does not wait for the values of local() part {number}.",
        "They were given already, the time for them has passed, or the job has ended.",
        "Follow the job's events; a `local` event names the part that waits.",
    )


def _lost(text: str) -> Ended:
    return Ended("LOST", Fault("ServerError", text))
