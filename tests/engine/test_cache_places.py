"""Places in the tree of a cache, and what a notebook asks of a cache."""

import pytest
import torch
from torch import nn

import insitu
from insitu import NNsight


class Shaped(nn.Module):
    """Has submodules called as what a cached call has."""

    def __init__(self):
        super().__init__()
        self.output, self.steps = nn.Linear(5, 5), nn.Tanh()

    def forward(self, x):
        return self.steps(self.output(x))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(Shaped(), nn.Linear(5, 2))


@pytest.fixture
def cache(net, x):
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache(include_inputs=True)
    return cache


def test_a_place_gives_what_the_path_gives(net, x, cache):
    place = cache.model[1]
    hidden = net[0](x)
    assert torch.equal(place.input, hidden)
    assert torch.equal(place.inputs[0][0], hidden)
    assert place.inputs[1] == {}
    assert torch.equal(place.output, net(x))
    assert place.steps == [0]
    assert repr(place) == repr(cache["model.1"])


def test_a_module_called_as_a_site_has_an_underscore_behind(net, x, cache):
    assert torch.equal(cache.model[0].output, net[0](x))
    assert torch.equal(cache.model[0].output_.output, net[0].output(x))
    assert torch.equal(cache.model[0].steps_.input, net[0].output(x))
    assert cache.model[0].steps == [0]
    with pytest.raises(insitu.MissingActivation):
        cache.model[1].output_
    with pytest.raises(AttributeError):
        cache.model[1]._repr_html_


def test_a_place_with_nothing_below_it_is_there_all_the_same(cache):
    leaf = cache.model[1]
    assert len(leaf) == 0
    assert leaf
    assert bool(cache.model[0].output_) is True


def test_completion_lists_paths_and_places(cache):
    assert cache._ipython_key_completions_() == list(cache)
    assert "model" in dir(cache)
    assert {"stack", "to_dict", "save"} <= set(dir(cache))
    assert {"0", "1", "output", "steps"} <= set(dir(cache.model))


def test_displays_read_the_calls_of_each_module(x, cache):
    assert list(cache.records) == list(cache)
    assert [len(record.calls) for record in cache.records.values()] == [1] * len(cache)
