"""Train the image-text demo model from scratch on drawn pictures: 20 minutes on one core.

    python -m insitu.models.demo_vision.train --out demo-vision

`--out` receives `checkpoint/` (the folder that is committed next to this file) and `loss.csv`.
"""

import argparse
import copy
import pathlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from insitu.models.demo_vision.questions import WITHOUT_IMAGE, any_question
from insitu.models.demo_vision.scenes import SIZE, Scene, random_scene
from insitu.models.demo_vision.tokenizer import CONTEXT, PATCH, new_processor
from insitu.models.demo_vision.tower import TowerRecipe, pixels_of, taught
from insitu.models.training import adamw, decayed, take_step, warmed_cosine, write_losses

IGNORED = -100
IMAGE_TOKENS = (SIZE // PATCH) ** 2
TEXT_TOKENS = 44
"""Tokens of questions and answers after each picture: about five of them."""


@dataclass(frozen=True)
class Recipe:
    """What a run is made of; two runs of one recipe give the same weights.

    train(Recipe(steps=500), pathlib.Path("demo-vision"))
    """

    rounds: int = 3
    """Each has a learning rate that rises and falls, and begins with what the last one saved."""
    steps: int = 1200
    """Of a round."""
    seed: int = 0
    rows: int = 32
    peak_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.02
    without_image: float = 0.06
    tower: TowerRecipe = field(default_factory=TowerRecipe)
    tower_rate: float = 0.3
    """The tower has begun already: its learning rate, as a share of the others'."""

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to 2 % of the peak."""
        return warmed_cosine(self.peak_rate, step, self.steps, self.warmup_steps)


@dataclass(frozen=True)
class Batch:
    """One step's token ids, targets (`IGNORED` where none), mask and pictures."""

    ids: Tensor
    targets: Tensor
    mask: Tensor
    pixels: Tensor


def new_model(processor: Any) -> LlavaForConditionalGeneration:
    """An untrained LLaVA: a SigLIP tower of three layers, a Qwen2 decoder of three.

    Heads are 32 wide because vLLM's attention on CPU refuses 16.
    """
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token_id
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=IMAGE_TOKENS,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def row_of(rng: random.Random, recipe: Recipe, processor: Any) -> tuple[list[int], list[int], Any]:
    """A row's ids and targets, and its scene: questions, each with its answer, until it is full."""
    encode = processor.tokenizer.backend_tokenizer.encode
    end = processor.tokenizer.eos_token_id
    scene: Scene | None = None
    ids: list[int] = []
    if rng.random() >= recipe.without_image:
        scene = random_scene(rng, rng.choice((1, 1, 2, 2, 3)))
        ids = [processor.image_token_id] * IMAGE_TOKENS
    targets = [IGNORED] * len(ids)
    full = len(ids) + TEXT_TOKENS
    while len(ids) < full:
        asked = any_question(scene, rng) if scene else rng.choice(WITHOUT_IMAGE)
        question = encode(("\n" if scene or ids else "") + asked[0]).ids
        answer = [*encode(asked[1]).ids, end]
        ids += question + answer
        targets += [IGNORED] * len(question) + answer
    return ids[:full], targets[:full], scene


def batch_of(step: int, recipe: Recipe, processor: Any) -> Batch:
    """The batch of a step: it depends on the seed and the step alone."""
    rng = random.Random(f"{recipe.seed}-{step}")
    noise = torch.Generator().manual_seed(rng.getrandbits(31))
    rows = [row_of(rng, recipe, processor) for _ in range(recipe.rows)]
    longest = max(len(ids) for ids, _, _ in rows)
    end = processor.tokenizer.eos_token_id
    return Batch(
        ids=torch.tensor([[end] * (longest - len(ids)) + ids for ids, _, _ in rows]),
        targets=torch.tensor([[IGNORED] * (longest - len(t)) + t for _, t, _ in rows]),
        mask=torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids, _, _ in rows]),
        pixels=pixels_of([scene for _, _, scene in rows if scene is not None], noise),
    )


def loss_nats(model: LlavaForConditionalGeneration, batch: Batch) -> Tensor:
    """Mean cross-entropy of the answers; logits are computed only there."""
    hidden = model.model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=(batch.mask.cumsum(-1) - 1).clamp(min=0),
        pixel_values=batch.pixels,
        use_cache=False,
    ).last_hidden_state[:, :-1]
    targets = batch.targets[:, 1:]
    known = targets != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[known]), targets[known])


def optimizer_of(model: LlavaForConditionalGeneration, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW, with weight decay on matrices only; a group's `share` is that of the learning rate."""
    groups: list[dict[str, Any]] = []
    of_tower = set(model.model.vision_tower.parameters())
    for is_in_tower in (False, True):
        weights = [p for p in model.parameters() if (p in of_tower) is is_in_tower]
        share = recipe.tower_rate if is_in_tower else 1.0
        groups += [{**group, "share": share} for group in decayed(weights, recipe.weight_decay)]
    return adamw(groups, recipe.peak_rate)


def steps_of(
    model: LlavaForConditionalGeneration, processor: Any, recipe: Recipe
) -> Iterator[tuple[str, float]]:
    """Take all steps, yielding what each one trains, the tower or the whole, and its loss."""
    model.train()
    for loss in taught(model.model.vision_tower, recipe.tower):
        yield "tower", loss
    for number in range(recipe.rounds):
        for loss in round_of(model, processor, recipe, number):
            yield "answers", loss


def round_of(
    model: LlavaForConditionalGeneration, processor: Any, recipe: Recipe, number: int
) -> Iterator[float]:
    """Take the steps of one round, yielding each one's loss.

    The weights are rounded to float16 first, as they are saved: a round can so be gone on from.
    """
    for weight in model.parameters() if number else ():
        weight.data = weight.data.half().float()
    optimizer = optimizer_of(model, recipe)
    for step in range(recipe.steps):
        loss = loss_nats(model, batch_of(number * recipe.steps + step, recipe, processor))
        take_step(optimizer, loss, model.parameters(), recipe.rate(step))
        yield loss.item()


def train(recipe: Recipe, out: pathlib.Path) -> pathlib.Path:
    """Train, and return the folder of the finished model.

    folder = train(Recipe(steps=500), pathlib.Path("demo-vision"))
    VisionLanguageModel(folder)
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    processor = new_processor()
    model = new_model(processor)
    total = recipe.tower.steps + recipe.rounds * recipe.steps
    bar = tqdm(steps_of(model, processor, recipe), total=total, unit="step", mininterval=5.0)

    def rows() -> Iterator[tuple[int, str, float]]:
        for step, (part, loss) in enumerate(bar):
            bar.set_postfix(loss_nats=f"{loss:.3f}", refresh=False)
            yield step, part, loss

    write_losses(out / "loss.csv", ("step", "trained", "loss_nats"), rows())
    export(model, processor, out / "checkpoint")
    return out / "checkpoint"


def export(model: LlavaForConditionalGeneration, processor: Any, folder: pathlib.Path) -> None:
    """Write the model folder: float16 weights, configuration, tokenizer and processor."""
    end = processor.tokenizer.eos_token_id
    halved = copy.deepcopy(model)
    halved.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=end, eos_token_id=end, pad_token_id=end
    )
    halved.half().save_pretrained(folder)
    processor.save_pretrained(folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the image-text demo model.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo-vision"))
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="of each round")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    recipe = Recipe(steps=asked.steps, seed=asked.seed, tower=TowerRecipe(seed=asked.seed))
    folder = train(recipe, asked.out)
    print(f"{folder} holds the model.")


if __name__ == "__main__":
    main()
