"""Operations inside a forward, read and written in a pass, against the same sums done by hand."""

import random
import sys
import threading
import traceback

import pytest
import torch
from torch import nn

import insitu
from insitu import (
    NeverRanError,
    NNsight,
    NoTraceError,
    OutOfOrderError,
    SourceError,
    UnknownOperationError,
    WriteError,
)  # fmt: skip
from insitu.engine.source.kept import code_of


def double(x, by=2):
    y = torch.mul(x, by)
    return shift(y, 1)


def shift(x, by):
    return torch.add(x, by)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x, scale=2.0, flip=False):
        h = self.a(x)
        if flip:
            h = torch.neg(h)
        h = torch.relu(h) * scale
        h += 1
        h = double(h, by=3)
        for _ in range(3):
            h = torch.tanh(h)
        return self.b(self.method(h))

    def method(self, h):
        kept = torch.cos(h)
        return kept.sin()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = Layer()
        self.two = Layer()

    def forward(self, x):
        return self.two(self.one(x), scale=0.5)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().requires_grad_(False)


@pytest.fixture
def model(net):
    return NNsight(net)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.rand(2, 4)


def by_hand(layer, x, scale=2.0, **change):
    """A layer's forward, with values changed at named places; gives every value."""
    values = {}

    def at(name, value):
        values[name] = change[name](value) if name in change else value
        return values[name]

    h = at("a", layer.a(x))
    h = at("relu", torch.relu(h))
    h = at("scaled", h * scale)
    h = at("plus", h + 1)
    h = at("mul", torch.mul(h, 3))
    h = at("double", torch.add(h, 1))
    for step in range(3):
        h = at(f"tanh{step}", torch.tanh(h))
    h = at("cos", torch.cos(h))
    h = at("method", h.sin())
    at("b", layer.b(h))
    return values


@pytest.fixture
def one(net, x):
    return by_hand(net.one, x)


def two(net, one, **change):
    return by_hand(net.two, one["b"], scale=0.5, **change)["b"]


# Reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes_before", [0, 1, 2])
def test_operations_give_what_the_forward_computes(net, model, x, one, passes_before):
    for _ in range(passes_before):
        model.trace(x)
    with model.trace(x):
        source = model.one.source
        a = source.self_a_0.output
        relu = source.torch_relu_0.output
        scaled = source.assign_h_0.output.clone()  # the next line changes it in place
        plus = source.assign_h_1.output
        doubled = source.double_0.output
        tanh = source.torch_tanh_0.output
        method = source.self_method_0.output
        b = source.self_b_0.output
        out = model.output
    for got, name in (
        (a, "a"), (relu, "relu"), (scaled, "scaled"), (plus, "plus"), (doubled, "double"),
        (tanh, "tanh0"), (method, "method"), (b, "b"),
    ):  # fmt: skip
        assert torch.equal(got, one[name]), name
    assert torch.equal(out, two(net, one))
    assert torch.equal(out, net(x))


def test_inputs_of_an_operation_are_those_of_its_call(model, x, one):
    with model.trace(x):
        operation = model.one.source.double_0
        args, kwargs = operation.inputs
        first = operation.input
        out = operation.output
        again = operation.input  # still readable where the pass stands at the output
    assert torch.equal(args[0], one["plus"])
    assert kwargs == {"by": 3}
    assert first is args[0] is again
    assert torch.equal(out, one["double"])


def test_the_value_of_an_assignment_is_its_input_too(model, x, one):
    with model.trace(x):
        scaled = model.one.source.assign_h_0.input.clone()
        model.one.source.assign_h_1.output
    assert torch.equal(scaled, one["scaled"])


def test_operations_and_modules_are_read_in_turn(net, model, x, one):
    with model.trace(x):
        relu = model.one.source.torch_relu_0.output
        b = model.one.b.output
        out_one = model.one.output
        relu_two = model.two.source.torch_relu_0.output
        out = model.two.output
    assert torch.equal(relu, one["relu"])
    assert torch.equal(b, one["b"])
    assert torch.equal(out_one, one["b"])
    assert torch.equal(relu_two, torch.relu(net.two.a(one["b"])))
    assert torch.equal(out, net(x))


def test_a_module_inside_and_the_call_of_it_are_two_sites(model, x, one):
    with model.trace(x):
        relu = model.one.source.torch_relu_0.output
        module = model.one.b.output
        call = model.one.source.self_b_0.output
    assert torch.equal(relu, one["relu"])
    assert module is call


