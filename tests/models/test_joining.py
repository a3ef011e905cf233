"""How the inputs of invokes become one call: in which dimension, or by a function of the user's."""

import copy
import warnings

import pytest
import reference
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from insitu import InputError, InputTypeError, NNsight

TIME = 6
PLACES = {"src": 1, "mask": 0, "src_key_padding_mask": 0}


class TimeMajor(nn.Module):
    """`[time, batch, feature]`, with states in as many layers as there are prompts."""

    def __init__(self, kind=nn.GRU):
        super().__init__()
        self.before = nn.Linear(4, 4)
        self.rnn = kind(4, 5, num_layers=2)
        self.head = nn.Linear(5, 3)

    def forward(self, x, hx=None):
        hidden, state = self.rnn(self.before(x), hx)
        return self.head(hidden), state


class Ragged(nn.Module):
    """Takes a dict: ids and how many of each row are meant; gives a number for each row."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, batch):
        hidden = self.embed(batch["ids"])
        meant = torch.arange(hidden.shape[1]) < batch["lengths"][:, None]
        return self.head((hidden * meant[..., None]).sum(1))


class Attends(nn.MultiheadAttention):
    """Every position to all others."""

    def __init__(self, width, heads, batch_first):
        super().__init__(width, heads, batch_first=batch_first)

    def forward(self, x):
        return super().forward(x, x, x)


class Holds(nn.Module):
    """A recurrent network in another module."""

    def __init__(self, width, hidden, batch_first):
        super().__init__()
        self.rnn = nn.LSTM(width, hidden, batch_first=batch_first)

    def forward(self, x):
        return self.rnn(input=x)


@pytest.fixture
def prompts():
    torch.manual_seed(5)
    return [torch.randn(TIME, n, 4) for n in (1, 2)]


def padded(calls):
    """What a user writes for `Ragged`: every invoke gives a tensor of ids."""
    ids = [args[0] for args, _ in calls]
    lengths = torch.tensor([len(it) for it in ids])
    return ({"ids": pad_sequence(ids, batch_first=True), "lengths": lengths},), {}


def close(got, expected):
    return torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("sizes", [(1, 2), (1, 1), (2, 2), (1, 1, 1, 1, 1, 1)])
def test_time_major_prompts_are_joined_and_read_in_their_dimension(sizes):
    torch.manual_seed(5)
    net = TimeMajor().requires_grad_(False)
    model = NNsight(net, batch_dim=1)
    xs, seen = [torch.randn(TIME, n, 4) for n in sizes], []
    with reference.counting(net) as calls, model.trace() as tracer:
        for x in xs:
            with tracer.invoke(x):
                given = model.input
                (hidden, state), result = model.rnn.output, model.output
                seen.append((given, hidden, state, result[0], result[1]))
    assert calls["rnn"] == 1
    for x, got in zip(xs, seen, strict=True):
        hidden, state = net.rnn(net.before(x))
        expected = x, hidden, state, *net(x)
        assert all(map(close, got, expected))
        assert [it.shape for it in got] == [it.shape for it in expected]


def test_writing_and_skipping_in_that_dimension_change_ones_own_rows_alone(prompts):
    net = TimeMajor().requires_grad_(False)
    model = NNsight(net, batch_dim=1)
    a, b = prompts
    with model.trace() as tracer:
        with tracer.invoke(a):
            model.before.output[-1] = 0
            one = model.output[0]
        with tracer.invoke(b):
            model.rnn.output = (model.rnn.output[0] * 2, model.rnn.output[1])
            other = model.output[0]
        with tracer.invoke(a):
            model.before.skip(torch.ones(TIME, 1, 4))
            third = model.output[0]
        with tracer.invoke(b):
            model.input = b * 3
            model.head.output[:] += 1
            fourth = tracer.result[0]

    def last_zero(value, call):
        value[-1] = 0
        return value

    assert close(one, reference.edited(net, {"before": last_zero}, a)[0])
    assert close(other, net.head(net.rnn(net.before(b))[0] * 2))
    assert close(third, net.head(net.rnn(torch.ones(TIME, 1, 4))[0]))
    assert close(fourth, net(b * 3)[0] + 1)


def test_gradients_and_caches_are_those_of_ones_own_rows(prompts):
    net = TimeMajor()
    model, grads, caches = NNsight(net, batch_dim=1), [], []
    with model.trace() as tracer:
        for x in prompts:
            with tracer.invoke(x):
                caches.append(tracer.cache([model.before]))
                hidden = model.before.output
                with (model.output[0] ** 2).sum().backward(retain_graph=True):
                    grads.append(hidden.grad.clone())
    for x, grad, cache in zip(prompts, grads, caches, strict=True):
        hidden = net.before(x).detach().requires_grad_()
        (net.head(net.rnn(hidden)[0]) ** 2).sum().backward()
        assert torch.allclose(grad, hidden.grad, atol=1e-5)
        assert close(cache["before"].output, hidden)


def test_single_arguments_have_dimensions_of_their_own(prompts):
    torch.manual_seed(1)
    lstm = nn.LSTM(4, 5, num_layers=2, batch_first=True).requires_grad_(False)
    model, seen = NNsight(lstm, batch_dim={"hx": 1}), []
    states = [(torch.randn(2, n, 5), torch.randn(2, n, 5)) for n in (1, 3)]
    calls = [(torch.randn(n, TIME, 4), state) for n, state in zip((1, 3), states, strict=True)]
    with model.trace() as tracer:
        for x, state in calls:
            with tracer.invoke(x, state):
                seen.append(model.output)
    with model.trace() as tracer:
        for x, state in calls:
            with tracer.invoke(input=x, hx=state):
                seen.append(model.output)
    for (x, state), (hidden, (h, c)) in zip(calls * 2, seen, strict=True):
        expected, (eh, ec) = lstm(x, state)
        assert close(hidden, expected)
        assert close(h, eh)
        assert close(c, ec)


def test_a_mask_beside_time_major_tokens_is_joined_below_the_others():
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0).requires_grad_(False)
    net = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).train()
    model, seen = NNsight(net, batch_dim=PLACES), []
    calls = []
    for n in (1, 2):
        mask = torch.zeros(n, TIME, dtype=torch.bool)
        mask[:, TIME - n :] = True
        calls.append((torch.randn(TIME, n, 4), mask))
    with model.trace() as tracer:
        for x, mask in calls:
            with tracer.invoke(x, src_key_padding_mask=mask):
                seen.append((model.layers[0].linear1.output, model.output))
    for (x, mask), (inner, out) in zip(calls, seen, strict=True):
        expected = reference.outputs(net, ["layers.0.linear1"], x, src_key_padding_mask=mask)
        assert close(inner, expected["layers.0.linear1"][0])
        assert close(out, net(x, src_key_padding_mask=mask))


def test_a_model_that_cannot_be_scanned_is_read_in_the_dimension_given(prompts):
    class Looks(TimeMajor):
        def forward(self, x):
            return super().forward(x * float(x.sum() > -1e9))

    net = Looks().requires_grad_(False)
    model, seen = NNsight(net, batch_dim=1), []
    prompts = [torch.randn(TIME, 7, 4), torch.randn(TIME, 7, 4)]  # no size of the model is 14
    with model.trace() as tracer:
        for x in prompts:
            with tracer.invoke(x):
                seen.append((model.before.output, model.rnn.output[1], model.output[0]))
    for x, got in zip(prompts, seen, strict=True):
        assert all(map(close, got, (net.before(x), net.rnn(net.before(x))[1], net(x)[0])))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", [nn.GRU, Attends, Holds])
def test_prompts_joined_in_time_are_warned_of(kind, batch_first):
    net = kind(4, 4, batch_first=batch_first).requires_grad_(False)
    model, seen = NNsight(net), []
    xs = [torch.rand(1, TIME, 4), torch.rand(1, TIME, 4)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            with model.trace() as tracer:
                for x in xs:
                    with tracer.invoke(x):
                        seen.append(model.output[0])
    apart = all(close(got, net(x)[0]) for x, got in zip(xs * 2, seen, strict=True))
    assert apart is batch_first
    assert [str(it.message).partition(" takes the first")[1] for it in told] == (
        [] if batch_first else [" takes the first"]
    )


def test_a_users_function_joins_what_is_ragged():
    torch.manual_seed(2)
    net = Ragged().requires_grad_(False)
    model, seen = NNsight(net, batch=padded), []
    texts = [torch.tensor([1, 2, 3]), torch.tensor([4]), torch.tensor([5, 6, 7, 8])]
    with model.trace() as tracer:
        for number, ids in enumerate(texts):
            with tracer.invoke(ids):
                if number == 1:
                    model.embed.output[:, : len(ids)] *= 2
                seen.append((model.embed.output, model.output))
    for number, (ids, (embedded, out)) in enumerate(zip(texts, seen, strict=True)):
        expected = net.embed(ids) * (2 if number == 1 else 1)
        assert embedded.shape == (1, 4, 4)
        assert close(embedded[0, : len(ids)], expected)
        assert close(out[0], net.head(expected.sum(0)))
    with model.trace() as tracer, tracer.invoke(texts[0]):
        alone = model.output
    assert close(alone, seen[0][1])
    own = {"ids": texts[0][None], "lengths": torch.tensor([3])}
    with model.trace(own):  # as the module takes it
        assert close(model.output, alone)


def test_a_users_function_says_how_many_rows_each_invoke_has(prompts):
    def side_by_side(calls):
        return (torch.cat([args[0] for args, _ in calls], 1),), {}, [x.shape[1] for x in prompts]

    net = TimeMajor().requires_grad_(False)
    model, seen = NNsight(net, batch=side_by_side, batch_dim=1), []
    with model.trace() as tracer:
        for x in prompts:
            with tracer.invoke(x):
                seen.append(model.output[0])
    assert all(close(got, net(x)[0]) for x, got in zip(prompts, seen, strict=True))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (torch.rand(3, 2), r"batch\(\) has given float32\[3, 2\]\."),
        ((torch.rand(3, 2), {}), r"batch\(\) has given \(float32\[3, 2\], dict\)\."),
        (((torch.rand(3, 2),), {}), r"batch\(\) has made 3 rows of 2 invokes\."),
        (((torch.rand(3, 2),), {}, [1, 1]), r"3 rows of 2 invokes, and says \[1, 1\]\."),
        (((torch.rand(3, 2),), {}, [3]), r"3 rows of 2 invokes, and says \[3\]\."),
    ],
)
def test_what_a_users_function_gives_is_checked(made, told):
    model = NNsight(nn.Linear(2, 2), batch=lambda calls: made)
    with pytest.raises(InputError, match=told), model.trace() as tracer:
        with tracer.invoke(torch.rand(1, 2)):
            model.output
        with tracer.invoke(torch.rand(2, 2)):
            model.output


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batch_dim": -1}, "counted from 0"),
        ({"batch_dim": "x"}, "counted from 0"),
        ({"batch_dim": True}, "counted from 0"),
        ({"batch_dim": {"hz": 1}}, "takes input, hx, and no hz"),
        ({"batch": 1}, "batch=1, which is no function"),
    ],
)
def test_what_says_no_dimension_and_no_function_is_refused(settings, told):
    with pytest.raises(InputTypeError, match=told):
        NNsight(nn.GRU(4, 5), **settings)


def test_inputs_that_do_not_fit_in_that_dimension_are_named(prompts):
    model = NNsight(TimeMajor(), batch_dim=1)
    with pytest.raises(InputError, match=r"float32\[6, 1, 4\] and float32\[5, 1, 4\]"):
        with model.trace() as tracer:
            with tracer.invoke(prompts[0]):
                model.output
            with tracer.invoke(prompts[0][1:]):
                model.output


def test_copies_scans_and_edited_wrappers_join_alike(prompts):
    net = TimeMajor().requires_grad_(False)
    model = NNsight(net, batch_dim=1)
    with model.edit() as edited:
        model.head.output[:] = 0
    for wrapper in (copy.deepcopy(model), edited):
        with wrapper.trace() as tracer:
            with tracer.invoke(prompts[0]):
                pass
            with tracer.invoke(prompts[1]):
                hidden, out = wrapper.rnn.output[0], wrapper.output[0]
        assert close(hidden, net.rnn(net.before(prompts[1]))[0])
        assert close(out, net(prompts[1])[0] * (wrapper is not edited))
    with model.scan() as tracer:
        with tracer.invoke(prompts[0]):
            pass
        with tracer.invoke(prompts[1]):
            shape = tuple(model.head.output.shape)
    assert shape == (TIME, 2, 3)
