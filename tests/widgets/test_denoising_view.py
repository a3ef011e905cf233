"""An image watched as it comes out of the noise; the oracle is the pipeline itself."""

import signal

import numpy as np
import pytest
import torch
from asking import ask
from PIL import Image

from insitu.errors import UsageError
from insitu.widgets.denoising_view import PICTURE_BYTES, DenoisingView, watch_denoising

PROMPT = "a red circle"
STEPS = 3


def latents_of(pipe):
    """What the pipeline says of each step, by its own callback."""
    kept = []

    def keep(_, step, timestep, told):
        kept.append((float(timestep), told["latents"].clone()))
        return told

    pipe(
        PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(0),
        output_type="latent", callback_on_step_end=keep,
    )  # fmt: skip
    return kept


def test_every_step_is_what_the_pipeline_tells_of_it(sd, pipe):
    view = watch_denoising(sd, PROMPT, num_inference_steps=STEPS, seed=0)
    expected = latents_of(pipe)
    assert len(view.steps) == STEPS
    for step, (timestep, latents) in zip(view.steps, expected, strict=True):
        assert step.timestep == timestep
        assert torch.allclose(step.latents, latents[0], atol=1e-5)
        with torch.no_grad():
            pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample[0]
        plain = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(np.asarray(step.picture, float) - plain).max() <= 1
    moved = (expected[1][1] - expected[0][1]).norm() / expected[0][1].norm()
    assert view.steps[1].change == pytest.approx(moved.item(), rel=1e-4)
    assert view.state["name"] == "done"
    assert len(view.result.images) == 1


