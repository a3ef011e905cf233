"""Bodies without a text run from their bytecode, and do what they do in place."""

import ast
import contextlib
import linecache
import textwrap
import types

import pytest
from fake_trace import CaptureError, Trace, now

WRITTEN = """
#: one line
with body(1) as a: b = a + 1
#: no target
with body(1):
    b = 2
after = b
#: unpacked
with body((1, (2, 3))) as (a, [b, *c]):
    d = a + b
#: first of several items
with body(1) as a, ctx(2) as b, ctx(3):
    c = a + b
#: last of several items
with ctx(1) as a, ctx(2) as b, body(3) as c:
    d = a + b + c
#: nested
with ctx(1) as a:
    with body(2) as b:
        with ctx(3) as c:
            with body(4) as d:
                e = a + b + c + d
        f = e
#: try first
with body(0) as z:
    try:
        one = 1 / z
    except ZeroDivisionError as e:
        said = str(e)
    else:
        said = 'else'
    finally:
        last = 1
#: exceptions within
with body(0) as z:
    for k in range(3):
        try:
            if k: raise KeyError(k)
        except KeyError as e:
            with ctx(k) as c: d = c
            continue
        finally:
            z += 10
#: suppressed within
with body(1) as a:
    with suppress(KeyError):
        b = a
        raise KeyError
    c = 2
#: in a loop
seen = []
for i in range(3):
    j = i * 2
    with body(i) as k:
        seen.append((i, j, k))
    l = k
#: last in a while
n = 3
while n:
    n -= 1
    with body(n) as k:
        m = k
#: loops within
with body(3) as n:
    out = []
    for i in range(n):
        if i == 1: continue
        while True:
            out.append(i)
            if len(out) > 2: break
            break
        else:
            out.append('never')
#: comprehensions
k = 2
with body(3) as n:
    a = [i * k for i in range(n)]
    b = {i: {j for j in a} for i in a}
    c = list(x + k for x in a)
    d = [[y + n for y in a] for x in a]
#: functions
k = 2
with body(3) as n:
    def f(x): return x + k + n
    g = lambda: f(k)
    c = g()
    class K:
        v = k
        def m(self): return self.v + n
    d = K().m()
#: in if and try
if True:
    try:
        with body(1) as a:
            b = a
    finally:
        with body(2) as c:
            d = c
#: at the end
x = 1
if x:
    with body(1) as a:
        if a:
            b = 1
        else:
            b = 2
#: deleting
gone = 1
with body(1) as a:
    del gone
    import math as m, os.path
    pi = m.pi
#: captured within
with body(1) as a:
    for i in range(2):
        with body(a + i) as b:
            c = [a, b, i]
    d = c
#: walrus and star
with body([1, 2, 3]) as a:
    if (n := len(a)) > 2: first, *rest = a
    f'{n=} {a[0]:>{n}}'
#: match
with body({'k': [1, 2]}) as a:
    match a:
        case {'k': [x, *y]}: z = x
        case _: z = None
#: assert
with body(1) as a:
    assert a, 'told'
    b = a if a else 0
    c = a and b or 3
#: global
with body(1) as a:
    def f():
        global g
        g = a
    f()
    h = g
"""
PROGRAMS = dict(part.split("\n", 1) for part in WRITTEN.split("#: ")[1:])
PROGRAMS["many constants"] = (
    "".join(f"x{i} = {i + 1000}\n" for i in range(300)) + "with body(5) as a: b = x299 + a\n"
)
PROGRAMS["many names"] = (
    "".join(f"y{i} = " for i in range(300)) + "1\nwith body(5) as z: last = y299 + z\n"
)


def run(source, body, name="<string>"):
    space = {"body": body, "ctx": contextlib.nullcontext, "suppress": contextlib.suppress}
    exec(compile(textwrap.dedent(source), name, "exec"), space)
    return comparable(space)


