"""What no pass can look into: TorchScript, DataParallel on several devices; and around it."""

import threading
import warnings

import pytest
import reference
import torch
from families import FAMILIES
from torch import nn

from insitu import LanguageModel, NNsight, OutOfOrderError, UnknownModuleError, UsageError

WIDTH, ROWS = 4, (3, 4)


def mlp():
    return nn.Sequential(
        nn.Linear(WIDTH, 6), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(6, 6), nn.Tanh()),
        nn.Linear(6, 2),
    )  # fmt: skip


def scripted(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch 2.13 says so of TorchScript
        return torch.jit.script(net)


def traced(net):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.trace(net, torch.randn(ROWS))


def test_what_is_in_torchscript_is_listed_and_named_all_the_same():
    net = mlp()
    net[2] = scripted(net[2])
    model = NNsight(net)
    inside = model[2]
    assert [node._path for node in inside] == ["2.0", "2.1"]
    assert inside[0] is inside[-2]
    assert len(inside) == 2
    assert {"0", "1", "output"} <= set(dir(inside))
    assert [node._path for node in model._nodes()] == ["model", "0", "1", "2", "2.0", "2.1", "3"]
    with pytest.raises(UnknownModuleError, match=r"2 has no .*'wrong'"):
        inside.wrong
    with pytest.raises(OutOfOrderError, match=r"3\.output \(line \d+\)"):  # a path in an error
        with model.trace(torch.rand(ROWS)):
            model[3].output
            model[2].output


@pytest.mark.parametrize("make", [scripted, traced])
def test_torchscript_within_a_model_has_an_input_and_an_output(make):
    torch.manual_seed(0)
    net, x = mlp(), torch.randn(ROWS)
    expected = net[0](x).relu()
    net[2] = make(net[2]) if make is scripted else make(nn.Sequential(nn.Linear(4, 6)))
    if make is traced:
        net[0], net[1] = nn.Linear(WIDTH, WIDTH), nn.Identity()
        expected = net[0](x)
    model, zeros = NNsight(net), torch.zeros(3, 6)
    with model.trace(x) as tracer:
        given = model[2].input
        model[2].output = zeros
        out = tracer.result
    assert torch.equal(given, expected)
    assert torch.equal(out, net[3](zeros))
    with model.trace(x) as tracer:
        model[2].skip(zeros)
        skipped = tracer.result
    assert torch.equal(skipped, out)
    with model.trace(x) as tracer:
        cache = tracer.cache(clone=True)
    assert list(cache) == ["model", "model.0", "model.1", "model.2", "model.3"]
    with pytest.raises(UsageError, match="what is in 2 cannot be reached: it is a TorchScript"):
        with model.trace(x):
            model[2][0].output


def test_a_torchscript_root_gives_its_output_and_says_why_nothing_within():
    net, x = mlp(), torch.randn(ROWS)
    model = NNsight(scripted(net))
    with model.trace(x) as tracer:
        out, given, result = model.output, model.input, tracer.result
    assert torch.equal(out, net(x))
    assert out is result
    assert given is x
    with pytest.raises(UsageError, match="what is in model cannot be reached"):
        with model.trace(x):
            model[0].output
    with pytest.raises(RuntimeError, match="missing value for argument 'input'"):
        with model.trace():
            model.output


class TwoDevices(nn.DataParallel):
    """What DataParallel does with two devices, but for the devices."""

    def __init__(self, module):
        super().__init__(module)
        self.device_ids = [0, 1]

    def forward(self, x):
        parts, outs = x.chunk(2), [None, None]

        def run(number):
            copy = self.module._replicate_for_data_parallel()
            for name, weight in self.module.named_parameters():
                setattr(copy, name, weight)
            outs[number] = copy(parts[number])

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return torch.cat(outs)


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(WIDTH, WIDTH)


def test_data_parallel_on_several_devices_is_read_around_and_says_why_not_within():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), TwoDevices(Scaled()), nn.Linear(WIDTH, 2))
    x = torch.randn(4, WIDTH)
    expected = net(x)
    model = NNsight(net)
    for _ in range(2):  # the first pass of a kind is observed in full
        with model.trace(x) as tracer:
            hidden = model[1].output
            out = tracer.result
        assert torch.equal(out, expected)
        assert torch.equal(hidden, net[1].module(net[0](x)))
        with model.trace(x) as tracer:
            cache = tracer.cache()
        assert "model.1.module" not in cache
        assert "model.1" in cache
        with pytest.raises(UsageError, match="runs copies of its module on 2 devices") as caught:
            with model.trace(x):
                model[1].module.output
        assert "device_ids=[0]" in str(caught.value)


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_is_read_edited_and_trained(one_process):
    torch.manual_seed(0)
    inner, x = mlp(), torch.randn(ROWS)
    net = nn.parallel.DistributedDataParallel(inner)
    expected = reference.edited(net, {"module.2": lambda out, n: out * 2}, x)
    expected.sum().backward()
    gradient = inner[0].weight.grad.clone()
    net.zero_grad()
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x) as tracer:
            model.module[2].output = model.module[2].output * 2
            out = tracer.result
        assert torch.equal(out, expected)
        out.sum().backward()
        assert torch.equal(inner[0].weight.grad, gradient)
        net.zero_grad()


IDS = torch.tensor([[3, 14, 15, 9]])


def test_a_language_model_in_data_parallel_is_traced_and_says_that_it_cannot_generate():
    net = FAMILIES["llama"].build()
    model = LanguageModel(nn.DataParallel(net))
    with model.trace(IDS):
        logits = model.module.lm_head.output
    assert torch.equal(logits, net(IDS).logits)
    with pytest.raises(UsageError, match="DataParallel cannot generate") as caught:
        model.generate(IDS, max_new_tokens=2)
    assert "LanguageModel(model.module" in str(caught.value)
