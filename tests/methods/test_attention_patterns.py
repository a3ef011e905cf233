"""Attention patterns are those that transformers' eager attention gives out."""

import pytest
import torch
from random_llama import tiny_llama
from reference import counting

from insitu import InputError, UsageError
from insitu.methods import attention_patterns

PROMPT = "When Mary and John went to the store, John gave a drink to"


@torch.no_grad()
def eager(net, **inputs):
    used = net.config._attn_implementation
    net.set_attn_implementation("eager")
    try:
        return torch.cat(net(**inputs, output_attentions=True).attentions)
    finally:
        net.set_attn_implementation(used)


def test_patterns_are_those_of_eager_attention(demo):
    expected = eager(demo._module, **demo.tokenizer(PROMPT, return_tensors="pt"))
    with counting(demo._module) as calls:
        found = attention_patterns(demo, PROMPT)
    assert calls["transformer.h.0"] == 1
    assert found.names == ("layer", "head", "query_pos", "key_pos")
    torch.testing.assert_close(found.values, expected)
    torch.testing.assert_close(found.values.sum(-1), torch.ones(found.shape[:3]))


def test_layers_are_chosen_and_keep_their_numbers(demo):
    every = attention_patterns(demo, PROMPT)
    some = attention_patterns(demo, PROMPT, layers=[-1, 2])
    assert some.axis("layer").labels == (5, 2)
    torch.testing.assert_close(some.sel(layer=2).values, every.sel(layer=2).values)
    torch.testing.assert_close(some.values[0], every.values[5])
    assert attention_patterns(demo, PROMPT, layers=3).shape[0] == 1


def test_another_family():
    model, net = tiny_llama()
    found = attention_patterns(model, [5, 9, 2, 40, 11])
    torch.testing.assert_close(
        found.values, eager(net, input_ids=torch.tensor([[5, 9, 2, 40, 11]]))
    )


def test_what_there_is_not_is_refused(demo):
    with pytest.raises(UsageError) as raised:
        attention_patterns(demo, PROMPT, layers=[2, 6])
    assert raised.value.what == "there is no layer 6."
    assert raised.value.why == "the model has 6, numbered 0 to 5."
    with pytest.raises(InputError, match="was given 2 prompts"):
        attention_patterns(demo, [PROMPT, PROMPT])
