"""Pictures of coloured shapes: what is in them, and how they are painted.

draw("circle", "red", "left")                                   # a PIL image, 48 x 48
draw_scene(Scene((Thing("circle", "red", "left"), Thing("ring", "blue", "top"))))

A shape is painted by its signed distance function, so that the same scene has the same pixels on
every machine. Source of the distance functions: Inigo Quilez, "2D distance functions".
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from insitu.errors import UsageError

SIZE = 48
"""Pixels on a side."""
SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.70, 0.20),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.62, 0.20, 0.78),
    "white": (0.95, 0.95, 0.95),
}
PLACES = {"left": (12, 24), "right": (36, 24), "top": (24, 12), "bottom": (24, 36)}
"""The middle of each place, in pixels from the top left corner: `(x, y)`."""
RADII = (5.0, 6.0, 7.0, 8.0)
"""Sizes in which the model has seen shapes, in pixels from their middle."""
_JITTER = 2.0
_GREY = 0.1


@dataclass(frozen=True)
class Thing:
    """One shape of a picture.

    Thing("circle", "red", "left", radius=8)

    Args:
        shape: one of `SHAPES`.
        colour: one of `COLOURS`.
        place: one of `PLACES`.
        radius: half its height, in pixels of 48.
        shift: how far from the middle of its place, `(x, y)` in pixels.

    Raises:
        UsageError: there is no such shape, colour or place.
    """

    shape: str
    colour: str
    place: str
    radius: float = 7.0
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("shape", self.shape, SHAPES),
            ("colour", self.colour, COLOURS),
            ("place", self.place, PLACES),
        ):
            if name not in known:
                raise UsageError(
                    f"there is no {kind} {name!r} in the demo's pictures.",
                    f"its model has learned {', '.join(known)}.",
                    f"choose one of these as the {kind}.",
                )

    @property
    def is_held_out(self) -> bool:
        """Whether the model has never seen this shape in this colour, place and size.

        A quarter of all combinations; the test asks about those.
        """
        size = min(range(len(RADII)), key=lambda i: abs(RADII[i] - self.radius))
        ranks = (SHAPES.index(self.shape), [*COLOURS].index(self.colour))
        return (sum(ranks) + [*PLACES].index(self.place) + size) % 4 == 0


@dataclass(frozen=True)
class Scene:
    """What a picture shows: one to four shapes, each in a place of its own."""

    things: tuple[Thing, ...]
    grey: float = _GREY
    """Brightness of the background, from 0 to 1."""


def draw(shape: str, colour: str, place: str = "left", *, radius: float = 7.0) -> Any:
    """A picture of one shape, as the demo model knows them.

        image = draw("circle", "red", "left")
        model.trace("<image>\\nWhat colour is the circle?", images=[image])

    Args:
        shape: circle, square, triangle, cross or ring.
        colour: red, green, blue, yellow, purple or white.
        place: left, right, top or bottom.
        radius: half its height, in pixels.

    Returns:
        A `PIL.Image.Image` of 48 x 48 pixels.

    Raises:
        UsageError: there is no such shape, colour or place.
    """
    return draw_scene(Scene((Thing(shape, colour, place, radius),)))


def draw_scene(scene: Scene) -> Any:
    """A picture of several shapes, as a PIL image of 48 x 48 pixels.

    draw_scene(Scene((Thing("circle", "red", "left"), Thing("ring", "blue", "top"))))
    """
    from PIL import Image

    pixels = (paint([scene])[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Image.frombytes("RGB", (SIZE, SIZE), bytes(pixels.flatten().tolist()))


def random_scene(rng: random.Random, things: int, *, held_out: bool = False) -> Scene:
    """A scene with shapes at random; `held_out` ones are made of unseen combinations alone."""
    places = rng.sample([*PLACES], things)
    made: list[Thing] = []
    while len(made) < things:
        thing = Thing(
            rng.choice(SHAPES),
            rng.choice([*COLOURS]),
            places[len(made)],
            rng.choice(RADII),
            (rng.uniform(-_JITTER, _JITTER), rng.uniform(-_JITTER, _JITTER)),
        )
        if thing.is_held_out is held_out:
            made.append(thing)
    return Scene(tuple(made), grey=rng.uniform(0.0, 0.3))


def paint(scenes: Sequence[Scene]) -> Tensor:
    """Pictures of scenes, `[image, 3, 48, 48]`, from 0 to 1.

    A scene may hold a shape that is wider than its place; later ones then cover earlier ones.
    """
    images = torch.tensor([scene.grey for scene in scenes]).view(-1, 1, 1, 1)
    images = images.repeat(1, 3, SIZE, SIZE)
    most = max((len(scene.things) for scene in scenes), default=0)
    for layer in range(most):
        rows = [row for row, scene in enumerate(scenes) if len(scene.things) > layer]
        things = [scenes[row].things[layer] for row in rows]
        cover = _coverage(things)[:, None]
        colour = torch.tensor([COLOURS[thing.colour] for thing in things])[:, :, None, None]
        images[rows] = images[rows] * (1 - cover) + colour * cover
    return images


def _coverage(things: Sequence[Thing]) -> Tensor:
    """How much of each pixel each shape covers, `[thing, 48, 48]`, from 0 to 1."""
    middles = torch.tensor([_middle(thing) for thing in things])
    steps = torch.arange(SIZE) + 0.5
    x = steps.view(1, 1, -1) - middles[:, 0].view(-1, 1, 1)
    y = steps.view(1, -1, 1) - middles[:, 1].view(-1, 1, 1)
    radius = torch.tensor([thing.radius for thing in things]).view(-1, 1, 1)
    distances = _distances(x, y, radius)
    which = torch.tensor([SHAPES.index(thing.shape) for thing in things])
    return (0.5 - distances[which, torch.arange(len(things))]).clamp(0, 1)


def _middle(thing: Thing) -> tuple[float, float]:
    x, y = PLACES[thing.place]
    return x + thing.shift[0], y + thing.shift[1]


def _distances(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the edge of every shape, negative inside: `[shape, thing, y, x]`."""
    x, y = x + 0 * y, y + 0 * x
    away = (x**2 + y**2).sqrt()
    bar, arm = radius * 0.34, torch.maximum(x.abs(), y.abs()) - radius
    return torch.stack(
        (
            away - radius,
            torch.maximum(x.abs(), y.abs()) - 0.85 * radius,
            torch.maximum(0.894 * x.abs() - 0.447 * (y + radius), y - 0.9 * radius),
            torch.maximum(torch.minimum(x.abs(), y.abs()) - bar, arm),
            (away - 0.75 * radius).abs() - 0.27 * radius,
        )
    )
