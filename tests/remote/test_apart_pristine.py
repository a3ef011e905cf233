"""A model after a job is the model before it: attributes, containers, hooks; or it is told."""

import torch
from torch import nn

from insitu.remote.worker.apart.pristine import Pristine
from insitu.remote.worker.apart.stops import Room


class Keeping(nn.Module):
    """A module that keeps things in itself while it runs."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.longest = 4
        self.seen = [1]
        self.by_name = {"a": 1}
        self.register_buffer("positions", torch.arange(4))
        self.table = torch.ones(3)

    def forward(self, x):
        self.longest = len(x)
        self.seen.append(x)
        self.by_name["b"] = x
        self.last = x
        self.positions = torch.arange(len(x))
        return self.inner(x)


def test_what_a_forward_leaves_in_its_modules_is_gone():
    module = Keeping()
    before = Pristine(module)
    own = {name: value for name, value in module.__dict__.items() if name != "_buffers"}
    positions = module.positions
    module(torch.ones(9, 2))
    module.inner.register_forward_hook(print)
    module.inner.training = False
    assert before.restore()
    assert {name: value for name, value in module.__dict__.items() if name != "_buffers"} == own
    assert module.positions is positions
    assert (module.seen, module.by_name, module.longest) == ([1], {"a": 1}, 4)
    assert not module.inner._forward_hooks
    assert module.inner.training


def test_a_weight_that_was_put_in_for_a_job_is_taken_out():
    module = Keeping()
    weight = module.inner.weight
    before = Pristine(module)
    module.inner._parameters["weight"] = nn.Parameter(torch.zeros(2, 2))
    assert before.restore()
    assert module.inner.weight is weight


def test_changed_tensors_are_told_of():
    for change in (
        lambda module: module.inner.weight.add_(1),
        lambda module: module.positions.zero_(),
        lambda module: module.table.mul_(2),
    ):
        module = Keeping().requires_grad_(False)
        before = Pristine(module)
        assert before.restore()
        change(module)
        assert not before.restore()


def test_the_memory_of_a_model_is_known():
    module = Keeping()
    held = {it.data_ptr() for it in (module.inner.weight, module.positions, module.table)}
    assert held <= Pristine(module).lasting


def test_a_room_takes_calls_to_whoever_listens_and_to_nobody_else():
    class Listener:
        def call(self, number, forward, args, kwargs):
            return number, forward(*args, **kwargs)

        def left(self, number, args, kwargs, output):
            return "left", number, output

    module = nn.Sequential(nn.Identity(), nn.Identity())
    room = Room(module)
    assert room.paths == ["", "0", "1"]
    assert module(3) == 3
    room.heard, room.enters = Listener(), {1}
    assert module(3) == (1, 3)
    room.enters, room.exits = set(), {2}
    assert module(3) == ("left", 2, 3)
    room.empty()
    assert module(3) == 3
