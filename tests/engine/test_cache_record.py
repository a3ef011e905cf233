"""What is recorded: the values the model went on with, whatever happens to them later."""

import gc
import warnings
import weakref

import pytest
import reference
import torch
from torch import nn

import insitu
from insitu import NNsight

PROMPT = "The Eiffel Tower is in"


class Writes(nn.Module):
    """Changes in place what its first layer returned."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.second = nn.ReLU(inplace=True)
        self.third = nn.Linear(5, 5)

    def forward(self, x):
        return self.third(self.second(self.first(x)))


def test_values_are_those_after_the_block(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        cache = tracer.cache(include_inputs=True)
        model.layer1.output = model.layer1.output * 2
        model.layer2.input = model.layer2.input + 1
        model.layer2.output[:] = 7
    assert torch.equal(cache["layer1"].output, net.layer1(x) * 2)
    assert torch.equal(cache["layer2"].input, net.layer1(x) * 2 + 1)
    assert torch.equal(cache["layer2"].output, torch.full((1, 2), 7.0))
    assert torch.equal(cache["model"].output, torch.full((1, 2), 7.0))


def test_values_are_those_after_edits_and_skips(net, x):
    model = NNsight(net)
    with model.trace(x):
        pass
    with model.trace(x) as tracer:
        cache = tracer.cache()
        model.layer1.skip(torch.ones(1, 10))
    assert torch.equal(cache["layer1"].output, torch.ones(1, 10))
    with model.edit(inplace=True):
        model.layer1.output = torch.zeros(1, 10)
    with model.trace(x) as tracer:
        cache = tracer.cache()
    assert torch.equal(cache["layer1"].output, torch.zeros(1, 10))
    assert torch.equal(cache["model"].output, net.layer2(torch.zeros(1, 10)))


@pytest.mark.parametrize("stopped", [False, True])
def test_values_are_detached_unless_gradients_are_wanted(net, x, stopped):
    model = NNsight(net)
    with model.trace(x) as tracer:
        cut, whole = tracer.cache(), tracer.cache(detach=False)
        if stopped:
            model.layer1.output
    assert not cut["layer1"].output.requires_grad
    assert cut["layer1"].output.grad_fn is None
    grads = torch.autograd.grad(whole["model"].output.sum(), whole["layer1"].output)
    assert torch.equal(grads[0], net.layer2.weight.sum(0, keepdim=True))


def test_a_value_changed_in_place_by_the_model_is_lost_and_copied_the_next_time(x):
    net = Writes()
    model = NNsight(net)
    with pytest.warns(insitu.InsituWarning, match=r"values of first were .*clone=True") as caught:
        with model.trace(x) as tracer:
            cache = tracer.cache()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.raises(insitu.MissingActivation, match=r"(?s)first.output is lost.*trace again"):
        cache["first"].output
    assert "<changed in place>" in repr(cache)
    assert torch.equal(cache["second"].output, net.first(x).relu())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with model.trace(x) as tracer:
            cache = tracer.cache()
    assert torch.equal(cache["first"].output, net.first(x))
    assert torch.equal(cache["third"].output, net(x))


def test_an_input_is_what_the_module_was_called_with(x):
    net = Writes()
    with pytest.warns(insitu.InsituWarning, match="first, second "):
        with NNsight(net).trace(x) as tracer:
            cache = tracer.cache(include_inputs=True)
    with pytest.raises(insitu.MissingActivation, match=r"second.input is lost"):
        cache["second"].input
    assert torch.equal(cache["third"].input, net.first(x).relu())
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache(include_inputs=True, clone=True)
    assert torch.equal(cache["second"].input, net.first(x))


def test_cloning_keeps_every_value(x):
    net = Writes()
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache(clone=True, include_inputs=True)
    assert torch.equal(cache["first"].output, net.first(x))
    assert torch.equal(cache["third"].input, net.first(x).relu())


@pytest.mark.parametrize("options", [{"dtype": torch.float64}, {"device": "meta"}])
def test_a_converted_value_is_a_copy(x, options):
    with NNsight(Writes()).trace(x) as tracer:
        cache = tracer.cache(**options)
    cache["first"].output


def test_a_value_changed_later_by_the_block_is_lost(net, x):
    model = NNsight(net)
    with pytest.warns(insitu.InsituWarning, match="layer1"):
        with model.trace(x) as tracer:
            cache = tracer.cache(include_inputs=True)
            hidden = model.layer1.output
            model.layer2.output
            assert torch.equal(cache["layer1"].output, hidden)
            hidden[:] = 0
            with pytest.raises(insitu.MissingActivation, match="is lost"):
                cache["layer1"].output
    with pytest.raises(insitu.MissingActivation, match=r"layer2.input is lost"):
        cache["layer2"].input
    assert torch.equal(cache["layer1"].input, x)


def test_one_part_of_a_value_may_be_lost_alone(x):
    class Two(nn.Module):
        def forward(self, x):
            return x + 1, x + 2

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, x):
            return self.two(x)[1].mul_(2)

    with pytest.warns(insitu.InsituWarning, match="two"):
        with NNsight(Net()).trace(x) as tracer:
            cache = tracer.cache(include_inputs=True)
    assert torch.equal(cache["two"].input, x)
    with pytest.raises(insitu.MissingActivation, match="lost"):
        cache["two"].output
    assert "(float32[1, 5], <changed in place>)" in repr(cache["two"])


def test_after_the_pass_values_are_the_users_to_change(net, x):
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    cache["layer1"].output[:] = 3
    assert cache["layer1"].output.eq(3).all()


def test_values_of_inference_mode_are_copied(x):
    net = Writes()
    with torch.inference_mode(), NNsight(net).trace(x) as tracer:
        cache = tracer.cache(include_inputs=True)
        plain = tracer.cache("first")
    assert torch.equal(cache["first"].output, net.first(x))
    assert torch.equal(plain["first"].output, net.first(x))


def test_dtype_and_device_convert_floats_and_leave_integers(llm):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache(include_inputs=True, dtype=torch.bfloat16, device="meta")
    assert cache["lm_head"].output.dtype is torch.bfloat16
    assert cache["lm_head"].output.device.type == "meta"
    assert cache["transformer.wte"].input.dtype is torch.int64
    assert cache["transformer.wte"].input.device.type == "meta"


def test_modules_that_run_outside_torchs_call_are_seen(x):
    class Direct(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x):
            return self.layer.forward(x)

    net = Direct()
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    assert torch.equal(cache["layer"].output, net.layer(x))


def test_the_users_hooks_have_the_last_word(net, x):
    handle = net.layer1.register_forward_hook(lambda module, args, output: output * 2)
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    assert torch.equal(cache["layer1"].output, net.layer1(x))
    handle.remove()


def test_two_caches_of_one_pass_do_not_disturb_each_other(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        everything = tracer.cache()
        model.layer1.output
        late = tracer.cache(include_inputs=True)
    assert list(everything) == ["model", "model.layer1", "model.layer2"]
    assert "layer2" in late
    assert torch.equal(late["layer2"].input, everything["layer1"].output)


def test_what_a_stopped_pass_met_stays(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        cache = tracer.cache()
        model.layer1.output
        tracer.stop()
    assert list(cache) in ([], ["model.layer1"])
    with model.trace(x) as tracer:
        cache = tracer.cache()
        model.layer2.input
        tracer.stop()
    assert torch.equal(cache["layer1"].output, net.layer1(x))


@pytest.mark.parametrize("where", ["block", "model"])
def test_what_a_failed_pass_met_can_be_looked_at(net, x, where):
    model = NNsight(net)

    def fail(*_):
        raise KeyError("mine")

    handle = net.layer2.register_forward_pre_hook(fail) if where == "model" else None
    with pytest.raises(KeyError, match="mine"):
        with model.trace(x) as tracer:
            cache = tracer.cache()
            model.layer2.input
            fail()
    if handle:
        handle.remove()
    assert torch.equal(cache["layer1"].output, net.layer1(x))


def test_a_lost_value_of_a_failed_pass_hides_no_error(x):
    with pytest.raises(KeyError, match="mine"):
        model = NNsight(Writes())
        with model.trace(x) as tracer:
            tracer.cache()
            model.third.output
            raise KeyError("mine")


def test_a_cache_keeps_neither_its_model_nor_the_pass_alive(x):
    net = nn.Sequential(nn.Linear(5, 5))
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    module, run = weakref.ref(net), weakref.ref(tracer._run)
    del net, tracer
    gc.collect()
    assert module() is None
    assert run() is None
    assert cache["0"].output.shape == (1, 5)
    with pytest.raises(insitu.MissingActivation):
        cache["1"]


def test_dropping_a_cache_frees_its_values_at_once(net, x):
    model = NNsight(net.requires_grad_(False))
    with model.trace(x) as tracer:
        cache = tracer.cache()
    value = weakref.ref(cache["layer1"].output)
    gc.disable()
    try:
        del cache, tracer
        assert value() is None
    finally:
        gc.enable()


def test_every_call_of_a_loop_is_recorded(x):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.Linear(5, 5)

        def forward(self, x):
            for _ in range(3):
                x = self.cell(x)
            return x

    net = Loop()
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    seen = reference.outputs(net, ["cell"], x)["cell"]
    assert all(map(torch.equal, cache["cell"].output, seen))
    assert cache["cell"].steps == [0, 0, 0]
