"""`insitu serve MODEL…`: one process that takes jobs, until it is told to stop.

SIGTERM or Ctrl-C: no more jobs are taken, those that run end, those that wait are kept. Again: now.
"""

import argparse
import asyncio
import contextlib
import fcntl
import importlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from insitu.errors import MissingPackageError, ServerError, UsageError
from insitu.remote.loopback import is_loopback
from insitu.remote.protocol import Limits, Workers
from insitu.remote.server import patience, private
from insitu.remote.server.app import application
from insitu.remote.server.callers import Door
from insitu.remote.server.files import Folder
from insitu.remote.server.keys import Keys, digest
from insitu.remote.server.logs import to_stderr
from insitu.remote.server.memory import keep_freed
from insitu.remote.server.options import data_folder
from insitu.remote.server.state import Server

log = logging.getLogger("insitu")

FILES = 65_536
"""Descriptors that are asked for: a connection is one."""
AT_ONCE_S = 2.0


@dataclass
class Stop:
    """How often it was asked to stop."""

    asked: asyncio.Event
    at_once: asyncio.Event

    def ask(self) -> None:
        """A signal has come."""
        (self.at_once if self.asked.is_set() else self.asked).set()


def run(
    options: argparse.Namespace, workers: Workers | None = None, limits: Limits | None = None
) -> int:
    """Serve until told to stop; the exit status.

    Args:
        options: as `insitu.remote.server.options` reads them.
        workers: where jobs run, instead of processes on this machine.
        limits: other ones than the usual.

    Raises:
        ServerError: the port or the folder is taken, or trust and keys do not fit.
    """
    base = data_folder(options.data)
    with _port(options.host, options.port) as listener, contextlib.ExitStack() as held:
        host, port = listener.getsockname()[:2]
        folder = Folder(
            base if options.data else base / f"server-{port}", keep_s=options.keep * 86_400
        )
        held.enter_context(_owned(folder.path))
        keys = Keys(base / "keys.sqlite")
        held.callback(keys.close)
        door = _door(options, keys, host)
        limits = limits or Limits()
        if not door.locked:  # one user: the queue is theirs
            limits = replace(limits, queue_per_user=limits.queue)
        workers = workers or _workers(options, folder.path)
        server = Server(folder, workers, limits, door, options.trust)
        server.lazy = not options.preload
        held.enter_context(to_stderr(options.json_logs))
        _more_files()
        keep_freed()
        _introduce(options, door, f"http://{_shown(host)}:{port}")
        return _served(server, listener, options.drain)


def _served(server: Server, listener: socket.socket, drain_s: float) -> int:
    uvloop: Any = importlib.import_module("uvloop") if find_spec("uvloop") else asyncio
    before = {it: signal.getsignal(it) for it in (signal.SIGTERM, signal.SIGINT)}
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(server, listener, drain_s))
    finally:
        for it, handler in before.items():
            signal.signal(it, handler)


async def _serve(server: Server, listener: socket.socket, drain_s: float) -> int:
    http = patience.Quiet(application(server))
    stop = Stop(asyncio.Event(), asyncio.Event())
    loop = asyncio.get_running_loop()
    for it in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(it, stop.ask)
    serving = asyncio.create_task(http.serve([listener]))
    waits = [asyncio.create_task(it.wait()) for it in (stop.asked, server.failed)]
    ready = asyncio.create_task(_say_ready(server))
    try:
        await asyncio.wait([serving, *waits], return_when=asyncio.FIRST_COMPLETED)
        if server.failure is None and not serving.done():
            await _drained(server, stop, drain_s)
        at_once = stop.at_once.is_set()
        http.should_exit, http.force_exit = True, at_once
        if at_once:
            await asyncio.wait([asyncio.ensure_future(server.close())], timeout=AT_ONCE_S)
        await serving
    finally:
        for task in (*waits, ready):
            task.cancel()
    await server.close()
    if server.failure is not None:
        raise server.failure
    return 1 if at_once else 0


async def _drained(server: Server, stop: Stop, drain_s: float) -> None:
    """Let jobs end within the bound, or until it is asked again."""
    running = sum(it.began_here is not None for it in server.desk.live.values())
    log.info("stopping: %d running, %d wait and are kept", running, len(server.desk.line))
    draining = asyncio.create_task(server.drain(drain_s))
    at_once = asyncio.create_task(stop.at_once.wait())
    await asyncio.wait([draining, at_once], return_when=asyncio.FIRST_COMPLETED)
    for task in (draining, at_once):
        task.cancel()
    await asyncio.wait([draining, at_once])


async def _say_ready(server: Server) -> None:
    while server.ready():
        await asyncio.sleep(0.1)
    log.info("ready: %s", ", ".join(it.name for it in server.models()))


