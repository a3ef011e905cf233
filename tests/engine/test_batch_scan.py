"""What a scan tells of a joined batch: each prompt sees and changes what it would alone."""

from collections import UserDict, defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import pytest
import reference
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

import insitu
from insitu import NNsight


@pytest.fixture
def prompts():
    torch.manual_seed(3)
    return [torch.rand(1, 4, 6), torch.rand(1, 4, 6)]


class Recurrent(nn.Module):
    """Two layers, of which the last states are read: `[layer, batch, d_hidden]`."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 5, num_layers=2, batch_first=True)

    def forward(self, x):
        _, (h, _) = self.rnn(x)
        return h.transpose(0, 1)


class Heads(nn.Module):
    """Splits into two heads: `[head, batch, pos, d_head]`."""

    def forward(self, x):
        return x.unflatten(-1, (2, 3)).permute(2, 0, 1, 3)


class InHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.split = Heads()
        self.out = nn.Linear(6, 6)

    def forward(self, x):
        return self.out(self.split(x).permute(1, 2, 0, 3).flatten(2))


class Positions(nn.Module):
    """A table made in code, of as many rows as there are prompts."""

    def forward(self, x):
        return x, torch.arange(2.0)


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = Positions()

    def forward(self, x):
        x, table = self.table(x)
        return x * table.sum()


def zeroed(net, path, x, pick):
    """What a net gives when a hook writes zeros into a part of what a module returns."""

    def write(module, args, output):
        pick(output)[:] = 0

    with reference.hooks([net.get_submodule(path).register_forward_hook(write)]):
        return net(x)


STATES = [
    pytest.param(Recurrent, "rnn", lambda out: out[1][0], id="states of two layers"),
    pytest.param(InHeads, "split", lambda out: out, id="heads first"),
]


@pytest.mark.parametrize(("kind", "path", "pick"), STATES)
@pytest.mark.parametrize("count", [2, 3])
def test_rows_in_another_dimension_are_each_prompts_own(kind, path, pick, count):
    net = kind()
    model = NNsight(net)
    xs = [torch.rand(1, 4, 6) for _ in range(count)]
    node = getattr(model, path)
    alone = []
    for x in xs:
        with model.trace(x):
            alone.append(pick(node.output).clone())
    seen, out = [], []
    with torch.no_grad(), model.trace() as tracer:
        with tracer.invoke(xs[0]):
            seen.append(pick(node.output).clone())
            pick(node.output)[:] = 0
            out.append(model.output)
        for x in xs[1:]:
            with tracer.invoke(x):
                seen.append(pick(node.output).clone())
                out.append(model.output)
    for got, one in zip(seen, alone, strict=True):
        assert torch.allclose(got, one, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(out[0], zeroed(net, path, xs[0], pick), atol=1e-6)
        for got, x in zip(out[1:], xs[1:], strict=True):
            assert torch.allclose(got, net(x), atol=1e-6)


def test_rows_in_another_dimension_can_be_replaced(prompts):
    net = InHeads()
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            pass
        with tracer.invoke(prompts[1]):
            model.split.output = model.split.output * 2
            out = model.output
        with tracer.invoke():
            every = model.output
    assert torch.allclose(out, net(prompts[1] * 2), atol=1e-6)
    assert torch.allclose(every[:1], net(prompts[0]), atol=1e-6)


def test_rows_in_another_dimension_can_be_skipped(prompts):
    net = InHeads()
    model = NNsight(net)
    with model.trace() as tracer:
        for number, x in enumerate(prompts):
            with tracer.invoke(x):
                model.split.skip(torch.full((2, 1, 4, 3), float(number)))
        with tracer.invoke():
            every = model.split.output
    assert every.shape == (2, 2, 4, 3)
    assert (every[:, 0] == 0).all()
    assert (every[:, 1] == 1).all()


def test_a_size_that_code_alone_knows_is_not_the_batch(prompts):
    model = NNsight(Counts())
    with model.trace() as tracer:
        with tracer.invoke(prompts[0]):
            x, table = model.table.output
        with tracer.invoke(prompts[1]):
            pass
    assert x.shape == (1, 4, 6)
    assert torch.equal(table, torch.arange(2.0))


class Grows(nn.Module):
    """Returns more where more is asked for."""

    more = False

    def forward(self, x, further=False):
        return (x * 2, torch.arange(2.0)) if further or self.more else (x * 2,)


def test_what_another_keyword_adds_is_scanned_too(prompts):
    model = NNsight(Grows())
    for further in (False, True):
        with model.trace(further=further) as tracer:
            with tracer.invoke(prompts[0]):
                one = model.output
            with tracer.invoke(prompts[1]):
                other = model.output
    assert torch.equal(one[0], prompts[0] * 2)
    assert torch.equal(other[0], prompts[1] * 2)
    assert torch.equal(one[1], torch.arange(2.0))


def test_what_a_changed_model_adds_is_scanned_for_the_next_pass(prompts):
    net = Grows()
    model = NNsight(net)
    seen = []
    for net.more in (False, True, True):
        with model.trace() as tracer:
            with tracer.invoke(prompts[0]):
                seen.append(model.output)
            with tracer.invoke(prompts[1]):
                pass
    assert len(seen[0]) == 1
    assert torch.equal(seen[2][1], torch.arange(2.0))


def test_a_model_is_scanned_once_for_calls_of_a_kind(prompts):
    ran = []

    class Notes(nn.Module):
        def forward(self, x, by=1.0):
            ran.append(isinstance(x, FakeTensor))
            return x * by

    model = NNsight(Notes())
    for number, length in enumerate((4, 3, 2, 4)):
        with model.trace(by=float(number)) as tracer:
            for x in prompts:
                with tracer.invoke(x[:, :length]):
                    model.output
    assert ran == [True, False, False, False, False]


def test_the_users_own_hooks_are_not_called_by_a_scan(net, prompts):
    seen = []
    hooks = [
        net.layer1.register_forward_hook(lambda m, a, o: seen.append(o)),
        net.layer1.register_forward_pre_hook(lambda m, a: seen.append(a[0])),
    ]
    model = NNsight(net)
    with reference.hooks(hooks):
        before = list(net.layer1._forward_hooks.values())
        with model.trace() as tracer:
            for _ in range(2):
                with tracer.invoke(torch.rand(1, 5)):
                    model.layer1.output
        assert list(net.layer1._forward_hooks.values()) == before
    assert [tuple(it.shape) for it in seen] == [(2, 5), (2, 10)]
    assert not any(isinstance(it, FakeTensor) for it in seen)


class Store:
    """What a forward writes into, as into a cache."""

    def __init__(self):
        self.held = [torch.zeros(2, 3)]


def test_an_object_that_a_forward_writes_into_holds_no_fakes_afterwards():
    class Writes(nn.Module):
        def forward(self, x, store):
            store.held[0] = store.held[0] + x
            store.latest = x
            return store.held[0] * 2

    model, store = NNsight(Writes()), Store()
    xs = [torch.rand(1, 3), torch.rand(1, 3)]
    with model.trace(store=store) as tracer:
        with tracer.invoke(xs[0]):
            a = model.output
        with tracer.invoke(xs[1]):
            b = model.output
    assert torch.equal(a, xs[0] * 2)
    assert torch.equal(b, xs[1] * 2)
    assert torch.equal(store.held[0], torch.cat(xs))
    assert not isinstance(store.latest, FakeTensor)


# Operations ---------------------------------------------------------------------------------------


class Embeds(nn.Module):
    """Adds positions, of which there are as many as prompts."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 6)
        self.out = nn.Linear(6, 6)

    def forward(self, x):
        places = torch.arange(x.shape[1])
        return self.out(torch.relu(x) + self.table(places))


