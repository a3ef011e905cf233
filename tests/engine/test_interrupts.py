"""Ctrl-C, or another failure, while a run is being set up or taken down: nothing of it stays."""

import pytest
import torch
from torch import nn
from untouched import state

import insitu
from insitu import NNsight
from insitu.engine import placed
from insitu.engine.interleave import Pass


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))


def once(act, error):
    """`act`, which the first time fails after half of its work, or before any of it."""
    left = [error]

    def acting(*given):
        if left:
            raise left.pop()
        return act(*given)

    return acting


def test_an_interrupt_while_forwards_are_put_back_puts_all_of_them_back(net, x, monkeypatch):
    model, before = NNsight(net), state(net)
    given = net[0].forward
    net[0].forward = lambda x: given(x) * 2  # one of the instance's own, which is to be restored
    wanted, own = net(x), net[0].forward
    for _ in range(2):
        monkeypatch.setattr(placed, "_restore", once(placed._restore, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            with model.trace(x):
                model[0].output
                model[2].output
        monkeypatch.undo()
        assert net[0].forward is own
        with model.trace(x):
            out = model.output
        assert torch.equal(out, wanted)
    del net[0].forward
    assert state(net) == before


@pytest.mark.parametrize("reads", [False, True])
def test_an_interrupt_among_those_told_of_the_end_keeps_none_from_being_told(net, x, reads):
    model, before, told = NNsight(net), state(net), []

    def interrupted(failed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        with model.trace(x) as tracer:
            tracer._run.at_end(told.append)
            tracer._run.at_end(interrupted)
            tracer._run.at_end(told.append)
            if reads:
                model[0].output
    assert told == [False, False]
    assert state(net) == before


def test_an_interrupt_while_a_pass_is_opened_leaves_the_model_alone(net, x, monkeypatch):
    model, before, arm = NNsight(net), state(net), Pass.arm_every

    def interrupted(self, root):
        arm(self, root)
        raise KeyboardInterrupt

    monkeypatch.setattr(Pass, "arm_every", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.open(x)
    monkeypatch.undo()
    assert state(net) == before
    with model.open(x) as run:
        assert torch.equal(run.finish(), net(x))


def test_a_scan_that_cannot_begin_leaves_no_fake_tensors_on(net, x, monkeypatch):
    model, before = NNsight(net), state(net)

    def refuse(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("insitu.engine.trace.backward_call.mount", refuse)
        with pytest.raises(KeyboardInterrupt):
            with model.scan(x):
                raise AssertionError("not reached")
    assert state(net) == before
    with model.scan(x):
        out = model.output
    assert out.shape == net(x).shape


# Ends that are someone's own ----------------------------------------------------------------------


def test_stopping_an_outer_trace_in_an_invoke_of_an_inner_one_ends_both(net, x):
    outer_model, inner_model, ran = NNsight(net), NNsight(nn.Linear(5, 5)), []
    with outer_model.trace(x) as outer:
        hidden = outer_model[0].output
        with inner_model.trace() as inner:
            with inner.invoke(x):
                ran.append("body")
                outer.stop()
        ran.append("after the inner trace")
    assert ran == ["body"]
    assert torch.equal(hidden, net[0](x))


def test_the_result_of_a_stopped_run_cannot_be_asked_for(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        model[0].output
        tracer.stop()
    with pytest.raises(insitu.PassClosedError, match="is over"):
        tracer.result


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("passes_before", [0, 1])
def test_a_greenlet_exit_of_the_models_own_comes_out_as_itself(net, x, reads, passes_before):
    from greenlet import GreenletExit

    model, before = NNsight(net), state(net)
    for _ in range(passes_before):
        with model.trace(x):
            pass

    def leave(*_):
        raise GreenletExit("mine")

    handle = net[1].register_forward_pre_hook(leave)
    with pytest.raises(GreenletExit, match="mine"):
        with model.trace(x):
            if reads:
                model[0].output
    handle.remove()
    assert state(net) == before
