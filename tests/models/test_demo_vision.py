"""The image-text demo: its pictures are what they say, and its model answers about them."""

import random
import subprocess
import sys

import pytest
import torch

import insitu
from insitu.models.demo_vision import (
    COLOURS,
    PLACES,
    SHAPES,
    Scene,
    Thing,
    draw,
    draw_scene,
    questions,
    scenes,
)
from insitu.models.demo_vision.knowledge import scores
from insitu.models.vision_language import DEMO, VisionLanguageModel

PICTURES = 250


@pytest.fixture(scope="module")
def demo():
    return VisionLanguageModel("demo")


def answer(demo, question, *images, tokens=1):
    prompt = "<image>\n" * len(images) + question
    with demo.generate(prompt, images=list(images) or None, max_new_tokens=tokens):
        ids = demo.generator.output
    new = ids[0, -tokens:] if tokens == 1 else ids[0, len(demo_ids(demo, prompt, images)) :]
    return demo.tokenizer.decode(new, skip_special_tokens=True)


def demo_ids(demo, prompt, images):
    if not images:
        return demo.tokenizer(prompt)["input_ids"]
    return demo.processor(text=[prompt], images=list(images))["input_ids"][0]


# Pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [*COLOURS])
@pytest.mark.parametrize("place", [*PLACES])
def test_a_picture_has_its_colour_at_its_place_and_nowhere_else(colour, place):
    image = draw("square", colour, place)
    assert (image.size, image.mode) == ((48, 48), "RGB")
    for other, middle in PLACES.items():
        wanted = COLOURS[colour] if other == place else (0.1, 0.1, 0.1)
        found = image.getpixel(middle)
        assert found == tuple(round(255 * part) for part in wanted), other


def test_shapes_differ_as_their_names_say():
    x, y = PLACES["left"]
    filled = {shape: draw(shape, "white", "left", radius=8) for shape in SHAPES}

    def lit(shape, right, down):
        return filled[shape].getpixel((x + right, y + down))[0] > 128

    assert [lit(shape, 0, 0) for shape in SHAPES] == [True, True, True, True, False]
    assert [lit(shape, 5, 5) for shape in SHAPES] == [True, True, True, False, True]
    assert [lit(shape, 6, 6) for shape in SHAPES] == [False, True, True, False, False]
    assert [lit(shape, 5, -5) for shape in SHAPES] == [True, True, False, False, True]
    sizes = [sum(level > 128 for level in image.tobytes()[::3]) for image in filled.values()]
    assert sizes[0] > sizes[2] > 0


def test_a_picture_is_the_same_every_time():
    scene = Scene((Thing("circle", "red", "left"), Thing("ring", "blue", "top")), grey=0.2)
    assert draw_scene(scene).tobytes() == draw_scene(scene).tobytes()
    assert draw("cross", "green", "top", radius=5).tobytes() != draw("cross", "green").tobytes()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("cube", "red", "left"), "no shape 'cube'.*circle, square"),
        (("circle", "orange", "left"), "no colour 'orange'.*red, green"),
        (("circle", "red", "middle"), "no place 'middle'.*left, right"),
    ],
)
def test_what_cannot_be_drawn_is_named(wrong, told):
    with pytest.raises(insitu.UsageError, match=f"(?s){told}"):
        draw(*wrong)


def test_training_leaves_a_quarter_of_all_combinations_out():
    every = [
        Thing(shape, colour, place, radius)
        for shape in SHAPES
        for colour in COLOURS
        for place in PLACES
        for radius in scenes.RADII
    ]
    assert sum(thing.is_held_out for thing in every) == len(every) // 4
    rng = random.Random(0)
    for things in (1, 2, 3, 4):
        for held_out in (False, True):
            scene = scenes.random_scene(rng, things, held_out=held_out)
            assert len({thing.place for thing in scene.things}) == things
            assert {thing.is_held_out for thing in scene.things} == {held_out}