# what it needs ---------------------------------------------------------------------------------


def _workers(options: argparse.Namespace, folder: Path) -> Workers:
    """Where jobs run.

    Raises:
        MissingPackageError: Ray was asked for, and is not installed.
        UsageError: what belongs to Ray was asked for without it.
    """
    if options.backend == "ray":
        return _ray(options)
    if options.address or options.replicas > 1:
        raise UsageError(
            "--address and --replicas are for models on Ray.",
            "Without --backend ray every model is one process of this machine.",
            "Add --backend ray, or leave them out.",
        )
    return _pool(options, folder)


def _ray(options: argparse.Namespace) -> Workers:
    if find_spec("ray") is None:
        raise MissingPackageError(
            "the package ray is not installed.",
            "insitu serve --backend ray puts the models on a Ray cluster; nothing else needs it.",
            'Install it: pip install "insitu[ray]".',
        )
    ray_workers = importlib.import_module("insitu.remote.worker.ray_workers")
    found: Workers = ray_workers.RayWorkers(
        options.models,
        address=options.address,
        replicas=options.replicas,
        trust=options.trust,
        device=options.device,
        threads=options.threads,
        preload=options.preload,
        apart=options.apart,
    )
    return found


def _pool(options: argparse.Namespace, folder: Path) -> Workers:
    pool = importlib.import_module("insitu.remote.worker.pool")
    devices = importlib.import_module("insitu.remote.worker.devices")
    found: Workers = pool.Pool(
        options.models,
        trust=options.trust,
        device=devices.auto() if options.device == "auto" else options.device,
        threads=options.threads,
        folder=folder,
        preload=options.preload,
        apart=options.apart,
    )
    return found


def _door(options: argparse.Namespace, keys: Keys, host: str) -> Door:
    """How callers are known.

    Raises:
        UsageError: everybody could come in.
    """
    given = digest(options.key) if options.key else ""
    if options.key and len(options.key) < 16:
        raise UsageError(
            "the key of --key is too short.",
            "A key of less than 16 characters can be guessed.",
            "insitu keys add NAME makes one of 32 random bytes.",
        )
    is_open = options.trust == "self" and not given
    if is_open and is_loopback(host):
        return Door()
    if not given and not keys.any():
        asks = f"at {host}" if is_open else f"with --trust {options.trust}"
        raise UsageError(
            f"a server {asks} asks for keys, and there are none.",
            f"Others than you can reach it, and {keys.path} has no key that opens anything.",
            "insitu keys add NAME makes one; --data names the same folder for both.",
        )
    return Door(keys=keys, given=given)


@contextlib.contextmanager
def _port(host: str, port: int) -> Iterator[socket.socket]:
    try:
        found = patience.listening(host, port)
    except (OSError, OverflowError) as error:
        raise ServerError(
            f"the server cannot listen at {host}:{port}.",
            f"The system says: {getattr(error, 'strerror', None) or error}.",
            "Stop what listens there, or choose another --port (0 is a free one) or --host.",
        ) from error
    with found:
        yield found


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a data folder, so that no second server runs the same jobs."""
    with private.opened(folder / "lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServerError(
                f"another server uses the folder {folder}.",
                "Two servers would run the same jobs.",
                "Stop the other one, or name another folder with --data.",
            ) from error
        lock.write(f"{os.getpid()}\n".encode())
        lock.flush()
        yield


def _more_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


# what it says ----------------------------------------------------------------------------------


def _introduce(options: argparse.Namespace, door: Door, url: str) -> None:
    lines = [
        _says(options.trust),
        _says_of_ray(options),
        f"Serving {', '.join(options.models)} at {url} (Ctrl-C stops). In a notebook:",
        f'  insitu.CONFIG.API.HOST = "{url}"; insitu.CONFIG.set_default_api_key("…")'
        if door.locked
        else "",
        f'  with model.trace("…", remote="{url}"):',
    ]
    text = "\n".join(line for line in lines if line)
    print(text, flush=True, file=sys.stderr if options.json_logs else sys.stdout)


def _says(trust: str) -> str:
    """What a trust mode stops and what it does not."""
    try:
        jail = importlib.import_module("insitu.remote.worker.jail")
    except ModuleNotFoundError:
        return f"Trust: {trust}."
    return str(jail.says(trust))


def _says_of_ray(options: argparse.Namespace) -> str:
    """Where the models are, when that is not here."""
    if options.backend != "ray":
        return ""
    where = f"the Ray cluster at {options.address}" if options.address else "a Ray of its own"
    text = f"Models: {options.replicas} of each on {where}."
    if options.address:  # its own head listens on loopback alone, and asks for a token
        text += " Whoever reaches that cluster can run anything on its nodes."
    return text


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # everywhere: by the name that others know
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
