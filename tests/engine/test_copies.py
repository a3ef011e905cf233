"""Copies of a wrapper wrap copied modules; what a pass puts into a module is not copied."""

import copy
import pickle

import pytest
import torch
from torch import nn

import insitu
from insitu import NNsight


def by_pickle(value):
    return pickle.loads(pickle.dumps(value))


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle])


@COPIES
def test_a_copy_wraps_a_module_of_its_own_under_the_same_names(net, x, copied):
    model = NNsight(net, rename={"layer1": "first"})
    with model.trace(x):
        pass
    twin = copied(model)
    assert type(twin) is NNsight
    assert twin._module is not net
    with twin.trace(x):
        hidden = twin.first.output.clone()
        twin.first.output[:] = 0
        out = twin.output
    expected = twin._module.layer1(x)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=0)
    torch.testing.assert_close(out, twin._module.layer2(torch.zeros_like(hidden)))
    with model.trace(x):
        assert model.layer1.output.abs().sum() > 0


@COPIES
def test_a_part_is_copied_with_its_whole(net, copied):
    model = NNsight(net)
    whole, part = copied((model, model.layer1))
    assert part is whole.layer1
    assert part._module is whole._module.layer1


def test_a_shallow_copy_is_a_second_wrapper_of_the_module(net, x):
    model = NNsight(net)
    twin = copy.copy(model)
    assert twin is not model
    assert twin._module is net
    with twin.trace(x):
        assert twin.layer1.output.shape == (1, 10)


def test_a_language_model_is_copied_with_its_tokenizer(llm):
    twin = copy.deepcopy(llm)
    with twin.trace("Once upon a time"):
        there = twin.lm_head.output
    with llm.trace("Once upon a time"):
        here = llm.lm_head.output
    torch.testing.assert_close(there, here, rtol=0, atol=0)


@COPIES
def test_edits_do_not_go_into_copies(net, copied):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:] = 0
    with pytest.raises(insitu.UsageError, match="save_edits"):
        copied(edited)


@COPIES
def test_a_module_copied_in_the_middle_of_a_pass_has_its_own_forward(net, x, copied):
    plain = net(x)
    model = NNsight(net)
    with model.trace(x):
        model.layer1.output[:] = 0
        twin = copied(net)
        torch.testing.assert_close(twin(x), plain, rtol=0, atol=0)
    torch.testing.assert_close(twin(x), plain, rtol=0, atol=0)


@pytest.mark.parametrize("change", ["eval", "double", "cpu", "train"])
def test_what_torch_chains_gives_the_wrapper_back(net, change):
    model = NNsight(net)
    assert getattr(model, change)() is model
    assert getattr(model.layer1, change)() is model.layer1


def test_a_list_and_a_dict_of_parameters_are_read_as_in_torch():
    class Gains(nn.Module):
        def __init__(self):
            super().__init__()
            self.listed = nn.ParameterList([torch.ones(3), torch.zeros(3)])
            self.named = nn.ParameterDict({"a": torch.ones(3)})

    net = Gains()
    model = NNsight(net)
    assert len(model.listed) == 2
    assert model.listed[-1] is net.listed[1]
    assert all(one is other for one, other in zip(model.listed, net.listed, strict=True))
    assert model.named["a"] is net.named["a"]
