"""What a block read the last time is armed before it asks: nobody can tell by what it gets."""

import copy

import pytest
import torch
from torch import nn

import insitu
from insitu import NNsight
from insitu.engine import ahead


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Chain().requires_grad_(False)


@pytest.fixture
def x():
    return torch.rand(1, 4)


@pytest.fixture
def model(net):
    return NNsight(net)


def outputs(net, x):
    """What each layer gives, by plain torch."""
    values = []
    for layer in net.layers:
        x = layer(x)
        values.append(x)
    return values


def read(model, x, numbers=range(4)):
    seen = []
    with model.trace(x):
        for number in numbers:
            seen.append(model.layers[number].output)
        armed = [number for number, it in enumerate(model._module.layers) if "forward" in vars(it)]
    assert not any("forward" in vars(it) for it in model._module.modules())
    return seen, armed


def same(seen, wanted):
    assert len(seen) == len(wanted)
    assert all(map(torch.equal, seen, wanted))


def test_each_time_a_block_runs_it_gets_the_same(model, net, x):
    for _ in range(4):
        same(read(model, x)[0], outputs(net, x))


def test_what_it_read_is_armed_from_the_second_time_on_and_nothing_else(model, net, x):
    def armed_at_the_first_stop():
        with model.trace(x):
            model.layers[0].output
            armed = [number for number, it in enumerate(net.layers) if "forward" in vars(it)]
            model.layers[2].output
        return armed

    assert armed_at_the_first_stop() == [0, 1, 2, 3]  # observed: every module is, once
    assert armed_at_the_first_stop() == [0, 2]
    assert armed_at_the_first_stop() == [0, 2]


def test_a_block_that_reads_another_layer_each_time_arms_what_it_asks_for(model, net, x):
    read(model, x)
    wanted = outputs(net, x)
    for number in (0, 1, 2, 3, 1):
        seen, armed = read(model, x, [number])
        same(seen, [wanted[number]])
        assert number in armed


def test_a_block_that_reads_something_else_each_time_is_not_foreseen_until_it_repeats_itself(
    model, net, x
):
    def first_armed(number):
        with model.trace(x):
            model.layers[0].output
            armed = [n for n, it in enumerate(net.layers) if "forward" in vars(it)]
            model.layers[number].output
        return armed

    first_armed(1)
    assert first_armed(2) == [0, 1]  # what it read the last time
    assert [first_armed(n) for n in (3, 2, 3)] == [[0], [0], [0]]
    assert [first_armed(3), first_armed(3)] == [[0], [0, 3]]


@pytest.mark.parametrize("kind", ["an edit", "an input first", "a cache first"])
def test_what_was_learned_is_not_learned_again(model, net, x, kind, monkeypatch):
    learned = []
    of_block = ahead._reads
    monkeypatch.setattr(ahead, "_reads", lambda *given: learned.append(1) or of_block(*given))
    if kind == "an edit":
        with model.edit(inplace=True):
            model.layers[3].output[:] *= 1
    for _ in range(6):
        with model.trace(x) as tracer:
            if kind == "an input first":
                assert torch.equal(model.layers[0].input, x)
            if kind == "a cache first":
                tracer.cache([model.layers[1]])
            seen = [model.layers[number].output for number in (0, 2)]
        same(seen, [outputs(net, x)[0], outputs(net, x)[2]])
    assert len(learned) <= 2


def test_a_layer_that_has_passed_is_told_of_at_once(model, x):
    for _ in range(3):
        with pytest.raises(insitu.OutOfOrderError, match=r"layers\.0\.output"), model.trace(x):
            model.layers[2].output
            model.layers[0].output
            raise AssertionError("it is known before the model goes on")


def test_writes_reach_what_follows(model, net, x):
    for _ in range(3):
        with model.trace(x):
            model.layers[1].output = model.layers[1].output * 0
            model.layers[2].output[:] += 1
            out = model.output
        first = net.layers[2](torch.zeros(1, 4)) + 1
        assert torch.equal(out, net.last(net.layers[3](first)))


def test_a_write_of_another_shape_is_refused_each_time(model, x):
    for _ in range(3):
        with pytest.raises(insitu.WriteError, match="shape"), model.trace(x):
            model.layers[1].output = model.layers[1].output[:, :2]


def test_a_layer_put_in_anothers_place_is_the_one_that_is_read(model, net, x):
    for _ in range(3):
        read(model, x)
    net.layers[1] = nn.Linear(4, 4).requires_grad_(False)
    for _ in range(3):
        same(read(model, x)[0], outputs(net, x))
    net.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4)).requires_grad_(False)
    for _ in range(3):
        same(read(model, x)[0], outputs(net, x))


