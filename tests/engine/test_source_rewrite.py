"""A rewritten function does what the function does: the same values, order, errors and lines."""

import contextlib
import functools
import inspect
import traceback
from types import FunctionType, MethodType

import pytest

from insitu.engine.source.kept import plan_of
from insitu.engine.source.rewrite import (
    HELPERS,
    ON_CALL,
    ON_VALUE,
    WANTED,
    WITHOUT_US,
    instance,
    rewritten,
    without_us,
)  # fmt: skip

GLOBAL = 1


class Record:
    """Helpers that note what they are asked, and step between every call and its callee."""

    def __init__(self, plan):
        self.plan = plan
        self.seen = []

    def call(self, index, callee):
        def stands_in(*args, **kwargs):
            self.seen.append(self.plan.operations[index].name)
            return callee(*args, **kwargs)

        return stands_in

    def value(self, index, value):
        self.seen.append((self.plan.operations[index].name, value))
        return value


def remade(function, wanted=True):
    """The rewritten function, and the record of its operations."""
    plan = plan_of(function)
    record = Record(plan)
    helpers = {
        ON_CALL: record.call, ON_VALUE: record.value, WANTED: lambda index: wanted,
        WITHOUT_US: without_us,
    }  # fmt: skip
    return instance(function, rewritten(plan, function.__code__), helpers), record


def outcome(function, *args, **kwargs):
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return type(error), str(error), traceback.extract_tb(error.__traceback__)[1].lineno


log = []


def note(name, value=None):
    log.append(name)
    return value


def order(a=None):
    def add(*args, **kwargs):
        return note("call", (args, sorted(kwargs)))

    pick = {"f": lambda name: note(name, add)}
    return pick["f"]("callee")(note("a"), *note("b", [1]), k=note("c"), **note("d", {"e": 2}))


def closure(x):
    count, step = 0, 2

    def forward(y):
        nonlocal count
        count += y
        count = count + step
        return count + len(str(x))

    return forward


def keywords(a, /, b=2, *args, c, d=4, **kwargs):
    total = a + b + c + d
    return total, args, kwargs, sorted(kwargs)


def walrus(xs):
    return [y for x in xs if (y := abs(x)) > 1], (z := len(xs) + 1), z


def generator(xs):
    got = None
    for x in xs:
        got = yield abs(x) + len(str((yield got)))
    return sum(xs)


def scopes(xs):
    total = 0

    class Inner:
        size = len(xs)
        name = __qualname__

    def inner(y):
        nonlocal total
        total += abs(y)
        return total

    return [inner(x) for x in xs], Inner.size, Inner.name, {len(str(x)): abs(x) for x in xs}


def own_names(x):
    y = abs(x)
    before = set(locals())
    z = sorted(vars()), dir()
    return before, y, z[0]


def errors(x):
    try:
        y = int(x)
    except ValueError as error:
        y = len(str(error))
    finally:
        note("finally")
    with contextlib.suppress(KeyError):
        {}[y]
    return max(
        y,
        int("no number"),
    )


def globals_(x):
    global GLOBAL
    GLOBAL += x
    return GLOBAL, abs(GLOBAL)


def augmented(x):
    x = list(x)
    x += [4]
    x[0] += 1
    x[-1] *= len(x)
    return x


def recursive(n):
    return 1 if n == 0 else n * recursive(n - 1)


def strings(x):
    text = """a
  text with margins
"""
    return text + f"{len(x)!r:>{len(text)}}" + " ".join(map(str, x))


CASES = [
    (order, ()), (keywords, (1, 2, 3)), (walrus, ([1, -2, 3],)), (scopes, ([1, -2],)),
    (own_names, (1,)), (errors, ("x",)), (errors, ("3",)), (augmented, ([1, 2],)),
    (recursive, (5,)), (strings, ([1, 2],)),
]  # fmt: skip


@pytest.mark.parametrize(("function", "args"), CASES, ids=lambda it: getattr(it, "__name__", ""))
def test_a_rewritten_function_gives_the_same_in_the_same_order(function, args):
    kwargs = {"c": 3, "e": 5} if function is keywords else {}
    log.clear()
    expected, expected_log = outcome(function, *args, **kwargs), log.copy()
    for wanted in (True, False):
        log.clear()
        assert outcome(remade(function, wanted)[0], *args, **kwargs) == expected
        assert log == expected_log


def test_closures_are_shared_with_the_function():
    forward = closure(10)
    other, record = remade(forward)
    assert (forward(1), other(1), forward(1)) == (5, 8, 11)
    assert record.seen == [("assign_count_0", 4), ("assign_count_1", 6), "len_0", "str_0"] or (
        record.seen == [("assign_count_0", 4), ("assign_count_1", 6), "str_0", "len_0"]
    )


