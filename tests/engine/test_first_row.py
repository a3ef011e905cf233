"""`block.output[0]` of a tensor: what an error is told, and what is warned of."""

import re
import warnings

import pytest
import reference
import torch
from torch import nn

from insitu import InsituWarning, NNsight

PROMPTS = ["The Eiffel Tower is in", "The Colosseum is in"]


def notes(error):
    return getattr(error, "__notes__", [])


TOLD = (
    r"Insitu: transformer\.h\.0\.output is a tensor, float32\[1, \d+, \d+\], and no tuple .*"
    r"transformer\.h\.0\.output\[0\] is its first row"
)


def positions_written(block):
    block.output[0][:, -1, :] = 0


def positions_read(block):
    first = block.output[0]
    return first[:, -1, :]


def a_mean(block):
    return block.output[0].mean(dim=2)


def a_tuple_written(block):
    block.output = (block.output[0] * 2,) + block.output[1:]


OLD = [positions_written, positions_read, a_mean, a_tuple_written]


@pytest.mark.parametrize("old", OLD)
@pytest.mark.parametrize("passes", [1, 2])
def test_an_error_of_code_that_takes_a_tensor_for_a_tuple_says_so(llm, old, passes):
    for _ in range(passes):
        with pytest.raises((IndexError, TypeError)) as caught, llm.trace("Hello"):
            old(llm.transformer.h[0])
        assert len(notes(caught.value)) == 1
        assert re.match(TOLD, notes(caught.value)[0])


def test_in_an_invoke_and_in_an_edit_it_says_so_once(llm):
    with pytest.raises(IndexError) as caught, llm.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            llm.transformer.h[0].output[0][:, -1, :] = 0
    assert len(notes(caught.value)) == 1
    with llm.edit() as edited:
        llm.transformer.h[0].output[0][:, -1, :] = 0
    with pytest.raises(IndexError) as caught:
        edited.trace(PROMPTS[0])
    assert len(notes(caught.value)) == 1


def test_other_errors_of_indices_are_left_as_they_are(llm):
    with pytest.raises(IndexError) as caught, llm.trace("Hello"):
        hidden = llm.transformer.h[0].output
        torch.zeros(3, 4)[:, 1, :] = hidden.sum()
    assert notes(caught.value) == []
    with pytest.raises(IndexError) as caught, llm.trace("Hello"):
        llm.transformer.h[0].attn.output[2]
    assert notes(caught.value) == []


def logits_after_zeroing(llm, pick):
    """What plain hooks give when a block's output is zeroed in part."""

    def write(module, args, output):
        pick(output)[:] = 0

    inputs = llm.tokenizer(PROMPTS, return_tensors="pt", padding=True)
    block = llm._module.transformer.h[0]
    with torch.no_grad(), reference.hooks([block.register_forward_hook(write)]):
        return llm._module(**inputs).logits


def test_writing_the_first_prompt_alone_by_old_code_is_warned_of_once(llm):
    def old():
        with torch.no_grad(), llm.trace(PROMPTS):
            llm.transformer.h[0].output[0][:] = 0
            return llm.lm_head.output

    line = old.__code__.co_firstlineno + 2
    with pytest.warns(InsituWarning, match=f"line {line} writes .*first of 2 rows") as all_:
        out = old()
    assert len(all_) == 1
    assert all_[0].filename == __file__
    hidden_zero = logits_after_zeroing(llm, lambda hidden: hidden[0])
    assert torch.allclose(out[0, -1], hidden_zero[0, -1], atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old()


def test_an_edit_by_old_code_is_warned_of_when_it_meets_several_prompts(llm):
    with llm.edit() as edited:
        llm.transformer.h[0].output[0][:] += 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        edited.trace(PROMPTS[0])
    with pytest.warns(InsituWarning, match=r"writes into transformer\.h\.0\.output\[0\]"):
        edited.trace(PROMPTS)


def test_steps_of_a_generation_are_warned_of_too(llm):
    with pytest.warns(InsituWarning, match=r"the first of 2 rows") as all_:
        with llm.generate(PROMPTS, max_new_tokens=3) as tracer:
            for _ in tracer.iter[:]:
                llm.transformer.h[1].output[0][:] *= 2
    assert len(all_) == 1


def test_what_says_the_first_row_or_is_no_such_block_is_not_warned_of(llm):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model = NNsight(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with llm.trace(PROMPTS):
            llm.transformer.h[0].attn.output[0][:] = 0  # a tuple: its first part
            llm.transformer.h[0].mlp.output[0][:] = 0  # never was one
            llm.transformer.h[0].output[0, :] = 0
            llm.transformer.h[1].output[0] = 0
            first = llm.transformer.h[2].output[0]
            first[0] = 0
        with llm.trace(PROMPTS[0]):
            llm.transformer.h[0].output[0][:] = 0
        with llm.trace() as tracer:
            for prompt in PROMPTS:
                with tracer.invoke(prompt):
                    llm.transformer.h[0].output[0][:] = 0
        with model.trace(torch.rand(2, 3)):
            model[0].output[0][:] = 0
