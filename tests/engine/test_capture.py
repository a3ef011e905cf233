"""The body of a `with`, found and compiled, wherever the `with` stands."""

import ast
import asyncio
import contextlib
import gc
import importlib
import linecache
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import threading
import traceback
import weakref
import zipfile

import pytest
from fake_trace import SOURCE, CaptureError, Names, Skip, Trace, capture, find_body, now, per_code

from insitu.engine.capture import parsing

HERE = pathlib.Path(__file__).parent
PYENV = pathlib.Path("/root/.pyenv/versions")
VERSIONS = ("3.12.1", "3.13.0")
STUB = {**os.environ, "INSITU_STUB": "1", "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}


class Body:
    """Finds its body and skips it."""

    def __init__(self, what="tracer.invoke"):
        self.what = what

    def __enter__(self):
        frame = sys._getframe(1)
        self.body = find_body(frame, self.what)
        self.skip = Skip(frame)
        return self

    def __exit__(self, kind, error, traceback):
        return self.skip.swallow(error)


def bodies_of(source, name="<made up>", registered=True, **names):
    """Run a source and give the bodies that were found in it."""
    source = textwrap.dedent(source).lstrip("\n")
    found = []

    def take(*_):
        found.append(Body())
        return found[-1]

    if registered:
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    try:
        exec(compile(source, name, "exec"), {"take": take, **names})
    finally:
        linecache.cache.pop(name, None)
    return [it.body for it in found]


def body_of(source, **names):
    return bodies_of(source, **names)[0]


# What is found ------------------------------------------------------------------------------------


def test_a_body_knows_its_names_its_target_its_line_and_its_text():
    body = body_of(
        """
        x = 3
        def f():
            if True:
                with take(x) as (a, b):

                    # a comment
                    h = x * a
                    g = lambda: h + print.missing
                    del b
        f()
        """
    )
    assert body.names == {"x", "a", "b", "h", "g", "print"}
    assert body.stored == {"a", "b", "h", "g"}
    assert body.line == 7
    assert body.text == "h = x * a\ng = lambda: h + print.missing\ndel b\n"
    assert body_of("with take() as t: pass").target == "t"
    assert body_of("with take(): pass").target is None


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("with take(): a = 1; b = 2", "a = 1; b = 2"),
        ("if 1:\n  with take():\n    a = '''x\n  y\n''' + f'''\n  {1}'''\n    b = 2\n",
         "a = '''x\n  y\n''' + f'''\n  {1}'''\nb = 2\n"),
        ("with take():\n    @staticmethod\n    def f():\n        return 1\n",
         "@staticmethod\ndef f():\n    return 1\n"),
        ("import io\nwith take() as t, io.StringIO() as s, io.StringIO():\n"
         "        s.write('''a\nb''')\n",
         "with io.StringIO() as s, io.StringIO():\n    s.write('''a\nb''')\n"),
        ("if 1:\n\twith take():\n\t\ta = (1,\n2)\n\t# end\n\t\tb = 'é'\n",
         "a = (1,\n2)\n# end\nb = 'é'\n"),
    ],
)  # fmt: skip
def test_the_text_of_a_body_begins_at_column_0_and_can_be_parsed(source, text):
    body = body_of(source)
    assert body.text == text
    ast.parse(body.text)


def test_a_body_is_found_in_every_shape_of_with():
    got = []
    with now(1) as a: got.append(a)  # fmt: skip  # noqa: E701
    with now(2) as b: got.append(b); got.append(b)  # fmt: skip  # noqa: E701, E702
    with (
        contextlib.nullcontext(3) as c,
        now(4) as d,
        contextlib.nullcontext(5) as e,
    ):
        got.append((c, d, e))
    with now(6) as f, now(7) as g:
        got.append((f, g))
    with now(8) as h:
        try:
            got.append(h)
        finally:
            got.append("finally")
    with now():
        """Not a docstring."""
        got.append("__doc__" in locals())
    assert got == [1, 2, 2, (3, 4, 5), (6, 7), 8, "finally", False]


