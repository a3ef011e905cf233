"""torch's thread-local modes stay on the side of the coroutine that set them."""

import contextvars

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from insitu import NNsight


class Functions(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Dispatches(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


MODES = {
    "none": lambda: torch.enable_grad(),
    "no_grad": lambda: torch.no_grad(),
    "inference": lambda: torch.inference_mode(),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "function": Functions,
    "dispatch": Dispatches,
    "device": lambda: torch.device("meta"),
}


def state():
    """The thread's modes, as comparable values."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None,
        torch._C._len_torch_function_stack(),
        torch._C._len_torch_dispatch_stack(),
        torch.empty(0).device.type,
    )


class Watched(nn.Module):
    """Notes the modes it runs in, before, inside and after a mode of its own."""

    def __init__(self, mode="none"):
        super().__init__()
        self.before, self.inside, self.after = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.mode = MODES[mode]
        self.seen = []

    def forward(self, x):
        self.seen.append(state())
        x = self.before(x)
        self.seen.append(state())
        with self.mode():
            self.seen.append(state())
            self.inside(x.detach())
            self.seen.append(state())
        self.seen.append(state())
        x = self.after(x)
        self.seen.append(state())
        return x


def alone(net, x):
    """What the model sees of the modes when nobody looks in."""
    net.seen = []
    net(x)
    seen, net.seen = net.seen, []
    return seen


@pytest.mark.parametrize("theirs", MODES)
@pytest.mark.parametrize("mine", MODES)
def test_a_mode_of_the_block_and_one_of_the_model_do_not_meet(mine, theirs):
    net, x = Watched(theirs), torch.ones(1, 3)
    model = NNsight(net)
    expected, around = alone(net, x), state()
    for _ in range(2):
        with model.trace(x):
            with MODES[mine]():
                own = state()
                model.before.output
                assert state() == own
                model.inside.input
                assert state() == own
            assert state() == around
            model.inside.output
            assert state() == around
            with MODES[mine]():
                model.after.output
                assert state() == own
        assert state() == around
        assert net.seen == expected
        net.seen = []


@pytest.mark.parametrize("around", MODES)
@pytest.mark.parametrize("mine", ["none", "no_grad", "inference", "autocast", "function"])
def test_a_trace_inside_a_mode_runs_the_model_in_it(around, mine):
    net = Watched("no_grad")
    model = NNsight(net)
    outside = state()
    with MODES[around]():
        x = torch.ones(1, 3, device="cpu")
        here, expected = state(), alone(net, x)
        for _ in range(2):
            with model.trace(x):
                with MODES[mine]():
                    own = state()
                    model.before.output
                    model.inside.output
                    assert state() == own
                assert state() == here
            assert net.seen == expected
            net.seen = []
        assert state() == here
    assert state() == outside


@pytest.mark.parametrize("theirs", MODES)
def test_leaving_in_the_middle_of_the_models_mode_restores_the_blocks(theirs):
    net, x, before = Watched(theirs), torch.ones(1, 3), state()
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x) as tracer:
            model.inside.output
            tracer.stop()
        assert state() == before
        with pytest.raises(ZeroDivisionError), model.trace(x):
            model.inside.output
            1 / 0
        assert state() == before
        run = model.open(x).until("inside")
        assert state() == before
        run.close()
        assert state() == before


@pytest.mark.parametrize("mine", MODES)
def test_an_error_while_the_block_is_in_a_mode_restores_all(mine):
    net, x, before = Watched("no_grad"), torch.ones(1, 3), state()
    with pytest.raises(ZeroDivisionError), NNsight(net).trace(x), MODES[mine]():
        net_model = NNsight(net)
        with net_model.trace(torch.ones(1, 3, device="cpu")):
            net_model.inside.output
            1 / 0
    assert state() == before


def test_gradients_flow_although_the_block_reads_without_them():
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model, x = NNsight(net), torch.ones(1, 3)
    with model.trace(x):
        with torch.no_grad():
            hidden = model[0].output
            doubled = hidden * 2
            model[1].output
        out = model.output
    assert hidden.requires_grad
    assert not doubled.requires_grad
    assert out.requires_grad
    with model.trace(x):
        with torch.inference_mode():
            model[0].output
        assert model.output.requires_grad


def test_values_made_in_inference_mode_around_a_trace_are_inference_tensors():
    model = NNsight(nn.Linear(3, 3))
    with torch.inference_mode(), model.trace(torch.ones(1, 3)):
        out = model.output
    assert out.is_inference()
    with model.trace(torch.ones(1, 3)):
        assert not model.output.is_inference()


def test_a_mode_of_the_block_sees_only_the_blocks_operations():
    class Counting(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    model, counting = NNsight(nn.Linear(3, 3)), Counting()
    with model.trace(torch.ones(1, 3)), counting:
        out = model.output
        after_the_model = counting.count
        out + 1
    assert after_the_model == 0
    assert counting.count == 1


# contextvars (trap 4) -------------------------------------------------------------------------

setting: contextvars.ContextVar[str] = contextvars.ContextVar("setting", default="unset")


class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.seen = []

    def forward(self, x):
        self.seen.append(setting.get())
        setting.set("the model's")
        x = self.inner(x)
        self.seen.append(setting.get())
        return x


def test_the_model_sees_a_copy_of_the_callers_context():
    net = Reads()
    model = NNsight(net)
    token = setting.set("the caller's")
    for _ in range(2):
        with model.trace(torch.ones(1, 3)):
            model.inner.output
            assert setting.get() == "the caller's"
            setting.set("changed meanwhile")
            model.output
            assert setting.get() == "changed meanwhile"
        assert setting.get() == "changed meanwhile"
        setting.set("the caller's")
    setting.reset(token)
    assert net.seen == ["the caller's", "the model's"] * 2


def test_function_modes_that_are_switched_off_at_a_stop_are_the_models_afterwards():
    class Seen(TorchFunctionMode):
        names = ()

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.names += (getattr(func, "__name__", ""),)
            return func(*args, **(kwargs or {}))

    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    model, x = NNsight(net), torch.ones(1, 2)
    for _ in range(3):
        with Seen() as seen, model.trace(x):
            with torch._C.DisableTorchFunction():
                model[0].output
                model[1].output
            seen.names = ()
            model[2].output
        assert "linear" in seen.names
