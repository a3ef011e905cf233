"""Gradients of a model that computes in another process: those that torch finds in one."""

import copy

import pytest
import torch
from apart_runs import apart

import insitu
from insitu import LanguageModel

PROMPT, OTHER = "The Eiffel Tower is in the city of", "The Colosseum is in the city of"


@pytest.fixture
def make(tiny_gpt2):
    """Its weights require gradients, so that everything in it does."""
    model, tokenizer = tiny_gpt2
    return lambda: LanguageModel(copy.deepcopy(model).requires_grad_(True), tokenizer=tokenizer)


def reads_a_gradient(model):
    with model.trace(PROMPT):
        h = model.transformer.h[1].output
        loss = model.lm_head.output[:, -1].logsumexp(-1).sum()
        with loss.backward():
            g = h.grad.clone()
    return [g]


def reads_gradients_of_all_layers(model):
    with model.trace(PROMPT):
        hs = [layer.output for layer in model.transformer.h]
        mlp = model.transformer.ln_f.output
        loss = model.lm_head.output[0, -1, 5]
        with loss.backward():
            found = [mlp.grad.clone()] + [h.grad.clone() for h in reversed(hs)]
    return found


def reads_only_the_first_where_others_crossed(model):
    with model.trace(PROMPT):
        h = model.transformer.h[0].output
        for n in (1, 2, 3):
            model.transformer.h[n].mlp.output
        loss = model.lm_head.output[0, -1, 5]
        with loss.backward():
            g = h.grad.clone()
    return [g]


def goes_back_through_an_edit(model):
    with model.trace(PROMPT):
        h = model.transformer.h[0].output
        model.transformer.h[1].output[:, 2:] *= 3
        model.transformer.h[2].mlp.output = model.transformer.h[2].mlp.output + h * 0.5
        late = model.transformer.h[3].output
        loss = model.lm_head.output.pow(2).mean()
        with loss.backward():
            found = [late.grad.clone(), h.grad.clone()]
    return found


def goes_back_to_a_tensor_of_its_own(model):
    torch.manual_seed(0)
    direction = torch.randn(32, requires_grad=True)
    with model.trace(PROMPT):
        model.transformer.h[1].output = model.transformer.h[1].output + direction
        loss = model.lm_head.output[0, -1].softmax(-1)[3]
        with loss.backward():
            pass
    return [direction.grad]


def edits_a_gradient(model):
    with model.trace(PROMPT):
        early = model.transformer.h[0].output
        late = model.transformer.h[2].output
        loss = model.lm_head.output[0, -1, 5]
        with loss.backward():
            late.grad[:, :-1] = 0
            g = early.grad.clone()
    return [g]


def goes_back_twice(model):
    with model.trace(PROMPT):
        h = model.transformer.h[1].output
        logits = model.lm_head.output
        with logits[0, -1, 1].backward(retain_graph=True):
            one = h.grad.clone()
        with logits[0, -1, 2].backward():
            two = h.grad.clone()
    return [one, two]


def goes_back_from_the_result(model):
    with model.trace(PROMPT) as tracer:
        h = model.transformer.h[1].output
        loss = tracer.result.logits[0, -1, 7]
        with insitu.backward(loss):
            g = h.grad.clone()
    return [g]


def goes_back_in_one_of_two_prompts(model):
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            h = model.transformer.h[1].output
            loss = model.lm_head.output[0, -1, 3]
            with loss.backward():
                g = h.grad.clone()
        with tracer.invoke(OTHER):
            out = model.lm_head.output.detach()
    return [g, out]


def goes_back_through_its_own_calls(model):
    with model.trace(PROMPT):
        h = model.transformer.h[1].output
        early = model.lm_head(model.transformer.ln_f(h))
        loss = early[0, -1, 3] + model.lm_head.output[0, -1, 4]
        with loss.backward():
            g = h.grad.clone()
    return [g]


def goes_back_through_inputs(model):
    with model.trace(PROMPT):
        x = model.transformer.h[2].attn.input
        loss = model.lm_head.output[0, -1, 4]
        with loss.backward():
            g = x.grad.clone()
    return [g]


def goes_back_through_steps(model):
    with model.generate(PROMPT, max_new_tokens=2, grad=True) as tracer:
        h = model.transformer.h[1].output
        tracer.next()
        loss = model.lm_head.output[0, -1, 3]
        with loss.backward():
            g = h.grad.clone()
    return [g]


BLOCKS = [
    reads_a_gradient, reads_gradients_of_all_layers, reads_only_the_first_where_others_crossed,
    goes_back_through_an_edit, goes_back_to_a_tensor_of_its_own, edits_a_gradient,
    goes_back_twice, goes_back_from_the_result, goes_back_in_one_of_two_prompts,
    goes_back_through_its_own_calls, goes_back_through_inputs, goes_back_through_steps,
]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_gradients_are_those_of_one_process(make, block):
    here = block(make())
    with apart(make) as model:
        there = block(model)
        again = block(model)
    assert len(here) == len(there)
    for one, other, third in zip(here, there, again, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(other, one)
        torch.testing.assert_close(third, one)


def asks_torch_itself(model):
    with model.trace(PROMPT):
        h = model.transformer.h[1].output
        model.transformer.h[2].output[:, 0] *= 2
        loss = model.lm_head.output[0, -1, 5]
        (g,) = torch.autograd.grad(loss, h)
    return g


def test_torchs_own_function_finds_the_same(make):
    here = asks_torch_itself(make())
    with apart(make) as model:
        torch.testing.assert_close(asks_torch_itself(model), here)


def test_a_value_with_a_graph_goes_to_a_model_that_is_not_asked_for_gradients(make):
    """What an SAE computes requires gradients, as its weights do."""
    torch.manual_seed(0)
    sae = torch.nn.Linear(32, 32)

    def patched(model):
        with model.trace(PROMPT):
            model.transformer.h[1].output = sae(model.transformer.h[1].output)
            return model.lm_head.output

    with apart(make) as model:
        there = patched(model)
    torch.testing.assert_close(there, patched(make()).detach())
    assert not there.requires_grad