def test_the_maps_are_the_means_of_what_attention_computes(sd, pipe, monkeypatch):
    from diffusers.models.attention_processor import Attention, AttnProcessor

    kept = {}
    crossing = [it for name, it in pipe.unet.named_modules() if name.endswith(".attn2")]
    compute = Attention.get_attention_scores

    def watched(self, *args):
        found = compute(self, *args)
        if self in crossing:
            kept[self] = found
        return found

    view = watch_denoising(sd, PROMPT, num_inference_steps=1, seed=0)
    monkeypatch.setattr(Attention, "get_attention_scores", watched)
    before = pipe.unet.attn_processors
    pipe.unet.set_attn_processor(AttnProcessor())
    try:
        pipe(PROMPT, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
    finally:
        pipe.unet.set_attn_processor(before)
    ids = pipe.tokenizer(PROMPT)["input_ids"]
    places = [n for n, it in enumerate(ids) if it not in set(pipe.tokenizer.all_special_ids)]
    maps = []
    for scores in kept.values():
        prompted = scores[len(scores) // 2 :].mean(0)[:, places].T
        side = int(prompted.shape[1] ** 0.5)
        small = prompted.reshape(1, len(places), side, side)
        maps.append(torch.nn.functional.interpolate(small, (16, 16), mode="bilinear")[0])
    assert len(maps) == 4
    assert torch.allclose(view.steps[0].maps, torch.stack(maps).mean(0), atol=1e-5)
    assert view.tokens == [pipe.tokenizer.decode([ids[place]]) for place in places]


def test_an_edit_is_drawn_with(sd):
    plain = watch_denoising(sd, PROMPT, num_inference_steps=2, seed=0, maps=False)
    changed = watch_denoising(
        sd, PROMPT, num_inference_steps=2, seed=0, maps=False,
        edit="model.unet.mid_block.output[:] *= 0",
    )  # fmt: skip
    assert not torch.equal(plain.steps[-1].latents, changed.steps[-1].latents)
    assert plain.steps[0].maps is None


def test_an_interrupt_and_a_stop_leave_what_came(sd, monkeypatch):
    def interrupted(view):
        view.observe(lambda _: signal.raise_signal(signal.SIGINT), "latest")

    monkeypatch.setattr(DenoisingView, "show_now", interrupted)
    view = watch_denoising(sd, PROMPT, num_inference_steps=STEPS, seed=0)
    assert (view.state["name"], len(view.steps), view.result) == ("stopped", 1, None)
    monkeypatch.setattr(
        DenoisingView, "show_now", lambda view: view.observe(lambda _: view.stop(), "latest")
    )
    view = watch_denoising(sd, PROMPT, num_inference_steps=STEPS, seed=0)
    assert (view.state["name"], len(view.steps)) == ("stopped", 1)


def test_a_run_that_fails_says_so_in_its_view(sd, monkeypatch):
    made = []
    monkeypatch.setattr(DenoisingView, "show_now", lambda view: made.append(view))
    with pytest.raises(AttributeError):
        watch_denoising(sd, PROMPT, edit="model.unet.nonsense")
    assert made[0].state["name"] == "failed"
    assert "nonsense" in made[0].state["trouble"]["what"]


def test_a_step_is_small_and_late_views_are_told_all(sd):
    noise = [torch.rand(3, 700, 500) for _ in range(11)]
    view = DenoisingView.of(noise, maps=[torch.rand(40, 16, 16)] * 11, tokens=["a"] * 40)
    first, sizes = 0, []
    while True:
        content, parts = ask(view, "steps", first=first)
        sizes += map(len, parts)
        first += len(content["value"]["steps"])
        if not content["value"]["more"]:
            break
    assert (first, len(sizes)) == (11, 22)
    assert max(sizes[0::2]) <= PICTURE_BYTES
    assert max(sizes[1::2]) + PICTURE_BYTES < 50_000


def test_tokens_without_a_map_are_told(sd):
    few = DenoisingView.of([torch.ones(2, 2)], tokens=["a"] * 24)
    many = DenoisingView.of([torch.ones(2, 2)], tokens=["a"] * 25)
    assert (few.note, len(many.tokens)) == ("", 24)
    assert many.note == "Attention maps of the first 24 of 25 tokens."
    assert many.note in many.text()
    assert many.note in many.html()
    assert watch_denoising(sd, "red " * 14, num_inference_steps=1, seed=0).note == ""
    drawn = watch_denoising(sd, "red " * 28, num_inference_steps=1, seed=0)
    assert len(drawn.tokens) == sd.pipeline.tokenizer.model_max_length - 2
    assert drawn.note == "Attention maps of the first 14 of 28 tokens; the model reads 14."
    assert watch_denoising(sd, PROMPT, num_inference_steps=1, seed=0).note == ""


def test_a_denoiser_whose_attention_is_not_read_is_told(sd, monkeypatch):
    monkeypatch.setattr("insitu.widgets.denoising_view.crossings", lambda _: [])
    view = watch_denoising(sd, PROMPT, num_inference_steps=1, seed=0)
    assert view.note == (
        "No attention maps: they are read of the cross-attention of U-Nets, and "
        "UNet2DConditionModel is none."
    )
    assert view.steps[0].maps is None
    plain = watch_denoising(sd, PROMPT, num_inference_steps=1, seed=0, maps=False)
    assert plain.note == ""


def test_pictures_may_be_anything_that_has_colours():
    given = [
        torch.full((3, 4, 4), float("nan")),
        torch.ones(4, 4, dtype=torch.bool),
        torch.ones(1, 2, 3, dtype=torch.bfloat16),
        Image.new("L", (3, 3)),
    ]
    view = DenoisingView.of(given, prompt="<b>")
    assert len(view.steps) == 4
    assert "&lt;b&gt;" in view.html()
    assert "<script" not in view.html()
    assert view.text().startswith("Denoising: <b> (4 steps, done)")
    assert DenoisingView.of([]).html()
    with pytest.raises(UsageError, match=r"a picture was given as a tensor \[2, 4, 4\]"):
        DenoisingView.of([torch.ones(2, 4, 4)])
    with pytest.raises(UsageError, match="1 maps were given for 0 pictures"):
        DenoisingView.of([], maps=[1])
