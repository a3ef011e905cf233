"""A wrapped model mirrors the tree of its modules, whatever that looks like."""

import pytest
import torch
from reference import outputs
from torch import nn

import insitu
from insitu import NNsight


class Branches(nn.Module):
    """Modules in a list, in a dict, one at two paths, and one that is called several times."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.heads = nn.ModuleDict({"left": nn.Linear(4, 2), "right": nn.Linear(4, 2)})
        self.first = self.blocks[0]
        self.scale = 3

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        x = self.blocks[1](x)
        return self.heads["left"](x) + self.heads["right"](x)


@pytest.fixture
def branches():
    return Branches()


@pytest.fixture
def four():
    return torch.arange(4.0).reshape(1, 4)


def test_lists_are_indexed_negatively_sliced_and_walked(branches):
    model = NNsight(branches)
    assert len(model.blocks) == 4
    assert model.blocks[-1] is model.blocks[3]
    assert [node._module for node in model.blocks] == list(branches.blocks)
    assert [node._module for node in model.blocks[1:3]] == list(branches.blocks[1:3])
    assert [node._module for node in model.blocks[::-1]] == list(branches.blocks)[::-1]
    with pytest.raises(IndexError, match="4 modules"):
        model.blocks[4]
    with pytest.raises(IndexError):
        model.blocks[-5]


def test_dict_entries_are_reached_by_key_and_by_name(branches, four):
    model = NNsight(branches)
    with model.trace(four):
        left = model.heads["left"].output
        right = model.heads.right.output
        out = model.output
    assert torch.equal(left + right, out)


def test_paths_reach_any_module(branches):
    model = NNsight(branches)
    assert model["blocks.2"] is model.blocks[2]
    assert model["heads.left"] is model.heads.left
    assert model["heads"]["left"] is model.heads.left


def test_attributes_of_the_module_are_the_modules(branches):
    model = NNsight(branches)
    assert model.scale == 3
    assert model.blocks[0].weight is branches.blocks[0].weight
    assert model.blocks[0].in_features == 4
    assert repr(model) == repr(branches)
    assert {"blocks", "heads", "output", "trace"} <= set(dir(model))
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in branches.parameters()
    )


def test_a_module_at_two_paths_is_read_at_either(branches, four):
    model = NNsight(branches)
    with model.trace(four):
        by_one = model.first.output
        by_other = model.blocks[0].output
        model.blocks[0].output = by_one * 2
        changed = model.first.output
    assert by_other is by_one
    assert torch.equal(by_one, branches.first(four))
    assert torch.equal(changed, by_one * 2)


def test_a_module_called_twice_is_met_at_each_call(branches, four):
    model = NNsight(branches)
    expected = outputs(branches, ["blocks.1"], four)["blocks.1"]
    for _ in range(2):
        with model.trace(four):
            first = model.blocks[1].output
            model.blocks[3].output
            second = model.blocks[1].output
        assert torch.equal(first, expected[0])
        assert torch.equal(second, expected[1])


class Faulty(nn.Module):
    """Raises an AttributeError of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x).no_such_method()


@pytest.mark.parametrize("site", ["output", "input", "inputs"])
def test_an_attribute_error_of_the_models_own_is_not_hidden(four, site):
    net = nn.Sequential(Faulty(), nn.Tanh())
    model = NNsight(net)
    with pytest.raises(AttributeError, match="no_such_method"), model.trace(four):
        getattr(model[1], site)
    assert not hasattr(model[1], "_raised")


class Bert(nn.Module):
    """A submodule named like a site of ours, as in BERT's layers."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(4, 4)
        self.output = nn.Linear(4, 3)

    def forward(self, x):
        return self.output(self.dense(x)) * 2


def test_a_submodule_named_output_is_reached_by_key_or_underscore(four):
    net = nn.Sequential(Bert())
    model = NNsight(net)
    with model.trace(four):
        inner = model[0]["output"].output
        same = model[0].output_.output
        own = model[0].output
    assert same is inner
    assert torch.equal(own, inner * 2)
    assert torch.equal(own, net(four))


def test_a_submodule_the_user_replaces_is_read_in_the_next_trace(net, x):
    model = NNsight(net)
    node = model.layer1
    with model.trace(x):
        old = node.output
    net.layer1 = nn.Linear(5, 10)
    with model.trace(x):
        new = node.output
    assert torch.equal(new, net.layer1(x))
    assert not torch.equal(new, old)


def test_a_replaced_parent_is_followed_by_a_node_held_before(four):
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)))
    model = NNsight(net)
    node = model[0][0]
    with model.trace(four):
        node.output
    net[0] = nn.Sequential(nn.Linear(4, 4))
    with model.trace(four):
        new = node.output
    assert torch.equal(new, net[0][0](four))


def test_a_module_added_by_the_user_is_read_like_any_other(net, x):
    model = NNsight(net)
    with model.trace(x):
        pass
    net.layer2 = nn.Sequential(nn.Linear(10, 2), nn.Tanh())
    with model.trace(x):
        before_tanh = model.layer2[0].output
        after = model.layer2[1].output
    assert torch.equal(after, before_tanh.tanh())
    assert torch.equal(after, net(x))


class Direct(nn.Module):
    """Calls a submodule's `.forward` instead of the submodule."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.inner.forward(x))