def test_a_forward_that_stands_at_its_input_is_still_rewritten(model, x, one):
    for _ in range(2):
        with model.trace(x):
            given = model.one.input
            relu = model.one.source.torch_relu_0.output
        assert given is x
        assert torch.equal(relu, one["relu"])


def test_an_operation_in_a_loop_is_met_at_every_call(model, x, one):
    with model.trace(x):
        operation = model.one.source.torch_tanh_0
        values = [operation.output]
        values += [operation.next().output for _ in range(2)]
    for step, value in enumerate(values):
        assert torch.equal(value, one[f"tanh{step}"])


def test_steps_of_a_model_that_is_called_once_are_calls_of_the_operation(model, x, one):
    values = []
    with model.trace(x) as tracer:
        for _ in tracer.iter[:]:
            values.append(model.one.source.torch_tanh_0.output)
    assert len(values) == 3
    for step, value in enumerate(values):
        assert torch.equal(value, one[f"tanh{step}"])


class Looping(nn.Module):
    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(x)
            x = torch.mul(x, 2)
        return x


def test_reading_in_turn_goes_around_a_loop(x):
    net = Looping()
    with NNsight(net).trace(x) as tracer:
        source = insitu_source(tracer)
        values = []
        for _ in range(3):
            values.append(source.torch_tanh_0.output)
            source.torch_mul_0.output
    h = x
    for value in values:
        assert torch.equal(value, torch.tanh(h))
        h = torch.tanh(h) * 2


def insitu_source(tracer):
    return tracer._root.source


# Writing -------------------------------------------------------------------------------------


def test_an_edit_in_place_changes_what_follows(net, model, x, one):
    def zeroed(h):
        h = h.clone()
        h[:, 0] = 0
        return h

    with model.trace(x):
        model.two.source.torch_relu_0.output[:, 0] = 0
        out = model.output
    assert torch.equal(out, two(net, one, relu=zeroed))


@pytest.mark.parametrize(
    ("operation", "name"),
    [("torch_relu_0", "relu"), ("assign_h_0", "scaled"), ("assign_h_1", "plus"),
     ("double_0", "double"), ("self_method_0", "method"), ("self_a_0", "a"), ("self_b_0", "b")],
)  # fmt: skip
def test_a_replaced_value_is_what_the_forward_goes_on_with(net, model, x, one, operation, name):
    with model.trace(x):
        site = model.two.source[operation]
        site.output = site.output * 2 - 1
        assert site.output is model.two.source[operation].output
        out = model.output
    assert torch.equal(out, two(net, one, **{name: lambda value: value * 2 - 1}))


def test_replaced_arguments_are_what_is_called_with(net, model, x, one):
    with model.trace(x):
        operation = model.two.source.double_0
        operation.input = operation.input * 2
        out = model.output
    assert torch.equal(out, two(net, one, plus=lambda value: value * 2))
    with model.trace(x):
        operation = model.two.source.double_0
        (h,), kwargs = operation.inputs
        assert kwargs == {"by": 3}
        operation.inputs = (h,), {"by": 5}
        out = model.output
    assert torch.equal(out, two(net, one, mul=lambda value: value / 3 * 5)) or torch.allclose(
        out, two(net, one, mul=lambda value: value / 3 * 5)
    )


def test_a_skipped_operation_computes_nothing(net, model, x, one, monkeypatch):
    def never(h, by):
        raise AssertionError("skipped, and yet called")

    value = torch.ones(2, 4)
    with model.trace(x):
        model.one.output
        monkeypatch.setitem(globals(), "shift", never)
        model.two.source.double_0.skip(value)
        out = model.output
    assert torch.equal(out, two(net, one, double=lambda _: value))


def test_a_block_that_only_skips_runs_too(net, model, x, one):
    value = torch.ones(2, 4)
    for _ in range(2):
        with model.trace(x) as tracer:
            model.two.source.double_0.skip(value)
            out = tracer.result
        assert torch.equal(out, two(net, one, double=lambda _: value))


def test_a_value_of_another_shape_is_refused_unless_forced(net, model, x, one):
    row = torch.ones(4)
    with pytest.raises(WriteError, match=r"two\.source\.torch_relu_0\.output does not fit: shape"):
        with model.trace(x):
            model.two.source.torch_relu_0.output = row
    with model.trace(x):
        model.two.source.torch_relu_0.output = insitu.force(row.expand(1, 4))
        out = model.output
    assert out.shape == (1, 4)


