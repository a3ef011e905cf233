"""`with loss.backward():` in a trace, and `loss.backward()` as it always was."""

import contextlib
import inspect
import sys
import threading

import pytest
import torch

import insitu
from insitu import GradientError, NNsight
from insitu.engine import backward_call

ORIGINAL = torch.Tensor.backward


@pytest.fixture(autouse=True)
def torchs_own_method_is_back():
    yield
    assert torch.Tensor.backward is ORIGINAL
    assert not backward_call._mounts
    assert torch._C._current_graph_task_id() == -1


@contextlib.contextmanager
def mounted():
    """What a trace does for its block."""
    frame, run = sys._getframe(2), object()
    assert backward_call.mount(frame, run)
    try:
        yield
    finally:
        backward_call.unmount(run)


def oracle(net, x, edit=None):
    """Gradients of layer1's output and of its weight, by a plain hook."""
    seen = []

    def hook(g):
        seen.append(g.clone())
        return None if edit is None else edit(g)

    hidden = net.layer1(x)
    hidden.register_hook(hook)
    net.layer2(hidden).sum().backward()
    weight = net.layer1.weight.grad.clone()
    net.zero_grad()
    return seen[0], weight


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# In a trace -------------------------------------------------------------------------------------


def test_reading_a_gradient_in_a_trace(net, x):
    expected = oracle(net, x)
    model = NNsight(net)
    with model.trace(x):
        hidden = model.layer1.output
        with model.output.sum().backward():
            g = hidden.grad
    assert equal((g, net.layer1.weight.grad), expected)


def test_a_leaf_where_no_parameter_requires_gradients(net, x):
    expected, _ = oracle(net, x)
    model = NNsight(net.requires_grad_(False))
    with model.trace(x):
        hidden = model.layer1.output
        hidden.requires_grad_(True)
        loss = model.output.sum()
        with loss.backward():
            original = hidden.grad.clone()
            hidden.grad[:] = 0
            changed = hidden.grad.clone()
    assert torch.equal(original, expected)
    assert (changed == 0).all()
    assert (hidden.grad == 0).all()


def test_an_edit_in_a_trace_flows_on(net, x):
    expected = oracle(net, x, edit=lambda g: g * 3)
    model = NNsight(net)
    with model.trace(x):
        hidden = model.layer1.output
        with model.output.sum().backward(retain_graph=True):
            g = hidden.grad.clone()
            hidden.grad *= 3
    assert equal((g, net.layer1.weight.grad), expected)


def test_several_backwards_in_one_trace(net, x):
    model = NNsight(net)
    with model.trace(x):
        hidden = model.layer1.output
        out = model.output
        with out[0, 0].backward(retain_graph=True):
            first = hidden.grad
        with out[0, 1].backward():
            second = hidden.grad
    assert torch.equal(first[0], net.layer2.weight[0])
    assert torch.equal(second[0], net.layer2.weight[1])


def test_without_with_it_is_torchs_own_in_a_trace_too(net, x):
    _, weight = oracle(net, x)
    model = NNsight(net)
    with model.trace(x):
        hidden = model.layer1.output
        g = torch.autograd.grad(net.layer2(hidden).sum(), hidden)[0]
        hidden.retain_grad()
        assert model.output.sum().backward() is None
    assert torch.equal(net.layer1.weight.grad, weight)
    assert torch.equal(hidden.grad, g)


def test_a_module_can_be_read_inside_the_block_of_a_backward(net, x):
    expected, _ = oracle(net, x)
    model = NNsight(net)
    with model.trace(x):
        hidden = model.layer1.output
        with (hidden**2).sum().backward(retain_graph=True):
            at_hidden = hidden.grad
            out = model.layer2.output
            bias = net.layer1.bias.grad.clone()
        with out.sum().backward():
            later = hidden.grad
    assert torch.equal(at_hidden, 2 * hidden)
    assert torch.equal(bias, 2 * hidden[0])
    assert torch.equal(later, expected)
    assert torch.equal(out, net(x))


