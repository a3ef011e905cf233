"""Several prompts in one run of a pipeline: each sees what it would see alone."""

import pytest
import torch

import insitu
from insitu.engine.batch import Rows, plan
from insitu.models.denoising import ImageRows

DRAWN = {"num_inference_steps": 3, "output_type": "pt"}
CIRCLE, SQUARE, STAR = "a red circle", "a blue square", "a small green star on black"


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def alone(sd, prompt, **settings):
    """What one prompt gives in a run of its own: the denoiser's outputs, and the images."""
    with sd.generate(prompt, **settings, **DRAWN) as tracer:
        seen = [sd.unet.output[0].clone() for _ in tracer.iter[:]]
        images = tracer.result.images
    return torch.stack(seen), images


def test_whose_rows_are_whose():
    rows = ImageRows(plan([1, 2]), images=2)
    assert rows.of(3) == {0: Rows(0, 1, 3), 1: Rows(1, 2, 3)}
    assert rows.of(6) == {0: Rows(0, 2, 6), 1: Rows(2, 4, 6)}
    assert rows.of(12) == {
        0: (Rows(0, 2, 12), Rows(6, 2, 12)),
        1: (Rows(2, 4, 12), Rows(8, 4, 12)),
    }
    assert rows.of(5) == {}


def test_each_invoke_sees_what_it_would_see_alone(sd):
    expected = {
        CIRCLE: alone(sd, CIRCLE, seed=0),
        SQUARE: alone(sd, SQUARE, seed=7, negative_prompt="a ring"),
        STAR: alone(sd, STAR, seed=0),
    }
    seen = {CIRCLE: [], SQUARE: [], STAR: []}
    with sd.generate(seed=0, **DRAWN) as tracer:
        with tracer.invoke(CIRCLE):
            words = sd.text_encoder.output[0]
            for _ in tracer.iter[:]:
                seen[CIRCLE].append(sd.unet.output[0])
            first = tracer.result.images
        with tracer.invoke(SQUARE, seed=7, negative_prompt="a ring"):
            for _ in tracer.iter[:]:
                seen[SQUARE].append(sd.unet.output[0])
            decoded = sd.vae.decoder.output
            second = tracer.result.images
        with tracer.invoke(STAR):
            for _ in tracer.iter[:]:
                seen[STAR].append(sd.unet.output[0])
                latents = sd.scheduler.output
            third = tracer.result.images
        with tracer.invoke():
            everyone = sd.unet.output[0]
    assert words.shape == (1, 16, 16)
    assert everyone.shape == (6, 4, 8, 8)
    assert (decoded.shape, latents.shape) == ((1, 3, 16, 16), (1, 4, 8, 8))
    for images, (prompt, (noise, own)) in zip(
        (first, second, third), expected.items(), strict=True
    ):
        close(torch.stack(seen[prompt]), noise)
        close(images, own)


def test_several_prompts_and_images_in_one_invoke(sd):
    expected, images = alone(sd, [CIRCLE, SQUARE], seed=1, num_images_per_prompt=2)
    star, its_images = alone(sd, STAR, seed=5, num_images_per_prompt=2)
    with sd.generate(num_images_per_prompt=2, **DRAWN) as tracer:
        with tracer.invoke(STAR, seed=5):
            seen_star = torch.stack([sd.unet.output[0].clone() for _ in tracer.iter[:]])
            own_star = tracer.result.images
        with tracer.invoke([CIRCLE, SQUARE], seed=1):
            seen = torch.stack([sd.unet.output[0].clone() for _ in tracer.iter[:]])
            own = tracer.result.images
    assert (seen.shape[1], seen_star.shape[1]) == (8, 4)
    close(seen, expected)
    close(own, images)
    close(seen_star, star)
    close(own_star, its_images)


@pytest.mark.parametrize("way", ["in place", "replaced", "an argument", "in the middle"])
def test_an_edit_in_one_invoke_changes_its_images_alone(sd, way):
    def edit():
        if way == "in place":
            sd.unet.output[0][:] *= 0.5
        elif way == "replaced":
            sd.unet.output = (sd.unet.output[0] * 0.5,)
        elif way == "an argument":
            (latents, *rest), named = sd.unet.inputs
            sd.unet.inputs = (latents * 2, *rest), named
        else:
            sd.unet.mid_block.output[1] = 0  # the half that has the prompt

    _, plain = alone(sd, CIRCLE, seed=0)
    with sd.generate(SQUARE, seed=0, **DRAWN) as tracer:
        for _ in tracer.iter[1:]:
            edit()
        edited = tracer.result.images
    with sd.generate(seed=0, **DRAWN) as tracer:
        with tracer.invoke(CIRCLE):
            first = tracer.result.images
        with tracer.invoke(SQUARE):
            for _ in tracer.iter[1:]:
                edit()
            second = tracer.result.images
    close(first, plain)
    close(second, edited)
    assert (second - alone(sd, SQUARE, seed=0)[1]).abs().max() > 1e-3