def test_a_layer_that_is_gone_is_not_asked_for(model, net, x):
    for _ in range(3):
        read(model, x, [0, 3])
    del net.layers[3]
    with model.trace(x):
        seen = model.layers[0].output
        out = model.output
    assert torch.equal(seen, outputs(net, x)[0])
    assert torch.equal(out, net(x))


def test_hooks_that_came_since_have_their_word(model, net, x):
    for _ in range(3):
        read(model, x)
    handle = net.layers[1].register_forward_hook(lambda module, args, output: output * 2)
    for _ in range(2):
        seen = read(model, x)[0]
        same(seen, outputs(net, x))  # whose second is the hook's too
        assert torch.equal(seen[1], 2 * net.layers[1].forward(seen[0]))
    handle.remove()
    same(read(model, x)[0], outputs(net, x))


def test_a_forward_that_came_since_is_the_one_that_runs(model, net, x, monkeypatch):
    for _ in range(3):
        read(model, x)
    own = net.layers[2].forward
    net.layers[2].forward = lambda x: own(x) + 1  # in the instance, as accelerate does
    for _ in range(3):
        seen = []
        with model.trace(x):
            for layer in model.layers:
                seen.append(layer.output)
        same(seen, outputs(net, x))
    del net.layers[2].forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x + 3)  # in the class
    for _ in range(3):
        same(read(model, x)[0], outputs(net, x))


def test_a_layer_called_from_outside_its_tree_has_its_caller_armed_with_it(x):
    class Lender(nn.Module):
        def __init__(self):
            super().__init__()
            self.lent = nn.ModuleList([nn.Linear(4, 4)])
            self.user = User(self.lent[0])

        def forward(self, x):
            return self.user(x)

    class User(nn.Module):
        def __init__(self, borrowed):
            super().__init__()
            self.__dict__["borrowed"] = borrowed

        def forward(self, x):
            return self.borrowed(x) + 1

    net = Lender().requires_grad_(False)
    model = NNsight(net)
    for further in (False, False, True):
        with model.trace(x):
            first = model.lent[0].output
            if further:  # its caller runs already, and is asked for the first time
                second = model.user.output
    assert torch.equal(first, net.lent[0](x))
    assert torch.equal(second, net(x))


def test_one_block_in_two_kinds_of_passes_has_an_order_of_each(model, net, x):
    for begin in (model.trace, model.scan, model.trace, model.scan, model.trace):
        with begin(x):
            second = model.layers[1].output
            last = model.layers[3].output
        if begin == model.trace:
            same([second, last], [outputs(net, x)[1], outputs(net, x)[3]])
        else:
            assert tuple(last.shape) == (1, 4)


def test_a_layer_compiled_since_runs_as_it_was_written(model, net, x):
    for _ in range(3):
        read(model, x)
    net.layers[1].compile(backend="eager")
    for _ in range(2):
        same(read(model, x)[0], outputs(net, x))


def test_a_trace_in_the_block_of_another_meets_its_own(model, net, x):
    other = NNsight(net)
    for _ in range(3):
        with model.trace(x):
            first = model.layers[0].output
            inner = inside(other, x * 2)
            second = model.layers[1].output
        same([first, second], outputs(net, x)[:2])
        same(inner, outputs(net, x * 2))
    assert not any("forward" in vars(it) for it in net.modules())


def inside(model, x):
    seen = []
    with model.trace(x):
        for layer in model.layers:
            seen.append(layer.output)
    return seen


def test_an_input_between_two_outputs_is_met_in_its_turn(model, net, x):
    for _ in range(3):
        with model.trace(x):
            first = model.layers[0].output
            given = model.layers[2].input
            third = model.layers[2].output
            last = model.layers[3].output
        wanted = outputs(net, x)
        same([first, given, third, last], [wanted[0], wanted[1], wanted[2], wanted[3]])


def test_a_block_that_stops_elsewhere_each_time_leaves_nothing(model, net, x):
    for number in (3, 0, 2, 1, 3):
        with model.trace(x) as tracer:
            seen = model.layers[number].output
            tracer.stop()
        assert torch.equal(seen, outputs(net, x)[number])
        assert not any("forward" in vars(it) for it in net.modules())


def test_no_more_blocks_are_remembered_than_are_of_use(model, x):
    for _ in range(200):
        names = {"model": model, "x": x}
        exec("with model.trace(x):\n    model.layers[0].output\n    model.layers[1].output", names)
    assert len(model._reads) <= 64


def test_a_wrapper_in_another_hands_has_learned_nothing(model, x):
    read(model, x)
    read(model, x)
    assert model._reads
    assert copy.deepcopy(model)._reads == {}