def test_globals_are_the_functions_own():
    before = GLOBAL
    other, _ = remade(globals_)
    assert other(2) == (before + 2, before + 2)
    assert other.__globals__ is globals_.__globals__
    assert not set(HELPERS) & set(globals())


def test_generators_stay_generators():
    def told(function):
        run, given = function([1, -22]), []
        with contextlib.suppress(StopIteration):
            given.append(next(run))
            for _ in range(4):
                given.append(run.send("abc"))
        return given

    assert inspect.isgeneratorfunction(remade(generator)[0])
    assert told(remade(generator)[0]) == told(generator)


async def waits(x):
    async def soon(y):
        return y + 1

    return await soon(abs(x)) + len(str(x))


def test_coroutines_stay_coroutines():
    def run(coroutine):
        with pytest.raises(StopIteration) as stopped:
            coroutine.send(None)
        return stopped.value.value

    assert run(remade(waits)[0](-3)) == run(waits(-3)) == 6


def test_defaults_keywords_and_attributes_are_kept():
    keywords.mark = "kept"
    other, _ = remade(keywords)
    assert inspect.signature(other) == inspect.signature(keywords)
    assert (other.__name__, other.__qualname__, other.mark) == ("keywords", "keywords", "kept")
    del keywords.mark


class Base:
    def value(self, x):
        return x + 1


class Derived(Base):
    __hidden = 5

    def value(self, x):
        self.__hidden += 1
        return super().value(x) + self.__hidden, __class__.__name__, self.__own(x)

    def __own(self, x):
        return abs(x)


def test_super_and_private_names_work():
    other, record = remade(Derived.value)
    assert MethodType(other, Derived())(2) == Derived().value(2) == (9, "Derived", 2)
    assert record.seen == [("assign_self___hidden_0", 6), "value_0", "self___own_0"]


def test_an_augmented_target_that_is_no_name_is_read_again_only_if_wanted():
    class Counting(list):
        reads = 0

        def __getitem__(self, key):
            Counting.reads += 1
            return super().__getitem__(key)

    def forward(x):
        x[0] += 1
        return x

    for wanted, reads in ((False, 1), (True, 2)):
        Counting.reads = 0
        assert remade(forward, wanted)[0](Counting([1])) == [2]
        assert Counting.reads == reads


def fails(x):
    y = abs(x)
    return int(
        str(y) + "no number",
    )


def test_tracebacks_show_the_functions_own_lines():
    other, _ = remade(fails)
    with pytest.raises(ValueError) as plain:
        fails(1)
    with pytest.raises(ValueError) as caught:
        other(1)
    expected = traceback.extract_tb(plain.value.__traceback__)[1]
    ours = next(
        frame for frame in traceback.extract_tb(caught.value.__traceback__) if frame.name == "fails"
    )
    place = (ours.filename, ours.lineno, ours.colno, ours.end_lineno, ours.line)
    assert place == (
        expected.filename, expected.lineno, expected.colno, expected.end_lineno, expected.line,
    )  # fmt: skip


def test_rewriting_leaves_the_plan_as_it_was():
    plan = plan_of(augmented)
    bodies = [id(node) for node in plan.definition.tree.body]
    rewritten(plan, augmented.__code__)
    assert [id(node) for node in plan.definition.tree.body] == bodies
    assert rewritten(plan, augmented.__code__) == rewritten(plan, augmented.__code__)


def test_plans_go_with_the_code_they_are_of(tmp_path):
    from insitu.engine.source import kept

    path = tmp_path / "made.py"
    path.write_text("def forward(x):\n    return abs(x)\n")
    space = {}
    exec(compile(path.read_text(), str(path), "exec"), space)
    plan_of(space["forward"])
    known = len(kept._known)
    space.clear()
    assert len(kept._known) == known - 1


@functools.cache
def standard_library():
    """Functions of the standard library, of every kind."""
    import argparse
    import ast
    import configparser
    import dataclasses
    import difflib
    import enum
    import textwrap

    found = []
    for module in (argparse, ast, configparser, dataclasses, difflib, enum, textwrap):
        for value in vars(module).values():
            parts = vars(value).values() if isinstance(value, type) else (value,)
            found += [it for it in parts if isinstance(it, FunctionType)]
    return [it for it in found if it.__code__.co_filename.endswith(".py")]


def test_every_function_of_some_modules_is_found_and_compiled_again():
    known = standard_library()
    assert len(known) > 300
    for function in known:
        if function.__name__ != "<lambda>" and not hasattr(function, "__wrapped__"):
            remade(function)