def test_items_after_the_captured_one_are_entered_when_the_body_runs():
    entered = []

    @contextlib.contextmanager
    def note(name):
        entered.append(name)
        yield name
        entered.append(f"/{name}")

    with Trace() as tracer, note("outer"), tracer.invoke(1) as given, note("inner") as name:
        entered.append((given, name))
    assert entered == ["outer", "/outer", "inner", (1, "inner"), "/inner"]


def test_each_of_several_withs_on_a_line_has_its_own_body():
    got = []
    for i in range(2):
        with now(i) as a: got.append(a)  # fmt: skip  # noqa: E701
    try:
        got.append("try")
    finally:
        with now(1) as a, now(2) as b:
            with now(3) as c:
                got.append((a, b, c))
    assert got == [0, 1, "try", (1, 2, 3)]


def test_a_body_in_a_finally_is_found_when_an_exception_passes_too():
    got = []
    with contextlib.suppress(KeyError):
        try:
            raise KeyError
        finally:
            with now(1) as a, now(2) as b:
                got.append((a, b))
    assert got == [(1, 2)]


def test_a_body_within_a_body_is_found_in_what_was_compiled():
    got = []
    with Trace() as tracer:
        for i in range(2):
            with tracer.invoke(i) as given, now(10, 20) as step:
                h = given + step

                def inner(h=h):
                    with now() as _:
                        got.append((given, step, h, i))  # noqa: B023

                inner()
    assert got == [(0, 10, 10, 0), (0, 20, 20, 0), (1, 10, 11, 1), (1, 20, 21, 1)]
    assert h == 21


def test_private_names_are_those_of_the_class_around():
    class Model:
        __scale = 3

        def run(self):
            self.__hidden = 1
            with now() as __given:
                self.__hidden += self.__scale
                __mine = self.__hidden

                class Inner:
                    __own = 5

                    def get(self):
                        return self.__own

                inner = Inner().get()
            return __mine, inner, __given

    assert Model().run() == (4, 5, None)


def test_super_works_in_a_body():
    class Base:
        def greet(self):
            return "base"

    class Child(Base):
        def greet(self):
            with now():
                said = super().greet()
                again = (lambda self: super().greet())(self)
                kind = __class__
            return said, again, kind.__name__

    assert Child().greet() == ("base", "base", "Child")


def test_annotations_of_a_functions_names_are_not_evaluated():
    with now():
        a: not_there = 1  # noqa: F821
        b: not_there  # noqa: F821, F842
    assert a == 1
    space = {"now": now}
    exec("with now():\n    a: int = 1", space)
    assert space["__annotations__"] == {"a": int}


def test_future_imports_of_the_caller_hold_in_the_body():
    space = {}
    body_of(
        """
        from __future__ import annotations
        def f():
            t = take()
            with t:
                def g(a: not_there): pass
            t.body.run(names(t))
        f()
        """,
        names=lambda t: space.setdefault("t", Names(sys._getframe(1), t.body)),
    )
    assert space["t"]["g"].__annotations__ == {"a": "not_there"}


def test_a_traceback_shows_the_users_line_and_function():
    with pytest.raises(ZeroDivisionError) as caught:
        with now():
            one = 1
            one / 0
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert last.line.startswith("one / 0")
    assert last.name == "test_a_traceback_shows_the_users_line_and_function"


def test_a_place_in_the_code_is_compiled_once_for_all_its_runs():
    found = []
    for _ in range(3):
        with (it := Body()):
            pass
        found.append(it.body)
    assert found[0] is found[1] is found[2]


def test_equal_code_in_two_places_has_two_bodies():
    source = "with take(): place = here\n"
    first, second = (body_of(source, name=f"<place {n}>", here=n) for n in range(2))
    assert first is not second
    assert first.code.co_filename != second.code.co_filename