def test_what_is_no_site_cannot_be_written(model):
    with pytest.raises(UnknownOperationError, match="has nothing called 'outptu'"):
        model.one.source.torch_relu_0.outptu = 3
    with pytest.raises(UnknownOperationError, match="cannot be written"):
        model.one.source.torch_relu_0 = 3


# Inside what is called -----------------------------------------------------------------------


def test_a_function_that_is_called_has_operations_of_its_own(net, model, x, one):
    with model.trace(x):
        inner = model.one.source.double_0.source
        mul = inner.torch_mul_0.output
        deep = inner.shift_0.source.torch_add_0
        args, _ = deep.inputs
        add = deep.output
        outer = model.one.source.double_0.output
    assert torch.equal(mul, one["mul"])
    assert torch.equal(args[0], one["mul"])
    assert torch.equal(add, one["double"])
    assert outer is add


def test_a_method_that_is_called_has_operations_of_its_own(net, model, x, one):
    with model.trace(x):
        cos = model.two.source.self_method_0.source.torch_cos_0
        cos.output = torch.zeros_like(cos.output)
        out = model.output
    assert torch.equal(out, two(net, one, cos=torch.zeros_like))


def test_a_module_that_is_called_has_its_own_source(model, x, one):
    assert model.one.source.self_a_0.source is model.one.a.source
    with model.trace(x):
        linear = model.one.source.self_a_0.source.F_linear_0.output
        call = model.one.source.self_a_0.output
    assert linear is call


def test_an_inner_operation_may_be_asked_for_while_the_outer_forward_runs(net, model, x, one):
    with model.trace(x):
        model.one.source.torch_relu_0.output
        mul = model.one.source.double_0.source.torch_mul_0.output
        cos = model.one.source.self_method_0.source.torch_cos_0.output
    assert torch.equal(mul, one["mul"])
    assert torch.equal(cos, one["cos"])


# Order ---------------------------------------------------------------------------------------


def lines(error):
    return error.what, error.why, error.next


def here():
    return sys._getframe(1).f_lineno


@pytest.mark.parametrize("passes_before", [0, 1])
def test_an_operation_that_has_passed_is_an_order_error(model, x, passes_before):
    for _ in range(passes_before):
        model.trace(x)
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace(x):
            model.one.source.self_method_0.output
            line = here() - 1
            model.one.output
            model.one.source.torch_relu_0.output
    what, why, next_ = lines(caught.value)
    path = "one.source.torch_relu_0.output"
    assert what == f"{path} was asked for, but the model has already passed it."
    assert f"this one had read one.source.self_method_0.output (line {line}) first" in why
    assert next_ == f"ask for {path} above line {line}, or open a second trace."


@pytest.mark.parametrize("passes_before", [0, 1])
def test_a_forward_that_runs_already_is_left_as_it_is(model, x, passes_before):
    for _ in range(passes_before):
        model.trace(x)
    with pytest.raises(OutOfOrderError) as caught:
        with model.trace(x):
            model.one.a.output
            line = here() - 1
            model.one.source.torch_relu_0.output
    what, why, next_ = lines(caught.value)
    assert what.startswith("one.source.torch_relu_0.output was asked for, but the model has alr")
    assert "one had begun when it was asked for" in why
    assert f"this one had read one.a.output (line {line}) first" in why
    assert f"above line {line}" in next_


@pytest.mark.parametrize("passes_before", [0, 1])
def test_a_forward_that_has_run_is_an_order_error(model, x, passes_before):
    for _ in range(passes_before):
        model.trace(x)
    with pytest.raises(OutOfOrderError, match=r"above line \d+"):
        with model.trace(x):
            model.two.output
            model.one.source.torch_relu_0.output


def test_a_module_before_an_operation_is_an_order_error_too(model, x):
    with pytest.raises(OutOfOrderError, match=r"^one\.a\.output was asked for"):
        with model.trace(x):
            model.one.source.torch_relu_0.output
            model.one.a.output


def test_a_line_that_is_not_reached_is_named(model, x):
    with pytest.raises(NeverRanError, match="did not come to it") as caught:
        with model.trace(x):
            model.one.source.torch_neg_0.output
    assert "h = torch.neg(h)" in caught.value.why


