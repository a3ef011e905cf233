"""A block in a trace sees and changes what plain hooks see and change."""

import pytest
import torch
from reference import counting, edited, inputs, outputs
from torch import nn

import insitu
from insitu import NNsight

# Reading --------------------------------------------------------------------------------------


def same(value, expected):
    """Equal to the bit, in every tensor inside; other things (a cache) by their class."""
    if isinstance(expected, torch.Tensor):
        return torch.equal(value, expected)
    if isinstance(expected, (tuple, list)):
        return len(value) == len(expected) and all(map(same, value, expected))
    if isinstance(expected, dict):
        return value.keys() == expected.keys() and all(same(value[k], expected[k]) for k in value)
    return type(value) is type(expected)


def test_output_of_every_module_is_what_a_hook_sees(tiny_gpt2, llm):
    model, _ = tiny_gpt2
    ids = torch.tensor([[5, 6, 7, 8]])
    for path in [name for name, _ in model.named_modules() if name]:
        expected = outputs(model, [path], ids)[path]
        with llm.trace(ids):
            seen = llm[path].output if expected else None
        if expected:
            assert same(seen, expected[0]), path


def test_inputs_are_the_arguments_a_hook_sees(tiny_gpt2, llm):
    model, _ = tiny_gpt2
    ids = torch.tensor([[5, 6, 7, 8]])
    for path in ("transformer.wte", "transformer.h.1", "transformer.h.2.attn", "lm_head"):
        ((args, kwargs),) = inputs(model, [path], ids)[path]
        with llm.trace(ids):
            first = llm[path].input
            seen_args, seen_kwargs = llm[path].inputs
        assert same(seen_args, args)
        assert seen_kwargs.keys() == kwargs.keys()
        assert torch.equal(first, args[0] if args else next(iter(kwargs.values())))


def test_several_sites_are_read_in_forward_order(net, x):
    model = NNsight(net)
    with model.trace(x):
        given = model.layer1.input
        hidden = model.layer1.output
        passed_on = model.layer2.input
        out = model.output
    assert given is x
    assert hidden is passed_on
    assert torch.equal(out, net(x))


def test_input_is_readable_while_the_pass_stands_at_the_output(net, x):
    model = NNsight(net)
    with model.trace(x):
        out = model.layer2.output
        given = model.layer2.input
        args, kwargs = model.layer2.inputs
    assert torch.equal(given, net.layer1(x))
    assert args[0] is given
    assert kwargs == {}
    assert torch.equal(out, net(x))


def test_input_given_by_keyword_is_the_input():
    class Inner(nn.Module):
        def forward(self, *, value, scale=1):
            return value * scale

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(value=x, scale=3)

    model = NNsight(Outer())
    with model.trace(torch.ones(2)):
        given = model.inner.input
        args, kwargs = model.inner.inputs
        model.inner.input = torch.full((2,), 5.0)
        out = model.output
    assert torch.equal(given, torch.ones(2))
    assert args == ()
    assert kwargs["scale"] == 3
    assert torch.equal(out, torch.full((2,), 15.0))


def test_a_module_without_arguments_has_no_input():
    class Constant(nn.Module):
        def forward(self):
            return torch.ones(1)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.constant = Constant()

        def forward(self, x):
            return x + self.constant()

    model = NNsight(Outer())
    with model.trace(torch.ones(1)):
        assert model.constant.input is None
        assert model.constant.inputs == ((), {})


# Writing --------------------------------------------------------------------------------------


def zero_first(value, call):
    value = value.clone()
    value[:, 0] = 0
    return value


@pytest.mark.parametrize("path", ["layer1", "layer2", "model"])
def test_edit_in_place_equals_a_hook_that_edits(net, x, path):
    model = NNsight(net)
    expected = edited(net, {path: zero_first}, x)
    node = model if path == "model" else model[path]
    for _ in range(2):  # the observed pass, and one that arms only what is read
        with model.trace(x) as tracer:
            node.output.detach()[:, 0] = 0
        assert torch.equal(tracer.result, expected)


def test_augmented_assignment_edits(net, x):
    model = NNsight(net.requires_grad_(False))
    with model.trace(x):
        model.layer1.output += 1
        out = model.output
    assert torch.equal(out, edited(net, {"layer1": lambda value, call: value + 1}, x))


