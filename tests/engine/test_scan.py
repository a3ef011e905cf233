"""Shapes without running: a block on fake tensors."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from insitu import NNsight, OutOfOrderError, ScanError
from insitu.engine.fakes import fake_tensors, on_fakes


def test_a_scan_gives_shapes_and_computes_nothing(net, x):
    model, kinds = NNsight(net), []
    handle = net.layer2.register_forward_hook(lambda m, a, out: kinds.append(type(out)))
    with model.scan(x):
        h = model.layer1.output
        width = h.shape[-1]
        out = model.output
    handle.remove()
    assert width == 10
    assert tuple(out.shape) == (1, 2)
    assert kinds == [FakeTensor]


def test_a_scan_reads_edits_and_checks_like_a_trace(net, x):
    model = NNsight(net)
    with model.scan(x):
        model.layer1.output[:] = 0
        model.layer2.input = model.layer1.output * torch.ones(10)
        shape = model.layer2.output.shape
    assert tuple(shape) == (1, 2)
    with pytest.raises(ValueError, match="does not fit"):
        with model.scan(x):
            model.layer1.output = torch.zeros(1, 3)
    with pytest.raises(OutOfOrderError):
        with model.scan(x):
            model.layer2.output
            model.layer1.output


def test_a_scan_changes_no_buffer():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).train()
    before = [b.clone() for b in net.buffers()]
    with NNsight(net).scan(torch.rand(5, 3)):
        pass
    assert all(torch.equal(a, b) for a, b in zip(before, net.buffers(), strict=True))


def test_a_model_on_meta_can_be_scanned():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model = NNsight(net)
    with model.scan(torch.rand(5, 3, device="meta")):
        shape = model[0].output.shape
    assert tuple(shape) == (5, 4)


def test_a_language_model_is_scanned_by_its_prompt(llm):
    with llm.scan("The Eiffel Tower"):
        hidden = llm.transformer.h[0].output
        shape = (hidden[0] if isinstance(hidden, tuple) else hidden).shape
        logits = llm.lm_head.output.shape
    assert shape[-1] == 32
    assert logits[-1] == llm._module.config.vocab_size


def test_what_needs_values_says_so(x):
    class Decides(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x

    model = NNsight(Decides())
    with pytest.raises(ScanError, match="needs real values"):
        with model.scan(x):
            model.output
    with model.trace(x):
        assert torch.equal(model.output, x * 2)


def test_a_trace_after_a_scan_is_real(net, x):
    model = NNsight(net)
    with model.scan(x):
        pass
    with model.trace(x):
        out = model.output
    assert torch.equal(out, net(x))
    assert type(out) is torch.Tensor


class LooksAtItsInput(nn.Module):
    """As transformers' models do, to warn of padding without a mask."""

    def forward(self, x):
        if not isinstance(x, FakeTensor) and 0 in x:
            raise AssertionError("looked at values")
        return x * 2


def test_a_model_that_asks_whether_its_input_is_fake_is_told_so():
    model, x = NNsight(LooksAtItsInput()), torch.ones(2, 3)
    with model.scan(x):
        kind = type(model.input)
        shape = model.output.shape
    assert kind is FakeTensor
    assert tuple(shape) == (2, 3)
    with model.scan() as tracer:
        with tracer.invoke(x):
            shape = model.output.shape
    assert tuple(shape) == (2, 3)
    with model.trace(x) as tracer:
        cache = tracer.cache(budget=10_000)
        out = model.output
    assert cache.forecast.size_bytes == 24
    assert torch.equal(out, x * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_grouped_product_has_its_shape_in_every_dtype(dtype):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.rand(3, 8, 16, dtype=dtype))

        def forward(self, x, offs):
            by_rows = nn.functional.grouped_mm(x, self.weight, offs=offs)
            by_group = nn.functional.grouped_mm(self.weight.transpose(1, 2), self.weight)
            across = nn.functional.grouped_mm(x.T, by_rows, offs=offs)
            return by_rows, by_group, across

    net = Experts().requires_grad_(False)
    x, offs = torch.rand(24, 8, dtype=dtype), torch.tensor([8, 16, 24], dtype=torch.int32)
    real = [(part.shape, part.dtype) for part in net(x, offs)]
    with NNsight(net).scan(x, offs) as tracer:
        out = [(part.shape, part.dtype) for part in tracer.result]
    assert out == real


def test_a_grouped_product_of_parts_that_do_not_fit_is_refused_as_torch_refuses_it():
    one, other = torch.zeros(6, 8), torch.zeros(2, 4, 3)
    offsets = torch.tensor([3, 6], dtype=torch.int32)
    with fake_tensors(nn.Identity()):
        with pytest.raises(RuntimeError, match="needs one inner size, and got 8 and 4"):
            torch.ops.aten._grouped_mm(one, other, offsets)


def test_what_torch_checks_of_values_holds_in_a_scan():
    class Checks(nn.Module):
        def forward(self, x):
            torch._check_tensor_all(x >= 0, lambda: "a value is below zero")
            return x * 2

    model = NNsight(Checks())
    with model.scan(-torch.ones(2, 3)):
        shape = model.output.shape
    assert tuple(shape) == (2, 3)
    with pytest.raises(RuntimeError, match="below zero"):
        with model.trace(-torch.ones(2, 3)):
            model.output


def test_whether_one_computes_on_fakes_is_known_inside(net, x):
    assert not on_fakes()
    with fake_tensors(net):
        assert on_fakes()
    assert not on_fakes()


def test_a_block_that_needs_values_after_the_model_has_run_says_so(net, x):
    class Decides(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x

    model = NNsight(nn.Sequential(nn.Identity(), Decides()))
    with pytest.raises(ScanError, match="needs real values") as caught:
        with model.scan(x):
            model[0].output  # the error comes when the rest of the model runs
    assert caught.value.__cause__ is not None


def test_a_model_without_an_input_is_scanned():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self):
            return self.weight * 2

    model = NNsight(Constant())
    with model.scan() as tracer:
        with tracer.invoke():
            shape = model.output.shape
    assert tuple(shape) == (3,)
