"""Steering adds what plain hooks would add, in one pass, in every step, and in a file."""

import pytest
import torch
from random_llama import tiny_llama
from reference import edited, outputs

from insitu import InputError, UsageError
from insitu.methods import logit_difference, steer, steering_sweep, steering_vectors
from insitu.models.demo.knowledge import flipped_reviews, review_prompts

GOOD = ["The movie was wonderful. I", "It was a truly great dinner. I", "The soup was perfect. I"]
BAD = ["The movie was terrible. I", "The soup was awful. I"]


@pytest.fixture(scope="module")
def vectors(demo):
    return steering_vectors(demo, GOOD, BAD)


def stream(out):
    return out[0] if isinstance(out, tuple) else out


def adding(push, where=slice(None)):
    def change(out, call):
        moved = stream(out).clone()
        moved[:, where] += push
        return (moved, *out[1:]) if isinstance(out, tuple) else moved

    return change


@torch.no_grad()
def last_streams(demo, texts, layer):
    path = f"transformer.h.{layer}"
    seen = [outputs(demo._module, [path], **demo.tokenizer(t, return_tensors="pt")) for t in texts]
    return torch.stack([stream(s[path][0])[0, -1] for s in seen])


def test_vectors_are_differences_of_means_whatever_the_lengths(demo, vectors):
    assert vectors.names == ("layer", "d_model")
    for layer in range(6):
        good, bad = (last_streams(demo, texts, layer).mean(0) for texts in (GOOD, BAD))
        torch.testing.assert_close(
            vectors.sel(layer=layer).values, good - bad, atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
@pytest.mark.parametrize("pos", [None, -1, 2])
def test_a_steered_model_is_one_with_a_hook(demo, vectors, pos):
    net, encoding = demo._module, demo.tokenizer(BAD[0], return_tensors="pt")
    push = 1.5 * vectors.sel(layer=2).values
    expected = edited(
        net, {"transformer.h.2": adding(push, slice(None) if pos is None else pos)}, **encoding
    ).logits
    steered = steer(demo, vectors, layer=2, coefficient=1.5, pos=pos)
    torch.testing.assert_close(steered(BAD[0]).logits, expected)
    assert not torch.allclose(demo(**encoding).logits, expected, atol=0.1)


@torch.no_grad()
def test_it_steers_every_step_of_a_generation(demo, vectors):
    encoding = demo.tokenizer(BAD[0], return_tensors="pt")
    push = vectors.sel(layer=3).values * 2
    expected = edited(
        demo._module, {"transformer.h.3": adding(push)}, call=demo._module.generate,
        max_new_tokens=5, do_sample=False, **encoding,
    )  # fmt: skip
    steered = steer(demo, push, layer=3)
    with steered.generate(BAD[0], max_new_tokens=5, do_sample=False):
        ids = steered.generator.output
    assert torch.equal(ids, expected)


@torch.no_grad()
def test_a_steered_model_can_be_kept_in_a_file(demo, vectors, tmp_path):
    steered = steer(demo, vectors, layer=2, coefficient=2)
    again = demo.load_edits(steered.save_edits(tmp_path / "steer.safetensors"))
    assert torch.equal(again(BAD[0]).logits, steered(BAD[0]).logits)


@torch.no_grad()
def test_a_sweep_is_a_loop_of_steered_runs(demo, vectors):
    metric = logit_difference(demo, " loved", " hated")
    found = steering_sweep(demo, BAD, metric, vectors, layer=2, coefficients=(-1, 0, 2))
    assert found.names == ("direction", "coefficient")
    assert found.axis("direction").labels == ("steered", "random 1", "random 2", "random 3")
    for coefficient in (-1, 0, 2):
        steered = steer(demo, vectors, layer=2, coefficient=coefficient)
        alone = torch.cat([metric(steered(text).logits) for text in BAD])
        each = found.further["each"].sel(direction="steered", coefficient=coefficient).values
        torch.testing.assert_close(each, alone, atol=1e-3, rtol=1e-3)
    assert float(found.values[:, 1].std()) < 1e-3  # nothing of any direction


@torch.no_grad()
def test_it_flips_reviews_and_random_directions_do_not(demo):
    praise, blame = (review_prompts("direction", 30, praise=it) for it in (True, False))
    vectors = steering_vectors(demo, praise, blame)
    metric = logit_difference(demo, " loved", " hated")
    tried = review_prompts("flip", 12, praise=False)
    found = steering_sweep(demo, tried, metric, vectors, layer=2, coefficients=(0, 1, 2))
    assert float(found.sel(direction="steered", coefficient=0)) < -5
    assert float(found.sel(direction="steered", coefficient=2)) > 5
    assert found.values[1:].max() < 0
    exam = flipped_reviews(demo._module, demo.tokenizer, vectors.sel(layer=2).values, layer=3)
    assert exam > 0.8


@torch.no_grad()
def test_another_family():
    model, net = tiny_llama()
    vectors = steering_vectors(model, [[5, 9, 2]], [[6, 1, 3]])
    ids = torch.tensor([[5, 9, 2, 40]])
    expected = edited(net, {"model.layers.1": adding(vectors.sel(layer=1).values)}, ids).logits
    torch.testing.assert_close(steer(model, vectors, layer=1)(ids).logits, expected)


def test_what_does_not_fit_is_refused(demo, vectors):
    with pytest.raises(UsageError, match="there is no layer 6"):
        steer(demo, vectors, layer=6)
    with pytest.raises(UsageError) as raised:
        steer(demo, torch.zeros(64), layer=2)
    assert raised.value.what == "a direction has shape [64]."
    assert "128" in raised.value.why
    with pytest.raises(InputError, match="the prompts have 6, 8, 6 tokens"):
        steering_vectors(demo, GOOD, BAD, pos=3)
    with pytest.raises(UsageError, match="there is no position -9"):
        steering_vectors(demo, GOOD, BAD, pos=-9)
