"""Models that call their modules in another order than in the pass that was learned from."""

import pytest
import torch
from reference import outputs
from torch import nn

import insitu
from insitu import NNsight


class Turning(nn.Module):
    """Calls `b` after `a`; turned, within it, or before it by a method."""

    turned = ""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = Around(self), nn.Linear(4, 4)

    def forward(self, x):
        if self.turned == "by a method":
            return self.finished(self.b(x))
        x = self.a(x)
        return x if self.turned == "within" else self.b(x)

    def finished(self, x):
        return self.at_last(x)

    def at_last(self, x):
        return self.a(x)


class Around(nn.Module):
    def __init__(self, whole):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.__dict__["whole"] = whole

    def forward(self, x):
        x = self.inner(x)
        return self.whole.b(x) * 2 if self.whole.turned == "within" else x


class Rounds(nn.Module):
    """Goes round once, or oftener."""

    rounds, over = 1, False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.around, self.last = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 4)

    def forward(self, x):
        for _ in range(self.rounds):
            x = self.around(x)
        x = self.last(x)
        self.over = True
        return x


@pytest.fixture
def net():
    return Turning()


@pytest.fixture
def x():
    return torch.rand(1, 4)


def learned(net, x):
    model = NNsight(net)
    with model.trace(x):
        pass
    return model


def test_a_module_whose_call_is_under_way_can_still_be_read(net, x):
    model = learned(net, x)
    net.turned = "within"
    with model.trace(x):
        inner = model.a.inner.output
        late = model.b.output
        around = model.a.output
    assert torch.equal(inner, net.a.inner(x))
    assert torch.equal(late, net.b(inner))
    assert torch.equal(around, late * 2)


def test_a_module_that_a_method_calls_later_can_still_be_read(net, x):
    model = learned(net, x)
    net.turned = "by a method"
    with model.trace(x):
        early = model.b.output
        around = model.a.output
    assert torch.equal(early, net.b(x))
    assert torch.equal(around, net.a.inner(early))


def test_a_loop_over_calls_goes_on_after_the_one_call_that_was_learned(x):
    net = Rounds()
    model = learned(net, x)
    net.rounds = 3
    with model.trace(x) as tracer:
        model.around.output
        seen = [model.around[0].output for _ in tracer.iter[:]]
    calls = outputs(net, ["around.0"], x)["around.0"]
    assert len(seen) == 2
    assert all(map(torch.equal, seen, calls[1:]))


def test_a_loop_over_calls_that_come_no_more_is_an_order_error_at_once(x):
    net = Rounds()
    model = learned(net, x)
    net.over = False
    with pytest.raises(insitu.OutOfOrderError, match=r"around\.0\.output was asked for"):
        with model.trace(x) as tracer:
            model.last.output
            for _ in tracer.iter[:]:
                model.around[0].output
    assert not net.over


def test_what_has_passed_in_the_learned_order_and_comes_no_more_is_an_order_error(net, x):
    model = learned(net, x)
    with pytest.raises(insitu.OutOfOrderError, match=r"a\.output was asked for"):
        with model.trace(x):
            model.b.output
            model.a.output