def test_what_is_known_of_code_goes_when_the_code_goes():
    before = len(per_code.known)
    code = weakref.ref(body_of("with take():\n    def f(): pass\n    with take(): pass\n").code)
    gc.collect()
    assert code() is None
    assert len(per_code.known) <= before


def test_two_threads_capture_one_place_at_once():
    def work(n):
        total = 0
        for i in range(100):
            with now(i) as step:
                total += step * n
        return total

    results, barrier = {}, threading.Barrier(4)

    def run(n):
        barrier.wait()
        results[n] = work(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert results == {n: 4950 * n for n in range(4)}


# Where it stands ----------------------------------------------------------------------------------


def test_generators_and_coroutines():
    def generator():
        for i in range(2):
            with now(i) as got:
                doubled = got * 2
            yield doubled

    async def coroutine():
        await asyncio.sleep(0)
        with now(5) as got:
            h = [got + n for n in range(2)]
        await asyncio.sleep(0)
        async with contextlib.AsyncExitStack():
            with now(6) as got:
                pass
        return h, got

    assert list(generator()) == [0, 2]
    assert asyncio.run(coroutine()) == ([5, 6], 6)


def test_methods_class_bodies_lambdas_and_decorated_functions():
    def twice(function):
        return lambda *args: (function(*args), function(*args))

    class Kind:
        with now(1) as one:
            listed = [one for _ in range(2)]  # noqa: F821

        @twice
        @twice
        def method(self, k):
            with now(k) as got:
                return_value = got + self.listed[0]
            return return_value

    assert Kind.listed == [1, 1]
    assert Kind().method(2) == ((3, 3), (3, 3))


SCRIPT = """
from fake_trace import Trace, now
def f(n):
    out = []
    with Trace() as tracer:
        for i in range(n):
            with tracer.invoke(i) as given:
                out.append((i, given, [given + k for k in range(2)]))
    return out
with now(3) as (three): four = three + 1
for i in range(2):
    with now(i) as a, now(i + 1) as b:
        try: c = [a + b for _ in range(2)]
        except NameError: raise
"""
TOP = SCRIPT.partition("def f")[0] + "with now" + SCRIPT.partition("with now")[2]
TELL = "print(four, a, b, c)\n"
TOLD = "4 1 2 [3, 3]\n"


def python(*args, text=None, stdin=None, executable=sys.executable, **extra):
    run = subprocess.run(
        [str(executable), *map(str, args)], input=text, stdin=stdin, capture_output=True,
        text=True, timeout=60, env={**STUB, **extra}, check=False,
    )  # fmt: skip
    assert not run.stderr, run.stderr
    return run.stdout


def test_a_script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT + "print(f(1))\n" + TELL)
    assert python(path) == "[(0, 0, [0, 1])]\n" + TOLD
    assert python("-X", "no_debug_ranges", path) == "[(0, 0, [0, 1])]\n" + TOLD
    assert python("-O", path) == "[(0, 0, [0, 1])]\n" + TOLD


def test_python_c():
    assert python("-c", SCRIPT + "print(f(1))\n" + TELL) == "[(0, 0, [0, 1])]\n" + TOLD


def test_standard_input_from_a_pipe_and_from_a_file(tmp_path):
    assert python(text=TOP + TELL) == TOLD
    path = tmp_path / "script.py"
    path.write_text(SCRIPT + "print(f(1))\n" + TELL)
    with path.open() as file:
        assert python(stdin=file) == "[(0, 0, [0, 1])]\n" + TOLD


def test_the_prompt():
    typed = TOP.replace("\nfor", "\n\nfor") + "\n" + TELL
    source = f"import code, sys\nsys.ps1 = sys.ps2 = ''\ncode.interact('', exitmsg='')\n{typed}"
    run = subprocess.run(
        [sys.executable, "-i"], input=source, capture_output=True, text=True, timeout=60,
        env=STUB, check=False,
    )  # fmt: skip
    assert run.stdout.endswith(TOLD), run.stderr


