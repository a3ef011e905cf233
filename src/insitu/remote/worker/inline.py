"""Jobs in the model process itself, one after another: for models on a GPU, and trust `self` only.

A CUDA context does not survive a fork. Cancelling such a job ends the whole model process, which
is then started again; edits of weights that a block makes stay for the next one. `apart` is the
other way: a job without a device, beside a process that has it.
"""

import os
import socket

from insitu.remote.worker import frames, job_process


def serve(control: socket.socket, setup: job_process.Setup) -> None:
    """Until the pool says stop, or is gone."""
    while (got := frames.receive_control(control, 3)) is not None and got[0]["ask"] != "stop":
        message, fds = got
        if message["ask"] != "submit":
            continue
        code = job_process.run(message, tuple(fds), setup)
        os.close(fds[0])
        said = {"said": "exit", "job": message["job"], "code": code, "reason": ""}
        frames.send_control(control, said)
