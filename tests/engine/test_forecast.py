"""A forecast tells a cache's bytes without running the model, and leaves the model as it was."""

import pytest
import torch
from torch import nn

import insitu
from insitu import NNsight
from insitu.engine.cache.forecast import forecast, may_be_forecast
from insitu.engine.cache.globs import chosen
from insitu.engine.cache.record import Plan


def of(net, *args, modules=None, plan=None):
    return forecast(net, lambda: net(*args), chosen(NNsight(net), modules), plan)


def test_a_forecast_tells_bytes_in_all_and_by_module(net, x):
    told = of(net, x)
    assert told.size_bytes == (10 + 2) * 4
    assert told.modules == {"model": 8, "model.layer1": 40, "model.layer2": 8}
    assert repr(told).startswith("Forecast of a cache: 3 modules, 48 B\n")
    assert told.largest.startswith("model.layer1 40 B")
    assert of(net, x, modules="layer1", plan=Plan(dtype=torch.bfloat16)).size_bytes == 20


def test_a_model_larger_than_memory_is_forecast():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(10**6, 10**6), nn.Linear(10**6, 10))
    told = of(net, torch.empty(1000, 10**6, device="meta"))
    assert told.modules["model.0"] == 4 * 10**9
    assert "4 GB" in repr(told)


class Remembers(nn.Module):
    """Keeps what it saw, in every place a module can."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.seen, self.by_name, self.last = [], {}, None
        self.norm = nn.BatchNorm1d(5)

    def forward(self, x):
        self.count += 1
        self.last = x * 2
        self.more = x
        self.seen.append(self.last)
        self.by_name["x"] = x
        self.register_buffer("mask", torch.ones(3))
        return self.norm(torch.nn.functional.dropout(x))


def test_a_forecast_leaves_the_model_as_it_was(x):
    net = Remembers()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    inside, random = dict(net.__dict__), torch.random.get_rng_state()
    told = of(net, x.expand(3, 5))
    assert told.size_bytes == 2 * 3 * 5 * 4 - 3 * 5 * 4
    assert net.__dict__ == inside
    assert (net.seen, net.by_name, net.last) == ([], {}, None)
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(net.state_dict()[k], v) for k, v in state.items())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(m._forward_hooks for m in net.modules())


def test_a_forecast_that_fails_says_why_and_leaves_nothing(x):
    class Looks(nn.Module):
        def forward(self, x):
            self.kept = x * 2
            return x if x.sum() > 0 else x + 1

    net = nn.Sequential(Looks())
    with pytest.raises(insitu.UsageError, match=r"(?s)cannot be forecast.*DataDependent.*budget"):
        of(net, x)
    assert not any(m._forward_hooks for m in net.modules())
    assert not hasattr(net[0], "kept")
    assert torch._C._len_torch_dispatch_stack() == 0


def test_what_a_second_call_would_change_is_not_forecast(llm, net, x):
    assert may_be_forecast(net, [(x,), {"a": [1, "b", None]}])
    assert not may_be_forecast(net, [(object(),)])
    assert not may_be_forecast(net, {"past": nn.Linear(1, 1)})
    handle = net.layer1.register_forward_pre_hook(lambda *_: None)
    assert not may_be_forecast(net, [x])
    handle.remove()
