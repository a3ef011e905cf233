"""The names of a captured body: read and written as plain code would, only later."""

import dataclasses
import gc
import sys
import traceback
import weakref

import pytest
from fake_trace import Names, Skip, Trace, find_body, now

limit = 10
counted = 0
shared = "module's"


class Kept:
    """An edit: its body is run after its `with`, as often as asked for."""

    def __enter__(self):
        frame = sys._getframe(1)
        self.body = find_body(frame, "model.edit")
        self.names = Names(frame, self.body)
        self.skip = Skip(frame)

    def __exit__(self, kind, error, traceback):
        return self.skip.swallow(error)

    def run(self):
        names = self.names.fresh()
        self.body.run(names)
        return names


# Reading ------------------------------------------------------------------------------------------


def test_a_loop_variable_keeps_the_value_of_its_round():
    seen = []
    with Trace() as tracer:
        for i in range(3):
            square = i * i
            with tracer.invoke():
                seen.append((i, square))
    assert seen == [(0, 0), (1, 1), (2, 4)]


def test_a_loop_variable_keeps_it_when_it_is_a_cell_too():
    seen = []
    with Trace() as tracer:
        for i in range(3):
            with tracer.invoke():
                seen.append((lambda: i)())
    assert seen == [0, 1, 2]


def test_a_name_bound_after_the_body_was_written_is_found_when_it_runs():
    with Trace() as tracer:
        with tracer.invoke():
            doubled = later * 2  # noqa: F821
        later = 4
    assert doubled == 8
    del later


def test_a_name_that_is_nowhere_is_a_name_error_at_the_users_line():
    with pytest.raises(NameError, match="nowhere") as caught:
        with now():
            here = sys._getframe().f_lineno
            nowhere  # noqa: F821
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    name = sys._getframe().f_code.co_name
    assert (last.filename, last.lineno, last.name) == (__file__, here + 1, name)
    assert caught.value.__context__ is None  # nothing of the skip is shown


def test_globals_are_read_live():
    global limit

    def raise_it():
        global limit
        limit += 1

    before = limit
    with now():
        raise_it()
        seen = limit
    assert seen == before + 1 == limit


def test_a_function_of_the_caller_called_from_the_body_changes_what_it_reads():
    count = 0

    def bump():
        nonlocal count
        count += 1

    with now():
        bump()
        seen = count
        count += 10
    assert (seen, count) == (1, 11)


def test_nested_functions_comprehensions_and_generators_see_the_callers_names():
    base, scale = 3, 2
    with now():
        listed = [base + n * scale for n in range(3)]
        summed = sum(base for _ in range(4))
        keyed = {n: [base * m for m in range(n)] for n in range(3)}

        def inner(k):
            return lambda: base * k

        called = inner(5)()
    assert (listed, summed, keyed, called) == ([3, 5, 7], 12, {0: [], 1: [0], 2: [0, 3]}, 15)


def test_a_class_in_the_body_sees_the_callers_names():
    base = 3
    with now():

        class Kind:
            doubled = base * 2
            base = base + 1

            def triple(self):
                return base * 3

    assert (Kind.doubled, Kind.base, Kind().triple()) == (6, 4, 9)
    assert Kind.__module__ == __name__


def test_a_dataclass_in_the_body_finds_its_module():
    with now():

        @dataclasses.dataclass
        class Pair:
            a: int
            b: "list[int]"

    assert Pair(1, [2]) == Pair(1, [2])


def test_builtins_are_the_callers():
    space = {"__builtins__": {"len": lambda _: "theirs"}, "now": now, "__name__": "elsewhere"}
    exec("with now():\n    size = len('')", space)
    assert space["size"] == "theirs"


def test_eval_and_locals_in_a_body_are_the_bodys_own():
    base = 3
    with now():
        own = 4
        both = eval("base + own")
        mine = "own" in locals()
    assert (both, mine) == (7, True)