def test_a_skip_that_comes_too_late_is_said(model, x):
    with pytest.raises(NeverRanError, match="was never used"):
        with model.trace(x):
            model.one.source.self_method_0.output
            model.one.source.torch_relu_0.skip(torch.ones(2, 4))


def test_an_unknown_name_says_what_is_near(model, x):
    with pytest.raises(
        UnknownOperationError, match=r"one\.source has no operation 'torch_rel_0'"
    ) as e:
        model.one.source.torch_rel_0
    assert e.value.next == "did you mean one.source.torch_relu_0?"
    assert not hasattr(model.one.source, "torch_rel_0")


def test_outside_a_trace_an_operation_has_no_value(model):
    with pytest.raises(NoTraceError, match=r"one\.source\.torch_relu_0 was asked for a value"):
        model.one.source.torch_relu_0.output


# A second function behind one name -----------------------------------------------------------


class Choosing(nn.Module):
    def __init__(self):
        super().__init__()
        self.pick = double

    def forward(self, x):
        return self.pick(x, 1)


def test_another_function_than_the_one_shown_is_named(x):
    net = Choosing()
    model = NNsight(net)
    operation = model.source.self_pick_0.source.torch_mul_0
    with model.trace(x):
        value = operation.output
    assert torch.equal(value, x)
    with pytest.raises(NeverRanError, match="called another function") as caught:
        with model.trace(x):
            net.pick = shift
            operation.output
    assert "it called shift, not double" in caught.value.why


# Discovery -----------------------------------------------------------------------------------


def test_a_source_lists_its_operations_without_a_run(model):
    source = model.one.source
    names = [operation._name for operation in source]
    assert names[:4] == ["self_a_0", "torch_neg_0", "assign_h_0", "torch_relu_0"]
    assert len(source) == len(names) == len(dir(source))
    assert "torch_relu_0" in source
    assert "torch_relu_1" not in source
    assert source[3]._path == "one.source.torch_relu_0"
    assert source["torch_relu_0"] is source.torch_relu_0 is source[3]
    assert source[-1]._name == "self_method_0"
    assert set(dir(source.torch_relu_0)) == {"output", "input", "inputs", "skip", "next", "source"}
    assert model.one.source is source
    assert model.two.source is not source
    assert bool(source)


def test_a_module_called_source_is_reached_with_an_underscore(x):
    net = nn.Sequential()
    net.add_module("source", nn.Linear(4, 4))
    model = NNsight(net)
    with model.trace(x):
        out = model.source_.output
    assert torch.equal(out, net(x))


# Cleaning up ---------------------------------------------------------------------------------


def left_on(net):
    return [name for name, module in net.named_modules() if "forward" in module.__dict__]


def test_nothing_is_left_on_instance_or_class(net, model, x):
    before = Layer.forward, Layer.forward.__code__, set(vars(Layer)), set(globals())
    with model.trace(x):
        model.one.source.torch_relu_0.output
        assert left_on(net)
    assert left_on(net) == []
    with pytest.raises(ZeroDivisionError):
        with model.trace(x):
            model.one.source.double_0.source.torch_mul_0.output
            1 / 0
    assert left_on(net) == []
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        with model.trace(torch.ones(2, 3)):
            model.one.source.torch_relu_0.output
    assert left_on(net) == []
    assert (Layer.forward, Layer.forward.__code__, set(vars(Layer)), set(globals())) == before


def test_only_the_instance_that_is_asked_runs_rewritten(net, model, x):
    def running(name):
        return [
            f.f_code for f, _ in traceback.walk_stack(sys._getframe()) if f.f_code.co_name == name
        ]

    seen = []
    handles = [
        layer.a.register_forward_hook(lambda *_: seen.append(running("forward")))
        for layer in (net.one, net.two)
    ]
    with model.trace(x):
        model.two.source.torch_relu_0.output
    net(x)
    for handle in handles:
        handle.remove()
    rewritten, plain = code_of(Layer.forward), Layer.forward.__code__
    in_one, in_two, *after = seen
    assert rewritten not in in_one
    assert plain in in_one
    assert rewritten in in_two
    assert all(rewritten not in codes for codes in after)