def test_answers_are_right():
    red, ring = Thing("circle", "red", "left"), Thing("ring", "red", "top")
    blue, scene = Thing("square", "blue", "right"), None
    scene = Scene((red, ring, blue))
    right = {
        "What colour is the circle?": " red",
        "What shape is blue?": " square",
        "What shape is at the top?": " ring",
        "What color is the shape on the right?": " blue",
        "Where is the red ring?": " top",
        "How many shapes are there?": " three",
        "Is there a red circle?": " yes",
        "Is there a blue circle?": " no",
        "Describe this image": " a red circle on the left and a blue square on the right and a red "
        "ring at the top",
    }
    rng = random.Random(0)
    asked = dict(questions.any_question(scene, rng) for _ in range(2000))
    for question, told in right.items():
        assert asked[question] == told
    assert "What shape is red?" not in asked, "there are two"
    assert asked["Is there a red ring?"] == " yes"


# What the model knows ---------------------------------------------------------------------------


def test_it_is_small(demo):
    size_bytes = sum(file.stat().st_size for file in DEMO.iterdir())
    assert size_bytes <= 4_000_000
    assert demo._module.dtype is torch.float32


@pytest.mark.parametrize(("things", "least"), [(1, 0.97), (0, 0.95)])
def test_it_answers_about_combinations_it_has_never_seen(demo, things, least):
    """Pictures of one shape, and of one to three, each in an unseen colour, place and size."""
    measured = scores(demo._module, demo.processor, pictures=PICTURES, things=things)
    assert measured["colour"] >= least, measured
    assert measured["shape"] >= least, measured
    assert measured["number"] >= least, measured


def test_pictures_and_questions_of_a_user(demo):
    image = draw("circle", "red", "left")
    assert answer(demo, "What colour is the circle?", image) == " red"
    assert answer(demo, "What shape is it?", image) == " circle"
    assert answer(demo, "Where is it?", image) == " left"
    told = answer(demo, "Describe this image", image, tokens=12)
    assert told == " a red circle on the left"
    chat = [{"role": "user", "content": [
        {"type": "image", "image": draw("cross", "green", "top")},
        {"type": "text", "text": "What colour is the cross?"},
    ]}]  # fmt: skip
    with demo.trace(chat):
        logits = demo.lm_head.output
    assert demo.tokenizer.decode(logits[0, -1].argmax()) == " green"


def test_text_alone(demo):
    told = [answer(demo, question) for question, _ in questions.WITHOUT_IMAGE]
    assert told == [right for _, right in questions.WITHOUT_IMAGE]


def test_the_patches_of_another_image_change_the_answer(demo):
    ask = "<image>\nWhat colour is the circle?"
    with demo.trace() as tracer:
        with tracer.invoke(ask, images=[draw("circle", "blue", "left")]):
            seen = demo.model.multi_modal_projector.output
        with tracer.invoke(ask, images=[draw("circle", "red", "left")]):
            demo.model.multi_modal_projector.output = seen
            logits = demo.lm_head.output
    assert demo.tokenizer.decode(logits[0, -1].argmax()) == " blue"


# How it was made --------------------------------------------------------------------------------


def test_two_runs_of_one_recipe_give_the_same_weights(tmp_path):
    from insitu.models.demo_vision.tower import TowerRecipe
    from insitu.models.demo_vision.train import Recipe, train

    recipe = Recipe(rounds=3, steps=2, rows=3, tower=TowerRecipe(steps=2, rows=3))
    folders = [train(recipe, tmp_path / name) for name in ("a", "b")]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second
    assert len((tmp_path / "a" / "loss.csv").read_text().splitlines()) == 1 + 2 + 3 * 2
    with VisionLanguageModel(folders[0]).trace("<image>\nWhat?", images=[draw("ring", "red")]):
        pass


def test_drawing_imports_no_transformers():
    code = "import sys, insitu.models.demo_vision; print('transformers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
