"""The vision tower's own first training: what shape and colour stands at each place.

    for loss in taught(model.model.vision_tower, TowerRecipe()):
        ...

A readout of one layer, the same for all places, looks at the mean of the patches around a place,
and is thrown away afterwards. Trained on questions alone, the model knew colours after 9,600
pictures and no shapes (0.18 to 0.22, chance), and its loss then hardly fell for 6,000 more; here
four in five shapes were named after 38,000 pictures, in half the time.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from insitu.models.demo_vision.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZE,
    Scene,
    paint,
    random_scene,
)
from insitu.models.training import take_step

PATCH = 8
_AROUND = 12.0
"""How far patches of a place are from its middle, in pixels."""


@dataclass(frozen=True)
class TowerRecipe:
    """What the tower's training is made of."""

    steps: int = 1000
    seed: int = 0
    rows: int = 64
    peak_rate: float = 2e-3
    warmup_steps: int = 50

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to 5 % of the peak."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.peak_rate * min(1.0, (step + 1) / self.warmup_steps) * (0.05 + 0.95 * cosine)


def taught(tower: Any, recipe: TowerRecipe) -> Iterator[float]:
    """Train a tower, yielding each step's loss in nats."""
    torch.manual_seed(recipe.seed)
    kinds = 1 + len(SHAPES)
    readout = nn.Linear(tower.config.hidden_size, kinds + 1 + len(COLOURS))
    weights = [*tower.parameters(), *readout.parameters()]
    optimizer = torch.optim.AdamW(weights, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    patches = patches_of_places()
    for step in range(recipe.steps):
        pixels, shapes, colours = _batch(step, recipe)
        hidden = tower(pixels).last_hidden_state
        told = readout(torch.einsum("pk,nkd->npd", patches, hidden)).flatten(0, 1)
        loss = functional.cross_entropy(told[:, :kinds], shapes)
        loss = loss + functional.cross_entropy(told[:, kinds:], colours)
        take_step(optimizer, loss, weights, recipe.rate(step))
        yield loss.item()


def patches_of_places() -> Tensor:
    """The share of each patch in each place, `[place, patch]`; the rows sum to one."""
    middles = (torch.arange(SIZE // PATCH) + 0.5) * PATCH
    near = [
        ((middles[:, None] - y).abs() <= _AROUND) & ((middles[None] - x).abs() <= _AROUND)
        for x, y in PLACES.values()
    ]
    shares = torch.stack(near).flatten(1).float()
    return shares / shares.sum(1, keepdim=True)


def pixels_of(scenes: list[Scene], noise: torch.Generator) -> Tensor:
    """Pictures as the model sees them, -1 to 1, each a little off in colour and with some noise."""
    clean = paint(scenes)
    tint = torch.randn(len(scenes), 3, 1, 1, generator=noise) * 0.02
    return (clean + tint + torch.randn(clean.shape, generator=noise) * 0.01).clamp(0, 1) * 2 - 1


def _batch(step: int, recipe: TowerRecipe) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, and for each place of each what shape and colour is there, 0 for none."""
    rng = random.Random(f"tower-{recipe.seed}-{step}")
    noise = torch.Generator().manual_seed(rng.getrandbits(31))
    scenes = [random_scene(rng, rng.randint(1, 4)) for _ in range(recipe.rows)]
    shapes = torch.zeros(recipe.rows, len(PLACES), dtype=torch.long)
    colours = torch.zeros_like(shapes)
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            place = [*PLACES].index(thing.place)
            shapes[row, place] = 1 + SHAPES.index(thing.shape)
            colours[row, place] = 1 + [*COLOURS].index(thing.colour)
    return pixels_of(scenes, noise), shapes.flatten(), colours.flatten()