def test_exec_of_a_registered_source():
    name = "<registered>"
    source = SCRIPT + "got = f(1)\n"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    space = {}
    try:
        exec(compile(source, name, "exec"), space)
    finally:
        del linecache.cache[name]
    assert (space["got"], space["c"]) == ([(0, 0, [0, 1])], [3, 3])


def test_exec_without_a_source():
    space = {}
    exec(TOP, space)
    assert (space["four"], space["a"], space["b"], space["c"]) == (4, 1, 2, [3, 3])
    with pytest.raises(CaptureError) as caught:
        exec(SCRIPT + "f(1)\n", {})
    assert caught.value.what.startswith("tracer.invoke on line 7 of <string> needs the text")
    assert "write the `with` outside of any function" in caught.value.next


def test_a_cell(request):
    shells = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell
    try:
        shell = request.getfixturevalue("bare_shell")
    except pytest.FixtureLookupError:  # another version, which has no conftest
        shell = shells.instance()
    for source in (SCRIPT, "got = f(1)", "%%capture said\n" + TOP + "print('said')"):
        shell.run_cell(source).raise_error()
    shell.run_cell("%%time\n" + TOP, silent=True).raise_error()
    shell.run_cell("import asyncio\nawait asyncio.sleep(0)\n" + TOP).raise_error()
    space = shell.user_ns
    assert (space["got"], space["four"], space["c"]) == ([(0, 0, [0, 1])], 4, [3, 3])
    assert space["said"].stdout == "said\n"
    shell.run_cell("def again():\n    with now(7) as seven: pass\n    return seven")
    shell.run_cell("def again():\n    with now(8) as eight: pass\n    return eight")
    assert space["again"]() == 8


def test_a_doctest(tmp_path):
    path = tmp_path / "in_words.py"
    path.write_text(f'"""\n>>> import sys; sys.path.insert(0, {str(HERE)!r})\n'
                    ">>> from fake_trace import now\n>>> def f():\n...     with now(3) as a:\n"
                    '...         b = a + 1\n...     return b\n>>> f()\n4\n"""\n')  # fmt: skip
    assert python("-m", "doctest", path) == ""


def test_a_module_whose_text_only_its_loader_knows(tmp_path):
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        archive.writestr("in_zip.py", SCRIPT)
    sys.path.insert(0, str(tmp_path / "zipped.zip"))
    try:
        assert importlib.import_module("in_zip").f(1) == [(0, 0, [0, 1])]
    finally:
        sys.path.pop(0)
        sys.modules.pop("in_zip", None)


def test_pytests_rewritten_assertions_in_and_around_a_body():
    x = 3
    assert x == 3
    with now(4) as y:
        assert x + y == 7
        z = x + y

        def inner(k):
            assert k, "told"
            return k + z

        assert inner(1) == 8
    assert z == 7
    with pytest.raises(AssertionError):
        with now():
            assert x == 4


# Text that is not what runs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [("a + 1", "a - 1"), ("a + 1", "b + 1"), ("a + 1", "a + 2"),
     ("= a", "= 7"), ("a + 1", "[a, 1]"), ("f.real", "f.imag"), ("(lambda: 1)", "(lambda: 2)")],
)  # fmt: skip
def test_an_edited_file_is_noticed(before, after, tmp_path, monkeypatch):
    source = (
        "from fake_trace import now\ndef f():\n    a, b, f = 1, 2, 0\n    with now():\n"
        "        c = a + 1; d = f.real; e = (lambda: 1); h = a\n    return c\n"
    )
    assert before in source
    path = tmp_path / "edited.py"
    path.write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("edited", None)
    importlib.invalidate_caches()
    module = importlib.import_module("edited")
    linecache.checkcache(str(path))
    path.write_text(source.replace(before, after))
    os.utime(path, (1, 1))
    with pytest.raises(CaptureError) as caught:
        module.f()
    assert caught.value.what == "tracer.invoke on line 4 does not stand in edited.py as it runs."
    assert "importlib.reload" in caught.value.next
    importlib.invalidate_caches()
    importlib.reload(module)
    module.f()
    sys.modules.pop("edited", None)


