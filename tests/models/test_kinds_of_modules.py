"""Any module: each kind gives what plain hooks give, or says why it cannot.

Each kind is built small, and put through the same questions; what is particular about one follows.
"""

from dataclasses import dataclass

import pytest
import reference
import torch
from checkpointed import Checkpointed
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import insitu
from insitu import NeverRanError, NNsight, StepError

WIDTH = 4


# The kinds ---------------------------------------------------------------------------------------


class ResidualBlock(nn.Module):
    def __init__(self, width, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.AvgPool2d(stride) if stride > 1 else None

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(ResidualBlock(8), ResidualBlock(8, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


class Recurrent(nn.Module):
    """A recurrent layer of torch's own: its output is a tuple, of tuples for an LSTM."""

    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(WIDTH, 6, num_layers=2, batch_first=True)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Unrolled(nn.Module):
    """A cell called once for each position."""

    def __init__(self, kind=nn.GRUCell):
        super().__init__()
        self.embed = nn.Linear(WIDTH, 6)
        self.cell = kind(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        state = torch.zeros(x.shape[0], 6)
        for at in range(x.shape[1]):
            state = self.cell(self.embed(x[:, at]), state)
        return self.head(state)


class Experts(nn.Module):
    """A mixture of experts: each token goes to two of them, some experts get none."""

    def __init__(self, count=6):
        super().__init__()
        self.router = nn.Linear(WIDTH, count)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH)) for _ in range(count)
        )

    def forward(self, x):
        weights, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            tokens, place = torch.where(chosen == number)
            if len(tokens):
                out[tokens] += expert(x[tokens]) * weights[tokens, place, None]
        return out


class StateSpace(nn.Module):
    """A diagonal linear recurrence with a gate, as in S4D and Mamba."""

    def __init__(self):
        super().__init__()
        self.norm, self.into = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=2, groups=WIDTH)
        self.step = nn.Linear(WIDTH, WIDTH)
        self.log_decay = nn.Parameter(torch.zeros(WIDTH))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        h, gate = self.into(self.norm(x)).chunk(2, -1)
        h = self.conv(h.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        decay = torch.exp(-nn.functional.softplus(self.step(h)) * self.log_decay.exp())
        state, states = torch.zeros_like(h[:, 0]), []
        for at in range(x.shape[1]):
            state = decay[:, at] * state + h[:, at]
            states.append(state)
        return x + self.out(torch.stack(states, 1) * torch.sigmoid(gate))


class Shared(nn.Module):
    """One block called at every depth, and tied to another name."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.again = self.block
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        return self.head(self.again(self.block(self.block(x))))


@dataclass
class Said:
    hidden: torch.Tensor
    more: tuple


class Speaks(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.inner = kind, nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        hidden = self.inner(x)
        if self.kind is dict:
            return {"hidden": hidden, "more": (x * 2, None)}
        if self.kind is tuple:
            return hidden, {"more": x * 2}
        return Said(hidden, (x * 2, None))


class Structured(nn.Module):
    """Modules that give a dict, a tuple, a dataclass."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = Speaks(dict), Speaks(tuple), Speaks(Said)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = self.a(x)["hidden"]
        x, more = self.b(x)
        said = self.c(x + more["more"])
        return self.head(said.hidden + said.more[0])


def mlp():
    return nn.Sequential(
        nn.Linear(WIDTH, 6), nn.ReLU(inplace=True), nn.Sequential(nn.Linear(6, 6), nn.Tanh()),
        nn.Linear(6, 2),
    )  # fmt: skip


def parametrized():
    class Symmetric(nn.Module):
        def forward(self, weight):
            return weight.triu() + weight.triu(1).transpose(-1, -2)

    net = mlp()
    parametrize.register_parametrization(net[2][0], "weight", Symmetric())
    return net


def normed(norm):
    net = mlp()
    norm(net[2][0])
    return net


def graph():
    return torch.fx.symbolic_trace(mlp())


SEQUENCE, ROWS = (2, 5, WIDTH), (3, WIDTH)

KINDS = {
    "CNN": (ResNet, (2, 3, 8, 8), "blocks.0"),
    "RNN": (lambda: Recurrent(nn.RNN), SEQUENCE, "rnn"),
    "LSTM": (lambda: Recurrent(nn.LSTM), SEQUENCE, "rnn"),
    "GRU": (lambda: Recurrent(nn.GRU), SEQUENCE, "rnn"),
    "RNN cells": (lambda: Unrolled(nn.RNNCell), SEQUENCE, "cell"),
    "GRU cells": (Unrolled, SEQUENCE, "cell"),
    "experts": (Experts, (7, WIDTH), "router"),
    "state space": (StateSpace, SEQUENCE, "step"),
    "shared weights": (Shared, ROWS, "block"),
    "dicts, tuples, dataclasses": (Structured, ROWS, "a.inner"),
    "in-place modules": (mlp, ROWS, "0"),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True), SEQUENCE, "linear1",
    ),
    "checkpointed": (Checkpointed, ROWS, "blocks.1"),
    "checkpointed, reentrant": (lambda: Checkpointed(True), ROWS, "blocks.1"),
    "parametrized": (parametrized, ROWS, "2.0"),
    "weight norm": (lambda: normed(parametrizations.weight_norm), ROWS, "2.0"),
    "spectral norm": (lambda: normed(parametrizations.spectral_norm), ROWS, "2.0"),
    "fx graph": (graph, ROWS, "2.0"),
    "DataParallel": (lambda: nn.DataParallel(mlp()), ROWS, "module.2.0"),
}  # fmt: skip


