"""Forwards that something stands around: decorators, accelerate, torch.compile, the user's own."""

import functools
import threading
from types import MethodType

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from insitu import NNsight, SourceError, UsageError
from insitu.engine.source import chain


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x, scale=2.0):
        h = self.a(x)
        h = torch.relu(h) * scale
        return self.b(h)


class Net(nn.Module):
    def __init__(self, two=Block):
        super().__init__()
        self.one = Block()
        self.two = two()

    def forward(self, x):
        return self.two(self.one(x))


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.rand(2, 4)


def build(two=Block):
    torch.manual_seed(0)
    return Net(two)


def check(net, x, inner=None, path="two"):
    """The operations of `two` are what they are by hand, and nothing is left behind."""
    inner = net if inner is None else inner
    before = [dict(module.__dict__) for module in net.modules()]
    with torch.no_grad():
        expected = net(x)
        relu = torch.relu(inner.two.a(inner.one(x)))
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x):
            first = model[path].source.torch_relu_0.output
            scaled = model[path].source.assign_h_0.output
            out = model.output
        assert torch.equal(first, relu)
        assert torch.equal(scaled, relu * 2)
        assert torch.equal(out, expected)
        with model.trace(x):
            model[path].source.torch_relu_0.output = torch.zeros(2, 4)
            out = model.output
        assert not torch.equal(out, expected)
    after = [dict(module.__dict__) for module in net.modules()]
    for was, now in zip(before, after, strict=True):
        assert was.keys() == now.keys()
        assert now.get("forward") == was.get("forward")
    assert torch.equal(net(x), expected)


class Adds(ModelHook):
    def pre_forward(self, module, *args, **kwargs):
        assert isinstance(module, Block)
        return args, kwargs

    def post_forward(self, module, output):
        return output + 1


def test_accelerates_hooks_stay_around_a_rewritten_forward(x):
    net = build()
    add_hook_to_module(net.two, Adds())
    kept = net.two._old_forward, net.two.forward
    check(net, x)
    assert (net.two._old_forward, net.two.forward) == kept
    remove_hook_from_module(net.two)
    del net.two.forward  # accelerate leaves the class's own there
    check(net, x)


def test_two_passes_share_what_accelerate_keeps(x):
    net = build()
    add_hook_to_module(net.two, Adds())
    kept = net.two._old_forward
    outer, inner = NNsight(net), NNsight(net)
    with outer.trace(x):
        first = outer.two.source.torch_relu_0.output
        with inner.trace(x):
            inner.two.source.torch_relu_0.output[:] = 0
        scaled = outer.two.source.assign_h_0.output
    assert torch.equal(scaled, first * 2)
    assert net.two._old_forward == kept


def plus_one(forward):
    @functools.wraps(forward)
    def wrapper(self, *args, **kwargs):
        wrapper.calls = getattr(wrapper, "calls", 0) + 1
        return forward(self, *args, **kwargs) + 1

    return wrapper


class Decorated(Block):
    @plus_one
    @torch.no_grad()
    @plus_one
    def forward(self, x, scale=2.0):
        h = self.a(x)
        h = torch.relu(h) * scale
        return self.b(h)


def test_decorators_stay_around_a_rewritten_forward(x):
    check(build(Decorated), x)
    assert Decorated.forward.calls > 0


def test_a_partial_forward_is_followed(x):
    net = build()
    net.two.forward = functools.partial(Block.forward, net.two, scale=2.0)
    check(net, x)


class Hiding:
    def __init__(self, forward):
        self.kept = [forward]
        functools.update_wrapper(self, forward)

    def __get__(self, instance, owner=None):
        return self if instance is None else MethodType(self, instance)

    def __call__(self, *args, **kwargs):
        return self.kept[0](*args, **kwargs)


class Hidden(Block):
    @Hiding
    def forward(self, x, scale=2.0):
        h = self.a(x)
        h = torch.relu(h) * scale
        return self.b(h)


def test_a_decorator_that_hides_the_forward_is_named(x):
    net = build(Hidden)
    model = NNsight(net)
    assert "torch_relu_0" in model.two.source
    with pytest.raises(SourceError, match=r"Hidden\.forward hides the function it wraps"):
        with model.trace(x):
            model.two.source.torch_relu_0.output
    assert "forward" not in net.two.__dict__


def test_a_forward_of_the_instance_is_used(x):
    def forward(self, x, scale=2.0):
        h = self.a(x)
        h = torch.relu(h) * scale
        return self.b(h) + 1

    net = build()
    net.two.forward = MethodType(forward, net.two)
    check(net, x)


def test_a_plain_function_as_a_forward_is_used(x):
    net = build()
    two = net.two

    def forward(x, scale=2.0):
        h = two.a(x)
        h = torch.relu(h) * scale
        return two.b(h) + 1

    net.two.forward = forward
    check(net, x)
    assert NNsight(net).two.source.two_a_0.source._path == "two.a.source"


