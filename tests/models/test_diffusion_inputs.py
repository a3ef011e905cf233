"""What a pipeline cannot run on is refused before it runs, in three lines."""

import pytest
import torch

import insitu
from insitu.models import pipeline_inputs
from insitu.models.pipeline_inputs import Given, seeds, told_apart

CIRCLE = "a red circle"


@pytest.mark.parametrize(
    ("args", "settings", "error", "told"),
    [
        ((5,), {}, insitu.InputTypeError, "prompt=5"),
        (([],), {}, insitu.InputTypeError, r"prompt=\[\]"),
        (([CIRCLE, 3],), {}, insitu.InputTypeError, "draws from text"),
        ((b"cat",), {}, insitu.InputTypeError, "draws from text"),
        ((CIRCLE, "a square"), {}, insitu.InputTypeError, r"\[first, second"),
        ((CIRCLE,), {"negative_prompt": 3}, insitu.InputTypeError, "negative_prompt=3"),
        (([CIRCLE] * 2,), {"negative_prompt": ["a"] * 3}, insitu.InputError, "3 texts"),
        ((CIRCLE,), {"guidance_scal": 3}, insitu.UsageError, "did you mean guidance_scale"),
        ((CIRCLE,), {"sead": 3}, insitu.UsageError, "did you mean seed"),
        ((CIRCLE,), {"max_new_tokens": 3}, insitu.UsageError, "no such setting"),
        ((CIRCLE,), {"num_inference_steps": 0}, insitu.UsageError, "steps=0"),
        ((CIRCLE,), {"num_inference_steps": 2.5}, insitu.UsageError, "steps=2.5"),
        ((CIRCLE,), {"num_images_per_prompt": -1}, insitu.UsageError, "prompt=-1"),
        ((CIRCLE,), {"seed": "one"}, insitu.UsageError, "whole number"),
        ((CIRCLE,), {"seed": True}, insitu.UsageError, "whole number"),
        ((CIRCLE,), {"seed": [1, 2, 3]}, insitu.InputError, "3 seeds"),
        ((CIRCLE,), {"seed": 1, "generator": torch.Generator()}, insitu.UsageError, "pass seed="),
        ((CIRCLE,), {"remote": True}, insitu.UsageError, "server"),
    ],
)
@pytest.mark.parametrize("method", ["trace", "generate", "open"])
def test_wrong_inputs_are_refused_before_the_run(sd, pipe, method, args, settings, error, told):
    calls = []
    handle = pipe.text_encoder.register_forward_hook(lambda *_: calls.append(0))
    try:
        with pytest.raises(error, match=told) as caught:
            getattr(sd, method)(*args, **settings)
    finally:
        handle.remove()
    assert len(str(caught.value).splitlines()) == 3
    assert calls == []


def test_a_generation_is_not_validated(sd):
    with pytest.raises(insitu.UsageError, match="validate"):
        sd.generate(CIRCLE, validate=True)


def test_the_pipelines_own_errors_come_through(sd):
    with pytest.raises(ValueError, match="divisible by 8"):
        sd.generate(CIRCLE, height=7, width=7, num_inference_steps=1)
    with sd.trace(CIRCLE):
        assert sd.unet.output[0].shape == (2, 4, 8, 8)


def test_latents_that_are_none_are_refused(sd):
    for wrong in ("text", torch.zeros(4), torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 16)):
        with pytest.raises(insitu.InputError, match="no latents"):
            sd.decode(wrong)
    with pytest.raises(insitu.UsageError, match="pil, pt, np"):
        sd.decode(torch.zeros(1, 4, 8, 8), "jpg")


def test_a_seed_is_each_prompts_first_images():
    assert seeds(None, 2, 1) is None
    assert seeds(5, 1, 1) == [5]
    assert seeds(5, 2, 2) == [5, 6, 5, 6]
    assert seeds([1, 9], 2, 2) == [1, 2, 9, 10]
    assert seeds([1, 9, 4, 3], 2, 2) == [1, 9, 4, 3]
    assert seeds(range(3), 3, 1) == [0, 1, 2]
    first, second = seeds([None, None], 2, 1)
    assert first != second


def test_what_belongs_to_images_is_told_from_what_belongs_to_the_run(pipe):
    given = told_apart(
        pipe, "generate", (CIRCLE,), {"seed": 1, "guidance_scale": 3.0, "negative_prompt": "a"}
    )
    assert given.inputs == {"prompt": CIRCLE, "seed": 1, "negative_prompt": "a"}
    assert given.settings == {"guidance_scale": 3.0}
    assert given.count == 1
    assert Given({"prompt_embeds": torch.zeros(3, 16, 16)}).count == 3
    assert pipeline_inputs.is_prompted(pipe, {"prompt_embeds": torch.zeros(1, 16, 16)})
    assert not pipeline_inputs.is_prompted(pipe, {"seed": 1})
    listed = pipeline_inputs.as_called({"prompt": [CIRCLE] * 2, "negative_prompt": "a"})
    assert listed["negative_prompt"] == ["a", "a"]


def test_embeddings_stand_for_prompts(sd, pipe):
    ids = pipe.tokenizer([CIRCLE, "a ring"], padding="max_length", return_tensors="pt").input_ids
    words, more = pipe.text_encoder(ids)[0].chunk(2)
    settings = {"num_inference_steps": 2, "output_type": "pt"}
    expected = sd.generate(CIRCLE, seed=0, **settings).images
    with sd.generate(prompt_embeds=words, seed=0, **settings) as tracer:
        images = tracer.result.images
    assert torch.equal(images, expected)
    with sd.generate(seed=0, **settings) as tracer:
        with tracer.invoke(prompt_embeds=more):
            _ = sd.unet.output
        with tracer.invoke(prompt_embeds=words):
            own = tracer.result.images
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