def test_the_models_errors_show_its_own_lines(model, x):
    with pytest.raises(RuntimeError) as caught:
        with model.trace(x):
            operation = model.one.source.torch_relu_0
            operation.output = insitu.force(torch.ones(3, 3))
            model.output
    shown = traceback.extract_tb(caught.value.__traceback__)
    text = [frame.line for frame in shown if frame.filename == __file__]
    assert "return self.b(self.method(h))" in text


def test_a_rewritten_forward_is_compiled_once_for_all_instances(net, model, x):
    with model.trace(x):
        model.one.source.torch_relu_0.output
        model.two.source.torch_relu_0.output
    assert code_of(Layer.forward) is code_of(Layer.forward)
    other = NNsight(Net())
    with other.trace(x):
        other.one.source.torch_relu_0.output


# Beside other passes -------------------------------------------------------------------------


def test_two_threads_read_and_write_operations_of_one_model(net, x):
    model, results, errors = NNsight(net), {}, []
    model.trace(x)
    barrier = threading.Barrier(2)

    def work(number):
        try:
            for _ in range(20):
                barrier.wait(10)
                with model.trace(x + number):
                    relu = model.one.source.torch_relu_0.output.clone()
                    model.one.source.double_0.source.torch_mul_0.output *= number
                    out = model.output
                results.setdefault(number, []).append((relu, out))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for number, found in results.items():
        one = by_hand(net.one, x + number, mul=lambda value, by=number: value * by)
        expected = by_hand(net.two, one["b"], scale=0.5)["b"]
        assert len(found) == 20
        for relu, out in found:
            assert torch.equal(relu, one["relu"])
            assert torch.equal(out, expected)
    assert left_on(net) == []


def test_many_threads_arm_and_disarm_the_same_forwards(net, x):
    model, expected, errors = NNsight(net), net(x), []
    switching = sys.getswitchinterval()

    def work(seed):
        choose = random.Random(seed).randrange
        try:
            for _ in range(60):
                which = choose(4)
                with model.trace(x):
                    if which == 0:
                        model.two.input
                        model.two.source.double_0.source.torch_mul_0.output
                    elif which < 3:
                        model.one.source.torch_relu_0.output
                    out = model.output
                assert torch.equal(out, expected)
        except BaseException as error:
            errors.append(error)

    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(switching)
    assert not errors
    assert left_on(net) == []


def test_a_trace_inside_a_trace_has_its_own_rewritten_forward(net, x):
    outer, inner = NNsight(net), NNsight(net)
    with outer.trace(x):
        first = outer.one.source.torch_relu_0.output
        with inner.trace(x * 2):
            second = inner.one.source.torch_relu_0.output
            inner.one.source.torch_tanh_0.output[:] = 0
        third = outer.one.source.double_0.output
        out = outer.output
    one = by_hand(net.one, x)
    assert torch.equal(first, one["relu"])
    assert torch.equal(second, by_hand(net.one, x * 2)["relu"])
    assert torch.equal(third, one["double"])
    assert torch.equal(out, net(x))
    assert left_on(net) == []


def test_a_thread_that_calls_the_model_meanwhile_gets_its_own_forward(net, model, x):
    seen = []
    with model.trace(x):
        model.one.source.torch_relu_0.output[:] = 0
        thread = threading.Thread(target=lambda: seen.append(net(x)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], net(x))


def test_modules_with_hooks_of_the_users_are_rewritten_too(net, model, x):
    handle = net.one.register_forward_hook(lambda module, args, out: out + 1)
    one = by_hand(net.one, x)
    for _ in range(2):
        with model.trace(x):
            relu = model.one.source.torch_relu_0.output
            out_one = model.one.output
            out = model.output
        assert torch.equal(relu, one["relu"])
        assert torch.equal(out_one, one["b"] + 1)
        assert torch.equal(out, net(x))
    handle.remove()


def test_a_pass_held_open_stands_at_an_operation(model, x, one):
    run = model.open(x)
    relu = model.one.source.torch_relu_0.output
    assert run.where == "one.source.torch_relu_0.output"
    assert torch.equal(relu, one["relu"])
    run.until(model.one.source.double_0)
    assert torch.equal(run.value, one["double"])
    run.step()
    assert run.where == "one.b.output"
    run.close()


def test_gradients_flow_through_a_rewritten_forward(x):
    net = Net()
    model = NNsight(net)
    with model.trace(x):
        relu = model.one.source.torch_relu_0.output
        relu.retain_grad()
        loss = model.output.sum()
    loss.backward()
    one = by_hand(net.one, x)
    one["relu"].retain_grad()
    two(net, one).sum().backward()
    assert torch.equal(relu.grad, one["relu"].grad)


