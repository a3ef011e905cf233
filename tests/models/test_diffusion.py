"""`DiffusionModel` on tiny pipelines; the oracle is the pipeline itself, and plain torch hooks."""

import threading
import time

import pytest
import tiny_diffusion
import torch
from PIL import Image

import insitu
from insitu.models import diffusion
from insitu.models.diffusion import DiffusionModel
from insitu.models.in_turn import InTurn

PROMPT = "a red circle"
STEPS = 3
DRAWN = {"num_inference_steps": STEPS, "output_type": "pt"}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def hooked(module, run):
    """What a module returns in each of its calls, by a plain hook; and what `run` gives."""
    kept = []

    def keep(_, args, output):
        first = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        kept.append(first.clone())

    handle = module.register_forward_hook(keep)
    try:
        result = run()
    finally:
        handle.remove()
    return kept, result


def test_components_are_children_and_are_printed(sd, pipe):
    assert sd.unet._module is pipe.unet
    assert sd.vae.decoder._module is pipe.vae.decoder
    assert sd.text_encoder._module is pipe.text_encoder
    assert sd.tokenizer is pipe.tokenizer
    shown = repr(sd)
    assert shown.startswith("StableDiffusionPipeline(")
    for name in ("(vae): AutoencoderKL", "(unet): UNet2D", "(scheduler): DDIMScheduler"):
        assert name in shown
    with pytest.raises(insitu.UnknownModuleError, match="unet"):
        _ = sd.unett


def test_a_trace_is_one_step_and_says_so_once(sd, pipe, capsys):
    diffusion._told.clear()
    expected, _ = hooked(
        pipe.unet, lambda: pipe(PROMPT, num_inference_steps=1, generator=generator())
    )
    with sd.trace(PROMPT, seed=0):
        noise = sd.unet.output[0]
    with sd.trace(PROMPT, seed=0):
        again = sd.unet.output[0]
    assert torch.equal(noise, expected[0])
    assert torch.equal(again, noise)
    assert capsys.readouterr().err.count("for one step") == 1
    with sd.trace(PROMPT, num_inference_steps=2, seed=0) as tracer:
        seen = [sd.unet.output[0] for _ in tracer.iter[:]]
    assert len(seen) == 2
    assert capsys.readouterr().err == ""


def test_every_step_is_bit_equal_to_hooks_and_images_to_the_pipelines(sd, pipe):
    expected, drawn = hooked(pipe.unet, lambda: pipe(PROMPT, generator=generator(5), **DRAWN))
    seen, latents = [], []
    with sd.generate(PROMPT, seed=5, **DRAWN) as tracer:
        words = sd.text_encoder.output[0]
        for step in tracer.iter[:]:
            assert step == len(seen)
            assert int(sd.unet.inputs[0][1]) == int(sd.scheduler.timesteps[step])
            seen.append(sd.unet.output[0])
            latents.append(sd.scheduler.output)
        decoded = sd.vae.decoder.output
        images = tracer.result.images
    assert words.shape == (1, 16, 16)
    assert len(seen) == STEPS
    assert all(map(torch.equal, seen, expected))
    assert torch.equal(images, drawn.images)
    assert decoded.shape == (1, 3, 16, 16)
    assert latents[0].shape == (1, 4, 8, 8)
    assert torch.equal(sd.generate(PROMPT, seed=5, **DRAWN).images, drawn.images)
    assert torch.equal(sd(PROMPT, seed=5, **DRAWN).images, drawn.images)


def test_all_forms_of_steps(sd):
    def steps_of(numbers):
        with sd.generate(PROMPT, seed=0, num_inference_steps=5) as tracer:
            return [(step, sd.unet.output[0][0, 0, 0, 0].item()) for step in numbers(tracer)]

    every = steps_of(lambda tracer: tracer.iter[:])
    assert [step for step, _ in every] == [0, 1, 2, 3, 4]
    assert steps_of(lambda tracer: tracer.all()) == every
    assert steps_of(lambda tracer: tracer.iter[1:3]) == every[1:3]
    assert steps_of(lambda tracer: tracer.iter[::2]) == every[::2]
    assert steps_of(lambda tracer: tracer.iter[[0, 4]]) == [every[0], every[4]]
    assert steps_of(lambda tracer: tracer.iter[3]) == [every[3]]
    with sd.generate(PROMPT, seed=0, num_inference_steps=5) as tracer:
        first = sd.unet.output[0][0, 0, 0, 0].item()
        assert tracer.next() == 1
        second = sd.unet.output[0][0, 0, 0, 0].item()
    assert [first, second] == [value for _, value in every[:2]]
    with sd.generate(PROMPT, seed=0, num_inference_steps=2) as tracer:
        with tracer.iter[:] as step:
            kept = sd.unet.output[0]
    assert step == 1
    assert kept.shape == (2, 4, 8, 8)