def test_a_file_edited_elsewhere_still_runs_as_it_was_loaded(tmp_path, monkeypatch):
    path = tmp_path / "grown.py"
    path.write_text("from fake_trace import now\ndef f():\n    with now(): a = 1\n    return a\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("grown")
    path.write_text(path.read_text() + "\n\ndef g(): return 2\n")
    assert module.f() == 1


def test_a_text_that_was_read_before_the_edit_is_used(tmp_path, monkeypatch):
    path = tmp_path / "read_before.py"
    path.write_text("from fake_trace import now\ndef f():\n    with now(): a = 1\n    return a\n")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("read_before")
    linecache.getlines(str(path))
    path.write_text("# another line\n" + path.read_text())
    assert module.f() == 1


def test_module_level_code_whose_text_is_gone_runs_from_its_bytecode():
    space = {"now": now}
    name = "<overwritten cell>"
    text = "with now():\n    other = 2\n"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile("with now():\n    right = 1\n", name, "exec"), space)
    del linecache.cache[name]
    assert space["right"] == 1
    assert "other" not in space


# What cannot be captured --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("return 1", "return"), ("x = yield", "yield"), ("yield from ()", "yield from"),
        ("break", "break"), ("if x:\n                continue", "continue"),
        ("for y in x:\n                pass\n            else:\n                break", "break"),
    ],
)  # fmt: skip
def test_a_body_that_leaves_the_code_around_it_is_refused(body, name):
    source = f"""
    def f(x=0):
        for _ in range(2):
            with take():
                {body.replace(chr(10), chr(10) + "    ")}
    list(f() or ())
    """
    with pytest.raises(CaptureError) as caught:
        bodies_of(source)
    assert re.fullmatch(
        rf"the body of tracer.invoke on line 3 has a `{name}` on line \d\.", caught.value.what
    )
    assert "not run where it stands" in caught.value.why
    assert "`with`" in caught.value.next


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ("await x", "await"), ("async with x: pass", "async with"), ("print(await x)", "await"),
        ("async for y in x: pass", "async for"), ("[y async for y in x]", "async for"),
    ],
)  # fmt: skip
def test_a_body_that_awaits_is_refused(body, name):
    with pytest.raises(CaptureError, match=f"has a `{name}`"):
        bodies_of(f"async def f(x=0):\n  with take():\n    {body}\nf().send(None)\n")


def test_loops_returns_and_awaits_of_its_own_are_a_bodys_own_affair():
    found = []
    with now():
        for i in range(5):
            if i == 1:
                continue
            if i == 3:
                break
            found.append(i)

        def inner():
            for _ in range(3):
                return (yield 1)

        async def later():
            await asyncio.sleep(0)
            return [x async for x in agen()]

        async def agen():
            yield 1

    assert (found, list(inner()), asyncio.run(later())) == ([0, 2], [1], [1])


def test_an_exit_stack_has_no_body():
    with contextlib.ExitStack() as stack:
        with pytest.raises(CaptureError) as caught:
            stack.enter_context(Body("tracer.invoke"))
    assert "is not entered by a `with` of its own" in caught.value.what
    assert caught.value.next == "write `with tracer.invoke(...):` around the body."


def test_async_with_is_refused():
    class Async:
        def __aenter__(self):
            find_body(sys._getframe(1), "tracer.invoke")

        async def __aexit__(self, *_):
            pass

    async def run():
        async with Async():
            pass

    with pytest.raises(CaptureError, match="is entered by `async with`"):
        asyncio.run(run())


