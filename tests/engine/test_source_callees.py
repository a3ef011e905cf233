"""What a call calls: said in its own words where it cannot be known without a run."""

import pytest
import torch
from torch import nn

from insitu import NNsight, SourceError, UnknownOperationError

OUTSIDE = nn.Linear(4, 4)
FUNCTIONS = {}


def double(x, by=2):
    y = torch.mul(x, by)
    return torch.add(y, 1)


def negated(x):
    return torch.neg(x)


def get_function(name, **further):
    if name == "broken":
        raise KeyError("no such function")
    return FUNCTIONS.get(name, double)


def takes(net, x, *rest):
    return net.pick(x)


def says_super(net, x):
    return super().pick(x)


class Piece:
    def __init__(self, x):
        self.x = x


class Odd(nn.Module):
    """Says much that it never runs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleList([nn.Tanh(), nn.ReLU()])
        self.kind, self.number, self.flag = "double", 2, True
        self.pick = double

    def forward(self, x, given=()):
        if x is None:
            around = again  # noqa: F821
            again = around  # noqa: F841
            around(x)
            (lambda v: v)(x)
            self.scale.mul(x)
            missing(x)  # noqa: F821
            len(x)
            says_super(self, x)
            self.later(x)
            FUNCTIONS["four"](x)
            self.kind[0](x)
            get_function(**given)(x)
            get_function("broken")(x)
            self.layers[~0](x)
            (double if self.number > 1 else negated)(x)
            OUTSIDE(x)
            Piece(x)
        x = (self.flag and double)(x)
        x = self.layers[not self.flag](x)
        x = takes(self, x)
        x = takes(self, *(x,))
        return self.linear(input=x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Odd().requires_grad_(False)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.rand(2, 4)


# What a call calls --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("around_0", "it is defined by itself"),
        ("call_0", "`lambda v: v` is computed in the forward"),
        ("self_scale_mul_0", "`self.scale` is a tensor"),
        ("missing_0", "`missing` is not defined yet"),
        ("self_later_0", "`self.later` is not there yet"),
        ("FUNCTIONS_four_0", "`FUNCTIONS['four']` is not there yet"),
        ("call_1", "`get_function(**given)` is called first"),
        ("call_2", "`get_function('broken')` fails: 'no such function'"),
        ("self_layers_0_0", "`~0` is computed in the forward"),
        ("call_3", "`self.number > 1` is computed in the forward"),
    ],
)
def test_what_only_a_run_can_tell_is_said_in_its_own_words(net, name, why):
    with pytest.raises(SourceError, match="is not known before it runs") as caught:
        NNsight(net).source[name].source
    assert caught.value.why.startswith(f"{why}, and without a run only")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("len_0", "len is a builtin_function_or_method"),
        ("Piece_0", "Piece is a class"),
        ("OUTSIDE_0", "where it is in the tree of the wrapped model"),
    ],
)
def test_what_has_no_operations_in_this_model_says_why(net, name, said):
    with pytest.raises(SourceError) as caught:
        NNsight(net).source[name].source
    assert said in caught.value.why


def test_super_outside_of_a_class_is_not_known(net):
    with pytest.raises(SourceError) as caught:
        NNsight(net).source.says_super_0.source.pick_0.source
    assert caught.value.why.startswith("`super()` is known for methods alone")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("call_4", "model.source.call_4.source"),
        ("self_layers_self_flag_0", "layers.0.source"),
        ("takes_0", "model.source.takes_0.source"),
    ],
)
def test_what_is_chosen_by_what_the_module_holds_is_known(net, name, path):
    assert NNsight(net).source[name].source._path == path


def test_what_is_given_by_position_is_known_inside_and_behind_a_star_it_is_not(net):
    source = NNsight(net).source
    inner = source.takes_0.source.net_pick_0.source
    assert inner._path == "model.source.takes_0.source.net_pick_0.source"
    assert source.takes_1.source.net_pick_0.source._chain.function is double

    def starred(self, x):
        return takes(*(self, x))

    net.forward = starred.__get__(net)
    with pytest.raises(SourceError, match="is not known before it runs") as caught:
        NNsight(net).source.takes_0.source.net_pick_0.source
    assert caught.value.why.startswith("`net` is an argument")


def test_what_is_no_site_of_an_operation_names_what_is(net):
    operation = NNsight(net).source.takes_0
    with pytest.raises(UnknownOperationError, match=r"did you mean .*takes_0\.output\?"):
        operation.outputs
    with pytest.raises(UnknownOperationError, match="has nothing called 'weight'"):
        operation.weight
    for it in (operation, operation._in):
        assert not hasattr(it, "__wrapped__")  # what other tools ask for is no site


def test_the_input_of_a_call_by_keyword_is_written(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        model.source.self_linear_0.input = torch.zeros(2, 4)
        out = tracer.result
    assert torch.equal(out, net.linear(torch.zeros(2, 4)))
