"""Ray: the one file that imports it, and the process that it is in.

    python -m insitu.remote.worker.ray_cluster 7 /tmp/insitu-ray-x
    # 7: the socket of the server that started it

It is a process of its own, because Ray ends the process that speaks to it when the head of its
cluster is gone for good. The server lives on and starts another.

Plain actors, not deployments of Ray Serve, of which was found (Ray 2.60):
- A handle of Serve's goes through generators, and those do not work through `ray://` (Ray's issue
  43357, closed as what will not be fixed).
- It chooses a replica for each call; `cancel` and `answer` have to reach the one with the job.
- Queue, admission and retries are ours already; what is left of Serve is to start a replica again.
"""

import asyncio
import contextlib
import importlib
import os
import queue
import shutil
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from insitu.remote.worker.ray_link import Link, Lost
from insitu.remote.worker.ray_messages import Head, Line
from insitu.remote.worker.ray_replica import Replica

OBJECTS_BYTES = 512 * 2**20
"""What a head of our own keeps in shared memory; more goes to its disk."""
LOOK_S = 2.0
HEAD_S = 15.0
"""A head that does not answer for so long is gone."""
LEAVE_S = 8.0


class RayHandle:
    """A replica as Ray's actor."""

    def __init__(self, actor: Any, ray: Any) -> None:
        self._actor = actor
        self._ray = ray

    def call(self, name: str, *args: Any) -> Awaitable[Any]:
        """Call a method of it."""
        return self._called(name, args)

    async def _called(self, name: str, args: tuple[Any, ...]) -> Any:
        errors = self._ray.exceptions
        try:
            return await _answer(getattr(self._actor, name).remote(*args))
        except errors.RayTaskError:
            raise
        except (errors.RayError, ConnectionError) as error:
            raise Lost(str(error).strip().splitlines()[0]) from error

    def kill(self) -> None:
        """End it; in a thread, for a head that is gone lets everybody wait."""
        threading.Thread(target=self._kill, daemon=True).start()

    def _kill(self) -> None:
        with contextlib.suppress(Exception):  # it is gone already, or the whole cluster is
            self._ray.kill(self._actor)


async def _answer(ref: Any) -> Any:
    """What a call gives; who stops waiting leaves Ray's own future alone: it trips over it."""
    loop = asyncio.get_running_loop()
    answer = loop.create_future()

    def take(done: Any) -> None:
        if answer.done():
            return
        if (error := done.exception()) is not None:
            answer.set_exception(error)
        else:
            answer.set_result(done.result())

    def tell(done: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(take, done)

    ref.future().add_done_callback(tell)
    return await answer


class RayCluster:
    """A cluster that exists, or a head of our own on loopback.

    Args:
        address: `auto`, `host:port` or `ray://host:port`; empty for a head of our own.
        folder: where that keeps its files.
        replicas: how many there will be.
    """

    def __init__(self, address: str, folder: str, replicas: int) -> None:
        self._ray: Any = importlib.import_module("ray")
        more: dict[str, Any] = {"address": address}
        if not address:
            self._keep_to_loopback()
            more = {
                "address": "local",
                "num_cpus": replicas,
                "include_dashboard": False,
                "object_store_memory": OBJECTS_BYTES,
                "_temp_dir": folder,
                "_node_ip_address": "127.0.0.1",
            }
        self._ray.init(log_to_driver=False, logging_level="ERROR", **more)
        gpus = self._ray.cluster_resources().get("GPU", 0)
        self.has_gpus = gpus > 0
        self._gpus = 1.0 if address else min(1.0, gpus / replicas // 1e-4 * 1e-4)
        self._on_gpu = False
        self._leaving = False

    def _keep_to_loopback(self) -> None:
        """Let Ray listen on loopback alone; it would take the address that others reach."""
        services: Any = importlib.import_module("ray._private.services")
        services.resolve_ip_for_localhost = lambda host: host

    def device(self, asked: str) -> str:
        """Where models go: Ray shows each replica its own GPU as the first."""
        asked = "cuda" if asked == "auto" and self.has_gpus else asked
        self._on_gpu = asked.startswith("cuda")
        return "cuda" if self._on_gpu else asked.replace("auto", "cpu")

    def place(self, settings: bytes) -> RayHandle:
        """A new replica."""
        kind = self._ray.remote(Replica).options(
            num_cpus=1,
            num_gpus=self._gpus if self._on_gpu else 0,
            max_restarts=0,
            max_concurrency=1000,
            scheduling_strategy="SPREAD",
        )
        return RayHandle(kind.remote(settings), self._ray)

    def watch(self, gone: Callable[[], None]) -> None:
        """Call `gone` when the head does not answer any more.

        From threads: what is asked of a head that is gone may wait for ever, in the loop as well.
        """
        threading.Thread(target=self._watch, args=(gone,), daemon=True).start()

    def _watch(self, gone: Callable[[], None]) -> None:
        good = True
        while good:
            time.sleep(LOOK_S)
            answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
            threading.Thread(target=self._look, args=(answers,), daemon=True).start()
            try:
                good = answers.get(timeout=HEAD_S)
            except queue.Empty:
                good = False
        if not self._leaving:
            gone()

    def _look(self, answers: "queue.SimpleQueue[bool]") -> None:
        try:
            answers.put(any(it["Alive"] for it in self._ray.nodes()))
        except Exception:  # whatever it raises, it does not answer
            answers.put(False)

    def close(self) -> None:
        """Leave the cluster; end a head of our own."""
        self._leaving = True
        self._ray.shutdown()


async def main(end: socket.socket, folder: str) -> "RayCluster | None":
    """Join a cluster, or start a head, and link the server to it until one of them is gone."""
    line = await Line.over(end)
    heard = await line.heard()
    if heard is None:
        return None
    said = heard[0]
    try:  # here and not in a thread: a head of our own dies with the thread that started it
        cluster = RayCluster(said["address"], folder, said["replicas"] * len(said["models"]))
    except Exception as error:  # Ray raises whatever came up
        await _tell_failed(line, str(error).strip() or repr(error))
        return None
    cluster.watch(lambda: _end(folder))
    await _linked(line, cluster, said)
    return cluster


async def _linked(line: Line, cluster: RayCluster, said: Head) -> None:
    device = cluster.device(said["device"])
    models = [{**it, "device": device} for it in said["models"]]
    link = Link(line, cluster, models, replicas=said["replicas"], lazy=said["lazy"])
    await link.serve()


async def _tell_failed(line: Line, why: str) -> None:
    line.send({"do": "failed", "why": why.splitlines()[0]})
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(1):
            await line.drained()


def _leave(cluster: RayCluster | None, folder: str) -> None:
    """End what is ours; Ray itself may hang over a head that is gone."""
    if cluster is not None:
        leaving = threading.Thread(target=cluster.close, daemon=True)
        leaving.start()
        leaving.join(LEAVE_S)
    shutil.rmtree(folder, ignore_errors=True)


def _end(folder: str) -> NoReturn:
    """End this process now, and with it a head of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _run() -> NoReturn:
    number, folder = sys.argv[1:]
    cluster = None
    try:
        cluster = asyncio.run(main(socket.socket(fileno=int(number)), folder))
    finally:
        _leave(cluster, folder)
        sys.stderr.flush()
        os._exit(0)  # threads of Ray's may still wait for an answer


if __name__ == "__main__":
    _run()
