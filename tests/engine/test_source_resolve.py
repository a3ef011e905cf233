"""What a call in a forward calls, found without running it."""

import functools

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from insitu import NNsight, SourceError

TABLE = {"twice": lambda x: x}


def by_two(x):
    return torch.mul(x, 2)


def by_three(x):
    return torch.mul(x, 3)


FUNCTIONS = {"two": by_two, "three": by_three}


def get_function(name, default=None):
    return FUNCTIONS.get(name, default)


class Parent(nn.Module):
    def work(self, x):
        return torch.neg(x)


class Net(Parent):
    def __init__(self):
        super().__init__()
        self.kind = "three"
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        self.table = nn.ModuleDict({"act": nn.ReLU()})
        self.plain = by_two
        self.training_too = True

    def forward(self, x, given=by_two):
        looked_up = FUNCTIONS[self.kind]
        got: object = get_function(self.kind, by_two)
        chosen = by_two if self.kind == "two" else by_three
        either = None or by_three
        bound = functools.partial(by_two)
        again = by_two
        again = by_three
        x = looked_up(x) + got(x) + chosen(x) + either(x) + bound(x)
        x = self.layers[0](x) + self.layers[-1](x) + self.table["act"](x)
        x = super().work(x) + self.work(x) + self.plain(x)
        for layer in self.layers:
            x = layer(x)
        return again(x) + given(x) + self.make()(x) + torch.abs(x) + x.neg() + Wrapper(x)

    def work(self, x):
        return self.plain(x)

    def make(self):
        return by_two


def Wrapper(x):
    return x


def shown(model, name):
    source = model.source[name].source
    return source._chain.function.__qualname__, source._path


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("looked_up_0", "by_three"), ("got_0", "by_three"), ("chosen_0", "by_three"),
        ("either_0", "by_three"), ("bound_0", "by_two"), ("self_plain_0", "by_two"),
        ("self_work_0", "Net.work"), ("work_0", "Parent.work"), ("self_make_0", "Net.make"),
        ("Wrapper_0", "Wrapper"), ("get_function_0", "get_function"),
    ],
)  # fmt: skip
def test_a_callee_is_found_from_the_text(name, function):
    assert shown(NNsight(Net()), name) == (function, f"model.source.{name}.source")


@pytest.mark.parametrize(
    ("name", "path"),
    [("self_layers_0_0", "layers.0"), ("self_layers_1_0", "layers.1"),
     ("self_table_act_0", "table.act")],
)  # fmt: skip
def test_a_module_is_found_in_the_tree(name, path):
    model = NNsight(Net())
    assert model.source[name].source._path == f"{path}.source"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("again_0", "`again` is assigned in a loop, with others, or more than once"),
        ("given_0", "`given` is an argument"),
        ("layer_0", "`layer` is assigned in a loop"),
        ("call_0", "`self.make()` is called first"),
        ("x_neg_0", "`x` is assigned in a loop, with others, or more than once"),
    ],
)
def test_what_only_a_run_can_tell_is_said(name, why):
    with pytest.raises(SourceError, match="is not known before it runs") as caught:
        NNsight(Net()).source[name].source
    assert caught.value.why.startswith(why)


def test_a_function_in_c_has_no_operations():
    with pytest.raises(SourceError, match=r"torch_abs_0\.source has no operations") as caught:
        NNsight(Net()).source.torch_abs_0.source
    assert "abs is a builtin_function_or_method" in caught.value.why


def test_an_assignment_calls_nothing():
    with pytest.raises(SourceError, match="it is an assignment"):
        NNsight(Net()).source.assign_looked_up_0.source


def test_what_is_found_follows_the_model():
    model = NNsight(Net())
    assert shown(model, "looked_up_0")[0] == "by_three"
    model._module.kind = "two"
    assert shown(model, "looked_up_0")[0] == "by_two"


def test_what_is_found_is_what_runs():
    torch.manual_seed(0)
    net = Net()
    model = NNsight(net)
    x = torch.rand(1, 2)
    with model.trace(x):
        value = model.source.looked_up_0.source.torch_mul_0.output
        layer = model.source.self_layers_1_0.source.F_linear_0.output
        own = model.source.work_0.source.torch_neg_0.output
        out = model.output
    assert torch.equal(value, x * 3)
    assert layer.shape == (1, 2)
    assert own.shape == (1, 2)
    assert torch.equal(out, net(x))


def test_the_attention_function_is_that_of_the_models_configuration():
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9, bos_token_id=0, eos_token_id=0)
    net = GPT2LMHeadModel(config)
    operation = NNsight(net).transformer.h[0].attn.source.attention_interface_0
    net.set_attn_implementation("eager")
    assert operation.source._chain.function.__name__ == "eager_attention_forward"
    assert "nn_functional_softmax_0" in operation.source
    net.set_attn_implementation("sdpa")
    assert operation.source._chain.function.__name__ == "sdpa_attention_forward"


def test_naming_and_printing_run_nothing():
    class Never(nn.Module):
        def forward(self, x):
            return self.more(x)

        def more(self, x):
            raise AssertionError("this ran")

    model = NNsight(Never())
    assert "self_more_0" in repr(model.source)
    assert "this ran" in repr(model.source.self_more_0.source)