@pytest.mark.parametrize("passes", [1, 2])
def test_operations_are_told_apart_too(passes):
    net = Embeds()
    model = NNsight(net)
    xs = [torch.rand(1, 4, 6) for _ in range(4)]
    for _ in range(passes):
        with model.trace() as tracer:
            with tracer.invoke(xs[0]):
                places = model.source.torch_arange_0.output
                h = model.source.torch_relu_0.output
                model.source.torch_relu_0.output = h * 2
                out = model.output
            for x in xs[1:]:
                with tracer.invoke(x):
                    last = model.output
    assert torch.equal(places, torch.arange(4))
    assert torch.equal(h, xs[0])
    assert torch.allclose(out, net(xs[0] * 2), atol=1e-6)
    assert torch.allclose(last, net(xs[3]), atol=1e-6)


def test_an_operation_asked_for_while_the_model_runs_is_told_apart(llm):
    ids = [torch.randint(1, 60, (1, 4)) for _ in range(4)]
    seen = []
    with llm.trace() as tracer:
        for one in ids:
            with tracer.invoke(one):
                llm.transformer.wte.output
                block = llm.transformer.h[1].attn
                seen.append(block.source.self_c_attn_1.output)
    for one, got in zip(ids, seen, strict=True):
        with llm.trace(one):
            alone = llm.transformer.h[1].attn.source.self_c_attn_1.output
        assert torch.allclose(got, alone, atol=1e-5)


# Where a scan is impossible -----------------------------------------------------------------------


def test_a_model_that_looks_at_its_gradients_is_scanned_with_them():
    class Forces(nn.Module):
        def forward(self, x):
            x = x.detach().requires_grad_()
            (force,) = torch.autograd.grad((x**3).sum(), x)
            return force, torch.arange(2.0)

    model = NNsight(Forces())
    xs = [torch.rand(1, 3), torch.rand(1, 3)]
    with model.trace() as tracer:
        with tracer.invoke(xs[0]):
            force, table = model.output
        with tracer.invoke(xs[1]):
            pass
    assert torch.allclose(force, 3 * xs[0] ** 2)
    assert table.shape == (2,)


def test_what_cannot_be_copied_is_told_and_not_used_up():
    class Draws(nn.Module):
        def forward(self, x, numbers):
            return x * next(numbers)

    model, numbers = NNsight(Draws()), (n for n in (2.0, 3.0))
    with pytest.warns(insitu.InsituWarning, match="cannot run on fake tensors"):
        with model.trace(numbers=numbers) as tracer:
            with tracer.invoke(torch.ones(1, 2)):
                out = model.output
            with tracer.invoke(torch.ones(1, 2)):
                pass
    assert torch.equal(out, torch.full((1, 2), 2.0))