def test_several_prompts_each_see_their_rows(net, x):
    model = NNsight(net)
    other = x + 1
    with model.trace() as tracer:
        with tracer.invoke(x):
            first = model.one.source.torch_relu_0.output.save()
        with tracer.invoke(other):
            model.one.source.torch_relu_0.output[:] = 0
            second = model.one.source.double_0.source.torch_mul_0.output.save()
            out = model.output.save()
    one = by_hand(net.one, torch.cat([x, other]))
    assert torch.allclose(first, one["relu"][:2])
    zeroed = by_hand(net.one, other, relu=torch.zeros_like)
    assert torch.allclose(second, zeroed["mul"])
    assert torch.allclose(out, two(net, zeroed))


def test_a_skip_of_one_prompt_leaves_the_other(net, x):
    model = NNsight(net)
    value = torch.ones(2, 4)
    with model.trace() as tracer:
        with tracer.invoke(x):
            model.one.source.double_0.skip(value)
            first = model.output.save()
        with tracer.invoke(x):
            second = model.output.save()
    assert torch.allclose(first, two(net, by_hand(net.one, x, double=lambda _: value)))
    assert torch.allclose(second, net(x))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = Layer()

    def forward(self, x):
        return self.layer(self.layer(x))


def test_a_module_called_twice_gives_its_operations_twice(x):
    net = Shared().requires_grad_(False)
    model = NNsight(net)
    first, second = by_hand(net.layer, x), None
    second = by_hand(net.layer, first["b"])
    for _ in range(2):
        with model.trace(x):
            values = [model.layer.source.torch_relu_0.output]
            values.append(model.layer.source.torch_relu_0.next().output)
        assert torch.equal(values[0], first["relu"])
        assert torch.equal(values[1], second["relu"])


def test_two_names_of_one_module_meet_at_the_same_operations(x):
    net = nn.ModuleDict({"a": Layer(), "b": nn.Identity()}).requires_grad_(False)
    net["b"] = net["a"]
    net.forward = lambda x: net["b"](x)
    model = NNsight(net)
    one = by_hand(net["a"], x)
    with model.trace(x):
        first = model.a.source.torch_relu_0.output
        again = model.b.source.torch_relu_0.output
        second = model.b.source.double_0.output
        third = model.a.source.self_method_0
        value = third.output
    assert first is again
    assert torch.equal(first, one["relu"])
    assert torch.equal(second, one["double"])
    assert torch.equal(value, one["method"])


def test_an_operation_of_another_wrapper_of_the_model_is_met(net, x, one):
    outer, other = NNsight(net), NNsight(net)
    with outer.trace(x):
        first = other.one.source.torch_relu_0.output
        again = outer.one.source.torch_relu_0.output
        doubled = outer.one.source.double_0.output
        tanh = other.one.source.torch_tanh_0.output
    assert first is again
    assert torch.equal(first, one["relu"])
    assert torch.equal(doubled, one["double"])
    assert torch.equal(tanh, one["tanh0"])


class Scaled(nn.Linear):
    def forward(self, x, scale):
        return torch.mul(super().forward(x), scale)


def test_a_replaced_module_is_asked_for_again(net, model, x, one):
    kept = model.two.source.torch_relu_0
    net.two = Scaled(4, 4)
    with model.trace(x):
        inner = model.two.source.forward_0.source.F_linear_0.output
        linear = model.two.source.forward_0.output
        out = model.output
    assert inner is linear
    assert torch.equal(linear, nn.functional.linear(one["b"], net.two.weight, net.two.bias))
    assert torch.equal(out, linear * 0.5)
    with pytest.raises(SourceError, match="two is another module now"):
        with model.trace(x):
            kept.output


def test_a_long_call_of_an_imported_function_is_recognized_in_its_files_text():
    attention = nn.MultiheadAttention(8, 2)  # torch's own: it calls `F.…` with 23 arguments
    model, x = NNsight(attention), torch.rand(1, 3, 8)
    with torch.no_grad(), model.trace(x, x, x):
        pieces = model.source.F_multi_head_attention_forward_1.output
        told = model.output
    for piece, tensor in zip(pieces, told, strict=True):
        assert torch.equal(piece, tensor)