def test_a_forward_put_in_later_has_a_source_of_its_own(x):
    net = build()
    model = NNsight(net)
    before = model.two.source
    net.two.forward = MethodType(lambda self, x: x, net.two)
    with pytest.raises(SourceError, match="it is a lambda"):
        model.two.source
    del net.two.forward
    assert [it._name for it in model.two.source] == [it._name for it in before]


class Callable:
    def __init__(self, block):
        self.block = block

    def __call__(self, x, scale=2.0):
        h = self.block.a(x)
        h = torch.relu(h) * scale
        return self.block.b(h)


def test_a_callable_object_as_a_forward_is_used(x):
    net = build()
    net.two.forward = Callable(net.two)
    check(net, x)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_a_forward_in_c_or_in_a_script_is_refused(x):
    net = build()
    net.two.forward = torch.relu
    with pytest.raises(SourceError, match=r"Block\.forward has no operations that can be named"):
        NNsight(net).two.source
    del net.two.forward
    net.two = torch.jit.script(nn.Linear(4, 4))
    model = NNsight(net)
    with pytest.raises(SourceError, match="hides the function"):
        with model.trace(x):
            model.two.source.F_linear_0.output


def test_a_list_of_modules_has_no_operations():
    with pytest.raises(SourceError, match="ModuleList has no forward"):
        NNsight(nn.ModuleList([nn.Linear(2, 2)])).source


def test_data_parallel_on_one_device_is_followed(x):
    net = nn.DataParallel(build())
    check(net, x, net.module, "module.two")


def test_data_parallel_on_several_devices_says_why_not(x):
    net = nn.DataParallel(build())
    net.device_ids = [0, 1]
    model = NNsight(net)
    with pytest.raises(UsageError, match="runs copies of its module on 2 devices"):
        with model.trace(x):
            model.module.two.source.torch_relu_0.output


class Closed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        def twice(h):
            return torch.mul(h, 2)

        return twice(self.a(x))


def test_a_function_defined_in_the_forward_is_not_known_before_it_runs(x):
    model = NNsight(Closed())
    with pytest.raises(SourceError, match="not known before it runs"):
        model.source.twice_0.source
    with model.trace(x):
        out = model.source.twice_0.output
    assert torch.equal(out, model._module(x))


def test_a_chain_that_does_not_change_is_not_rebuilt():
    def forward(x):
        return x

    plain = chain.follow(forward, "forward")
    assert plain.function is forward
    assert plain.with_(test_a_list_of_modules_has_no_operations) is (
        test_a_list_of_modules_has_no_operations
    )


def test_a_recursive_closure_ends():
    def forward(x):
        return wrapper(x) if x else x

    @functools.wraps(forward)
    def wrapper(x):
        return wrapper(x - 1) if x > 9 else forward(x)

    made = chain.follow(wrapper, "wrapper").with_(lambda x: "other")
    assert made(3) == "other"


@pytest.fixture
def dynamo():
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
def test_compiled_modules_run_as_written_while_an_operation_is_wanted(x, dynamo):
    net = build()
    check(torch.compile(net, backend="eager"), x, net, "_orig_mod.two")
    net = build()
    net.compile(backend="eager")
    check(net, x)
    assert net._compiled_call_impl is not None
    net = build()
    net.two.forward = torch.compile(net.two.forward, backend="eager")
    check(net, x)
    net = build()
    net.two.compile(backend="eager")
    check(net, x)


def test_operations_of_a_compiled_module_can_be_asked_for_after_it_has_begun(x):
    net = build()
    expected, calls = net(x), []
    model = NNsight(net)
    model.trace(x)

    def compiled(*args):  # stands for what torch.compile puts there
        calls.append(args)
        return net._call_impl(*args)

    net._compiled_call_impl = compiled
    with model.trace(x) as tracer:
        hidden = model.one.output
        relu = model.two.source.torch_relu_0.output
        out = tracer.result
    assert torch.equal(relu, torch.relu(net.two.a(hidden)))
    assert torch.equal(out, expected)
    assert calls == []
    assert net._compiled_call_impl is compiled
    net(x)
    assert len(calls) == 1
    del net.__dict__["_compiled_call_impl"]


def test_a_thread_keeps_accelerates_forward_while_another_runs_it_rewritten(x):
    net = build()
    add_hook_to_module(net.two, Adds())
    expected, seen = net(x), []
    model = NNsight(net)
    with model.trace(x):
        model.two.source.torch_relu_0.output[:] = 0
        thread = threading.Thread(target=lambda: seen.append(net(x)))
        thread.start()
        thread.join()
    assert torch.equal(seen[0], expected)
