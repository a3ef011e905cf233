"""Coloured shapes, drawn exactly, with the words for them: what the demo pipeline is taught.

scene = random_scene(random.Random(0))
scene.caption                       # "a red circle left of a blue square on black"
draw(scene)                         # [3, 32, 32], in -1 … 1
draw(scene, only=0)                 # the same image with the first thing alone: its mask
"""

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 32
"""Pixels to a side."""

COLOURS = {
    "red": (0.86, 0.14, 0.16),
    "orange": (0.97, 0.56, 0.10),
    "yellow": (0.97, 0.86, 0.16),
    "green": (0.13, 0.60, 0.26),
    "cyan": (0.22, 0.80, 0.88),
    "blue": (0.14, 0.30, 0.85),
    "purple": (0.53, 0.18, 0.72),
    "pink": (0.98, 0.55, 0.76),
}
"""Red, green and blue parts, 0 … 1."""
BACKGROUNDS = {"": (0.96, 0.96, 0.95), " on black": (0.07, 0.07, 0.09)}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
PLACES = {
    " on the left": (-0.5, 0.0),
    " on the right": (0.5, 0.0),
    " at the top": (0.0, -0.5),
    " at the bottom": (0.0, 0.5),
}
"""Where a thing is that is said to be there; without these words it is in the middle."""
HELD_OUT = frozenset(
    {("purple", "star"), ("cyan", "cross"), ("orange", "ring"), ("pink", "triangle")}
)
"""Pairs that training never shows: their words are known only from others."""


@dataclass(frozen=True)
class Thing:
    """One shape: its centre and radius in half widths of the image, which reaches from -1 to 1."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """One or two things, and the words for them."""

    caption: str
    things: tuple[Thing, ...]
    background: str = ""


def random_scene(rng: random.Random) -> Scene:
    """A scene as training shows it: two in three have one thing, the others two."""
    background = " on black" if rng.random() < 0.25 else ""
    if rng.random() < 0.67:
        words, things = _single(rng)
    else:
        words, things = _pair(rng)
    return Scene(words + background, things, background)


def draw(scene: Scene, *, only: int | None = None) -> Tensor:
    """The image of a scene, `[3, pixel, pixel]` in -1 … 1, edges smoothed.

    Args:
        scene: what to draw.
        only: give, instead, which pixels one of its things covers: `[pixel, pixel]`, 0 … 1.
    """
    image = torch.tensor(BACKGROUNDS[scene.background]).view(3, 1, 1).expand(3, SIZE, SIZE)
    for number, thing in enumerate(scene.things):
        cover = _cover(thing)
        if only == number:
            return cover
        image = torch.lerp(image, torch.tensor(COLOURS[thing.colour]).view(3, 1, 1), cover)
    return image * 2 - 1


def _single(rng: random.Random) -> tuple[str, tuple[Thing, ...]]:
    colour, shape = _kind(rng)
    size, low, high = rng.choice(
        [("", 0.5, 0.6), ("", 0.5, 0.6), ("small ", 0.3, 0.36), ("large ", 0.72, 0.8)]
    )
    radius = rng.uniform(low, high)
    x, y = rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15)
    place = ""
    if size != "large " and rng.random() < 0.35:
        place = rng.choice(list(PLACES))
        radius = min(radius, 0.46)
        x, y = (there + off for there, off in zip(PLACES[place], (x / 3, y / 3), strict=True))
    return f"{_a(size + colour)} {shape}{place}", (Thing(colour, shape, x, y, radius),)


def _pair(rng: random.Random) -> tuple[str, tuple[Thing, ...]]:
    kinds = [_kind(rng), _kind(rng)]
    beside = rng.random() < 0.5
    things = []
    for place, (colour, shape) in zip((-0.5, 0.5), kinds, strict=True):
        along, across = place + rng.uniform(-0.04, 0.04), rng.uniform(-0.1, 0.1)
        x, y = (along, across) if beside else (across, along)
        things.append(Thing(colour, shape, x, y, rng.uniform(0.36, 0.43)))
    first, second = (f"{_a(colour)} {shape}" for colour, shape in kinds)
    return f"{first} {'left of' if beside else 'above'} {second}", tuple(things)


def _a(words: str) -> str:
    return f"an {words}" if words.startswith("o") else f"a {words}"


def _kind(rng: random.Random) -> tuple[str, str]:
    while True:
        kind = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        if kind not in HELD_OUT:
            return kind


def _cover(thing: Thing) -> Tensor:
    """How much of each pixel a thing covers."""
    centres = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
    y, x = torch.meshgrid(centres - thing.y, centres - thing.x, indexing="ij")
    outside = _distance(thing.shape, x, y, thing.radius) * (SIZE / 2)  # in pixels
    return (0.5 - outside).clamp(0, 1)


def _distance(shape: str, x: Tensor, y: Tensor, radius: float) -> Tensor:
    """How far a point is outside a shape (negative: inside); y points down."""
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "ring":
        return (torch.hypot(x, y) - 0.76 * radius).abs() - 0.24 * radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.84 * radius
    if shape == "cross":
        wide = torch.maximum(x.abs() - radius, y.abs() - 0.32 * radius)
        tall = torch.maximum(x.abs() - 0.32 * radius, y.abs() - radius)
        return torch.minimum(wide, tall)
    if shape == "triangle":
        down = y + 0.1 * radius
        sides = x.abs() * math.cos(math.pi / 6) - down * math.sin(math.pi / 6)
        return torch.maximum(sides, down) - 0.52 * radius
    return _star(x, y, 1.1 * radius)


def _star(x: Tensor, y: Tensor, radius: float) -> Tensor:
    """A star of five points: every tenth of it is the same line, from a tip to a dent."""
    fifth = 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + fifth / 2, fifth) - fifth / 2
    length = torch.hypot(x, y)
    along, across = length * angle.cos(), length * angle.sin().abs()
    dent_along, dent_across = (
        0.45 * radius * part for part in (math.cos(fifth / 2), math.sin(fifth / 2))
    )
    edge_along, edge_across = dent_along - radius, dent_across
    normal = math.hypot(edge_along, edge_across)
    return ((along - radius) * edge_across - across * edge_along) / normal