def test_replacing_an_output_equals_a_hook_that_returns(net, x):
    model = NNsight(net)
    with model.trace(x):
        model.layer1.output = torch.ones(1, 10)
        out = model.output
    assert torch.equal(out, edited(net, {"layer1": lambda *_: torch.ones(1, 10)}, x))


def test_reading_again_gives_the_current_value(net, x):
    model = NNsight(net)
    with model.trace(x):
        before = model.layer1.output
        model.layer1.output = before * 2
        model.layer1.output = model.layer1.output * 2
        after = model.layer1.output
        seen_by_the_next = model.layer2.input
    assert torch.equal(after, before * 4)
    assert seen_by_the_next is after


def test_replacing_an_input_equals_a_pre_hook(net, x):
    model = NNsight(net)
    with model.trace(x):
        model.layer2.input = torch.ones(1, 10)
        replaced = model.layer2.input
        out = model.output
    assert torch.equal(replaced, torch.ones(1, 10))
    assert torch.equal(out, net.layer2(torch.ones(1, 10)))


def test_replacing_all_arguments(net, x):
    model = NNsight(net)
    with model.trace(x):
        model.layer2.inputs = (torch.ones(1, 10),), {}
        out = model.output
    assert torch.equal(out, net.layer2(torch.ones(1, 10)))


def test_input_and_output_of_one_module_can_both_be_written(net, x):
    model = NNsight(net)
    with model.trace(x):
        model.layer1.input = x * 2
        model.layer1.output = model.layer1.output + 1
        out = model.output
    assert torch.equal(out, net.layer2(net.layer1(x * 2) + 1))


def test_what_the_root_returns_can_be_replaced(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        model.output = torch.zeros(1, 2)
        out = tracer.result
    assert torch.equal(out, torch.zeros(1, 2))


# Calls of modules inside a block --------------------------------------------------------------


def test_a_module_called_inside_the_block_meets_no_site(net, x):
    model = NNsight(net)
    with counting(net) as calls, model.trace(x):
        twice = model.layer2(model.layer1.output * 2)
        also = net.layer2(model.layer1.output * 2)
        out = model.layer2.output
    assert torch.equal(twice, net.layer2(net.layer1(x) * 2))
    assert torch.equal(also, twice)
    assert torch.equal(out, net(x))
    assert calls == {"model": 1, "layer1": 1, "layer2": 3}


def test_the_whole_model_called_inside_the_block_meets_no_site(net, x):
    model = NNsight(net)
    with model.trace(x):
        other = model(x * 3)
        model.layer1.output = torch.zeros(1, 10)
        again = model(x * 3)
        out = model.output
    assert torch.equal(other, net(x * 3))
    assert torch.equal(again, other)
    assert torch.equal(out, net.layer2(torch.zeros(1, 10)))


def test_the_logit_lens_is_one_line(tiny_gpt2, llm):
    model, _ = tiny_gpt2
    ids = torch.tensor([[5, 6, 7]])
    with llm.trace(ids):
        lens = llm.lm_head(llm.transformer.ln_f(llm.transformer.h[1].output))
        logits = llm.lm_head.output
    hidden = outputs(model, ["transformer.h.1"], ids)["transformer.h.1"][0]
    assert torch.equal(lens, model.lm_head(model.transformer.ln_f(hidden)))
    assert torch.equal(logits, model(ids).logits)


# Stop, skip, result ---------------------------------------------------------------------------


@pytest.mark.parametrize("passes_before", [0, 1])
def test_stop_ends_the_pass_and_the_block(net, x, passes_before):
    model, went_on = NNsight(net), False
    for _ in range(passes_before):
        with model.trace(x):
            pass
    with counting(net) as calls, model.trace(x) as tracer:
        hidden = model.layer1.output
        tracer.stop()
        went_on = True
    assert not went_on
    assert calls == {"model": 1, "layer1": 1}
    assert torch.equal(hidden, net.layer1(x))


def test_passes_that_stop_again_at_the_same_place_arm_no_more_than_they_ask_for(net, x):
    model = NNsight(net)
    armed = []
    for _ in range(3):
        with model.trace(x) as tracer:
            out = model.layer1.output
            armed.append(len(tracer._run.placed))
            tracer.stop()
        assert torch.equal(out, net.layer1(x))
    first, *later = armed
    assert first > 2
    assert later == [2, 2]  # the module and the root around it
    for _ in range(2):  # the second is observed: the first ran to its end
        with model.trace(x):
            whole = model.output
        assert torch.equal(whole, net(x))
    assert model._orders["trace"].complete


def test_after_stopped_passes_what_never_runs_is_told_as_soon_as_it_is_known(net, x):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.unused = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x):
            return self.first(x)

    model = NNsight(Half())
    for _ in range(2):
        with model.trace(x[:, :1].expand(-1, 5)) as tracer:
            model.first.output
            tracer.stop()

    def ask():
        with model.trace(x[:, :1].expand(-1, 5)):
            model.first.output
            model.unused.output

    with pytest.raises(insitu.OutOfOrderError, match="no pass has run to its end yet"):
        ask()
    with pytest.raises(insitu.NeverRanError):
        ask()


