"""What the routes of one server share, and its start and end.

server = Server(store, folder, workers, limits, door)
await server.open(); …; await server.close()
"""

import asyncio

from insitu.remote.protocol import ENDS, Limits, ModelState, Trust, Workers
from insitu.remote.server.callers import Door
from insitu.remote.server.desk import Desk
from insitu.remote.server.files import Folder
from insitu.remote.server.refusal import Refusal
from insitu.remote.server.store import Store
from insitu.remote.server.stream import Events, Reader

STREAMS_PER_USER = 64
STREAMS = 1_000


class Server:
    """A server's parts."""

    def __init__(
        self, folder: Folder, workers: Workers, limits: Limits, door: Door, trust: Trust = "self"
    ) -> None:
        self.door = door
        self.trust = trust
        self.folder = folder
        self.store = Store(folder.path / "jobs.sqlite")
        self.desk = Desk(self.store, folder, workers, limits)
        self.lazy = False
        """Whether models are loaded when first asked for, so that none has to be ready."""
        self.streams: set[Events] = set()
        self.started = False
        self._seen: set[str] = set()
        """Models that have been ready."""
        self._opening: asyncio.Task[None] | None = None
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None

    async def open(self) -> None:
        """Open the store, and begin to start the workers: `/livez` answers at once."""
        self.store.open(asyncio.get_running_loop())
        self._opening = asyncio.create_task(self._start(), name="insitu-start")

    async def _start(self) -> None:
        try:
            await self.desk.workers.start()
            await self.desk.open()
            self.started = True
        except Exception as error:  # told by who waits for `failed`
            self.failure = error
            self.failed.set()

    async def close(self, bound_s: float = 0.0) -> None:
        """End the jobs that run, the workers and the store. Once is enough."""
        if self._opening is None:
            return
        opening, self._opening = self._opening, None
        opening.cancel()
        await asyncio.wait([opening])
        await self.drain(bound_s)
        await self.desk.workers.stop()
        await asyncio.to_thread(self.store.close)

    async def drain(self, bound_s: float) -> None:
        """Let what runs end within a bound; nothing new is taken from now on."""
        await self.desk.close(bound_s)
        for stream in [*self.streams]:
            stream.closing.set()

    def ready(self) -> str:
        """Why the server is not ready, or nothing."""
        if not self.started:
            return "the workers are being started."
        if self.desk.draining:
            return "the server is being stopped."
        models = [] if self.lazy else self.models()
        self._seen.update(it.name for it in models if it.state == "ready")
        wanting = [it for it in models if self._is_wanting(it)]
        if models and not wanting and not self._seen:
            wanting = models
        return "" if not wanting else f"{wanting[0].name} is {wanting[0].state}."

    def _is_wanting(self, model: ModelState) -> bool:
        """One that was ready once and gave way to another is loaded again when it is asked for."""
        return model.state == "failed" or (
            model.state == "loading" and model.name not in self._seen
        )

    def models(self) -> list[ModelState]:
        """The models that jobs may name."""
        return self.desk.workers.models()

    def follow(self, job: str, after: int, reader: Reader) -> Events:
        """A stream of a job's events.

        Raises:
            Refusal: too many are open.
        """
        user = reader.user
        mine = sum(it.user == user for it in self.streams)
        if mine >= STREAMS_PER_USER or len(self.streams) >= STREAMS:
            raise Refusal(
                429,
                "too many streams of events are open.",
                f"A user may have {STREAMS_PER_USER}, a server {STREAMS}.",
                "Close those of jobs that nobody looks at.",
                {"Retry-After": "5"},
            )
        return Events(self.desk, job, after, self.streams, reader)

    def over(self, phase: str) -> bool:
        """Whether a phase is a last one."""
        return phase in ENDS
