"""The tuned lens starts as the logit lens, and learns to be nearer to the final prediction."""

import random

import pytest
import torch
from random_llama import tiny_llama
from reference import outputs

from insitu.methods import TunedLens, logit_lens, train_tuned_lens
from insitu.models.demo.corpus import document

PROMPT = "The Eiffel Tower is in the city of"


def texts(demo, count, seed):
    rng = random.Random(seed)
    cut = {"truncation": True, "max_length": 40}
    return [
        demo.tokenizer.decode(demo.tokenizer(document(rng), **cut).input_ids) for _ in range(count)
    ]


@pytest.fixture(scope="module")
def lens(demo):
    return train_tuned_lens(demo, texts(demo, 200, "train"), steps=30, rows=6, lr=0.006)


def test_it_is_nearer_than_the_logit_lens_at_every_layer_on_other_texts(demo, lens):
    held_out = texts(demo, 12, "held out")
    tuned = torch.stack([lens(demo, t).further["kl"].values.mean(1) for t in held_out]).mean(0)
    plain = torch.stack([logit_lens(demo, t).further["kl"].values.mean(1) for t in held_out]).mean(
        0
    )
    assert (tuned[:-1] < 0.8 * plain[:-1]).all(), (tuned, plain)
    assert tuned[-1] == plain[-1] == 0


def test_the_loss_falls_at_every_layer(lens):
    loss = lens.training_loss
    assert loss.names == ("step", "layer")
    assert (loss.values[-10:].mean(0) < 0.6 * loss.values[:10].mean(0)).all()


@torch.no_grad()
def test_an_untrained_one_is_the_logit_lens(demo):
    lens = TunedLens(6, 128)
    assert torch.equal(
        lens(demo, PROMPT, target=" Paris").values, logit_lens(demo, PROMPT, target=" Paris").values
    )


@torch.no_grad()
def test_its_maps_act_as_written_down(demo, lens):
    net = demo._module
    seen = outputs(net, ["transformer.h.2"], **demo.tokenizer(PROMPT, return_tensors="pt"))
    stream = seen["transformer.h.2"][0]
    stream = (stream[0] if isinstance(stream, tuple) else stream)[0]
    weight, bias = lens.maps[2].weight, lens.maps[2].bias
    moved = stream + stream @ weight.T + bias
    expected = net.lm_head(net.transformer.ln_f(moved)).softmax(-1)
    found = lens(demo, PROMPT, target=" Paris").sel(layer=2).values
    torch.testing.assert_close(found, expected[:, demo.tokenizer(" Paris").input_ids[0]])


def test_the_first_loss_is_the_logit_lens_s_own(demo):
    lens = train_tuned_lens(demo, [PROMPT], steps=1, rows=1)
    expected = logit_lens(demo, PROMPT).further["kl"].values[:-1].mean(1)
    torch.testing.assert_close(lens.training_losses[0], expected, atol=1e-5, rtol=1e-4)


def test_one_seed_gives_one_lens_and_the_model_stays_as_it_was(demo):
    before = {name: value.clone() for name, value in demo._module.state_dict().items()}
    one, other = (train_tuned_lens(demo, [PROMPT, "The key to"], steps=3, rows=2) for _ in "ab")
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
    assert all(weight.grad is None for weight in demo._module.parameters())
    assert all(torch.equal(v, before[n]) for n, v in demo._module.state_dict().items())


def test_it_is_saved_and_loaded(demo, lens, tmp_path):
    lens.save(tmp_path / "lens.pt")
    again = TunedLens.load(tmp_path / "lens.pt")
    assert torch.equal(again(demo, PROMPT).values, lens(demo, PROMPT).values)
    assert torch.equal(again.training_losses, lens.training_losses)


def test_another_family():
    model, _ = tiny_llama()
    rows = torch.randint(1, 97, (40, 12), generator=torch.Generator().manual_seed(0)).tolist()
    lens = train_tuned_lens(model, rows, steps=40, lr=0.01)
    loss = lens.training_loss.values
    assert (loss[-5:].mean(0) < loss[:5].mean(0)).all()
    assert lens(model, rows[0]).title == "Tuned lens"