@pytest.fixture(params=KINDS)
def kind(request):
    build, shape, path = KINDS[request.param]
    torch.manual_seed(0)
    net = build().eval()
    return net, torch.randn(shape).requires_grad_(), path


def copied(value):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [copied(part) for part in value]
    return copied(vars(value)) if isinstance(value, Said) else None


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one is other is None


def hooked(net, x):
    """By plain hooks: what every call of every module gave, in the order of the first ones."""
    seen = {}

    def note(path):
        return lambda module, args, out: seen.setdefault(path, []).append(copied(out))

    handles = [module.register_forward_hook(note(path)) for path, module in net.named_modules()]
    with reference.hooks(handles):
        net(x)
    return seen


def first(value):
    return value[0] if isinstance(value, tuple) else value


def with_first(value, hidden):
    return (hidden, *value[1:]) if isinstance(value, tuple) else hidden


def at(model, path):
    return model[path] if path else model


# The questions -----------------------------------------------------------------------------------


def test_every_modules_output_is_that_of_plain_hooks(kind):
    net, x, _ = kind
    model, expected = NNsight(net), hooked(net, x)
    for _ in range(2):
        seen = {}
        with model.trace(x):
            for path in expected:
                seen[path] = copied(at(model, path).output)
        assert [path for path in expected if not same(expected[path][0], seen[path])] == []


def test_an_edit_of_the_first_call_is_that_of_a_hook(kind):
    net, x, path = kind
    bare = net(x)

    def halve(out, call):
        return with_first(out, first(out) * 0.5 + 0.1) if call == 0 else None

    expected = reference.edited(net, {path: halve}, x)
    model = NNsight(net)
    with model.trace(x) as tracer:
        out = model[path].output
        model[path].output = with_first(out, first(out) * 0.5 + 0.1)
        out = tracer.result
    assert torch.equal(out, expected)
    assert not torch.equal(out, bare)
    assert torch.equal(net(x), bare)


def test_a_call_skipped_is_one_replaced_by_a_hook(kind):
    net, x, path = kind
    (given, *_) = reference.outputs(net, [path], x)[path]
    value = with_first(given, torch.ones_like(first(given)))
    expected = reference.edited(net, {path: lambda out, call: value if call == 0 else None}, x)
    model = NNsight(net)
    with model.trace(x) as tracer:
        model[path].skip(value)
        out = tracer.result
    assert torch.equal(out, expected)


def test_a_cache_holds_every_call(kind):
    net, x, _ = kind
    expected, model = hooked(net, x), NNsight(net)
    with model.trace(x) as tracer:
        cache = tracer.cache(clone=True)
    for path, values in expected.items():
        kept = cache[f"model.{path}".rstrip(".")]
        kept = [call.output for call in kept] if len(values) > 1 else [kept.output]
        assert all(same(copied(a), b) for a, b in zip(kept, values, strict=True)), path


def test_the_gradient_at_an_output_is_autograds(kind):
    net, x, path = kind
    kept = []

    def watch(module, args, out):
        kept.append(first(out))

    if net.__dict__.get("reentrant"):
        pytest.skip("torch gives no gradient within a reentrant checkpoint to compare with")
    with reference.hooks([net.get_submodule(path).register_forward_hook(watch)]):
        loss = net(x).pow(2).sum()
    (expected,) = torch.autograd.grad(loss, kept[0], retain_graph=True)
    model = NNsight(net)
    with model.trace(x) as tracer:
        hidden = first(model[path].output)
        loss = tracer.result.pow(2).sum()
        with loss.backward():
            grad = hidden.grad
    torch.testing.assert_close(grad, expected)


