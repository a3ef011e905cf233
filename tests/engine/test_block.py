"""A block is ordinary Python: it runs where it stands, whatever stands around it."""

from contextlib import contextmanager

import pytest
import torch
from reference import counting

import insitu
from insitu import NNsight


def test_return_from_inside_the_block(net, x):
    model = NNsight(net)

    def hidden():
        with model.trace(x):
            return model.layer1.output

    with counting(net) as calls:
        assert torch.equal(hidden(), net.layer1(x))
    assert calls["layer2"] == 1  # the pass ran to its end


def test_break_and_continue_in_a_loop_around(net, x):
    model, seen = NNsight(net), []
    for n in range(10):
        with model.trace(x * n):
            if n == 1:
                continue
            seen.append(model.layer1.output)
            if n == 3:
                break
    assert len(seen) == 3
    assert torch.equal(seen[-1], net.layer1(x * 3))


def test_with_on_one_line(net, x):
    model = NNsight(net)
    with model.trace(x): out = model.output  # fmt: skip  # noqa: E701
    assert torch.equal(out, net(x))


def test_several_items_in_one_with(net, x):
    one, two = NNsight(net), NNsight(net)
    with torch.no_grad(), one.trace(x), two.trace(x * 2) as tracer:
        first = one.layer1.output
        second = two.layer1.output
        out = tracer.result
    assert torch.equal(first, net.layer1(x))
    assert torch.equal(second, net.layer1(x * 2))
    assert torch.equal(out, net(x * 2))


def test_a_body_that_begins_with_try(net, x):
    model, order = NNsight(net), []
    with model.trace(x):
        try:
            model.layer1.output[:, 99]
        except IndexError:
            order.append("caught")
        finally:
            order.append("finally")
        out = model.output
    assert order == ["caught", "finally"]
    assert torch.equal(out, net(x))


def test_a_context_manager_of_the_users_around_a_trace(net, x):
    model = NNsight(net)

    @contextmanager
    def doubled():
        with model.trace(x):
            model.layer1.output = model.layer1.output * 2
            yield

    with doubled():
        out = model.output
    assert torch.equal(out, net.layer2(net.layer1(x) * 2))


def test_names_of_the_block_stay_and_names_around_it_change(net, x):
    model, count = NNsight(net), 0

    def block():
        nonlocal count
        local = "mine"
        with model.trace(x):
            local += "!"
            hidden = model.layer1.output
            squares = [hidden[0, i] ** 2 for i in range(3)]
            count += 1
        return local, hidden, squares

    local, hidden, squares = block()
    assert (local, count, len(squares)) == ("mine!", 1, 3)
    assert torch.equal(hidden, net.layer1(x))


def test_reads_in_functions_comprehensions_and_lambdas(llm):
    def norm(block):
        return block.output.norm()

    with llm.trace("Once upon a time"):
        norms = [norm(block) for block in llm.transformer.h]
        top = (lambda: llm.lm_head.output.argmax(-1))()
    assert len(norms) == 4
    assert top.dim() == 2


def test_a_trace_in_a_generator_function_that_is_dropped(net, x):
    model = NNsight(net)

    def reader():
        with model.trace(x):
            yield model.layer1.output
            yield model.layer2.output

    values = reader()
    assert torch.equal(next(values), net.layer1(x))
    values.close()


def test_an_empty_trace_runs_the_model(net, x):
    model = NNsight(net)
    for _ in range(2):
        with counting(net) as calls, model.trace(x):
            pass
        assert calls == {"model": 1, "layer1": 1, "layer2": 1}


def test_a_trace_can_be_entered_from_exec_and_a_lambda_source(net, x):
    space = {"model": NNsight(net), "x": x}
    exec("with model.trace(x):\n    h = model.layer1.output\n", space)
    assert torch.equal(space["h"], net.layer1(x))


@pytest.mark.filterwarnings("ignore:a trace of Sequential was made and never entered")
def test_a_tracer_that_was_not_entered_says_so(net, x):
    tracer = NNsight(net).trace(x)
    with pytest.raises(insitu.PassClosedError, match="not been entered"):
        tracer.result


def test_a_site_outside_any_trace_says_so(net):
    model = NNsight(net)
    for ask in (lambda: model.layer1.output, lambda: model.input, lambda: model.layer1.inputs):
        with pytest.raises(insitu.NoTraceError, match="outside a trace"):
            ask()
    with pytest.raises(insitu.NoTraceError):
        model.layer1.output = 1
    with pytest.raises(insitu.NoTraceError):
        model.layer1.skip(1)


def test_gradients_flow_through_a_block_like_through_plain_torch(net, x):
    model = NNsight(net)
    with model.trace(x):
        hidden = model.layer1.output
        hidden.retain_grad()
        loss = (model.output * 3).sum()
        loss.backward()
    traced = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    plain = net.layer1(x)
    plain.retain_grad()
    (net.layer2(plain) * 3).sum().backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(traced, net.parameters(), strict=True))
    assert torch.equal(hidden.grad, plain.grad)
    net.zero_grad()
