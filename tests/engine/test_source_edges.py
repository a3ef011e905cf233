"""Operations at their edges: read beside others, asked for too late, of odd forwards."""

import functools
import linecache

import pytest
import torch
from torch import nn

from insitu import NeverRanError, NNsight, OutOfOrderError, SourceError
from insitu.engine.source.listing import place
from insitu.engine.source.operations import standing_in


def double(x, by=2):
    y = torch.mul(x, by)
    return torch.add(y, 1)


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.rand(2, 4)


# Read and written ---------------------------------------------------------------------------------


class Steps(nn.Module):
    """Calls a function, then the same three times, and changes a part of what it has."""

    def __init__(self):
        super().__init__()
        self.pick, self.linear, self.idle = double, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.pick(x)
        if x is None:
            x = double(x)
        for _ in range(3):
            x = torch.tanh(x)
        x[:, 0] += 1
        return self.linear(x)


@pytest.fixture
def steps():
    torch.manual_seed(0)
    return Steps().requires_grad_(False)


def by_hand(steps, x):
    tanh = [double(x).tanh()]
    for _ in range(2):
        tanh.append(tanh[-1].tanh())
    last = tanh[-1].clone()
    last[:, 0] += 1
    return tanh, steps.linear(last)


@pytest.mark.parametrize("passes_before", [0, 1])
def test_what_is_added_to_a_part_is_read_and_written(steps, x, passes_before):
    model = NNsight(steps)
    name = next(it._named.name for it in model.source if "+=" in repr(it))
    for _ in range(passes_before + 1):
        with model.trace(x) as tracer:
            value = model.source[name].output.clone()
            model.source[name].output = value * 10
            out = tracer.result
    (*_, last), _ = by_hand(steps, x)
    assert torch.equal(value, last[:, 0] + 1)
    wanted = last.clone()
    wanted[:, 0] = (last[:, 0] + 1) * 10
    assert torch.equal(out, steps.linear(wanted))


def test_an_operation_is_read_beside_a_cache(steps, x):
    model = NNsight(steps)
    tanh, wanted = by_hand(steps, x)
    for _ in range(2):
        with model.trace(x) as tracer:
            cache = tracer.cache()
            first = model.source.torch_tanh_0.output
            out = tracer.result
        assert torch.equal(first, tanh[0])
        assert torch.equal(out, wanted)
        assert torch.equal(cache["linear"].output, wanted)


def test_an_operation_is_stopped_at_on_both_sides_and_inside(steps, x):
    model = NNsight(steps)
    with model.trace(x) as tracer:
        operation = model.source.self_pick_0
        given = operation.input
        product = operation.source.torch_mul_0.output
        assert operation.source is operation.source
        operation.output = operation.output * 0
        out = tracer.result
    assert torch.equal(given, x)
    assert torch.equal(product, x * 2)
    wanted = torch.zeros(2, 4)
    wanted[:, 0] = 1
    assert torch.equal(out, steps.linear(wanted))


def test_a_pass_that_goes_from_module_to_module_passes_operations_over(steps, x):
    model = NNsight(steps)
    with model.open(x) as run:
        model.source.self_pick_0.input
        assert run.where == "model.source.self_pick_0.input"
        assert run.step().where == "linear.output"
        assert torch.equal(run.finish(), by_hand(steps, x)[1])


def test_another_functions_operations_stand_in_for_those_of_the_one_called(steps, x):
    def tripled(x, by=3):
        product = torch.mul(x, by)
        return torch.add(product, 1)

    model = NNsight(steps)
    instead = standing_in(model.source.self_pick_0, tripled)
    with model.trace(x) as tracer:
        product = instead.torch_mul_0.output
        instead.torch_mul_0.output = product * 10
        out = tracer.result
    assert torch.equal(product, x * 3)
    steps.pick = lambda x: x * 30 + 1
    assert torch.equal(out, by_hand_of(steps, x))
    steps.pick = double
    with model.trace(x):
        assert torch.equal(model.source.self_pick_0.output, double(x))


def by_hand_of(steps, x):
    tanh = steps.pick(x).tanh().tanh().tanh()
    tanh[:, 0] += 1
    return steps.linear(tanh)


class Giving(nn.Module):
    """Gives its values one by one, also after its pass."""

    def forward(self, x):
        for by in (1, 2, 3):
            yield double(x, by)


def test_a_generator_goes_on_by_itself_when_its_pass_is_over(x):
    net = Giving()
    model = NNsight(net)
    with model.trace(x) as tracer:
        with pytest.raises(NeverRanError):  # nothing has run yet when the forward returns
            model.source.double_0.output
        values = tracer.result
    assert [torch.equal(v, double(x, by)) for by, v in enumerate(values, 1)] == [True] * 3


# Missed -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes_before", [0, 1])
def test_an_operation_of_a_module_that_did_not_run_is_told(steps, x, passes_before):
    model = NNsight(steps)
    for _ in range(passes_before):
        with model.trace(x):
            pass
    with pytest.raises(NeverRanError, match="but idle did not run in this pass") as caught:
        with model.trace(x):
            model.idle.source.F_linear_0.output
    assert caught.value.why == "the model did not call Linear idle."


