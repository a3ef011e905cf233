"""What the image-text demo model knows, measured on pictures it has never seen.

    VisionLanguageModel("demo")
    scores(model._module, model.processor, pictures=200)     # {"colour": 1.0, "shape": 0.99, …}

Every shape of these pictures has a combination of shape, colour, place and size that training left
out.
"""

import random
from typing import Any

import torch

from insitu.models.demo_vision import questions
from insitu.models.demo_vision.scenes import Scene, paint, random_scene

KINDS = {
    "colour": questions.what_colour,
    "shape": questions.what_shape,
    "place": questions.where,
    "number": questions.how_many,
    "presence": questions.is_there,
}


def scores(model: Any, processor: Any, *, pictures: int = 200, things: int = 0) -> dict[str, float]:
    """For each kind of question the share that is answered right, greedily, in the first token.

    Args:
        model: a transformers LLaVA model.
        processor: its processor.
        pictures: how many questions of each kind.
        things: how many shapes each picture has; by default one to three.
    """
    measured = {}
    for kind, ask in KINDS.items():
        rng = random.Random(f"measured-{kind}")
        scenes = [
            random_scene(rng, things or rng.randint(1, 3), held_out=True) for _ in range(pictures)
        ]
        asked = [ask(scene, rng) for scene in scenes]
        told = answers(model, processor, scenes, [question for question, _ in asked])
        right = [text == answer for text, (_, answer) in zip(told, asked, strict=True)]
        measured[kind] = sum(right) / len(right)
    return measured


def answers(model: Any, processor: Any, scenes: list[Scene], asked: list[str]) -> list[str]:
    """The most likely next token after each question, as text."""
    tokenizer = processor.tokenizer
    image = processor.image_token * (model.config.image_seq_length)
    batch = tokenizer(
        [f"{image}\n{question}" for question in asked], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        logits = model(
            **batch,
            position_ids=(batch["attention_mask"].cumsum(-1) - 1).clamp(min=0),
            pixel_values=(paint(scenes) * 2 - 1).to(model.dtype),
            logits_to_keep=1,
        ).logits
    return [tokenizer.decode(token) for token in logits[:, -1].argmax(-1)]
