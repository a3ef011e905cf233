"""torch.compile: a pass runs what it stops in as it was written, and leaves it compiled."""

import threading

import peft
import pytest
import reference
import torch
from families import FAMILIES
from torch import nn

from insitu import LanguageModel, NNsight

WIDTH, ROWS = 4, (3, 4)


def whole(net):
    return torch.compile(net, backend="eager")


def in_place(net):
    net.compile(backend="eager")
    return net


def a_part(net):
    net[2].compile(backend="eager")
    return net


def a_wrapped_part(net):
    net[2] = torch.compile(net[2], backend="eager")
    return net


def a_forward(net):
    net[2].forward = torch.compile(net[2].forward, backend="eager")
    return net


class Decorated(nn.Sequential):
    @torch.compile(backend="eager")
    def forward(self, x):
        for module in self:
            x = module(x)
        return x


def decorated(net):
    return Decorated(*net)


@pytest.fixture
def dynamo():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters["frames"]
    torch._dynamo.reset()


def part():
    return nn.Sequential(nn.Linear(6, 6), nn.Tanh())


@pytest.mark.filterwarnings("ignore")  # torch.compile looks at .grad of what is no leaf
@pytest.mark.parametrize("compile", [whole, in_place, a_part, a_wrapped_part, a_forward, decorated])
@pytest.mark.parametrize("before", [True, False], ids=["run before", "run after"])
def test_a_compiled_model_is_read_edited_cached_and_stays_compiled(compile, before, dynamo):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), part(), nn.Linear(6, 2))
    x = torch.randn(ROWS)
    bare = net(x)
    (inner,) = reference.outputs(net, ["2.0"], x)["2.0"]
    edited = reference.edited(net, {"2.0": lambda out, n: out * 2}, x)
    net = compile(net)
    if before:
        net(x)
    frames = dict(dynamo)
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x) as tracer:
            hidden = model[2][0].output
            model[2][0].output = hidden * 2
            out = tracer.result
        torch.testing.assert_close(hidden, inner)
        torch.testing.assert_close(out, edited)
    with model.trace(x) as tracer:
        cache = tracer.cache()
    assert len(cache) >= 7
    with model.scan(x):
        assert model[2].output.shape == (3, 6)
    torch.testing.assert_close(net(x), bare)
    if before and compile is not decorated:
        assert dict(dynamo) == frames, "nothing was compiled anew"


IDS = torch.tensor([[3, 14, 15, 9]])


def layers_compiled(net):
    for layer in net.model.layers:
        layer.compile(backend="eager")
    return net


def with_adapters(net):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    return peft.get_peft_model(net, config).eval()


WRAPPED = {
    "compiled": (whole, ""),
    "compiled in place": (in_place, ""),
    "layers compiled": (layers_compiled, ""),
    "adapters": (with_adapters, "base_model.model."),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_a_wrapped_language_model_generates_step_by_step(wrapper, dynamo):
    wrap, before = WRAPPED[wrapper]
    plain, seen = FAMILIES["llama"].build(), []
    path, settings = "model.layers.0", {"max_new_tokens": 3, "output_logits": True}
    settings["return_dict_in_generate"] = True

    def zero_in_second(out, call):
        return torch.zeros_like(out) if call == 1 else None

    expected = reference.edited(plain, {path: zero_in_second}, IDS, call=plain.generate, **settings)
    states = reference.outputs(plain, [path], IDS, call=plain.generate, **settings)[path]
    model = LanguageModel(wrap(FAMILIES["llama"].build()))
    with model.generate(IDS, **settings) as tracer:
        for step in tracer.iter[:]:
            seen.append(model[before + path].output.clone())
            if step == 1:
                model[before + path].output[:] = 0
        out = tracer.result
    assert len(seen) == 3
    torch.testing.assert_close(seen[0], states[0])
    torch.testing.assert_close(seen[1], states[1])
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(expected.logits))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compile", [in_place, a_forward])
def test_a_compiled_part_is_read_on_both_sides_by_passes_inside_each_other(compile, dynamo):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), part(), nn.Linear(6, 2))
    x = torch.randn(ROWS)
    bare = net(x)
    given, (inner,) = net[1](net[0](x)), reference.outputs(net, ["2"], x)["2"]
    net = compile(net)
    net(x)
    outer_model, inner_model = NNsight(net), NNsight(net)
    with outer_model.trace(x):
        outer_model[0].output
        for model in (outer_model, inner_model):
            model[2]._refresh()
        with inner_model.trace(x):
            theirs = inner_model[2].output
        mine = outer_model[2].input
        out = outer_model[2].output
        outer_model[2].output = out * 0
        last = outer_model.output
    torch.testing.assert_close(theirs, inner)
    torch.testing.assert_close(mine, given)
    torch.testing.assert_close(out, inner)
    torch.testing.assert_close(last, net[3](torch.zeros(3, 6)))
    torch.testing.assert_close(net(x), bare)


@pytest.mark.filterwarnings("ignore")
def test_another_thread_runs_compiled_what_a_pass_runs_as_written(dynamo):
    torch.manual_seed(0)
    net, x, ran = nn.Sequential(nn.Linear(WIDTH, 6), part(), nn.Tanh()), torch.randn(ROWS), []

    def backend(graph, inputs):
        def run(*given):
            ran.append(threading.get_ident())
            return graph.forward(*given)

        return run

    bare, (hidden,) = net(x), reference.outputs(net, ["1"], x)["1"]
    net[1].forward = torch.compile(net[1].forward, backend=backend)
    net(x)
    model, seen = NNsight(net), []
    with model.trace(x):
        pass  # so that the next pass arms no more than it stops at
    ran.clear()
    with model.trace(x):
        given = model[1].output
        thread = threading.Thread(target=lambda: seen.append(net(x)))
        thread.start()
        thread.join()
        out = model.output
    assert ran == [thread.ident]
    for value, wanted in ((seen[0], bare), (out, bare), (given, hidden)):
        torch.testing.assert_close(value, wanted)
    net(x)
    assert ran[1:] == [threading.get_ident()]
