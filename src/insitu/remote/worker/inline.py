"""Jobs in the model process itself, one after another: for models on a GPU, and trust `self` only.

A CUDA context does not survive a fork. Cancelling such a job ends the whole model process, which
is then started again; edits of weights that a block makes stay for the next one.

The seam for jailed GPU jobs: a job process without a device, forked from a process that has the
model's modules on `meta`, runs the block; at each site it waits for, the model process hands it the
value through shared memory and takes the new value back (1 MB: 19 µs in place). `serve` would
then start such a process where it calls `job_process.run` now; nothing above it changes, since
control messages, frames and files stay the same. CUDA IPC handles are never handed to a job.
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