def test_stop_before_anything_is_read_runs_nothing(net, x):
    model = NNsight(net)
    with counting(net) as calls, model.trace(x) as tracer:
        tracer.stop()
    assert not calls


def test_stop_of_the_outer_trace_leaves_both_blocks(net, x):
    model = NNsight(net)
    with model.trace(x) as outer:
        model.layer1.output
        with model.trace(x):
            model.layer1.output
            outer.stop()
        raise AssertionError("unreachable")


def three():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2))


@pytest.mark.parametrize("passes_before", [0, 1])
def test_a_skipped_module_computes_nothing(x, passes_before):
    net = three()
    model = NNsight(net)
    for _ in range(passes_before):
        with model.trace(x):
            pass
    with counting(net[1]) as calls, model.trace(x):
        first = model[0].output
        model[1].skip(first)
        replaced = model[1].output
        out = model.output
    assert replaced is first
    assert torch.equal(out, net[2](net[0](x)))
    assert sum(calls.values()) <= 1  # the call itself; its forward does not run


def test_a_module_is_skipped_after_its_own_input_was_read(x):
    net = three()
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x):
            model[1].skip(model[1].input * 2)
            out = model.output
        assert torch.equal(out, net[2](net[0](x) * 2))


def test_a_skipped_module_can_be_the_first_and_the_last(x):
    net = three()
    model = NNsight(net)
    with model.trace(x):
        model[0].skip(torch.ones(1, 5))
        model[2].skip(torch.zeros(1, 2))
        out = model.output
    assert torch.equal(out, torch.zeros(1, 2))


def test_a_skip_that_is_never_used_is_an_error(x):
    model = NNsight(three())
    with pytest.raises(insitu.TraceError, match="skip"), model.trace(x):
        model[2].output
        model[1].skip(torch.zeros(1, 5))
    with pytest.raises(insitu.TraceError, match="skip"), model.trace(x):
        model[1].output
        model[1].skip(torch.zeros(1, 5))


def test_result_with_and_without_parentheses(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        plain = tracer.result
        called = tracer.result()
        summed = tracer.result.sum()
    assert called is plain
    assert torch.equal(plain, net(x))
    assert torch.equal(summed, net(x).sum())
    assert tracer.result is plain


def test_result_of_a_language_model_has_its_fields(tiny_gpt2, llm):
    model, _ = tiny_gpt2
    ids = torch.tensor([[5, 6, 7]])
    with llm.trace(ids) as tracer:
        logits = tracer.result.logits
    assert torch.equal(logits, model(ids).logits)


def test_log_prints_at_once(net, x, capsys):
    with NNsight(net).trace(x) as tracer:
        tracer.log("norm", 3)
        assert capsys.readouterr().out == "norm 3\n"


def test_a_trace_that_an_expression_computes_with_runs_at_once(net, x):
    model, plain = NNsight(net), net(x)
    rows = [
        model.trace(x)[0],
        model.trace(x) * 1,
        *[model.trace(it) for it in [x]],
        -model.trace(x),
    ]
    assert torch.equal(rows[0], plain[0])
    assert torch.equal(rows[1], plain)
    assert torch.equal(rows[2], plain)
    assert torch.equal(rows[3], -plain)


def test_a_trace_that_is_over_cannot_be_stopped(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        model.layer1.output
    with pytest.raises(insitu.PassClosedError):
        tracer.stop()
