"""Backwards at their edges: swallowed unwindings, other threads, gradients that are none."""

import gc
import threading

import greenlet
import pytest
import torch

import insitu
from insitu import GradientError
from insitu.engine import gradients


@pytest.fixture(autouse=True)
def nothing_of_a_backward_is_left():
    yield
    gc.collect()
    assert getattr(gradients._running, "last", None) is None
    assert torch._C._is_multithreading_enabled()


def forward(net, x):
    """Three tensors on the way to a loss: `(hidden, active, out)`, and the loss."""
    hidden = net.layer1(x)
    active = hidden.tanh()
    out = net.layer2(active)
    return hidden, active, out, (out * out).sum()


def hooks_on(*tensors):
    return [dict(t._backward_hooks) for t in tensors if t._backward_hooks]


# Values -------------------------------------------------------------------------------------------


def test_a_forced_value_is_written_as_it_is(net, x):
    hidden, _, out, loss = forward(net, x)
    wanted = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    with insitu.backward(loss):
        out.grad = insitu.force(out.grad * 3)
        assert torch.allclose(hidden.grad, wanted * 3)
    with pytest.raises(insitu.WriteError, match="does not fit"):
        with insitu.backward(forward(net, x)[3]) as run:
            run.tensors.grad = insitu.force(torch.ones(7))


def test_a_slices_gradient_may_be_read_again_and_again_after_it_has_passed(net):
    batch = torch.rand(3, 5)
    hidden, *_, loss = forward(net, batch)
    part = hidden[:1]
    wanted = torch.autograd.grad(loss, hidden, retain_graph=True)[0]
    with insitu.backward(loss):
        whole = net.layer1.weight.grad.clone()
        once, again = part.grad, part.grad
        assert torch.equal(once, wanted[:1])
        assert torch.equal(again, once)
    assert torch.equal(whole, net.layer1.weight.grad)


def test_a_gradient_of_a_sparse_kind_is_read_and_changed():
    table = torch.nn.Embedding(5, 2, sparse=True)
    loss = (table(torch.tensor([1, 3])) * 2).sum()
    with insitu.backward(loss):
        grad = table.weight.grad
        assert grad.layout is torch.sparse_coo
        table.weight.grad = grad * 10
    assert torch.equal(table.weight.grad.to_dense()[:, 0], torch.tensor([0.0, 20, 0, 20, 0]))


class OfOne(torch.autograd.Function):
    """Gives no gradient back for its second input."""

    @staticmethod
    def forward(ctx, a, b):
        return a + b

    @staticmethod
    def backward(ctx, g):
        return g, None


def test_a_tensor_that_is_given_no_gradient_does_not_keep_the_others_from_theirs(x):
    a, b = (x.clone().requires_grad_() * 1 for _ in range(2))
    first = a * 2
    with insitu.backward(OfOne.apply(first, b).sum()):
        assert torch.equal(first.grad, torch.ones_like(x))
        assert torch.equal(a.grad, torch.full_like(x, 2))
        for _ in range(2):  # the second time the backward has ended already
            with pytest.raises(GradientError, match="no gradient came to b"):
                b.grad
        assert torch.equal(a.grad, torch.full_like(x, 2))


def test_a_slice_is_met_by_its_own_backward_alone(net):
    hidden, active, out, loss = forward(net, torch.rand(3, 5))
    cut = active[:2]
    wanted = torch.autograd.grad(loss, active, retain_graph=True)[0]
    plain = torch.autograd.grad(out.sum(), hidden, retain_graph=True)[0]
    with insitu.backward(loss, retain_graph=True):
        out.grad
        assert torch.equal(torch.autograd.grad(out.sum(), hidden, retain_graph=True)[0], plain)
        assert torch.equal(cut.grad, wanted[:2])


# Unwinding ----------------------------------------------------------------------------------------


PROBE = []


class Swallows(torch.autograd.Function):
    """Computes a gradient of its own in its backward, and takes whatever that raises."""

    @staticmethod
    def forward(ctx, a):
        return a * 1

    @staticmethod
    def backward(ctx, g):
        (probe,) = PROBE
        try:
            with torch.enable_grad():
                torch.autograd.grad((probe * 2).sum(), probe)
        except BaseException:
            pass
        return g


@pytest.mark.parametrize("named", ["a tensor", "a slice"])
def test_a_backward_that_swallows_its_unwinding_ends_at_the_next_gradient_met(x, named):
    leaf, probe = x.clone().requires_grad_(), torch.ones(2, requires_grad=True)
    PROBE[:] = [probe]
    first = leaf * 2
    further = first if named == "a tensor" else first[:, :2]
    last = Swallows.apply(first) * 3

    def block():
        with insitu.backward(last.sum()):
            last.grad
            assert torch.equal(probe.grad, torch.full((2,), 2.0))  # inside the function's backward
            raise KeyError("mine", further)  # named here, so it would be stopped at

    try:
        with pytest.raises(KeyError, match="mine"):
            block()
        assert leaf.grad is None
        assert hooks_on(leaf, probe, first, last) == []
        leaf.grad = None
        (Swallows.apply(leaf * 2) * 3).sum().backward()
        assert (leaf.grad == 6).all()
    finally:
        PROBE.clear()


@pytest.mark.parametrize("reads", [False, True])
def test_a_greenlet_exit_of_the_users_own_comes_out_as_itself(net, x, reads):
    hidden, _, out, loss = forward(net, x)

    def leave(_):
        raise greenlet.GreenletExit("mine")

    hidden.register_hook(leave)
    with pytest.raises(greenlet.GreenletExit, match="mine"):
        with insitu.backward(loss):
            if reads:
                out.grad
    assert net.layer1.weight.grad is None


def test_a_backward_that_another_thread_closes_is_over_in_its_own(net, x):
    hidden, active, out, loss = forward(net, x)
    parked, closed = threading.Event(), threading.Event()
    left = []

    def begin(run):
        with run:
            active.grad
            parked.set()
            closed.wait(30)
        left.append(torch._C._len_torch_function_stack())
        greenlet.getcurrent()  # as its next trace would: what was let go of ends in its thread

    run = insitu.backward(loss, retain_graph=True)
    thread = threading.Thread(target=begin, args=(run,))
    thread.start()
    assert parked.wait(30)
    run.close()
    run.close()
    closed.set()
    thread.join()
    assert left == [0]
    assert hooks_on(hidden, active, out) == []
    assert net.layer1.weight.grad is None
    loss.backward()
    assert net.layer1.weight.grad is not None


def test_an_interrupt_as_a_backward_is_entered_leaves_torch_alone(net, x, monkeypatch):
    *_, loss = forward(net, x)

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch._C, "_push_on_torch_function_stack", interrupted)
        with pytest.raises(KeyboardInterrupt):
            with insitu.backward(loss):
                raise AssertionError("not reached")
    assert torch._C._len_torch_function_stack() == 0
    loss.backward()
    assert net.layer1.weight.grad is not None


def test_inner_backwards_closed_with_their_outer_one_say_so(net, x):
    hidden, active, out, loss = forward(net, x)
    outer = insitu.backward(loss, retain_graph=True)
    inner = insitu.backward(out.sum(), retain_graph=True)
    outer.__enter__()
    active.grad
    inner.__enter__()
    active.grad
    outer.__exit__(KeyError, KeyError("mine"), None)
    with pytest.raises(GradientError, match="its backward has been closed"):
        inner._read(hidden)
    with pytest.raises(GradientError, match="closed before it had come to its end"):
        inner.__exit__(None, None, None)
    assert hooks_on(hidden, active, out) == []