def test_a_global_of_the_name_of_a_local_is_refused():
    with pytest.raises(CaptureError, match="has a `global x` on line 5"):
        bodies_of(
            """
            def f(x=1):
                with take():
                    x = 2
                    def g():
                        global x
            f()
            """
        )


# The rest of a body -------------------------------------------------------------------------------


class Generation:
    """`with model.generate(...)`, whose `all()` takes what follows it."""

    def __init__(self, runs=2):
        self.runs = runs

    def __enter__(self):
        self.entered = sys._getframe(1).f_lasti
        self.skip = None
        return self

    def all(self):
        frame = sys._getframe(1)
        self.body = capture.find_rest(frame, "model.all", self.entered)
        self.names = Names(frame, self.body)
        self.skip = Skip(frame)

    def __exit__(self, kind, error, traceback):
        if self.skip is None or not self.skip.swallow(error):
            return False
        for _ in range(self.runs):
            self.body.run(self.names)
        self.names.write_back()
        self.names.close()
        return True


def test_the_rest_of_a_body_runs_in_every_step():
    count = []
    with Generation(3) as model:
        first = len(count)
        model.all()
        count.append(first)
        last = len(count)
    assert (count, last) == ([0, 0, 0], 3)
    with Generation() as model:
        model.all()


@pytest.mark.parametrize(
    "body",
    ["for _ in range(2):\n        model.all()", "if 1: model.all()", "x = model.all()",
     "with contextlib.nullcontext():\n        model.all()\n        y = 1",
     "try: model.all()\n    finally: pass"],
)  # fmt: skip
def test_a_rest_that_cannot_be_cut_out_is_refused(body):
    source = f"with Generation() as model:\n    {body}\n    z = 1\n"
    with pytest.raises(CaptureError) as caught:
        bodies_of(source, Generation=Generation, contextlib=contextlib)
    if "x =" not in body:
        assert "does not stand directly in the trace's `with`" in caught.value.what
        assert "for step in tracer.iter[:]" in caught.value.next


# Everywhere ---------------------------------------------------------------------------------------


def run_tests_with(version, *names):
    """Run test files on another interpreter, which has no torch."""
    executable = PYENV / version / "bin" / "python"
    if not executable.exists():
        pytest.skip(f"no Python {version} here")
    site = str(pathlib.Path(pytest.__file__).parents[1])
    run = subprocess.run(
        [executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={HERE}", "--noconftest", "-q",
         "-W", "error", "-o", "markers=slow", "-p", "no:cacheprovider",
         *(str(HERE / f"test_{name}.py") for name in names)],
        env={**STUB, "PYTHONPATH": site, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.skipif("INSITU_STUB" in os.environ, reason="runs in it")
def test_names_and_bytecode_hold_for_other_versions(version):
    run_tests_with(version, "scope", "capture_bytecode")


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.skipif("INSITU_STUB" in os.environ, reason="runs in it")
def test_all_of_this_holds_for_other_versions(version):
    run_tests_with(version, "capture", "skip", "usage")


def test_nothing_but_the_standard_library_is_imported():
    code = "import sys; old = set(sys.modules); import fake_trace; print(set(sys.modules) - old)"
    imported = ast.literal_eval(python("-S", "-c", code))
    outside = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert outside == {"fake_trace", "insitu"}
    assert SOURCE.name == "insitu"


def test_texts_are_parsed_by_several_threads_at_once(monkeypatch):
    told, parse = [], ast.parse

    def parse_beside_another(*given):
        told.append(given)
        if len(told) < 3:
            raise SystemError("AST constructor recursion depth mismatch (before=57, after=24)")
        return parse(*given)

    monkeypatch.setattr(ast, "parse", parse_beside_another)
    assert ast.dump(parsing.parse("a = 1")) == ast.dump(parse("a = 1"))
    assert len(told) == 3
