"""What goes wrong in a block whose model computes elsewhere: told at the user's line, as here."""

import copy
import threading
import traceback

import pytest
import torch
from apart_runs import apart

import insitu
from insitu import LanguageModel
from insitu.errors import NeverRanError, OutOfOrderError, UsageError, WriteError
from insitu.remote.wire.values import decode_all, encode_all

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture
def make(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    return lambda: LanguageModel(copy.deepcopy(model), tokenizer=tokenizer)


def line_of(error):
    frames = traceback.extract_tb(error.__traceback__)
    return [frame.line for frame in frames if frame.filename == __file__][-1]


def reads_too_late(model):
    with model.trace(PROMPT):
        model.transformer.h[2].output
        model.transformer.h[0].output


def never_runs(model):
    with model.trace(PROMPT):
        model.transformer.h[0].attn.attn_dropout.output


def raises_itself(model):
    with model.trace(PROMPT):
        h = model.transformer.h[2].output
        h[7, 7]


def breaks_the_model(model):
    with model.trace(PROMPT):
        model.transformer.h[1].output = insitu.force(torch.zeros(1, 3, 7))
        model.lm_head.output


def writes_another_shape(model):
    with model.trace(PROMPT):
        model.transformer.h[1].output = torch.zeros(1, 3, 7)


def asks_for_a_step_too_many(model):
    with model.generate(PROMPT, max_new_tokens=2) as tracer:
        for _ in range(3):
            tracer.next()


def raises_in_an_invoke(model):
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            model.transformer.h[0].output
            [][1]


def calls_a_module_wrongly(model):
    with model.trace(PROMPT):
        h = model.transformer.h[0].output
        model.lm_head(h[..., :3])


BLOCKS = [
    reads_too_late, never_runs, raises_itself, breaks_the_model, writes_another_shape,
    asks_for_a_step_too_many, raises_in_an_invoke, calls_a_module_wrongly,
]  # fmt: skip


def raised_by(block, model):
    with pytest.raises(Exception) as caught:
        block(model)
    return caught.value


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_an_error_is_the_same_at_the_same_line(make, block):
    here = raised_by(block, make())
    with apart(make) as model:
        there = raised_by(block, model)
        with model.trace(PROMPT):  # the model is as it was
            after = model.lm_head.output
    with (other := make()).trace(PROMPT):
        assert torch.equal(other.lm_head.output, after)
    assert type(here) is type(there)
    assert str(here) == str(there)
    assert line_of(here) == line_of(there)


def test_errors_are_those_that_were_meant(make):
    model = make()
    found = [type(raised_by(block, model)) for block in BLOCKS[:5]]
    assert found == [OutOfOrderError, NeverRanError, IndexError, RuntimeError, WriteError]


def test_what_cannot_go_to_the_model_is_refused_in_three_lines(make):
    with apart(make) as model:
        with pytest.raises(UsageError) as caught, model.trace(PROMPT, past_key_values=object()):
            model.lm_head.output
        assert caught.value.what == "a object was given to the model, and cannot go there."
        with pytest.raises(UsageError, match="cannot go there"):
            model.trace(inputs_embeds=torch.zeros(1, 3, 32).to_sparse())
        assert model.trace(PROMPT).logits.isfinite().all()


def test_a_key_value_cache_stays_there_and_says_so(make):
    with apart(make) as model:
        with model.trace(PROMPT, use_cache=True) as tracer:
            cache = tracer.result.past_key_values
            length = cache.get_seq_length()
            with pytest.raises(UsageError) as caught:
                cache.layers
        assert length == len(model.tokenizer(PROMPT)["input_ids"])
        assert "stays with the model" in caught.value.what
        with model.trace(" Paris", past_key_values=cache):
            further = model.lm_head.output
    with (here := make()).trace(PROMPT, use_cache=True) as tracer:
        cache = tracer.result.past_key_values
    with here.trace(" Paris", past_key_values=cache):
        assert torch.equal(here.lm_head.output, further)


def test_changes_that_the_model_would_not_see_are_refused(make):
    with apart(make) as model:
        layer = model.transformer.h[1]._module
        mlp = layer.mlp
        layer.mlp = torch.nn.Identity()
        with pytest.raises(UsageError) as caught:
            model.trace(PROMPT)
        assert caught.value.what == "the block replaced a module in a GPT2Block."
        layer.mlp = mlp
        layer.mlp.c_fc.weight = torch.nn.Parameter(torch.zeros(2, 2))
        with pytest.raises(UsageError, match="gave a module another weight"):
            model.trace(PROMPT)


def test_a_second_thread_is_refused_while_a_pass_stands(make):
    raised = []

    def call(model):
        try:
            model.transformer.h[0]._module(torch.zeros(1, 2, 32))
        except Exception as error:
            raised.append(error)

    with apart(make) as model:
        with model.trace(PROMPT):
            model.transformer.h[0].output
            thread = threading.Thread(target=call, args=(model,))
            thread.start()
            thread.join()
            out = model.lm_head.output
        assert isinstance(raised[0], UsageError)
        assert "second thread" in raised[0].what
        assert out.isfinite().all()


def test_a_pass_that_goes_on_inside_a_later_one_is_refused(make):
    with apart(make) as model:
        with pytest.raises(UsageError) as caught, model.trace(PROMPT) as tracer:
            model.transformer.h[0].output
            with model.trace(PROMPT):
                model.transformer.h[1].output
                tracer.result
        assert "while another one that began later" in caught.value.what


def test_a_tensor_of_a_call_that_was_refused_can_be_used_in_the_next(make):
    embeds = torch.zeros(1, 3, 32)
    with apart(make) as model:
        for _ in range(2):
            with pytest.raises(UsageError, match="cannot go there"):
                model.trace(inputs_embeds=embeds, past_key_values=object())
        out = model.trace(inputs_embeds=embeds).logits
        embeds[:, 1] = 1
        changed = model.trace(inputs_embeds=embeds).logits
    assert torch.equal(changed, make().trace(inputs_embeds=embeds).logits)
    assert not torch.equal(out, changed)


def test_a_weight_is_sent_and_shown_as_one(make):
    with apart(make) as model:
        weight = model.lm_head.weight
        told, tensors = encode_all({"weight": weight, "data": weight.data})
        back = decode_all(told, tensors)
    assert type(back["weight"]) is torch.nn.Parameter
    assert torch.equal(back["weight"], weight)
    assert torch.equal(back["data"], weight)
    assert repr(weight) == repr(torch.nn.Parameter(weight.detach(), weight.requires_grad))
