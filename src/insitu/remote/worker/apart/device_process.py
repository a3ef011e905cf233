"""The process that holds a model on its device and computes; no code of a user's ever runs here.

    python -m insitu.remote.worker.apart.device_process 7      # 7: the control socket

It is started by a model process, which forks the jobs: a process that has used CUDA can neither be
forked, nor safely be shared with a block. Jobs come one after another as sockets with two pieces of
shared memory. What one has sent that it may not is told, and the process goes on.
"""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
from typing import Any, NoReturn

import torch

from insitu.remote.worker import device_health, frames, job_process, loading, opening
from insitu.remote.worker.apart.channel import Channel
from insitu.remote.worker.apart.conversation import Conversation
from insitu.remote.worker.apart.pristine import Pristine
from insitu.remote.worker.apart.shared import Segment
from insitu.remote.worker.apart.stops import Room
from insitu.remote.worker.jail import bound_memory
from insitu.remote.worker.specs import Settings, read_settings

_SET_PDEATHSIG = 1


def serve(control: socket.socket, room: Room, before: Pristine) -> None:
    """Take jobs until the model process is gone, or the model cannot be used any more."""
    lasting = before.lasting
    while (got := frames.receive_control(control, 3)) is not None:
        message, fds = got
        job, mine, theirs = fds
        channel = Channel(job, Segment(mine), Segment(theirs))
        torch.manual_seed(job_process.SEED)
        bound_memory(message["memory_bytes"])
        talk = Conversation(room, channel, lasting)
        talk.run()
        channel.close()
        refusal, lacked_memory = talk.refusal, talk.lacked_memory
        del talk, channel
        if refusal:
            said = {"said": "refused", "job": message["job"], "why": refusal}
            frames.send_control(control, {**said, "of_memory": lacked_memory})
        if not before.restore() or not device_health.works(room.device):
            frames.send_control(control, {"said": "broken"})
            return
        frames.send_control(control, {"said": "free", "job": message["job"]})


def opened(settings: Settings, tell: loading.Tell) -> tuple[Room, Pristine, dict[str, Any]]:
    """The model on its device, ready to be spoken to, and what is told of it."""
    torch.set_num_threads(settings.threads)
    with loading.told(tell):
        model = opening.opened(settings.spec, settings.device)
    about = {"bytes": opening.size_bytes(model), "about": opening.about(model)}
    about["tree"] = opening.tree(model)
    root = model._module
    root.requires_grad_(False)
    room = Room(root)
    return room, Pristine(root), about


def main(control: socket.socket) -> None:
    """Open the model that the first message names, then serve."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    first = frames.receive_control(control)
    if first is None:
        return
    try:
        room, before, about = opened(read_settings(first[0]), loading.over(control))
    except Exception as error:  # it has no one else to tell
        fault = job_process.fault_of(error)
        said = {"said": "failed", "kind": fault.kind, "text": fault.text[:8000]}
        frames.send_control(control, said)
        return
    gc.collect()
    gc.freeze()
    frames.send_control(control, {"said": "ready", **about})
    serve(control, room, before)


def _run() -> NoReturn:
    control = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the model process is gone
        main(control)
    os._exit(0)  # nothing here needs torch's slow goodbye


if __name__ == "__main__":
    _run()
