"""A model process as the pool sees it: started, spoken to, started again.

host = Host(settings, folder=None, changed=print)
await host.load()                                          # True: it takes jobs
host.submit(job)
await host.stop()
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from insitu.remote.protocol import Fault, ModelState, Progress
from insitu.remote.worker import frames
from insitu.remote.worker.running import Running
from insitu.remote.worker.specs import UNKNOWN, Settings, environment

LOAD_S = 3_600.0
"""A model may take an hour: it may have to come from the hub."""
_STOP_S = 1.0
_KILL_S = 1.0
"""After so long a job that does not end takes its model process with it."""


class Host:
    """One model's process.

    Args:
        folder: its working folder.
        changed: called when it is ready, has failed, is gone, or a job of it has ended.
    """

    def __init__(
        self, settings: Settings, folder: Path | None, changed: Callable[["Host"], None]
    ) -> None:
        self.settings = settings
        self.jobs: dict[str, Running] = {}
        self.used_at = 0.0
        self.state: str = "absent"
        self.fault: Fault | None = None
        self.bytes = 0
        self.weighs = 0
        """What its weights take in memory, or took when it was last there, or its files do."""
        self.is_leaving = False
        """Its place is wanted: it is given no more jobs."""
        self.died = False
        """It was ready, and is gone without having been told to."""
        self.was_killed = False
        """It ended while it opened the model, without having said why."""
        self._broken = False
        """Its device computes no more: it ends by itself, and takes no job before that."""
        self.progress: Progress | None = None
        """How far it is while it is loaded, as its process says."""
        self._about: dict[str, Any] = {}
        self._folder = folder
        self._changed = changed
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._loaded: asyncio.Future[bool] | None = None
        self._gone: asyncio.Event = asyncio.Event()
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._waits: set[asyncio.Task[Any]] = set()

    @property
    def model(self) -> ModelState:
        """As protocol says it."""
        spec = self.settings.spec
        about = {**self._about, **({"fault": self.fault.text} if self.fault else {})}
        return ModelState(
            spec.name,
            self.state,  # type: ignore[arg-type]
            spec.known_as,
            spec.kind or str(about.get("kind", UNKNOWN)),
            self.bytes,
            len(self.jobs),
            about,
        )

    @property
    def is_stopping(self) -> bool:
        """It is to end, and has not yet."""
        return (self._stopping or self._broken) and self._control is not None

    @property
    def pid(self) -> int | None:
        """Of its process."""
        return None if self._process is None else self._process.pid

    async def load(self) -> bool:
        """Wait until it is ready; False when the model cannot be opened, as `fault` says."""
        if self._loaded is None:
            await self._reaped()
            self._start()
        assert self._loaded is not None
        return await asyncio.shield(self._loaded)

    def _start(self) -> None:
        ours, theirs = frames.control_pair()
        command = [sys.executable, "-P", "-m", "insitu.remote.worker.model_process"]
        with theirs:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment(self.settings.trust),
                cwd=self._folder,
                start_new_session=True,
            )
        ours.setblocking(False)
        self._control = ours
        self.state, self.fault, self.died, self.was_killed = "loading", None, False, False
        self._stopping = self.is_leaving = self._broken = False
        self.progress = None
        self._gone.clear()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(LOAD_S, self._too_long, LOAD_S)
        self._loaded = loop.create_future()
        loop.add_reader(ours.fileno(), self._heard)
        frames.send_control(ours, self.settings.message())

    def submit(self, job: Running) -> None:
        """Give a job to the process.

        Raises:
            OSError: the process is gone, or the job's files cannot be opened.
        """
        if self._control is None:
            raise ConnectionResetError("the model's process is gone")
        fds = job.open()
        self.jobs[job.task.id] = job
        limits = asdict(job.task.limits)
        try:
            message = {"ask": "submit", "job": job.task.id, "limits": limits}
            frames.send_control(self._control, message, fds)
        except OSError:
            del self.jobs[job.task.id]
            raise
        finally:
            for fd in fds:
                os.close(fd)

    def kill(self, job: str) -> None:
        """End a job's process; the model's own, where it does not end or is the same."""
        if job not in self.jobs:
            return
        if self.settings.inline or self._control is None:
            self.destroy()
            return
        with contextlib.suppress(OSError):
            frames.send_control(self._control, {"ask": "kill", "job": job})
        loop = asyncio.get_running_loop()
        loop.call_later(_KILL_S, lambda: self.destroy() if job in self.jobs else None)

    def destroy(self) -> None:
        """Kill the process and, through it, its jobs'."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """End the process and wait until it is gone."""
        self._stopping = True
        if self._control is not None:
            with contextlib.suppress(OSError):
                frames.send_control(self._control, {"ask": "stop"})
            if self.state == "loading":
                self.destroy()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), _STOP_S)
            self.destroy()
            await self._gone.wait()
        await self._reaped()

    async def _reaped(self) -> None:
        while self._waits:
            await asyncio.wait(self._waits)

    # What the process says -----------------------------------------------------------------------

    def _heard(self) -> None:
        assert self._control is not None
        try:
            got = frames.receive_control(self._control)
        except BlockingIOError:
            return
        except OSError:
            got = None
        if got is None:
            self._lost()
            return
        message = got[0]
        if message["said"] == "progress":
            del message["said"]
            self.progress = Progress(**message)
            return
        if message["said"] == "exit":
            job = self.jobs.pop(message["job"], None)
            if job is not None:
                job.exited(message["code"], message["reason"])
        elif message["said"] == "ready":
            self.state, self.bytes, self._about = "ready", message["bytes"], message["about"]
            self.weighs = self.bytes
            self._answer(True)
        elif message["said"] == "failed":
            self.state, self.fault = "failed", Fault(message["kind"], message["text"])
            self._answer(False)
        elif message["said"] == "broken":
            self._broken = True
        self._changed(self)

    def _too_long(self, time_s: float) -> None:
        if self.state == "loading":
            self.fault = Fault(
                "TimeoutError",
                f"{self.settings.spec.name} was not loaded within {time_s:g} s.\n"
                "Why: its process neither has it by now nor says why not.\n"
                "Next: look at the server's log; a download goes on where it was when a job asks.",
            )
            self.destroy()

    def _answer(self, good: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(good)

    def _lost(self) -> None:
        """The control socket has ended, and so has the process, or it will now."""
        assert self._control is not None
        assert self._process is not None
        asyncio.get_running_loop().remove_reader(self._control.fileno())
        self._control.close()
        self._control = None
        self.destroy()
        waiting = asyncio.ensure_future(asyncio.to_thread(self._process.wait))
        self._waits.add(waiting)
        waiting.add_done_callback(self._waits.discard)
        if self.state == "loading" and self.fault is None:
            why = "its process ended while it opened the model; the server's log may say more."
            self.fault = Fault("RuntimeError", f"{self.settings.spec.name} cannot be loaded: {why}")
            self.was_killed = not self._stopping
        self.died = self.state == "ready" and not self._stopping
        self.state = "failed" if self.fault else "absent"
        self._answer(False)
        self._loaded = None
        self.bytes = 0
        jobs, self.jobs = self.jobs, {}
        for job in jobs.values():
            why = f"the process of the model {self.settings.spec.name!r} ended while it ran"
            job.lost(why, by_another=self._broken)
        self._gone.set()
        self._changed(self)