def test_edits_of_one_step_are_those_of_a_hook(sd, pipe):
    calls = []

    def damp(_, args, output):
        calls.append(0)
        return (output[0] * 0.5, *output[1:]) if len(calls) == 2 else output

    handle = pipe.unet.register_forward_hook(damp)
    expected = pipe(PROMPT, generator=generator(), **DRAWN).images
    handle.remove()
    with sd.generate(PROMPT, seed=0, **DRAWN) as tracer:
        for _ in tracer.iter[1]:
            sd.unet.output[0][:] *= 0.5
        images = tracer.result.images
    assert torch.equal(images, expected)
    assert not torch.equal(images, sd.generate(PROMPT, seed=0, **DRAWN).images)


def test_latents_can_be_read_written_skipped_and_shown_between_steps(sd, pipe):
    def double(_, step, timestep, kept):
        return {"latents": kept["latents"] * 2} if step == 0 else kept

    expected = pipe(PROMPT, generator=generator(), callback_on_step_end=double, **DRAWN).images
    pictures = []
    with sd.generate(PROMPT, seed=0, **DRAWN) as tracer:
        for step in tracer.iter[:]:
            if step == 0:
                sd.scheduler.output *= 2
            latents = sd.scheduler.output
            pictures += sd.decode(latents)
        images = tracer.result.images
    assert torch.equal(images, expected)
    assert len(pictures) == STEPS
    assert all(isinstance(p, Image.Image) and p.size == (16, 16) for p in pictures)
    assert torch.equal(sd.decode(latents, "pt"), images)
    assert sd.decode(latents, "np").shape == (1, 16, 16, 3)
    start = torch.ones(1, 4, 8, 8)
    with sd.generate(PROMPT, num_inference_steps=1, output_type="latent") as tracer:
        sd.scheduler.skip(start)
        left = tracer.result.images
    assert torch.equal(left, start)


def test_the_prediction_after_guidance_is_the_schedulers_input(sd):
    with sd.generate(PROMPT, seed=0, guidance_scale=4.0, num_inference_steps=1) as tracer:
        without, with_ = sd.unet.output[0].clone().chunk(2)
        guided = sd.scheduler.input
        sd.scheduler.input = torch.zeros_like(guided)
        images = tracer.result.images
    assert torch.equal(guided, without + 4.0 * (with_ - without))
    plain = sd.generate(PROMPT, seed=0, guidance_scale=4.0, num_inference_steps=1).images
    assert images[0].tobytes() != plain[0].tobytes()


def test_without_guidance_rows_are_not_doubled(sd):
    with sd.trace(PROMPT, seed=0, guidance_scale=1.0):
        assert sd.unet.output[0].shape[0] == 1


def test_equal_seeds_are_equal_images_whatever_is_drawn_with_them(sd, pipe):
    alone = {
        (prompt, seed): pipe(prompt, generator=generator(seed), **DRAWN).images[0]
        for prompt in (PROMPT, "a blue square")
        for seed in (3, 4)
    }
    both = sd.generate(
        [PROMPT, "a blue square"], seed=3, num_images_per_prompt=2, **DRAWN
    ).images  # prompt by prompt: seeds 3, 4, 3, 4
    for image, key in zip(both, alone, strict=True):
        torch.testing.assert_close(image, alone[key])
    listed = sd.generate([PROMPT, "a blue square"], seed=[4, 3], **DRAWN).images
    torch.testing.assert_close(listed[0], alone[PROMPT, 4])
    torch.testing.assert_close(listed[1], alone["a blue square", 3])
    again = sd.generate(PROMPT, seed=3, **DRAWN).images
    assert torch.equal(again[0], alone[PROMPT, 3])
    assert not torch.equal(sd.generate(PROMPT, **DRAWN).images, sd.generate(PROMPT, **DRAWN).images)