def test_an_edit_stays_for_later_passes(kind):
    net, x, path = kind

    def double(out, call):
        return with_first(out, first(out) * 2)  # also of a module that is called several times

    expected, bare = reference.edited(net, {path: double}, x), net(x)
    with NNsight(net).edit() as edited:
        out = edited[path].output
        edited[path].output = with_first(out, first(out) * 2)
    for _ in range(2):
        out = edited.trace(x)
        assert torch.equal(out, expected)
    assert torch.equal(net(x), bare)


def test_invokes_see_their_own_rows(kind):
    net, x, path = kind
    parts = x[:1], x[1:]
    expected = [(reference.outputs(net, [path], part)[path][0], net(part)) for part in parts]
    rows, model = [], NNsight(net)
    with model.trace() as tracer:
        for part in parts:
            with tracer.invoke(part):
                hidden = first(model[path].output).clone()  # a later module may change it in place
                rows.append((hidden, tracer.result))
    for (hidden, out), (own_hidden, own_out) in zip(rows, expected, strict=True):
        torch.testing.assert_close(hidden, first(own_hidden))
        torch.testing.assert_close(out, own_out)


def test_a_scan_gives_the_shapes(kind):
    net, x, path = kind
    if isinstance(net, Experts):
        pytest.skip("how many tokens an expert gets depends on values")
    (expected, *_), out = reference.outputs(net, [path], x)[path], net(x)
    model = NNsight(net)
    with model.scan(x) as tracer:
        shapes = first(model[path].output).shape, tracer.result.shape
    assert shapes == (first(expected).shape, out.shape)
    assert torch.equal(net(x), out)


# Modules called more than once -------------------------------------------------------------------


@pytest.fixture
def unrolled():
    torch.manual_seed(0)
    return Unrolled().eval(), torch.randn(SEQUENCE)


def test_a_loop_over_the_calls_of_a_cell_sees_every_one(unrolled):
    net, x = unrolled
    expected, seen = reference.outputs(net, ["cell"], x)["cell"], []
    model = NNsight(net)
    with model.trace(x) as tracer:
        for _ in tracer.iter[:]:
            seen.append(model.cell.output.clone())
    assert len(seen) == x.shape[1]
    assert all(map(torch.equal, seen, expected))


def test_one_call_of_a_cell_is_edited(unrolled):
    net, x = unrolled
    expected = reference.edited(net, {"cell": lambda out, n: out * 0 if n == 2 else None}, x)
    model = NNsight(net)
    with model.trace(x):
        for _ in model.iter[2]:
            model.cell.output[:] = 0
        out = model.head.output
    assert torch.equal(out, expected)
    with model.trace(x) as tracer:
        model.cell.output
        model.cell.next().next().output = torch.zeros(2, 6)
        out = tracer.result
    assert torch.equal(out, expected)
    with model.trace(x) as tracer:
        for _ in range(2):
            model.cell.output
            tracer.next()
        model.cell.output[:] = 0
        out = tracer.result
    assert torch.equal(out, expected)


def test_a_call_that_does_not_come_is_named(unrolled):
    net, x = unrolled
    model = NNsight(net)
    with pytest.raises(StepError, match="cell is not called again"):
        with model.trace(x):
            for _ in range(6):
                model.cell.next().output


def test_an_edit_of_every_call_stays_for_later_passes(unrolled):
    net, x = unrolled
    expected = reference.edited(net, {"cell": lambda out, n: out * 0.5}, x)
    with NNsight(net).edit() as edited:
        for _ in edited.iter[:]:
            edited.cell.output *= 0.5
    out = edited.trace(x)
    assert torch.equal(out, expected)


def test_every_call_in_each_invoke(unrolled):
    net, x = unrolled
    expected = [reference.outputs(net, ["cell"], part)["cell"] for part in (x[:1], x[1:])]
    seen, model = [[], []], NNsight(net)
    with model.trace() as tracer:
        for number, part in enumerate((x[:1], x[1:])):
            with tracer.invoke(part):
                for _ in tracer.iter[:]:
                    seen[number].append(model.cell.output.clone())
    for one, other in zip(seen, expected, strict=True):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


