"""A module that stands several times in a list: each of its places is a call of its own."""

import copy

import pytest
import reference
import torch
from torch import nn

from insitu import LanguageModel, NNsight, OutOfOrderError

TIMES = 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.after(torch.tanh(self.inner(x))) + x


class Tied(nn.Module):
    """One block as every layer, with a scale of its own beside each."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.layers = nn.ModuleList([Block()] * TIMES)
        self.scales = nn.ModuleList([nn.Linear(4, 4) for _ in range(TIMES)])
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = self.embed(x)
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = scale(layer(x))
        return self.head(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Tied().requires_grad_(False)


@pytest.fixture
def x():
    return torch.randn(2, 4)


@pytest.fixture(params=["first pass", "later pass"])
def model(net, x, request):
    model = NNsight(net)
    if request.param == "later pass":
        model.trace(x)
    return model


BLOCK, INNER, AFTER = "layers.0", "layers.0.inner", "layers.0.after"


def calls(net, path, x):
    return reference.outputs(net, [path], x)[path]


def test_every_place_is_a_call_of_its_own(model, net, x):
    with model.trace(x):
        seen = [(layer.inner.output, layer.after.output, layer.output) for layer in model.layers]
    for number, got in enumerate(seen):
        expected = [calls(net, path, x)[number] for path in (INNER, AFTER, BLOCK)]
        assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("places", [(2,), (3,), (0, 2), (1, 3), (-1,)])
@pytest.mark.parametrize("path", [BLOCK, INNER, AFTER])
def test_places_may_be_left_out(model, net, x, places, path):
    part = path.removeprefix(BLOCK).strip(".")
    seen = []
    with model.trace(x):
        for place in places:
            layer = model.layers[place]
            seen.append((getattr(layer, part) if part else layer).output)
    for place, got in zip(places, seen, strict=True):
        assert torch.equal(got, calls(net, path, x)[place])


def test_what_lies_between_is_counted_too(model, net, x):
    with model.trace(x):
        embedded = model.embed.output
        scaled = model.scales[0].output
        second = model.layers[1].output
        later = model.scales[2].output
        last = model.layers[3].inner.output
        out = model.head.output
    assert torch.equal(embedded, net.embed(x))
    assert torch.equal(scaled, calls(net, "scales.0", x)[0])
    assert torch.equal(second, calls(net, BLOCK, x)[1])
    assert torch.equal(later, calls(net, "scales.2", x)[0])
    assert torch.equal(last, calls(net, INNER, x)[3])
    assert torch.equal(out, net(x))


def test_inputs_are_those_of_the_place(model, net, x):
    with model.trace(x):
        given = model.layers[2].input
        inner = model.layers[2].inner.input
        at_output = (model.layers[2].output, model.layers[2].input)
    expected = reference.inputs(net, [BLOCK], x)[BLOCK][2][0][0]
    assert torch.equal(given, expected)
    assert torch.equal(inner, expected)
    assert torch.equal(at_output[0], calls(net, BLOCK, x)[2])
    assert torch.equal(at_output[1], expected)


def in_call(number, change):
    return lambda value, call: change(value) if call == number else value


def test_writing_changes_the_place_alone(model, net, x):
    def in_place(value):
        value[:, 0] = 7
        return value

    with model.trace(x) as tracer:
        model.layers[1].output[:, 0] = 7
        edited = tracer.result
    assert torch.equal(edited, reference.edited(net, {BLOCK: in_call(1, in_place)}, x))
    with model.trace(x) as tracer:
        model.layers[0].inner.output = model.layers[0].inner.output * 2
        model.layers[2].output = model.layers[2].output * 3
        replaced = tracer.result
    changes = {INNER: in_call(0, lambda v: v * 2), BLOCK: in_call(2, lambda v: v * 3)}
    assert torch.equal(replaced, reference.edited(net, changes, x))


def test_a_place_is_skipped_and_called_with_other_arguments(model, net, x):
    zeros = torch.zeros(2, 4)
    with model.trace(x) as tracer:
        model.layers[1].skip(zeros)
        skipped = tracer.result
    with model.trace(x) as tracer:
        model.layers[2].input = zeros
        other = tracer.result
    assert torch.equal(skipped, reference.edited(net, {BLOCK: in_call(1, lambda v: zeros)}, x))
    rest = net.scales[2](net.layers[0](zeros))
    assert torch.equal(other, net.head(net.scales[3](net.layers[0](rest))))


def test_places_in_invokes_and_edits(net, x):
    model = NNsight(net)
    one, two = x[:1], x[1:]
    with model.trace() as tracer:
        with tracer.invoke(one):
            a = model.layers[1].output
            model.layers[3].output[:] = 0
            out = model.output
        with tracer.invoke(two):
            b = model.layers[0].after.output
            c = model.layers[2].output
            other = model.output
    assert torch.allclose(a, calls(net, BLOCK, one)[1], atol=1e-6)
    assert torch.allclose(b, calls(net, AFTER, two)[0], atol=1e-6)
    assert torch.allclose(c, calls(net, BLOCK, two)[2], atol=1e-6)
    zeroed = reference.edited(net, {BLOCK: in_call(3, torch.zeros_like)}, one)
    assert torch.allclose(out, zeroed, atol=1e-6)
    assert torch.allclose(other, net(two), atol=1e-6)
    with model.edit() as edited:
        model.layers[1].output[:] = 0
    for _ in range(2):
        expected = reference.edited(net, {BLOCK: in_call(1, torch.zeros_like)}, x)
        assert torch.equal(edited(x), expected)


@pytest.mark.parametrize("passes", [1, 2])
def test_a_place_that_has_passed_is_refused(net, x, passes):
    model = NNsight(net)
    for _ in range(passes):
        with pytest.raises(OutOfOrderError, match=r"layers\.1\.output was asked for"):
            with model.trace(x):
                model.layers[2].output
                model.layers[1].output
        with pytest.raises(OutOfOrderError, match=r"layers\.3\.inner\.output was asked for"):
            with model.trace(x):
                model.layers[3].after.output
                model.layers[3].inner.output
        with pytest.raises(OutOfOrderError, match=r"layers\.1\.inner\.output was asked for"):
            with model.trace(x):
                model.layers[1].after.output
                model.layers[1].inner.output


def test_an_activation_used_twice_in_a_row_of_modules():
    torch.manual_seed(0)
    act = nn.Tanh()
    net = nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act, nn.Linear(3, 3))
    model, x = NNsight(net), torch.randn(2, 3)
    for _ in range(2):
        with model.trace(x):
            second = model[3].output
            out = model.output
        assert torch.equal(second, net[:4](x))
        assert torch.equal(out, net(x))
    with model.trace(x):
        both = [model[1].output, model[2].output, model[3].output]
    assert all(torch.equal(got, net[:n](x)) for got, n in zip(both, (2, 3, 4), strict=True))


def test_a_loop_over_calls_goes_from_call_to_call_whatever_the_place(net, x):
    model, seen = NNsight(net), []
    with model.trace(x) as tracer:
        for _ in tracer.iter[:]:
            seen.append(model.layers[0].output)
    assert all(map(torch.equal, seen, calls(net, BLOCK, x)))
    assert len(seen) == TIMES


class Twice(nn.Module):
    """Goes through its list twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Linear(4, 4)] * 3)

    def forward(self, x):
        return self.layers(self.layers(x))