def test_a_module_whose_forward_is_called_directly_is_read_and_written(four):
    net = Direct()
    model = NNsight(net)
    for _ in range(2):
        with model.trace(four):
            hidden = model.inner.output
            model.inner.output = hidden + 1
            out = model.output
        assert torch.equal(hidden, net.inner(four))
        assert torch.equal(out, net.last(hidden + 1))


class Outside(nn.Module):
    """`user` calls a part of `owner`'s tree, which `owner` itself never calls."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.owner = nn.Sequential(nn.Linear(4, 4))
        self.user = Caller(self.owner[0])
        self.before = nn.Linear(4, 4)

    def forward(self, x):
        return self.user(self.before(x))


class Caller(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.inside = nn.Tanh()
        self.__dict__["part"] = part  # not a child

    def forward(self, x):
        return self.part(self.inside(x))


@pytest.mark.parametrize("passes_before", [0, 1])
def test_a_module_called_from_outside_its_own_tree_is_read(four, passes_before):
    net = Outside()
    model = NNsight(net)
    for _ in range(passes_before):
        with model.trace(four):
            pass
    with model.trace(four):
        inside = model.user.inside.output  # its caller is already running when it is asked for
        seen = model.owner[0].output
        model.owner[0].output = seen * 2
        out = model.output
    assert torch.equal(seen, net.owner[0](inside))
    assert torch.equal(out, seen * 2)


def test_modules_with_forward_hooks_of_the_users(net, x):
    model, order = NNsight(net), []

    def double(module, args, output):
        order.append("mine")
        return output * 2

    handles = [
        net.layer1.register_forward_hook(double),
        net.layer1.register_forward_pre_hook(lambda module, args: (args[0] + 1,)),
    ]
    for _ in range(2):
        with model.trace(x):
            given = model.layer1.input
            hidden = model.layer1.output
            model.layer1.output = hidden + 1
            out = model.output
        assert torch.equal(given, x + 1)
        assert torch.equal(hidden, net.layer1.forward(x + 1) * 2)
        assert torch.equal(out, net.layer2(hidden + 1))
    assert order == ["mine", "mine"]
    for handle in handles:
        handle.remove()


def test_an_instances_own_forward_is_used_and_put_back(net, x):
    def forward(value):
        return nn.functional.linear(value, net.layer1.weight) - 1

    net.layer1.forward = forward  # as accelerate does
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x):
            hidden = model.layer1.output
        assert torch.equal(hidden, forward(x))
        assert net.layer1.__dict__["forward"] is forward


def test_wrapping_what_is_not_a_module_says_what_to_do():
    with pytest.raises(insitu.InputTypeError, match=r"(?s)torch.nn.Module.*Next: .*LanguageModel"):
        NNsight("gpt2")


def test_a_user_may_hang_things_on_the_model(net):
    model = NNsight(net)
    model.notes = "mine"
    assert model.notes == "mine"
    assert not hasattr(net, "notes")


def test_a_module_dict_lists_its_modules_wrapped_and_knows_their_names(branches):
    model, x = NNsight(branches), torch.rand(1, 4)
    assert list(model.heads.keys()) == ["left", "right"]
    with model.trace(x):
        outputs = {name: head.output for name, head in model.heads.items()}
    assert torch.equal(outputs["left"] + outputs["right"], branches(x))
    assert list(model.heads.values()) == [model.heads["left"], model.heads["right"]]
    assert "left" in model.heads
    assert "middle" not in model.heads


def test_a_module_is_in_the_list_that_holds_it(branches):
    model = NNsight(branches)
    assert model.blocks[2] in model.blocks
    assert branches.blocks[2] in model.blocks
    assert model.heads["left"] not in model.blocks