def test_a_runs_scheduler_is_its_own(sd, pipe):
    before = dict(pipe.scheduler.__dict__)
    with sd.generate(PROMPT, seed=0, num_inference_steps=3) as tracer:
        for step in tracer.iter[:]:
            outer = sd.scheduler.output
            if step == 1:
                with DiffusionModel(pipe).generate("a blue square", num_inference_steps=2):
                    pass
    assert pipe.scheduler.__dict__.keys() == before.keys()
    assert pipe.scheduler.num_inference_steps == before["num_inference_steps"]
    assert "progress_bar" not in pipe.__dict__
    plain = sd.generate(PROMPT, seed=0, num_inference_steps=3, output_type="latent").images
    assert torch.equal(outer, plain)
    assert sd.scheduler.real is pipe.scheduler


def test_a_session_a_cache_and_an_edit(sd):
    with sd.session():
        with sd.generate(PROMPT, seed=0, **DRAWN) as tracer:
            cache = tracer.cache(["unet.mid_block", "text_encoder", "vae.decoder"])
        with sd.trace(PROMPT, seed=0):
            first = sd.unet.mid_block.output.clone()
    assert len(cache["unet.mid_block"]) == STEPS
    assert len(cache["text_encoder"]) == 2  # the prompt, and none
    assert cache["vae.decoder"].output.shape == (1, 3, 16, 16)
    assert first.shape == cache["unet.mid_block"][0].output.shape

    with sd.edit() as edited:
        sd.unet.mid_block.output[:] = 0
    with sd.edit(inplace=False) as words:
        sd.text_encoder.output[0][:] = 0
    plain = sd.generate(PROMPT, seed=0, **DRAWN).images
    with sd.generate(PROMPT, seed=0, **DRAWN) as tracer:
        for _ in tracer.iter[:]:
            sd.unet.mid_block.output[:] = 0
        by_hand = tracer.result.images
    assert torch.equal(edited.generate(PROMPT, seed=0, **DRAWN).images, by_hand)
    assert torch.equal(edited(PROMPT, seed=0, **DRAWN).images, by_hand)
    assert not torch.equal(words.generate(PROMPT, seed=0, **DRAWN).images, plain)
    assert torch.equal(sd.generate(PROMPT, seed=0, **DRAWN).images, plain)


def test_a_run_held_open_goes_from_step_to_step(sd):
    with sd.generate(PROMPT, seed=0, num_inference_steps=3) as tracer:
        expected = [sd.unet.output[0].clone() for _ in tracer.iter[:]]
    run = sd.open(PROMPT, generate=3, seed=0, output_type="pt")
    assert torch.equal(sd.unet.output[0], expected[0])
    assert torch.equal(sd.unet.next().output[0], expected[1])
    run.until(sd.unet.mid_block)
    assert run.where == "unet.mid_block.output (step 2)"
    assert torch.equal(sd.unet.output[0], expected[2])
    run.step()
    assert run.where == "scheduler.output (step 2)"
    run.until("vae.decoder")
    assert torch.equal(run.finish().images, sd.generate(PROMPT, seed=0, **DRAWN).images)
    run = sd.open(PROMPT)
    _ = sd.text_encoder.output
    run.close()


def test_a_scan_gives_shapes_of_every_part(sd):
    with sd.scan(PROMPT):
        words = sd.text_encoder.output[0].shape
        middle = sd.unet.mid_block.output.shape
        latents = sd.scheduler.output.shape
        image = sd.vae.decoder.output.shape
    assert (words, middle) == ((1, 16, 16), (2, 16, 4, 4))
    assert (latents, image) == ((1, 4, 8, 8), (1, 3, 16, 16))
    with pytest.raises(RuntimeError):
        with sd.trace(PROMPT, validate=True):
            _ = sd.unet.mid_block.output @ torch.ones(3, 3)
    with sd.trace(PROMPT, seed=0, validate=True):
        kept = sd.unet.mid_block.output
    assert not hasattr(kept, "fake_mode")


def test_a_cache_with_a_budget_is_forecast(sd):
    with sd.trace(PROMPT, seed=0) as tracer:
        cache = tracer.cache("unet.mid_block", budget=10**6)
    assert cache["unet.mid_block"].output.shape == (2, 16, 4, 4)
    with pytest.raises(insitu.CacheBudgetError):
        with sd.trace(PROMPT, seed=0) as tracer:
            tracer.cache("unet.mid_block", budget=10)


