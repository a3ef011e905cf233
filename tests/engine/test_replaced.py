"""Modules that the user has put in the place of others: blocks meet the new ones alone."""

import gc
import weakref

import pytest
import torch
from torch import nn

import insitu
from insitu import NNsight


class Stack(nn.Module):
    """Two blocks in a list, of two layers each, and a head."""

    def __init__(self):
        super().__init__()
        self.h = nn.ModuleList(block() for _ in range(2))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        for one in self.h:
            x = one(x)
        return self.head(x)


def block():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh())


def gone(*modules):
    """A question: whether nothing holds any of these modules, nor what is in them."""
    held = [weakref.ref(it) for module in modules for it in module.modules()]

    def is_gone():
        gc.collect()
        return all(it() is None for it in held)

    return is_gone


@pytest.fixture
def stack():
    torch.manual_seed(0)
    return Stack()


@pytest.fixture
def four():
    return torch.rand(2, 4)


REACHED = {
    "by its name": lambda model: model.head,
    "by its path": lambda model: model["head"],
    "by a further name": lambda model: model.unembed,
}


@pytest.mark.parametrize("reached", REACHED.values(), ids=REACHED)
@pytest.mark.parametrize("in_invokes", [False, True])
def test_a_replaced_module_is_let_go_of_once_its_place_is_asked_for(
    stack, four, reached, in_invokes
):
    model = NNsight(stack, rename={"head": "unembed"})
    for _ in range(2):
        with model.trace() as tracer:
            with tracer.invoke(four):
                model.head.output
            with tracer.invoke(four):
                reached(model).output
        with model.trace(four):
            reached(model).output
    is_gone = gone(stack.head)
    stack.head = nn.Linear(4, 3)
    if in_invokes:
        with model.trace() as tracer:
            with tracer.invoke(four):
                reached(model).output
            with tracer.invoke(four):
                out = reached(model).output
    else:
        with model.trace(four):
            out = reached(model).output
    torch.testing.assert_close(out, stack(four))
    del tracer
    assert is_gone()


@pytest.mark.parametrize("held", [False, True])
def test_what_is_in_a_replaced_module_is_let_go_of_too(stack, four, held):
    model = NNsight(stack)
    with model.trace(four):
        model.h[0][0].output
        kept = model.h[1][0]
        kept.output
    print(kept.source)
    is_gone = gone(stack.h[1])
    stack.h[1] = block()
    with model.trace(four):
        first = model.h[0][0].output
        out = (kept if held else model.h[1][0]).output
    assert is_gone()
    torch.testing.assert_close(first, stack.h[0][0](four), rtol=0, atol=0)
    torch.testing.assert_close(out, stack.h[1][0](stack.h[0](four)), rtol=0, atol=0)


@pytest.mark.parametrize("how", ["replaced", "taken away"])
def test_an_attached_module_is_let_go_of_when_it_is(stack, four, how):
    model = NNsight(stack)
    with model.trace(four):
        pass
    model.head.sae = block()
    is_gone = gone(model.head.sae._module)
    with model.edit(inplace=True):
        model.h[0].output = model.head.sae(model.h[0].output, hook=True)
    with model.trace(four):
        model.head.sae[0].output
    model.clear_edits()
    assert not is_gone()
    if how == "replaced":
        model.head.sae = block()
    else:
        del model.head.sae
    assert is_gone()


def test_the_order_is_learned_anew_of_a_model_with_another_module(stack, four):
    model = NNsight(stack)
    with model.trace(four):
        model.h[1].output
    stack.h = nn.ModuleList([block(), nn.Linear(4, 4), block()])
    for _ in range(2):
        with model.trace(four):
            out = model.h[1].output
    torch.testing.assert_close(out, stack.h[1](stack.h[0](four)), rtol=0, atol=0)
    assert model._orders["trace"].called.keys() == set(stack.modules()) - {stack.h}
    ran = []
    handle = stack.head.register_forward_hook(lambda *_: ran.append(True))
    with pytest.raises(insitu.OutOfOrderError), model.trace(four):
        model.h[1].output
        model.h[0].output
    handle.remove()
    assert not ran  # it was known at once


def test_what_a_user_keeps_under_a_modules_name_on_the_wrapper_stays(stack, four):
    model = NNsight(stack)
    with model.trace(four):
        model.head.output
    model.head = "mine"
    stack.head = nn.Linear(4, 3)
    with model.trace(four):
        out = model["head"].output
    assert model.head == "mine"
    torch.testing.assert_close(out, stack(four), rtol=0, atol=0)


def test_one_that_is_gone_is_no_longer_known(stack, four):
    model = NNsight(stack)
    with model.trace(four):
        model.h[1].output
    last = model.h[1]
    is_gone = gone(stack.h[1])
    del stack.h[1]
    with pytest.raises(insitu.UnknownModuleError), model.trace(four):
        last.output
    for _ in range(2):
        with model.trace(four):
            out = model.h[-1].output
    torch.testing.assert_close(out, stack.h[0](four), rtol=0, atol=0)
    del last
    assert is_gone()