def test_a_shared_module_is_met_once_for_each_call_and_under_both_names():
    torch.manual_seed(0)
    net, x = Shared(), torch.randn(ROWS)
    expected = reference.outputs(net, ["block"], x)["block"]
    model, seen = NNsight(net), []
    with model.trace(x) as tracer:
        for _ in tracer.iter[:]:
            seen.append(model.block.output)
    assert all(map(torch.equal, seen, expected))
    assert len(seen) == 3
    with model.trace(x):
        again = model.again.output
    assert torch.equal(again, expected[0])


def test_an_lstms_states_are_read_and_changed():
    torch.manual_seed(0)
    net, x = Recurrent(nn.LSTM), torch.randn(SEQUENCE)
    ((out, (h, c)),) = reference.outputs(net, ["rnn"], x)["rnn"]
    model = NNsight(net)
    with model.trace(x) as tracer:
        seen = model.rnn.output
        model.rnn.output[0][:, -1] = 0
        result = tracer.result
    assert torch.equal(seen[1][0], h)
    assert torch.equal(seen[1][1], c)
    assert torch.equal(seen[0][:, :-1], out[:, :-1])
    assert torch.equal(result, net.head.bias.expand(2, 2))


# Experts -----------------------------------------------------------------------------------------


def test_experts_that_get_no_token_are_named_and_the_others_read():
    torch.manual_seed(0)
    net, model = (net := Experts(12)), NNsight(net)
    for seed in range(3):  # other experts each time, in a pass after the first as well
        torch.manual_seed(seed)
        x = torch.randn(2, WIDTH)
        expected = {path: v for path, v in hooked(net, x).items() if path.count(".") == 1}
        idle = next(i for i in range(12) if f"experts.{i}" not in expected)
        seen = {}
        with model.trace(x):
            for path in expected:
                seen[path] = copied(model[path].output)
        assert all(same(seen[path], expected[path][0]) for path in expected)
        with pytest.raises(NeverRanError, match=rf"experts\.{idle} did not run"):
            with model.trace(x):
                model.experts[idle].output


def test_tokens_of_one_expert_are_changed():
    torch.manual_seed(0)
    net, x = Experts(), torch.randn(7, WIDTH)
    busy = next(path for path in hooked(net, x) if path.count(".") == 1)
    expected = reference.edited(net, {busy: lambda out, n: out * 0}, x)
    model = NNsight(net)
    with model.trace(x) as tracer:
        model[busy].output[:] = 0
        out = tracer.result
    assert torch.equal(out, expected)


def test_a_router_changed_sends_the_tokens_elsewhere():
    torch.manual_seed(0)
    net, x = Experts(), torch.randn(7, WIDTH)
    scores = torch.zeros(7, 6)
    scores[:, 4], scores[:, 1] = 2, 1
    expected = reference.edited(net, {"router": lambda out, n: scores}, x)
    model = NNsight(net)
    with model.trace(x) as tracer:
        model.router.output = scores
        first_out = model.experts[1].output
        second_out = model.experts[4].output
        out = tracer.result
    assert first_out.shape == second_out.shape == (7, WIDTH)
    assert torch.equal(out, expected)
    with pytest.raises(NeverRanError, match=r"experts\.0 did not run"):
        with model.trace(x):
            model.router.output = scores
            model.experts[0].output


def test_a_scan_of_experts_says_that_it_needs_values():
    with pytest.raises(insitu.ScanError, match="needs real values"):
        with NNsight(Experts()).scan(torch.randn(7, WIDTH)):
            pass


# What is around a module -------------------------------------------------------------------------


def test_torchs_fast_path_calls_no_inner_module_and_that_is_said():
    torch.manual_seed(0)
    layer, x = (
        nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True).eval(),
        torch.randn(SEQUENCE),
    )
    model = NNsight(layer)
    with torch.no_grad():
        with pytest.raises(NeverRanError, match="linear1 did not run"):
            with model.trace(x):
                model.linear1.output
    with model.trace(x):
        hidden = model.linear1.output
    (expected,) = reference.outputs(layer, ["linear1"], x)["linear1"]
    assert torch.equal(hidden, expected)


class ByProperty(nn.Module):
    """Leads to a module of its tree by a property, as transformers' `base_model` does."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    @property
    def backbone(self):
        return self.inner

    def forward(self, x):
        return self.backbone(x)


def test_a_property_that_leads_to_a_module_gives_it_wrapped():
    net, x = ByProperty(), torch.randn(ROWS)
    model = NNsight(net)
    with model.trace(x):
        hidden = model.backbone[0].output.clone()
    assert model.backbone is model.inner
    assert torch.equal(hidden, net.inner[0](x))