def test_gradients_flow_through_the_denoiser_and_from_step_to_step(sd, pipe):
    latents = torch.randn(1, 4, 8, 8, generator=generator())
    with sd.generate(PROMPT, latents=latents, grad=True, **DRAWN) as tracer:
        words = sd.text_encoder.output[0]
        words.requires_grad_()
        for _ in tracer.iter[:]:
            middle = sd.unet.mid_block.output
        images = tracer.result.images
        images.sum().backward()
    assert middle.requires_grad
    expected = pipe.text_encoder(
        pipe.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
    )[0].requires_grad_()
    none = pipe.text_encoder(
        pipe.tokenizer("", padding="max_length", return_tensors="pt").input_ids
    )[0]
    drawn = type(pipe).__call__.__wrapped__(
        pipe, prompt_embeds=expected, negative_prompt_embeds=none, latents=latents, **DRAWN
    )
    drawn.images.sum().backward()
    assert words.grad.abs().sum() > 0
    torch.testing.assert_close(words.grad, expected.grad)
    assert torch.is_grad_enabled()
    with sd.generate(PROMPT, **DRAWN) as tracer:
        assert not tracer.result.images.requires_grad


def test_stopping_and_failing_leave_nothing_behind(sd):
    with sd.generate(PROMPT, num_inference_steps=50) as tracer:
        for step in tracer.iter[:]:
            noise = sd.unet.output[0]
            if step == 1:
                tracer.stop()
    assert step == 1
    assert noise.shape == (2, 4, 8, 8)
    with pytest.raises(ZeroDivisionError):
        with sd.generate(PROMPT, num_inference_steps=5):
            _ = sd.unet.output
            1 / 0
    with pytest.raises(insitu.OutOfOrderError, match="text_encoder"):
        with sd.generate(PROMPT, num_inference_steps=2):
            _ = sd.unet.output
            _ = sd.text_encoder.output
    with pytest.raises(insitu.OutOfOrderError, match=r"unet\.input"):
        with sd.generate(PROMPT, num_inference_steps=2):
            _ = sd.scheduler.output
            _ = sd.unet.input  # not that of the next step
    with pytest.raises(insitu.StepError):
        with sd.generate(PROMPT, num_inference_steps=2) as tracer:
            tracer.next()
            tracer.next()
    assert sd.generate(PROMPT, seed=0, **DRAWN).images.shape == (1, 3, 16, 16)


