"""The tree of wrapped modules where it has holes, changes, or leads elsewhere."""

import pytest
import torch
from torch import nn

import insitu
from insitu import NNsight, View


class Holes(nn.Module):
    """Has places without a module, and names that lead out of the tree."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.empty = nn.Linear(5, 5), None
        self.register_module("unset", None)
        self.blocks = nn.ModuleList([nn.Linear(5, 5), nn.Tanh()])
        self.blocks.register_module("2", None)
        self.__dict__["elsewhere"] = nn.Linear(2, 2)

    @property
    def first(self):
        return self.blocks[0]

    def forward(self, x):
        return self.blocks[1](self.blocks[0](self.layer(x)))


@pytest.fixture
def net():
    return Holes()


# Holes --------------------------------------------------------------------------------------------


def test_a_place_without_a_module_is_none_and_is_passed_over(net, x):
    model = NNsight(net)
    assert model.blocks[2] is None
    assert [node._path for node in model.blocks] == ["blocks.0", "blocks.1"]
    assert [node._path for node in model._nodes()] == [
        "model", "layer", "blocks", "blocks.0", "blocks.1",
    ]  # fmt: skip
    for _ in range(2):
        with model.trace(x):
            hidden, out = model.layer.output, model.output
        assert torch.equal(hidden, net.layer(x))
        assert torch.equal(out, net(x))


def test_an_attribute_that_leads_to_a_module_of_the_tree_is_the_wrapped_one(net, x):
    model = NNsight(net)
    assert model.first is model.blocks[0]
    assert model.elsewhere is net.elsewhere  # it is no part of the tree
    with model.trace(x):
        hidden = model.first.output
    assert torch.equal(hidden, net.blocks[0](net.layer(x)))


def test_what_other_tools_ask_for_is_no_module(net):
    model = NNsight(net)
    for name in ("__wrapped__", "__array__", "__len_hint__"):
        assert not hasattr(model, name)
        assert not hasattr(model.layer, name)
    model._note = "mine"
    assert model._note == "mine"
    with pytest.raises(insitu.UnknownModuleError):
        model.layer._note = "mine"


# Changes ------------------------------------------------------------------------------------------


def test_a_module_that_was_taken_away_is_told(net, x):
    model = NNsight(net)
    layer = model.layer
    del net.layer
    net.forward = lambda x: net.blocks[1](x)
    with pytest.raises(insitu.UnknownModuleError, match="'layer'"):
        with model.trace(x):
            layer.output
    with model.trace(x):
        out = model.blocks[1].output
    assert torch.equal(out, x.tanh())


def test_a_module_that_is_called_and_stands_nowhere_has_its_class_in_errors(net, x):
    model = NNsight(net)
    assert model._path_of(net.blocks[1]) == "blocks.1"
    assert model._path_of(nn.GELU()) == "GELU"


# Views --------------------------------------------------------------------------------------------


class Scaled(View):
    factor = 2

    @property
    def doubled(self):
        return self.output * self.factor

    @doubled.setter
    def doubled(self, value):
        self.output = value / self.factor

    @property
    def kept(self):
        self.factor = 3  # of this view alone
        return self.output * self.factor


def test_a_view_may_set_what_it_defines_for_itself(net, x):
    model = NNsight(net, views={nn.Linear: Scaled})
    with model.trace(x):
        tripled = model.layer.kept
        doubled = model.layer.doubled
        model.layer.doubled = torch.ones(1, 5)
        out = model.output
    assert torch.equal(tripled, net.layer(x) * 3)
    assert torch.equal(doubled, net.layer(x) * 2)
    assert torch.equal(out, net.blocks[0](torch.full((1, 5), 0.5)).tanh())


# Names that are learned when they are asked for ---------------------------------------------------


class Offers:
    """Knows a module and a view by names that nobody has been told yet."""

    def __init__(self):
        self.asked = []

    def offered(self, node, name):
        self.asked.append(name)
        if name == "entrance" and node._parent is None:
            node._root.rename({"layer": "entrance"})
            return True
        if name == "doubled" and node._name == "layer" and node._view(name) is None:
            node._root.add_views({nn.Linear: Scaled})
            return True
        return False

    def listed(self, node):
        return ["entrance"] if node._parent is None else ["doubled"]


@pytest.fixture
def offering(net):
    model = NNsight(net)
    model.__dict__["_more_names"] = Offers()
    return model


def test_a_name_that_is_asked_for_may_be_learned(offering, net, x):
    assert "entrance" in dir(offering)
    assert offering.entrance is offering.layer
    with pytest.raises(insitu.UnknownModuleError, match="exit"):
        offering.exit
    assert offering._more_names.asked == ["entrance", "exit"]


def test_a_path_may_be_learned_too(offering):
    assert offering["entrance"] is offering.layer
    with pytest.raises(insitu.UnknownModuleError):
        offering["entrance.weights"]


def test_a_view_may_be_learned_by_reading_it_or_by_writing_it(net, x):
    for write in (False, True):
        model = NNsight(net)
        model.__dict__["_more_names"] = Offers()
        with model.trace(x):
            if write:
                model.layer.doubled = torch.ones(1, 5)
            value = model.layer.doubled
            out = model.output
        wanted = torch.ones(1, 5) if write else net.layer(x) * 2
        assert torch.equal(value, wanted)
        assert torch.equal(out, net.blocks[0](wanted / 2).tanh())
