"""Jobs in the model process itself, one after another: for models on a GPU, and trust `self` only.

A CUDA context does not survive a fork. Cancelling such a job ends the whole model process, which
is then started again; edits of weights that a block makes stay for the next one. What a block may
hold is bounded by the kernel, as in a jail; memory of the GPU's is not. `apart` is the other way: a
job without a device, beside a process that has it.
"""

import contextlib
import os
import resource
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace

from insitu.remote.worker import device_health, frames, job_process
from insitu.remote.worker.jail import bound_memory


def serve(control: socket.socket, setup: job_process.Setup) -> None:
    """Until the pool says stop, is gone, or the device computes no more."""
    devices = {it.device for it in setup.model._module.parameters()}
    works = True

    def look() -> None:  # before a job says how it ended: the next one comes at once then
        nonlocal works
        works = all(map(device_health.works, devices))
        if not works:
            frames.send_control(control, {"said": "broken"})

    setup = replace(setup, before_end=look)
    while (got := frames.receive_control(control, 3)) is not None and got[0]["ask"] != "stop":
        message, fds = got
        if message["ask"] != "submit":
            continue
        with _bounded(message["limits"]["memory_bytes"]):
            code = job_process.run(message, tuple(fds), setup)
        os.close(fds[0])
        if not works:
            return
        said = {"said": "exit", "job": message["job"], "code": code, "reason": ""}
        frames.send_control(control, said)


@contextlib.contextmanager
def _bounded(memory_bytes: int) -> Iterator[None]:
    """While a job runs, this process holds so much more than before it, and no more."""
    if sys.platform != "linux":
        yield
        return
    before = bound_memory(memory_bytes)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