def comparable(space):
    plain = (int, str, float, list, dict, tuple, set, bool, type(None))
    return {n: v for n, v in space.items() if isinstance(v, plain) and n != "__builtins__"}


def registered(source, name="<registered program>"):
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    return name


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_body_does_what_it_does_in_place(name):
    source = PROGRAMS[name]
    in_place = run(source, contextlib.nullcontext)
    assert run(source, now) == in_place  # from the bytecode
    try:
        assert run(source, now, registered(source)) == in_place  # from the text
        inside = "def f():\n" + textwrap.indent(source, "    ") + "\n    return locals()\n"
        inside += "\ngot = f()\n"
        if "global" not in source:
            text = registered(inside)
            space = {"body": now, "ctx": contextlib.nullcontext, "suppress": contextlib.suppress}
            exec(compile(inside, text, "exec"), space)
            expected = {n: v for n, v in in_place.items() if not n.startswith("__")}
            got = comparable(space["got"])
            got.pop("gone", None)  # None from 3.12 on
            assert got == expected  # in a function
    finally:
        linecache.cache.pop("<registered program>", None)


def test_bodies_that_wait_see_their_own_round():
    source = (
        "seen = []\nwith Trace() as tracer:\n    for i in range(3):\n"
        "        with tracer.invoke(i * 10) as given:\n            seen.append((i, given))\n"
        "            h = given\n    with tracer.invoke(): last = h\n"
    )
    space = {"Trace": Trace}
    exec(source, space)
    assert (space["seen"], space["last"]) == ([(0, 0), (1, 10), (2, 20)], 20)


def test_a_body_run_several_times():
    space = {"now": lambda: now(1, 2, 3), "total": 0}
    exec("with now() as step:\n    total += step", space)
    assert (space["total"], space["step"]) == (6, 3)


def test_an_exception_of_the_body_leaves_it_and_runs_nothing_around_it():
    space = {"now": now, "after": []}
    source = (
        "try:\n    with now() as a:\n        before = 1\n        1 / 0\n"
        "        after.append('body')\n"
        "    after.append('with')\nexcept KeyError:\n    after.append('handler')\n"
    )
    with pytest.raises(ZeroDivisionError) as caught:
        exec(source, space)
    assert (space["before"], space["after"]) == (1, [])
    assert caught.traceback[-1].lineno + 1 == 4


@pytest.mark.parametrize("leaving", ["break", "if x: break", "if x: continue"])
@pytest.mark.parametrize("loop", ["for x in [1, 2]", "while True"])
def test_a_body_that_leaves_the_loop_around_it_is_an_error(loop, leaving):
    source = f"x = 1\n{loop}:\n    with now():\n        {leaving}\n    after = 1\n    break\n"
    with pytest.raises(CaptureError, match="leaves the loop around it"):
        exec(source, {"now": now})


def test_a_body_that_awaits_is_refused():
    source = "with now():\n    await thing()\n"
    code = compile(source, "<string>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with pytest.raises(CaptureError, match="needs the text of its body"):
        types.FunctionType(code, {"now": now})().send(None)


def test_a_body_beside_an_await_runs():
    source = (
        "async def nothing(): pass\nawait nothing()\n"
        "with now(3) as a:\n    b = a\nawait nothing()\n"
    )
    space = {"now": now}
    code = compile(source, "<string>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    with pytest.raises(StopIteration):
        types.FunctionType(code, space)().send(None)
    assert space["b"] == 3


def test_a_class_body_that_shares_names_with_its_functions_is_refused():
    source = "class K:\n    with now() as a:\n        def f(self): return __class__\n"  # a cell
    with pytest.raises(CaptureError, match="needs the text of its body"):
        exec(source, {"now": now})


def test_a_traceback_has_the_line_of_the_body():
    with pytest.raises(ZeroDivisionError) as caught:
        exec("x = 1\n\n\nwith now():\n\n    x / 0\n", {"now": now})
    assert caught.traceback[-1].lineno + 1 == 6