def test_an_operation_inside_a_call_that_was_not_come_to_is_told(steps, x):
    model = NNsight(steps)
    with pytest.raises(NeverRanError, match=r"double_0 was not called") as caught:
        with model.trace(x):
            model.source.double_0.source.torch_mul_0.output
    assert caught.value.next == "ask for it above what runs later, or read what did run."


def test_an_operation_inside_a_call_that_has_passed_is_an_order_error(steps, x):
    model = NNsight(steps)
    with pytest.raises(OutOfOrderError, match="has already passed it") as caught:
        with model.trace(x):
            model.source.torch_tanh_0.output
            model.source.self_pick_0.source.torch_mul_0.output
    assert caught.value.why.startswith(
        "model.source.self_pick_0 had been called before it was asked for; this one had read "
        "model.source.torch_tanh_0.output"
    )


@pytest.mark.parametrize("inner", [False, True])
def test_after_the_result_no_operation_comes(steps, x, inner):
    model = NNsight(steps)
    expected = NeverRanError if inner else OutOfOrderError
    with pytest.raises(expected, match=r"had begun model before|has already passed it"):
        with model.trace(x) as tracer:
            tracer.result
            pick = model.source.self_pick_0
            (pick.source.torch_mul_0 if inner else pick).output
    with model.trace(x) as tracer:
        tracer.result
        source = model.source.self_linear_0.source  # its operations have names all the same
    assert source._path == "linear.source"


@pytest.mark.parametrize("inner", [False, True])
def test_in_an_invoke_a_forward_that_has_begun_is_left_as_it_is(steps, x, inner):
    model = NNsight(nn.Sequential(steps, nn.Linear(4, 4)))
    expected = NeverRanError if inner else OutOfOrderError
    for _ in range(2):
        with pytest.raises(expected, match=r"had begun 0 before|has already passed it"):
            with model.trace() as tracer:
                with tracer.invoke(x):
                    model[1].output
                    pick = model[0].source.self_pick_0
                    (pick.source.torch_mul_0 if inner else pick).output
                with tracer.invoke(x):
                    pass


def test_what_is_called_in_place_of_the_function_shown_may_be_no_function(steps, x):
    model = NNsight(steps)
    operation = model.source.self_pick_0.source.torch_mul_0
    with pytest.raises(NeverRanError, match="called another function") as caught:
        with model.trace(x):
            steps.pick = torch.cos
            operation.output
    assert "cos, not double" in caught.value.why


# Forwards -----------------------------------------------------------------------------------------


def test_a_callable_in_very_many_wrappers_is_not_followed(x):
    net = Giving()
    for _ in range(200):
        net.forward = functools.wraps(net.forward)(functools.partial(net.forward))
    with pytest.raises(SourceError, match="has no operations that can be named"):
        NNsight(net).source


def test_a_decorator_whose_cell_is_not_filled_yet_is_left_alone(x):
    def decorated(function):
        @functools.wraps(function)
        def around(self, x):
            if x is None:
                return later(x)
            return function(self, x)

        if function is None:
            later = double
        return around

    class Decorated(nn.Module):
        @decorated
        def forward(self, x):
            return torch.tanh(x)

    net = Decorated()
    model = NNsight(net)
    with model.trace(x):
        value = model.source.torch_tanh_0.output
        model.source.torch_tanh_0.output = value * 2
        out = model.output
    assert torch.equal(out, x.tanh() * 2)


def made(text, name, shown=None):
    """A module whose forward was made of a text; another may be shown for it."""
    names = {"torch": torch}
    exec(compile(text, name, "exec"), names)
    shown = text if shown is None else shown
    linecache.cache[name] = (len(shown), None, shown.splitlines(keepends=True), name)
    return type("Made", (nn.Module,), {"forward": names["forward"]})()


@pytest.mark.parametrize(
    "shown",
    [
        "    def forward(self, x):\n        return torch.tanh(x)\n",
        "forward = 3\n",
        "def other(self, x):\n    return torch.tanh(x)\n",
        "def forward(self, x):\n    return 1 if\n",
        "def forward(self, x):\n    nonlocal x\n    return torch.tanh(x)\n",
    ],
)
def test_a_text_that_is_not_that_of_the_forward_is_refused(x, shown):
    name = f"<{abs(hash(shown))}>"
    net = made("def forward(self, x):\n    return torch.tanh(x)\n", name, shown)
    try:
        with pytest.raises(SourceError):
            NNsight(net).source
        assert torch.equal(net(x), x.tanh())
    finally:
        linecache.cache.pop(name)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("/a/lib/python3/site-packages/torch/nn/linear.py", "torch/nn/linear.py:7"),
        ("/usr/lib/python3/dist-packages/torch/nn/linear.py", "torch/nn/linear.py:7"),
        ("/home/me/model.py", "/home/me/model.py:7"),
    ],
)
def test_a_file_of_a_package_is_named_from_the_package_on(file, told):
    assert place(file, 7) == told
