"""Functions and classes of many forms, for the tests of source: `CALLS` says what they give."""

import contextlib
import dataclasses
import enum
import functools
import math
from dataclasses import dataclass

K = 3
STATE = {"n": 0}


def fact(n):
    return 1 if n < 2 else n * fact(n - 1)


def even(n):
    return True if n == 0 else odd(n - 1)


def odd(n):
    return False if n == 0 else even(n - 1)


def given(x, y=K, *rest, z=None, **more):
    if z is None:
        z = [1]
    STATE["n"] += x
    return x + y + len(z) + math.floor(1.5)


def annotated(x: "int", y: int = 2) -> dict[str, int]:
    return {"x": x, "y": y}


@functools.cache
def cached(n):
    return n * K


def counter():
    n = 0

    def up():
        nonlocal n
        n += 1
        return n

    def get():
        return n

    return up, get


up, get = counter()


def plus(amount):
    def around(f):
        def inner(*args):
            return f(*args) + amount

        return inner

    return around


@plus(100)
def wrapped(x):
    return x


def noted(f):
    @functools.wraps(f)
    def inner(*args):
        return f"{TAG}{f(*args)}"

    return inner


TAG = "noted "


@noted
def decorated(x):
    return x


class Base:
    q = K

    def m(self):
        return self.q


@dataclass
class Bare:
    """Without a method of its own; what `dataclass` gives it has globals of the library's."""

    x: int = K


@dataclasses.dataclass
class Point(Base):
    x: int = 1

    def next(self):
        return Point(self.x + 1)

    @property
    def twice(self):
        return self.x * 2

    @staticmethod
    def make():
        return Point(7)

    def above(self):
        return super().m()


class Colour(enum.Enum):
    RED = 1


add, sub = (lambda x: x + K), (lambda x: x - K)


@contextlib.contextmanager
def opened():
    yield K


def uses():
    with opened() as k:
        return list(range(k)), dict.fromkeys(range(2), K)


def nested():
    class Inner:
        def value(self):
            return K

    return Inner


Inner = nested()


def indented():
    text = """
  two
"""
    if True:

        def within():
            return (
                text,
                """
no indent""",
            )

    return within


within = indented()


def partial_of():
    return functools.partial(fact, 4)()


async def later():
    return K


def matched(x):
    match x:
        case [a, *_]:
            return a
        case _:
            return (y := K) + y


CALLS = {
    "fact": (lambda f: f(5), 120),
    "even": (lambda f: f(10), True),
    "given": (lambda f: f(1), 6),
    "annotated": (lambda f: f(1), {"x": 1, "y": 2}),
    "cached": (lambda f: f(2), 6),
    "up": (lambda f: f() + f(), 3),
    "wrapped": (lambda f: f(1), 101),
    "decorated": (lambda f: f(1), "noted 1"),
    "Point": (lambda f: [f(3).next().x, f(3).twice, f.make().x, f(3).above()], [4, 6, 7, 3]),
    "Bare": (
        lambda f: [f().x, repr(f(4)).rpartition(".")[2], f(1) == f(1)],
        [3, "Bare(x=4)", True],
    ),
    "Colour": (lambda f: [one.name for one in f], ["RED"]),
    "add": (lambda f: f(1), 4),
    "sub": (lambda f: f(1), -2),
    "uses": (lambda f: f(), ([0, 1, 2], {0: 3, 1: 3})),
    "Inner": (lambda f: f().value(), 3),
    "within": (lambda f: f(), ("\n  two\n", "\nno indent")),
    "partial_of": (lambda f: f(), 24),
    "matched": (lambda f: [f([8]), f(1)], [8, 6]),
}