def test_an_error_in_the_block_ends_backward_and_trace(net, x):
    model = NNsight(net)
    with pytest.raises(KeyError):
        with model.trace(x):
            hidden = model.layer1.output
            with model.output.sum().backward():
                hidden.grad
                raise KeyError
    assert net.layer1.weight.grad is None


def test_stopping_the_trace_inside_the_block_ends_both(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        hidden = model.layer1.output
        with (hidden * 2).sum().backward():
            hidden.grad
            tracer.stop()
        pytest.fail("went on")
    assert net.layer1.weight.grad is None


def test_a_missing_gradient_is_an_error_at_the_users_line(net, x):
    model = NNsight(net)
    with pytest.raises(GradientError, match="no gradient came to turned") as caught:
        with model.trace(x):
            turned = model.layer1.output.T
            with model.output.sum().backward():
                turned.grad
    assert str(caught.traceback[-1].statement).strip() == "turned.grad"


def test_in_a_language_model(llm):
    prompt = torch.tensor([[3, 5, 7, 11]])
    block, head = llm._model.transformer.h[1], llm._model.lm_head
    kept = []

    def keep(module, args, output):
        kept.append(output.requires_grad_(True))

    handle = block.register_forward_hook(keep)
    logits = llm._model(prompt).logits
    handle.remove()
    (expected,) = torch.autograd.grad(logits[0, -1, 9], kept[0])
    with llm.trace(prompt):
        hidden = llm.transformer.h[1].output
        hidden.requires_grad_(True)
        with llm.lm_head.output[0, -1, 9].backward():
            g = hidden.grad
    assert torch.equal(g, expected)
    assert head.weight.grad is None


def test_in_invokes_each_sees_and_changes_its_rows(net, x):
    model = NNsight(net)
    got = []
    with model.trace() as tracer:
        for scale in (1, 2):
            with tracer.invoke(x * scale):
                hidden = model.layer1.output
                with model.output.sum().backward(retain_graph=True):
                    got.append(hidden.grad.clone())
                    hidden.grad *= 3
    weight = net.layer1.weight.grad.clone()
    net.zero_grad()
    first, one = oracle(net, x, edit=lambda g: g * 3)
    second, two = oracle(net, x * 2, edit=lambda g: g * 3)
    assert equal(got, (first, second))
    torch.testing.assert_close(weight, one + two)


def test_gradients_flow_through_generate_when_asked(llm):
    prompt = torch.tensor([[3, 5, 7, 11]])
    with llm.generate(prompt, max_new_tokens=3, grad=True) as tracer:
        for step in tracer.iter[:]:
            if step == 0:
                hidden = llm.transformer.h[1].output
                hidden.requires_grad_(True)
            logits = llm.lm_head.output
        with logits[0, -1].max().backward():
            got = hidden.grad
    assert torch.equal(got, through_a_loop(llm._model, prompt, 3))


def through_a_loop(model, prompt, steps):
    """The same gradient through a generation written by hand, with a cache."""
    kept, cache, ids = [], None, prompt

    def keep(module, args, output):
        if not kept:
            kept.append(output.requires_grad_(True))

    handle = model.transformer.h[1].register_forward_hook(keep)
    for _ in range(steps):
        out = model(ids, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
    handle.remove()
    return torch.autograd.grad(out.logits[0, -1].max(), kept[0])[0]


def test_without_grad_generate_gives_no_gradients(llm):
    with llm.generate(torch.tensor([[3, 5]]), max_new_tokens=2) as tracer:
        for step in tracer.iter[:]:
            if step == 0:
                hidden = llm.transformer.h[1].output
                hidden.requires_grad_(True)
            logits = llm.lm_head.output
    with pytest.raises(RuntimeError, match="does not require grad"):
        with insitu.backward(logits[0, -1].max()):
            hidden.grad


def far_away(loss):
    says_it(loss)


def trace_far_away(model, x):
    with model.trace(x):
        far_away(model.output.sum())


def trace_nearby(model, x):
    with model.trace(x):
        says_it(model.output.sum())


def test_two_functions_down_the_error_says_what_to_write(net, x):
    model = NNsight(net)
    trace_nearby(model, x)
    assert net.layer1.weight.grad is not None
    with pytest.raises(TypeError) as caught:
        trace_far_away(model, x)
    assert "with insitu.backward(loss):" in caught.value.__notes__[0]


# The method -------------------------------------------------------------------------------------


def test_the_method_is_torchs_own_outside(net, x):
    loss = net(x).sum()
    assert loss.backward.__func__ is ORIGINAL
    with pytest.raises(TypeError, match="context manager"):
        with loss.backward():
            pass


def test_it_looks_the_same_while_it_is_replaced():
    with mounted():
        assert torch.Tensor.backward is not ORIGINAL
        assert torch.Tensor.backward.__doc__ == ORIGINAL.__doc__
        assert inspect.signature(torch.Tensor.backward) == inspect.signature(ORIGINAL)


def test_mounts_of_several_traces_and_threads_are_counted():
    done, go = threading.Event(), threading.Event()

    def work():
        with mounted():
            done.set()
            go.wait(10)
            torch.ones(1, requires_grad=True).sum().backward()

    thread = threading.Thread(target=work)
    with mounted():
        thread.start()
        done.wait(10)
    assert torch.Tensor.backward is not ORIGINAL
    go.set()
    thread.join()
    assert torch.Tensor.backward is ORIGINAL


def test_a_patch_of_someone_elses_made_meanwhile_is_left_alone(net, x):
    with mounted():
        inner = torch.Tensor.backward

        def theirs(self, *args, **kwargs):
            return inner(self, *args, **kwargs)

        torch.Tensor.backward = theirs
    try:
        assert torch.Tensor.backward is theirs
        net(x).sum().backward()
        assert net.layer1.weight.grad is not None
    finally:
        torch.Tensor.backward = ORIGINAL


def test_arguments_reach_torch_in_both_forms(net, x):
    out = net(x)
    weights = torch.tensor([[1.0, 2.0]])
    with mounted():
        out.backward(weights, True)
        plain = net.layer1.bias.grad.clone()
        net.zero_grad()
        with out.backward(weights, inputs=[net.layer1.bias]):
            read = net.layer1.bias.grad.clone()
    assert torch.equal(plain, read)
    assert torch.equal(plain, net.layer1.bias.grad)
    assert net.layer2.bias.grad is None


# Which code can use it --------------------------------------------------------------------------


def can_use():
    return backward_call.can_use(sys._getframe(1))


def says_it(loss):
    with loss.backward():
        pass


def does_not(loss):
    return loss


def test_code_that_says_backward_can_use_it():
    assert can_use()
    torch.Tensor.backward


def test_code_with_a_function_inside_that_says_it_can():
    def inner(loss):
        loss.backward()

    assert can_use()
    del inner


def test_code_that_names_a_function_that_says_it_can():
    assert can_use()
    assert says_it


def test_code_that_is_given_a_function_that_says_it_can():
    def run(attribute):
        attribute, does_not
        return can_use()

    assert run(says_it)
    assert not run_other(does_not)


def run_other(attribute):
    attribute, does_not
    return can_use()


def test_a_function_changed_meanwhile_is_looked_at_again():
    space = {"can_use": can_use, "f": does_not}
    code = compile("def look():\n    f\n    return can_use()", "<other>", "exec")
    exec(code, space)
    assert not space["look"]()
    space["f"] = says_it
    assert space["look"]()


def test_code_that_cannot_use_it_leaves_torch_alone():
    assert not run_mount()
    assert torch.Tensor.backward is ORIGINAL


def run_mount():
    return backward_call.mount(sys._getframe(), object())


def test_the_error_of_an_unmounted_backward_says_what_to_write(net, x):
    loss = net(x).sum()
    with pytest.raises(TypeError) as caught:
        says_it(loss)
    backward_call.note_unmounted(caught.value)
    assert "with insitu.backward(loss):" in caught.value.__notes__[0]
    with pytest.raises(TypeError) as other:
        with None:
            pass
    backward_call.note_unmounted(KeyError())
    assert not hasattr(other.value, "__notes__")
