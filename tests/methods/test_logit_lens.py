"""The logit lens is the final norm and unembedding on each layer, as plain hooks see it."""

import pytest
import torch
from families import FAMILIES
from random_llama import tiny_llama
from reference import counting, outputs

from insitu import InputError, LanguageModel
from insitu.methods import logit_lens
from insitu.models.standard.families import KNOWN

PROMPT = "The Eiffel Tower is in the city of"
IDS = [5, 9, 2, 40, 11]


def streams_by_hooks(net, paths, **inputs):
    seen = outputs(net, paths, **inputs)
    return [seen[p][0][0] if isinstance(seen[p][0], tuple) else seen[p][0] for p in paths]


@torch.no_grad()
def test_every_layer_is_read_as_plain_hooks_read_it(demo):
    net = demo._module
    inputs = demo.tokenizer(PROMPT, return_tensors="pt")
    streams = streams_by_hooks(net, [f"transformer.h.{i}" for i in range(6)], **inputs)
    expected = [net.lm_head(net.transformer.ln_f(stream))[0] for stream in streams]
    paris = demo.tokenizer(" Paris").input_ids[0]
    final = net(**inputs).logits[0].log_softmax(-1)

    lens = logit_lens(demo, PROMPT, target=" Paris")

    assert lens.names == ("layer", "pos")
    assert lens.axis("pos").labels == (
        "The",
        " Eiffel",
        " Tower",
        " is",
        " in",
        " the",
        " city",
        " of",
    )
    for layer, logits in enumerate(expected):
        chances = logits.softmax(-1)
        torch.testing.assert_close(lens.values[layer], chances[:, paris])
        tokens = [demo.tokenizer.decode([t]) for t in logits.argmax(-1)]
        assert list(lens.sel(layer=layer).texts) == tokens
        divergence = (final.exp() * (final - logits.log_softmax(-1))).sum(-1)
        torch.testing.assert_close(
            lens.further["kl"].values[layer], divergence, atol=1e-5, rtol=1e-4
        )
        rank = (chances > chances[:, paris, None]).sum(-1)
        assert torch.equal(lens.further["rank"].values[layer], rank)
        torch.testing.assert_close(lens.further["top"].values[layer], chances.topk(5).values)


@torch.no_grad()
def test_the_last_layer_is_the_model_s_own_prediction_to_the_bit(demo):
    logits = demo._module(**demo.tokenizer(PROMPT, return_tensors="pt")).logits[0]
    lens = logit_lens(demo, PROMPT, target=" Paris")
    assert torch.equal(
        lens.values[-1], logits.softmax(-1)[:, demo.tokenizer(" Paris").input_ids[0]]
    )
    assert not lens.further["kl"].values[-1].any()
    assert lens.max().at == {"layer": 5, "pos": " of"}


def test_all_layers_and_positions_take_one_pass(demo):
    with counting(demo._module) as calls:
        logit_lens(demo, PROMPT)
    assert calls["transformer.h.0"] == 1


def test_without_a_target_each_cell_has_its_likeliest_token(demo):
    lens = logit_lens(demo, PROMPT, top=3)
    assert torch.equal(lens.values, lens.further["top"].values[..., 0])
    assert lens.further["top"].shape == (6, 8, 3)
    assert "rank" not in lens.further
    assert lens.further["top"].sel(layer=5, pos=-1, rank=0).texts == (" Paris",)


@torch.no_grad()
def test_another_family_without_a_tokenizer():
    model, net = tiny_llama()
    streams = streams_by_hooks(
        net, [f"model.layers.{i}" for i in range(3)], input_ids=torch.tensor([IDS])
    )
    lens = logit_lens(model, IDS, target=7)
    for layer, stream in enumerate(streams):
        expected = net.lm_head(net.model.norm(stream))[0].softmax(-1)[:, 7]
        torch.testing.assert_close(lens.values[layer], expected)
    assert lens.axis("pos").labels == ("5", "9", "2", "40", "11")


def test_a_target_of_several_tokens_says_which(demo):
    with pytest.raises(InputError) as raised:
        logit_lens(demo, PROMPT, target=" Eiffel Tower")
    assert raised.value.what == "' Eiffel Tower' is not one token."
    assert "' Eiffel' + ' Tower'" in raised.value.why


def test_a_word_needs_a_tokenizer():
    with pytest.raises(InputError, match="'Paris' was named, and this model has no tokenizer"):
        logit_lens(tiny_llama()[0], IDS, target="Paris")


def test_several_prompts_are_refused(demo):
    with pytest.raises(InputError, match=r"logit_lens\(\) was given 2 prompts"):
        logit_lens(demo, ["The key", "The dog"])
    with pytest.raises(InputError, match="the prompts have 2, 8 tokens"):
        logit_lens(demo, ["The key", PROMPT])


CAUSAL = [name for name, family in FAMILIES.items() if family.kind == "causal" and name in KNOWN]


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
def test_in_every_causal_family_the_last_layer_is_the_model_s_prediction(name):
    net = FAMILIES[name].build()
    lens = logit_lens(LanguageModel(net), IDS, target=7)
    torch.testing.assert_close(
        lens.values[-1], net(torch.tensor([IDS])).logits[0].float().softmax(-1)[:, 7]
    )
    assert lens.further["kl"].values[-1].max() < 1e-5