def test_threads_draw_at_once_with_one_pipeline(sd, pipe):
    prompts = [PROMPT, "a blue square", "a green star"]
    expected = [pipe(p, generator=generator(), **DRAWN).images for p in prompts]
    found, barrier = {}, threading.Barrier(len(prompts))

    def draw(number):
        with sd.generate(prompts[number], seed=0, **DRAWN) as tracer:
            for _ in tracer.iter[:]:
                barrier.wait(30)
                _ = sd.scheduler.output
            found[number] = tracer.result.images

    threads = [threading.Thread(target=draw, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number, images in enumerate(expected):
        assert torch.equal(found[number], images)


def test_parts_of_components_can_be_given_further_names(pipe):
    model = DiffusionModel(pipe, rename={"unet.mid_block": "middle"})
    with model.trace(PROMPT, seed=0):
        kept = model.middle.output
    with model.trace(PROMPT, seed=0):
        assert torch.equal(kept, model.unet.mid_block.output)


def test_long_runs_have_a_progress_bar_and_short_ones_none(capsys):
    pipe = tiny_diffusion.stable_diffusion()
    pipe._progress_bar_config = {}
    model = DiffusionModel(pipe)
    model.generate(PROMPT, num_inference_steps=2)
    assert "it/s" not in capsys.readouterr().err
    model.generate(PROMPT, num_inference_steps=12)
    assert "12/12" in capsys.readouterr().err


def test_an_unconditional_pipeline_needs_no_prompt():
    pipe = tiny_diffusion.unconditional()
    model = DiffusionModel(pipe)
    expected, drawn = hooked(pipe.unet, lambda: pipe(batch_size=1, generator=generator(2), **DRAWN))
    with model.generate(seed=2, **DRAWN) as tracer:
        seen = [model.unet.output.sample for _ in tracer.iter[:]]
        images = tracer.result.images
    assert all(map(torch.equal, seen, expected))
    assert torch.equal(images, drawn.images)
    with model.trace():
        assert model.unet.output.sample.shape == (1, 3, 8, 8)
    with model.generate(batch_size=2, seed=[2, 3], **DRAWN) as tracer:
        two = tracer.result.images
    torch.testing.assert_close(two[0], images[0])
    assert torch.equal(model.decode(torch.zeros(1, 3, 8, 8), "pt"), torch.full((1, 3, 8, 8), 0.5))
    with model.generate(**DRAWN) as tracer:
        with tracer.invoke(batch_size=2, seed=2):
            first = tracer.result.images
        with tracer.invoke(seed=2):
            model.unet.output.sample[:] = 0
            second = model.unet.output.sample
    assert (first.shape[0], second.shape[0]) == (2, 1)
    torch.testing.assert_close(first[0], images[0])
    with pytest.raises(insitu.InputTypeError, match="takes no prompt"):
        model.generate("a cat")


def test_a_transformer_on_class_labels_by_number_or_name():
    pipe = tiny_diffusion.dit()
    model = DiffusionModel(pipe)
    expected, drawn = hooked(
        pipe.transformer, lambda: pipe(class_labels=[3], generator=generator(), **DRAWN)
    )
    with model.generate("great white shark", seed=0, **DRAWN) as tracer:
        seen = [model.transformer.output.sample for _ in tracer.iter[:]]
        images = tracer.result.images
    assert all(map(torch.equal, seen, expected))
    assert torch.equal(images, drawn.images)
    with model.trace(3):
        assert model.transformer.transformer_blocks[0].output.shape == (2, 16, 8)
    with pytest.raises(insitu.InputTypeError, match="did you mean 'cock'"):
        model.generate("cook")
    with pytest.raises(insitu.InputTypeError, match=r"2\.5"):
        model.generate([2.5])
    with model.generate(guidance_scale=4.0, **DRAWN) as tracer:
        with tracer.invoke([0, 7], seed=1):
            model.transformer.output.sample[:] = 0
        with tracer.invoke(3, seed=0):
            first = model.transformer.output.sample
            own = tracer.result.images
    torch.testing.assert_close(first, expected[0])
    torch.testing.assert_close(own, drawn.images)


def test_a_pipeline_that_is_told_its_guidance_is_not_doubled():
    pipe = tiny_diffusion.flux()
    model = DiffusionModel(pipe)
    size = {"height": 16, "width": 16, "max_sequence_length": 8}
    expected, drawn = hooked(
        pipe.transformer, lambda: pipe(PROMPT, generator=generator(), **size, **DRAWN)
    )
    latents = []
    with model.generate(PROMPT, seed=0, **size, **DRAWN) as tracer:
        words = model.text_encoder_2.output[0]
        seen = []
        for _ in tracer.iter[:]:
            seen.append(model.transformer.output[0])
            latents.append(model.scheduler.output)
        images = tracer.result.images
    assert words.shape == (1, 8, 16)
    assert all(map(torch.equal, seen, expected))
    assert torch.equal(images, drawn.images)
    assert torch.equal(model.decode(latents[-1], "pt"), images)
    with model.generate(**size, **DRAWN) as tracer:
        with tracer.invoke("a blue square", seed=9):
            model.transformer.output[0][:] = 0
        with tracer.invoke(PROMPT, seed=0):
            first = model.transformer.output[0]
            own = tracer.result.images
    torch.testing.assert_close(first, expected[0])
    torch.testing.assert_close(own, drawn.images)


def test_an_image_to_image_pipeline_begins_with_its_image():
    pipe = tiny_diffusion.image_to_image()
    model = DiffusionModel(pipe)
    picture = torch.rand(1, 3, 16, 16, generator=generator())
    more = {"image": picture, "strength": 0.6, "num_inference_steps": 5, "output_type": "pt"}
    expected = pipe(PROMPT, generator=generator(), **more).images
    with model.generate(PROMPT, seed=0, **more) as tracer:
        steps = [step for step in tracer.iter[:] if model.unet.output[0] is not None]
        images = tracer.result.images
    assert steps == [0, 1, 2]
    assert torch.equal(images, expected)
    with model.trace(PROMPT, image=picture, strength=0.3) as tracer:
        assert model.unet.output[0].shape[0] == 2
    with pytest.raises(insitu.InputError, match="was given no image"):
        model.generate(PROMPT)
    with pytest.raises(insitu.UsageError, match="strength"):
        model.trace(PROMPT, image=picture, strength=0)


def test_a_tokenizer_is_called_by_one_thread_at_a_time(pipe):
    inside, most = [], []

    class Slow:
        model_max_length = 77

        def __call__(self, text):
            inside.append(text)
            most.append(len(inside))
            time.sleep(0.02)
            inside.remove(text)
            return text

        tokenize = __call__

    shared = InTurn(Slow())
    calls = (shared, shared.tokenize, shared)
    threads = [
        threading.Thread(target=it, args=(text,)) for it, text in zip(calls, "abc", strict=False)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert most == [1, 1, 1]
    assert shared.model_max_length == 77
