"""What a trace costs, counted: nothing for modules nobody touches, nothing that grows."""

import gc
import os
import weakref

import pytest
import torch
from torch import nn

from insitu import NNsight


def touched(net):
    """Modules that carry anything of a trace."""
    return {
        name
        for name, module in net.named_modules()
        if "forward" in module.__dict__ or module._forward_hooks or module._forward_pre_hooks
    }


def test_modules_nobody_touches_carry_nothing():
    net = nn.Sequential(*[nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(20)])
    model, x = NNsight(net), torch.ones(1, 3)
    with model.trace(x):  # the first pass looks at all of them, once
        pass
    assert touched(net) == set()
    with model.trace(x):
        assert touched(net) == set()
        model[7][0].output
        assert touched(net) <= {"", "7", "7.0"}
        model[9].output
        assert touched(net) <= {"", "7", "7.0", "9"}
    assert touched(net) == set()


def test_an_empty_trace_touches_nothing_after_the_first():
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append(touched(self))
            return x

    model = NNsight(Looks())
    for _ in range(2):
        with model.trace(torch.ones(1)):
            pass
    assert seen[1] == set()


def test_wrapping_a_model_wraps_no_module_below_it():
    net = nn.Sequential(*[nn.Module() for _ in range(10_000)])
    before = len(gc.get_objects())
    model = NNsight(net)
    assert len(gc.get_objects()) - before < 50
    assert model[9_999]._module is net[9_999]
    assert len(gc.get_objects()) - before < 60


def open_files():
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.mark.parametrize("how", ["read", "write", "fail", "held", "nested"])
def test_many_traces_leave_no_growth(net, x, how):
    model = NNsight(net.requires_grad_(False))

    def once():
        if how == "held":
            run = model.open(x)
            run.step()
            run.close()
            return
        try:
            with model.trace(x):
                hidden = model.layer1.output
                if how == "write":
                    model.layer1.output = hidden * 2
                if how == "nested":
                    with model.trace(x):
                        model.layer2.input
                if how == "fail":
                    raise KeyError
                model.layer2.output
        except KeyError:
            pass

    def objects():
        gc.collect()
        return len(gc.get_objects())

    for _ in range(20):
        once()
    before, files = objects(), open_files()
    for _ in range(400):
        once()
    assert objects() - before < 20
    assert open_files() == files


def test_a_finished_trace_keeps_no_value_alive(net, x):
    model = NNsight(net)
    with model.trace(x):
        hidden = weakref.ref(model.layer1.output)
        model.layer2.output
    gc.collect()
    assert hidden() is None


@pytest.mark.parametrize("passes_before", [0, 1])
def test_a_kept_tracer_and_its_invokes_keep_no_value_alive(net, x, passes_before):
    model = NNsight(net)
    for _ in range(passes_before + 1):
        with model.trace() as tracer:
            with tracer.invoke(x) as invoke:
                hidden = model.layer1.output
                scratch = [hidden * 2]
            with tracer.invoke(x):
                out = model.layer2.output + scratch[0].mean()
                with tracer.invoke():
                    every = model.output * 2
    assert torch.allclose(hidden, net.layer1(x))
    assert torch.allclose(out, net(x) + (hidden * 2).mean())
    assert torch.allclose(every, net(torch.cat([x, x])) * 2)
    alive = [weakref.ref(it) for it in (hidden, scratch[0], out, every)]
    gc.disable()
    try:
        del hidden, scratch, out, every
        assert [it() for it in alive] == [None] * 4
    finally:
        gc.enable()
    del tracer, invoke


def test_a_function_made_in_an_invoke_keeps_the_values_it_reads(net, x):
    model = NNsight(net)

    def made():
        with model.trace() as tracer, tracer.invoke(x):
            hidden = model.layer1.output

            def doubled():
                return hidden * 2

        return doubled

    doubled = made()
    gc.collect()
    assert torch.equal(doubled(), net.layer1(x) * 2)


def test_tracing_makes_no_reference_cycles_of_tensors(net, x):
    model = NNsight(net.requires_grad_(False))
    with model.trace(x):
        pass
    gc.collect()
    gc.disable()
    try:
        with model.trace(x):
            hidden = weakref.ref(model.layer1.output)
            model.layer2.output
        assert hidden() is None  # memory on a GPU comes back at once, not when gc runs
    finally:
        gc.enable()
