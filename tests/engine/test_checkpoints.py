"""Activation checkpointing: gradients through edits are right, and it is torch's own elsewhere."""

import threading

import pytest
import reference
import torch
from checkpointed import Checkpointed

from insitu import NNsight

ROWS = (3, 4)


@pytest.fixture(params=[False, True], ids=["not reentrant", "reentrant"])
def checkpointed(request):
    torch.manual_seed(0)
    net, x = Checkpointed(request.param), torch.randn(ROWS).requires_grad_()

    def gradient(run):
        net.zero_grad()
        run().pow(2).sum().backward()
        return net.blocks[1][0].weight.grad.clone()

    return net, x, gradient


SCALE = torch.tensor([0.3, -1.2, 2.0, 0.7])
CHANGES = {"doubled": lambda h: h * 2, "scaled": lambda h: h * SCALE, "sine": torch.sin}


@pytest.mark.parametrize("path", ["blocks.1", "blocks.1.0"])
@pytest.mark.parametrize("change", CHANGES)
def test_gradients_through_an_edit_in_a_checkpoint_are_those_of_hooks_that_stay(
    checkpointed, path, change
):
    net, x, gradient = checkpointed
    change = CHANGES[change]
    hook = net.get_submodule(path).register_forward_hook(lambda m, args, out: change(out))
    with reference.hooks([hook]):
        expected = gradient(lambda: net(x))
    model = NNsight(net)

    def edited():
        with model.trace(x) as tracer:
            model[path].output = change(model[path].output)
            out = tracer.result
        return out

    for _ in range(2):  # the first pass of a kind is observed in full
        torch.testing.assert_close(gradient(edited), expected)


def test_what_a_block_computes_in_a_checkpoint_is_its_own(checkpointed):
    net, x, gradient = checkpointed
    expected, model, norms = gradient(lambda: net(x)), NNsight(net), []

    def read():
        with model.trace(x) as tracer:
            norms.append(model.blocks[1][0].output.pow(2).sum())
            out = tracer.result
        return out

    for _ in range(2):
        torch.testing.assert_close(gradient(read), expected)


def test_checkpoints_in_other_threads_and_after_a_pass_are_torchs_own(checkpointed):
    net, x, _ = checkpointed
    counts, runs = [], []
    hook = net.blocks[1].register_forward_pre_hook(lambda m, args: runs.append(1))

    def count():
        runs.clear()
        net(x.detach().requires_grad_()).sum().backward()
        counts.append(len(runs))

    model = NNsight(net)
    with reference.hooks([hook]):
        with model.trace(x):
            model.blocks[0].output
            thread = threading.Thread(target=count)
            thread.start()
            thread.join()
        count()
    assert counts == [2, 2]  # the forward, and again in the backward
    with pytest.raises(ZeroDivisionError):
        with model.trace(x):
            model.blocks[0].output
            1 / 0
