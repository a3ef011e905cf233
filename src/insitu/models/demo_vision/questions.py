"""What can be asked about a picture, and the right answers.

questions(scene, rng)      # [("What colour is the circle?", " red"), ("Where is it?", …), …]
"""

import random
from collections.abc import Callable

from insitu.models.demo_vision.scenes import COLOURS, PLACES, SHAPES, Scene, Thing

Asked = tuple[str, str]
"""A question and its answer; the answer begins with a space."""

NUMBERS = ("no", "one", "two", "three", "four")

WITHOUT_IMAGE: tuple[Asked, ...] = (
    ("What colour is grass?", " green"),
    ("What colour is snow?", " white"),
    ("What colour is blood?", " red"),
    ("What colour is the sea?", " blue"),
    ("What colour is a lemon?", " yellow"),
    ("What colour is a plum?", " purple"),
    ("What shape is a wheel?", " circle"),
    ("What shape is a window?", " square"),
    ("What shape is a pyramid?", " triangle"),
    ("How many corners has a triangle?", " three"),
    ("How many corners has a square?", " four"),
)
"""Asked of the text alone."""


def any_question(scene: Scene, rng: random.Random) -> Asked:
    """A question about a scene, with a single right answer."""
    return rng.choices(_KINDS, _WEIGHTS)[0](scene, rng)


def what_colour(scene: Scene, rng: random.Random) -> Asked:
    """Ask for the colour of a shape that is there once."""
    thing = _alone(scene, rng, lambda one, other: one.shape == other.shape)
    colour = rng.choice(("colour", "colour", "color"))
    if len(scene.things) == 1 and rng.random() < 0.4:
        return f"What {colour} is {rng.choice(('it', 'the shape'))}?", f" {thing.colour}"
    if thing is not _ABSENT and rng.random() < 0.8:
        return f"What {colour} is the {thing.shape}?", f" {thing.colour}"
    thing = rng.choice(scene.things)
    return f"What {colour} is the shape {_at(thing)}?", f" {thing.colour}"


def what_shape(scene: Scene, rng: random.Random) -> Asked:
    """Ask for the shape of what has a colour, or stands in a place, alone."""
    thing = _alone(scene, rng, lambda one, other: one.colour == other.colour)
    if len(scene.things) == 1 and rng.random() < 0.5:
        return "What shape is it?", f" {thing.shape}"
    if thing is not _ABSENT and rng.random() < 0.6:
        return f"What shape is {thing.colour}?", f" {thing.shape}"
    thing = rng.choice(scene.things)
    return f"What shape is {_at(thing)}?", f" {thing.shape}"


def where(scene: Scene, rng: random.Random) -> Asked:
    """Ask for the place of a shape."""
    if len(scene.things) == 1 and rng.random() < 0.4:
        return f"Where is {rng.choice(('it', 'the shape'))}?", f" {scene.things[0].place}"
    thing = _alone(scene, rng, lambda one, other: one.shape == other.shape)
    if thing is not _ABSENT and rng.random() < 0.6:
        return f"Where is the {thing.shape}?", f" {thing.place}"
    thing = _alone(scene, rng, lambda one, other: _named(one) == _named(other))
    if thing is _ABSENT:
        return how_many(scene, rng)
    return f"Where is the {_named(thing)}?", f" {thing.place}"


def how_many(scene: Scene, rng: random.Random) -> Asked:
    """Ask for the number of shapes."""
    return "How many shapes are there?", f" {NUMBERS[len(scene.things)]}"


def is_there(scene: Scene, rng: random.Random) -> Asked:
    """Ask whether a shape of a colour is there; half of the answers are no."""
    there = {_named(thing) for thing in scene.things}
    if rng.random() < 0.5:
        return f"Is there a {rng.choice(sorted(there))}?", " yes"
    shape, colour = rng.choice(SHAPES), rng.choice([*COLOURS])
    if rng.random() < 0.5:  # half right is the harder question
        thing = rng.choice(scene.things)
        shape, colour = rng.choice(((thing.shape, colour), (shape, thing.colour)))
    name = f"{colour} {shape}"
    return f"Is there a {name}?", " yes" if name in there else " no"


def describe(scene: Scene, rng: random.Random) -> Asked:
    """Ask for all of it: shapes from left to right, then top and bottom."""
    ordered = sorted(scene.things, key=lambda thing: [*PLACES].index(thing.place))
    told = [f" a {_named(thing)} {_at(thing)}" for thing in ordered]
    return rng.choice(("Describe this image", "Describe this image.")), " and".join(told)


def _named(thing: Thing) -> str:
    return f"{thing.colour} {thing.shape}"


def _at(thing: Thing) -> str:
    return f"at the {thing.place}" if thing.place in ("top", "bottom") else f"on the {thing.place}"


_ABSENT = Thing(SHAPES[0], "red", "left")


def _alone(scene: Scene, rng: random.Random, alike: Callable[[Thing, Thing], bool]) -> Thing:
    """One of the things that no other is like; `_ABSENT` where there is none."""
    unlike = [
        thing
        for thing in scene.things
        if not any(other is not thing and alike(thing, other) for other in scene.things)
    ]
    return rng.choice(unlike) if unlike else _ABSENT


_KINDS = (what_colour, what_shape, where, how_many, is_there, describe)
_WEIGHTS = (5, 6, 4, 1, 3, 2)
