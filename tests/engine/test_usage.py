"""How the result of a call is used is seen before it is returned."""

import contextlib
import sys

import pytest
from fake_trace import usage


class Used:
    """What a call did with it, once it has been returned."""

    def __init__(self):
        self.how = usage.returns_to(sys._getframe(1))
        seen.append(self.how)
        self.inner = self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None


seen: list[str] = []


@pytest.fixture(autouse=True)
def nothing_seen():
    seen.clear()


def test_a_call_entered_by_a_with():
    other = Used
    with Used():
        pass
    with Used() as a, Used() as b:
        pass
    with Used() if seen else other():
        pass
    with (named := Used()):
        pass

    async def asynchronous():
        async with Used():
            pass

    with pytest.raises(StopIteration):
        asynchronous().send(None)
    assert seen == ["with"] * 6
    assert a.how == b.how == named.how == "with"


def test_a_call_whose_result_is_computed_with():
    class Number(Used):
        def __mul__(self, other):
            return self.how

        __rmul__ = __getitem__ = __mul__

        def __iter__(self):
            return iter([self.how])

    one = two = 1
    told = [Number() * 2, Number() * (one + two), 2 * Number(), Number()[0], Number()[one + two]]
    (how,) = Number()
    told += [how, *[it for it in Number()], f"{Number()}"[:0] or how]  # noqa: C416
    assert set(told) == {"computed"}
    assert set(seen) == {"computed"}


def test_a_call_that_is_an_argument_may_yet_be_entered():
    with contextlib.ExitStack() as stack:
        stack.enter_context(Used())
    box = {"a": Used()}
    assert box["a"].how == "other"
    assert seen == ["other"] * 2


def test_a_call_whose_result_is_stored():
    global stored_global
    local = Used()
    stored_global = Used()
    one = two = Used()
    cell = Used()
    (lambda: cell)()
    annotated: Used = Used()
    (walrus := Used())
    names = ("local", "stored_global", "one", "cell", "annotated", "walrus")
    assert seen == [f"stored:{name}" for name in names]
    assert one is two
    assert {local, annotated, walrus}
    space = {"Used": Used}
    exec("at_the_top = Used()", space)
    assert seen[-1] == "stored:at_the_top"


def test_a_call_whose_result_is_discarded_returned_or_read():
    def back():
        return Used()

    Used()
    Used().inner
    Used().__enter__()
    back()
    assert seen == ["discarded", "attribute:inner", "attribute:__enter__", "returned"]


def test_a_call_whose_result_is_used_otherwise():
    box = {}
    box["k"] = Used()
    Used.attribute = Used()
    str(Used())
    a, b = Used(), 3  # noqa: F841
    [Used() for _ in range(1)]
    assert seen == [*["other"] * 4, "computed"]
    del Used.attribute


def test_the_last_expression_of_a_cell_is_shown(capsys):
    exec(compile("Used()", "<cell>", "single"), {"Used": Used})
    assert seen == ["shown"]
    assert "Used object" in capsys.readouterr().out


def test_the_second_look_at_a_place_costs_no_disassembly(monkeypatch):
    def work():
        return Used().how

    first = work()
    monkeypatch.setattr(usage.dis, "get_instructions", pytest.fail)
    assert work() == first == "attribute:how"


def test_whether_a_stored_name_is_entered_later():
    frame = sys._getframe()
    tracer = Used()
    other = Used()
    cell = Used()
    with tracer:
        (lambda: cell)()
    with cell as inner, contextlib.nullcontext(other):
        assert inner
    assert usage.enters_later(frame, "tracer")
    assert usage.enters_later(frame, "cell")
    assert not usage.enters_later(frame, "other")
    assert not usage.enters_later(frame, "frame")


def test_whether_a_call_is_taken_for_a_job():
    class Asked(Used):
        def __init__(self):
            self.wanted = usage.wants_job(sys._getframe(1))

        def result(self):
            return self.wanted

        cancel = watch = result

    asked = Asked()
    told = [asked.result(), Asked().result()]
    cancelled = Asked().cancel()
    entered = Asked()
    with entered:
        told += [not entered.result()]
    watched = Asked()
    told += [not watched.watch(), not cancelled]
    assert told == [True] * 5