# Values of classes of one's own ------------------------------------------------------------------


@dataclass(frozen=True)
class Derived:
    """A dataclass of which a field is not given."""

    x: torch.Tensor
    twice: torch.Tensor = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "twice", self.x * 2)


class Named(dict):
    """A dict that is made of other things than its items."""

    def __init__(self, x, name):
        super().__init__(x=x)
        self.name = name


class Numbered(list):
    """A list that is made of other things than its parts."""

    def __init__(self, x, number):
        super().__init__([x])
        self.number = number


class Marked(tuple):
    """A tuple of which the same is true."""

    def __new__(cls, x, mark):
        made = super().__new__(cls, (x,))
        made.mark = mark
        return made


class Two(NamedTuple):
    """A tuple whose parts have names."""

    x: torch.Tensor
    y: torch.Tensor


def lists_of(x):
    value = defaultdict(list)
    value["x"] = x
    return value


FORMS = [
    pytest.param(Derived, lambda value: value.x, id="dataclass"),
    pytest.param(lambda x: Named(x, "it"), lambda value: value["x"], id="dict of one's own"),
    pytest.param(lists_of, lambda value: value["x"], id="defaultdict"),
    pytest.param(lambda x: UserDict(x=x), lambda value: value["x"], id="UserDict"),
    pytest.param(lambda x: MappingProxyType({"x": x}), lambda value: value["x"], id="proxy"),
    pytest.param(lambda x: Numbered(x, 3), lambda value: value[0], id="list of one's own"),
    pytest.param(lambda x: Marked(x, "it"), lambda value: value[0], id="tuple of one's own"),
    pytest.param(lambda x: Two(x, x + 1), lambda value: value.x, id="named tuple"),
    pytest.param(lambda x: x.sort(1), lambda value: value[0], id="torch's"),
]


@pytest.mark.parametrize(("form", "pick"), FORMS)
def test_values_of_ones_own_classes_are_taken_apart_and_put_together(form, pick):
    class Wraps(nn.Module):
        def forward(self, x):
            return form(x)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.wraps = Wraps()

        def forward(self, x):
            return pick(self.wraps(x)) + 1

    net = Around()
    model = NNsight(net)
    xs = [torch.rand(1, 3), torch.rand(1, 3)]
    with model.trace() as tracer:
        with tracer.invoke(xs[0]):
            seen = model.wraps.output
            out = model.output
        with tracer.invoke(xs[1]):
            model.wraps.output = form(xs[1] * 3)
            other = model.output
    assert type(seen) is type(form(xs[0]))
    assert vars(seen).keys() == vars(form(xs[0])).keys() if hasattr(seen, "__dict__") else True
    assert torch.equal(pick(seen), pick(form(xs[0])))
    assert torch.equal(out, net(xs[0]))
    assert torch.equal(other, pick(form(xs[1] * 3)) + 1)


@pytest.mark.parametrize(("form", "pick"), FORMS)
def test_prompts_of_ones_own_classes_are_joined_and_stay_of_their_kind(form, pick):
    kinds = []

    class Takes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, given):
            kinds.append(type(given))
            return self.inner(pick(given))

    net = Takes()
    model = NNsight(net)
    xs = [torch.rand(1, 3), torch.rand(2, 3)]
    with model.trace() as tracer:
        with tracer.invoke(form(xs[0])):
            given, one = model.input, model.inner.output
        with tracer.invoke(form(xs[1])):
            model.input = form(xs[1] * 2)
            other = model.output
    assert kinds[-1] is type(given) is type(form(xs[0]))
    assert vars(given).keys() == vars(form(xs[0])).keys() if hasattr(given, "__dict__") else True
    assert torch.allclose(one, net.inner(pick(form(xs[0]))))
    assert torch.allclose(other, net.inner(pick(form(xs[1] * 2))))


# Gradients ----------------------------------------------------------------------------------------


def test_a_backward_in_each_of_two_invokes_is_told_of_their_one_graph():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model = NNsight(net)
    xs = [torch.rand(1, 3), torch.rand(1, 3)]

    def both(**settings):
        seen = []
        with model.trace() as tracer:
            with tracer.invoke(xs[0]):
                h, out = model[0].output, model.output
                with (out**2).sum().backward(**settings):
                    seen.append(h.grad.clone())
            with tracer.invoke(xs[1]):
                h, out = model[0].output, model.output
                with (out**2).sum().backward():
                    seen.append(h.grad.clone())
        return seen

    with pytest.raises(RuntimeError, match="a second time") as caught:
        both()
    assert any("retain_graph=True" in note for note in caught.value.__notes__)
    for x, got in zip(xs, both(retain_graph=True), strict=True):
        h = net[0](x)
        (alone,) = torch.autograd.grad((net[2](net[1](h)) ** 2).sum(), h)
        assert torch.allclose(got, alone, atol=1e-6)
