"""A model whose modules compute in another process, without a server: `with apart(make) as model:`.

The other process is a fork, which serves one conversation. What it says at its end is looked at: a
refusal, and whether its model is as it was.
"""

import contextlib
import json
import os
import signal

import torch

from insitu.remote.worker import frames
from insitu.remote.worker.apart.bridge import Bridge
from insitu.remote.worker.apart.channel import Channel
from insitu.remote.worker.apart.conversation import Conversation
from insitu.remote.worker.apart.pristine import Pristine
from insitu.remote.worker.apart.shared import Segment
from insitu.remote.worker.apart.stops import Room

SIZE = 256 * 2**20


class There:
    """The other process: what it said at its end."""

    def __init__(self, pid, end):
        self._pid, self._end = pid, end
        self.refusal = self.pristine = None

    def kill(self):
        """End it, where it has not ended by itself."""
        if self.refusal is None:
            os.kill(self._pid, signal.SIGKILL)
            os.close(self._end)
            os.waitpid(self._pid, 0)

    def wait(self):
        said = os.read(self._end, 65536)
        assert said, "the process of the model died"
        os.close(self._end)
        _, status = os.waitpid(self._pid, 0)
        assert status == 0
        found = json.loads(said)
        self.refusal, self.pristine = found["refusal"], found["pristine"]


def started(there):
    """A process that holds a model: what it will say, the socket to it, and the memory of both."""
    ours, theirs = frames.control_pair()
    up, down = Segment.file(SIZE), Segment.file(SIZE)
    end, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            ours.close()
            root = there._module
            root.requires_grad_(False)
            before = weights_of(root)
            room = Room(root)
            kept = Pristine(root)
            channel = Channel(theirs.detach(), Segment(down), Segment(up))
            talk = Conversation(room, channel, kept.lasting)
            talk.run()
            pristine = kept.restore() and room.heard is None and not room.enters
            after = weights_of(root)
            pristine = pristine and all(torch.equal(after[name], before[name]) for name in before)
            os.write(told, json.dumps({"refusal": talk.refusal, "pristine": pristine}).encode())
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    os.close(told)
    return There(pid, end), ours.detach(), up, down


def weights_of(root):
    return {name: tensor.clone() for name, tensor in root.state_dict().items()}


@contextlib.contextmanager
def apart(make):
    """A model, made twice: the block's, and the one that computes."""
    here, there = make(), make()
    said, *files = started(there)
    bridge = Bridge(here._module)
    plain = {module: module.__dict__.get("forward") for module in here._module.modules()}
    bridge.connect(*files)
    try:
        yield here
        left = [m for m, forward in plain.items() if m.__dict__.get("forward") is not forward]
        assert not left
    finally:
        bridge.close()
        for module in plain:
            module.__dict__.pop("forward", None)
        said.wait()
    assert said.refusal == ""
    assert said.pristine