def test_relative_imports_in_a_body_know_their_package(tmp_path, monkeypatch):
    package = tmp_path / "captured_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "beside.py").write_text("value = 5\n")
    (package / "main.py").write_text(
        "from fake_trace import now\nwith now():\n    from .beside import value\n"
        "def f():\n    with now():\n        from . import beside\n    return beside.value\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("captured_package.main").main
    assert (module.value, module.f()) == (5, 5)


# Writing ------------------------------------------------------------------------------------------


def test_what_the_body_stores_is_the_callers_afterwards():
    with now():
        a = 1
        b, *c = 2, 3, 4
        for d in range(5):
            b += d - d
        with open("/dev/null") as e:
            pass
        import math as f

        if (g := a + 1) > 1:
            h: int = g
        i: "never evaluated" = 8  # noqa: F722
        j: object  # noqa: F842
    assert (a, b, c, d, e.closed, f.pi > 3, g, h, i) == (1, 2, [3, 4], 4, True, True, 2, 2, 8)


def test_an_augmented_assignment_goes_on_from_the_callers_value():
    total = 1
    with Trace() as tracer:
        for i in range(4):
            with tracer.invoke():
                total += i
    assert total == 7


def test_nonlocal_names_reach_the_outer_function():
    count, bumps = 0, []

    def inner():
        nonlocal count
        with now():
            count += 1

            def bump():
                nonlocal count
                count += 10

            bump()
        bumps.append(count)

    inner()
    inner()
    assert (count, bumps) == (22, [11, 22])


def test_nonlocal_of_a_function_within_the_body_stays_there():
    with now():

        def counter():
            n = 0

            def step():
                nonlocal n
                n += 1
                return n

            return step

        step = counter()
        step()
        n = "mine"
        twice = step()
    assert (twice, n) == (2, "mine")


def test_global_names_reach_the_module():
    global counted

    def bump():
        global counted
        counted += 10

    before = counted
    with now():
        counted += 1
        bump_inside = "def"

        def inside():
            global counted
            counted += 100

        inside()
    assert (counted, bump_inside) == (before + 101, "def")
    bump()
    assert counted == before + 111


def test_a_deleted_name_is_deleted_in_the_caller():
    scratch = [1]
    with now():
        del scratch
        with pytest.raises(NameError):
            scratch  # noqa: F821
    if sys.version_info >= (3, 12):  # a frame's name cannot be unbound from outside; it is let go
        assert scratch is None  # noqa: F821
    else:
        with pytest.raises(UnboundLocalError):
            scratch  # noqa: F821


def test_the_name_of_a_caught_exception_ends_with_its_clause():
    with now():
        try:
            1 / 0
        except ZeroDivisionError as error:
            said = str(error)
    assert said == "division by zero"
    assert "error" not in locals()


def test_deleting_what_is_not_there_is_a_name_error():
    with pytest.raises(NameError):
        with now():
            del never_there  # noqa: F821


def test_module_level_names_are_written_to_the_module():
    space = {"now": now, "kept": 1, "gone": 2}
    exec(
        "with now():\n    new = kept + 1\n    kept = 5\n    del gone\n    from math import *", space
    )
    assert (space["new"], space["kept"], "gone" in space, space["pi"] > 3) == (2, 5, False, True)


def test_names_in_a_class_body_are_written_to_the_class():
    class Kind:
        before = 2
        with now() as _:
            after = before + 1

            def method(self):
                return "called"

    assert (Kind.after, Kind().method()) == (3, "called")


def test_names_in_exec_with_its_own_locals_are_written_there():
    space, own = {"now": now, "a": 1}, {"b": 2}
    exec("global g\nwith now():\n    c = a + b\n    g = 9", space, own)
    assert (own["c"], space["g"], "c" in space, "g" in own) == (3, 9, False, False)


def test_a_failed_body_has_written_what_it_had_stored():
    with pytest.raises(ZeroDivisionError):
        with Trace() as tracer:
            with tracer.invoke():
                reached = 1
                1 / 0
                not_reached = 2
    assert reached == 1
    assert "not_reached" not in locals()


def test_a_body_run_several_times_goes_on_with_its_own_names():
    total, steps = 0, []
    with now(1, 2, 3) as step:
        total += step
        steps.append(step)
    assert (total, steps, step) == (6, [1, 2, 3], 3)


def test_targets_of_every_kind_are_assigned():
    class Box:
        pass

    box, listed = Box(), [0, 0]
    with now((1, (2, 3))) as (a, (b, *c)):
        pass
    with now(4) as box.value:
        pass
    with now(5) as listed[-1]:
        pass
    assert (a, b, c, box.value, listed) == (1, 2, [3], 4, [0, 5])


# Between bodies -----------------------------------------------------------------------------------


def test_a_name_assigned_in_one_body_is_readable_in_the_next():
    with Trace() as tracer:
        with tracer.invoke(1) as given:
            h = given + 1
        with tracer.invoke():
            h = h * 10
        with tracer.invoke():
            last = h
    assert (h, last) == (20, 20)


def test_what_the_caller_assigns_between_two_bodies_counts_in_the_second():
    with Trace() as tracer:
        with tracer.invoke():
            prompt = "of the first body"
        prompt = "of the caller"
        with tracer.invoke():
            seen = prompt
    assert seen == "of the caller"


def test_names_of_another_function_are_not_shared():
    def add(tracer, value):
        with tracer.invoke():
            h = value  # noqa: F841

    h = "caller's"
    with Trace() as tracer:
        add(tracer, 1)
        with tracer.invoke():
            seen = h
    assert seen == "caller's"


def test_a_body_waits_for_a_name_that_an_earlier_one_has_not_stored_yet():
    waited = []
    tracer = Trace()
    for value in (1, 2):
        with tracer.invoke(value) as given:
            if given:
                h = given
    with tracer.invoke():
        seen = h
        other = limit
    first, second, third = tracer.captured

    def run_the_earlier(name):
        waited.append((name, third.names.is_due(name)))
        first.run(1)
        assert not third.names.is_due(name)
        second.run(2)
        assert third.names.is_due(name)

    third.names.wait = run_the_earlier
    third.run(None)
    tracer.__exit__(KeyError, KeyError(), None)
    assert waited == [("h", False)]
    assert (seen, other) == (2, limit)


def test_a_body_that_ended_without_storing_is_not_waited_for():
    h = "before"
    tracer = Trace()
    with tracer.invoke():
        if limit < 0:
            h = "never"
    with tracer.invoke():
        seen = h
    first, second = tracer.captured
    second.names.wait = pytest.fail
    first.run(None)
    second.run(None)
    tracer.__exit__(KeyError, KeyError(), None)
    assert seen == "before"


def test_a_name_that_only_the_clause_of_an_exception_binds_is_not_waited_for():
    tracer = Trace()
    for _ in range(2):
        with tracer.invoke():
            try:
                {}["missing"]
            except KeyError as error:
                said = str(error)
    first, second = tracer.captured
    second.names.wait = pytest.fail
    second.run(None)
    first.run(None)
    tracer.__exit__(KeyError, KeyError(), None)
    assert said == "'missing'"


def test_a_name_of_an_earlier_body_can_be_deleted():
    with Trace() as tracer:
        with tracer.invoke():
            h = [1]
        with tracer.invoke():
            size = len(h)
            del h
            with pytest.raises(NameError):
                h  # noqa: F821
    assert size == 1
    assert locals().get("h") is None


def test_a_name_that_the_earlier_body_deleted_is_gone_in_the_next():
    h = "before"
    with pytest.raises(NameError):
        with Trace() as tracer:
            with tracer.invoke():
                del h
            with tracer.invoke():
                h  # noqa: F821


# Bodies that are kept -----------------------------------------------------------------------------


def test_a_kept_body_runs_afresh_each_time_with_the_names_it_was_written_with():
    total, alpha, runs, kept = 0, 3, [], Kept()
    with kept:
        total += alpha
        runs.append(total)
    alpha = 100
    kept.run()
    kept.run()
    assert (runs, total, alpha) == ([3, 3], 0, 100)


def test_a_kept_body_runs_after_its_function_has_returned():
    runs = []

    def write(alpha):
        kept = Kept()
        with kept:
            result = [alpha + n for n in range(2)]
            runs.append(result)
        return kept

    kept = write(4)
    names = kept.run()
    assert (runs, names["result"]) == ([[4, 5]], [4, 5])


def test_a_kept_body_does_not_keep_its_caller():
    class Big:
        pass

    def write():
        big, kept = Big(), Kept()
        with kept:
            pass
        kept.names.close()
        return kept, weakref.ref(big)

    gc.disable()
    try:
        kept, big = write()
        assert big() is None
    finally:
        gc.enable()
    kept.run()


def test_a_value_that_the_caller_lets_go_of_is_freed_after_a_capture():
    class Big:
        pass

    big = Big()
    freed = weakref.ref(big)
    with now():
        small = 1
    del big
    assert freed() is None
    assert small == 1


def test_functions_that_a_body_leaves_behind_see_the_modules_names_as_they_are_now():
    space = {"now": now, "scale": 1}
    exec("with now():\n    own = 2\n    def f(): return scale * own", space)
    assert space["f"]() == 2
    space["scale"], space["own"] = 5, 7
    assert space["f"]() == 35