def test_a_module_is_skipped_in_one_invoke(sd):
    with sd.trace(CIRCLE, seed=0, output_type="pt") as tracer:
        middle = torch.zeros_like(sd.unet.mid_block.output)
        plain = tracer.result.images
    with sd.trace(SQUARE, seed=0, output_type="pt") as tracer:
        sd.unet.mid_block.skip(middle)
        skipped = tracer.result.images
    with sd.trace(seed=0, output_type="pt") as tracer:
        with tracer.invoke(CIRCLE):
            first = tracer.result.images
        with tracer.invoke(SQUARE):
            sd.unet.mid_block.skip(middle)
            second = tracer.result.images
    close(first, plain)
    close(second, skipped)
    with sd.trace(seed=0, output_type="pt") as tracer:
        with tracer.invoke(CIRCLE):
            sd.unet.mid_block.skip(middle + 1)
        with tracer.invoke(SQUARE):
            sd.unet.mid_block.skip(middle)
            second = tracer.result.images
        with tracer.invoke():
            both = sd.unet.mid_block.output
    close(second, skipped)
    assert both[[0, 2]].eq(1).all()
    assert both[[1, 3]].eq(0).all()


def test_a_value_goes_from_one_prompt_into_another(sd):
    with sd.generate(seed=0, **DRAWN) as tracer:
        with tracer.invoke(CIRCLE):
            words = sd.text_encoder.output[0]
            first = tracer.result.images
        with tracer.invoke(SQUARE):
            sd.text_encoder.output[0][:] = words
            second = tracer.result.images
    close(first, second)


def test_a_cache_in_an_invoke_keeps_its_rows(sd):
    expected, _ = alone(sd, SQUARE, seed=0)
    with sd.generate(seed=0, **DRAWN) as tracer:
        with tracer.invoke(CIRCLE):
            pass
        with tracer.invoke(SQUARE):
            cache = tracer.cache(["unet", "unet.mid_block"])
    assert len(cache["unet"]) == 3
    close(cache["unet"][2].output[0], expected[2])
    assert cache["unet.mid_block"][0].output.shape == (2, 16, 4, 4)


def test_gradients_of_one_prompt_are_its_own(sd):
    def gradient(prompt):
        with sd.trace(prompt, seed=0, grad=True, output_type="pt") as tracer:
            middle = sd.unet.mid_block.output
            middle.requires_grad_()
            loss = tracer.result.images.square().sum()
            loss.backward()
        return middle.grad

    with sd.trace(seed=0, grad=True, output_type="pt") as tracer:
        with tracer.invoke(CIRCLE):
            _ = sd.unet.output
        with tracer.invoke(SQUARE):
            middle = sd.unet.mid_block.output
            middle.requires_grad_()
            tracer.result.images.square().sum().backward()
            kept = middle.grad
    assert kept.abs().sum() > 0
    close(kept, gradient(SQUARE))


def test_an_edit_of_the_model_runs_for_all_prompts(sd):
    with sd.edit() as edited:
        sd.unet.mid_block.output[:] *= 0.5
    with edited.generate(seed=0, **DRAWN) as tracer:
        with tracer.invoke(CIRCLE):
            pass
        with tracer.invoke(SQUARE):
            second = tracer.result.images
    close(second, edited.generate(SQUARE, seed=0, **DRAWN).images)


def test_pictures_are_given_to_whom_they_belong(sd):
    with sd.generate(num_inference_steps=2, seed=0) as tracer:
        with tracer.invoke([CIRCLE, SQUARE]):
            two = tracer.result
        with tracer.invoke(STAR):
            one = tracer.result
    assert [len(two.images), len(one.images)] == [2, 1]
    assert type(one).__name__ == "StableDiffusionPipelineOutput"
    star = sd.generate(STAR, num_inference_steps=2, seed=0).images[0]
    difference = torch.tensor(list(one.images[0].tobytes())) - torch.tensor(list(star.tobytes()))
    assert difference.abs().max() <= 1  # rounded to 256 levels


def test_invokes_can_be_scanned(sd):
    with sd.scan() as tracer:
        with tracer.invoke(CIRCLE):
            middle = sd.unet.mid_block.output.shape
        with tracer.invoke([SQUARE, STAR]):
            both = sd.unet.mid_block.output.shape
    assert (middle[0], both[0]) == (2, 4)


@pytest.mark.parametrize(
    ("first", "second", "error", "told"),
    [
        ({}, {"guidance_scale": 3.0}, insitu.UsageError, "setting of the whole run"),
        ({}, {"generator": torch.Generator()}, insitu.UsageError, "generator"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, {}, insitu.InputError, "to some invokes"),
        (
            {"latents": torch.zeros(1, 4, 8, 8)},
            {"latents": torch.zeros(1, 4, 4, 4)},
            insitu.InputError,
            "cannot be joined",
        ),
        ({"seed": [1, 2]}, {}, insitu.InputError, "2 seeds"),
        ({"negative_prompt": ["a", "b"]}, {}, insitu.InputError, "2 texts"),
    ],
)
def test_invokes_that_do_not_fit_together_are_refused(sd, first, second, error, told):
    with pytest.raises(error, match=told):
        with sd.generate(num_inference_steps=2) as tracer:
            with tracer.invoke(CIRCLE, **first):
                _ = sd.unet.output
            with tracer.invoke(SQUARE, **second):
                _ = sd.unet.output


def test_a_run_without_any_prompt_is_refused(sd):
    with pytest.raises(insitu.InputError, match="needs a prompt"):
        with sd.generate(num_inference_steps=2):
            pass
    with pytest.raises(insitu.InputError, match="needs a prompt"):
        with sd.generate(num_inference_steps=2) as tracer:
            with tracer.invoke(seed=3):
                _ = sd.unet.output
    with pytest.raises(insitu.InputError, match="the trace around it"):
        with sd.generate(CIRCLE, num_inference_steps=2) as tracer:
            with tracer.invoke(SQUARE):
                _ = sd.unet.output