def test_where_there_are_more_calls_than_places_the_list_begins_anew(x):
    torch.manual_seed(0)
    net = Twice()
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x):
            seen = [model.layers[number].output for number in (1, 2, 0, 2)]
        expected = calls(net, "layers.0", x)
        assert all(torch.equal(got, expected[n]) for got, n in zip(seen, (1, 2, 3, 5), strict=True))


def test_a_pass_held_open_and_a_scan_meet_the_places_too(net, x):
    model = NNsight(net)
    run = model.open(x)
    assert torch.equal(model.layers[2].output, calls(net, BLOCK, x)[2])
    run.finish()
    with model.scan(x):
        assert model.layers[3].inner.output.shape == (2, 4)


def test_steps_of_a_generation_begin_the_count_anew(tiny_gpt2):
    hf, tokenizer = tiny_gpt2
    hf = copy.deepcopy(hf)
    hf.transformer.h = nn.ModuleList([hf.transformer.h[0]] * 4)
    llm = LanguageModel(hf, tokenizer=tokenizer)
    settings = {"max_new_tokens": 3, "use_cache": False}
    ids = tokenizer("Hello there", return_tensors="pt")

    def oracle():
        return hf.generate(**ids, **settings)

    expected = reference.outputs(hf, ["transformer.h.0"], call=oracle)["transformer.h.0"]
    seen = []
    with llm.generate("Hello there", **settings) as tracer:
        for _ in tracer.iter[:]:
            seen += [llm.transformer.h[1].output, llm.transformer.h[3].output]
    assert len(seen) == 6
    wanted = [expected[4 * step + place] for step in range(3) for place in (1, 3)]
    assert all(torch.allclose(got, one, atol=1e-5) for got, one in zip(seen, wanted, strict=True))
