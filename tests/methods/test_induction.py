"""Kinds of heads, against the patterns that transformers gives out for the same tokens."""

import pytest
import torch
from random_llama import tiny_llama

from insitu import UsageError
from insitu.methods import induction_scores
from insitu.methods.prompts import random_tokens
from insitu.models.demo.knowledge import attention_to


@torch.no_grad()
def scores_by_loops(net, ids, length):
    used = net.config._attn_implementation
    net.set_attn_implementation("eager")
    patterns = net(torch.cat([ids, ids], 1), output_attentions=True).attentions
    net.set_attn_implementation(used)
    found = []
    for back in (length - 1, 1, length):
        by_layer = [
            [float(torch.stack([p[:, h, q, q - back] for q in range(length, 2 * length)]).mean())
             for h in range(p.shape[1])]
            for p in patterns
        ]  # fmt: skip
        found.append(by_layer)
    return torch.tensor(found)


def test_scores_are_mean_attention_to_the_right_place(demo):
    found = induction_scores(demo, length=10, rows=4, seed=3)
    expected = scores_by_loops(demo._module, random_tokens(demo, 4, 10, 3), 10)
    assert found.names == ("kind", "layer", "head")
    torch.testing.assert_close(found.values, expected, atol=1e-6, rtol=1e-4)


def test_another_family():
    model, net = tiny_llama()
    found = induction_scores(model, length=6, rows=3)
    torch.testing.assert_close(
        found.values, scores_by_loops(net, random_tokens(model, 3, 6, 0), 6), atol=1e-6, rtol=1e-4
    )


def test_the_demo_model_s_heads_are_those_of_its_exam(demo):
    found = induction_scores(demo)
    exam = attention_to(demo._module, demo.tokenizer, back=23)
    best = found.sel(kind="induction").max()
    assert best.value > 0.6
    assert exam[best.place] > 0.6
    assert found.sel(kind="previous token").max().value > 0.5


def test_tokens_are_drawn_by_seed_and_are_never_special(demo):
    one, other = random_tokens(demo, 50, 50, 1), random_tokens(demo, 50, 50, 2)
    assert torch.equal(one, random_tokens(demo, 50, 50, 1))
    assert not torch.equal(one, other)
    assert not torch.isin(one, torch.tensor(demo.tokenizer.all_special_ids)).any()


@pytest.mark.parametrize("settings", [{"length": 1}, {"rows": 0}])
def test_too_little_to_repeat_is_refused(demo, settings):
    with pytest.raises(UsageError, match=r"induction_scores\(\) was given length="):
        induction_scores(demo, **settings)
