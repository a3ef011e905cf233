"""Skipping a body, and leaving debuggers, coverage tools and profilers as they were."""

import bdb
import os
import pathlib
import subprocess
import sys
import textwrap
import threading

import pytest
from fake_trace import Skip, Trace, now
from test_capture import STUB

NEW = sys.version_info >= (3, 12)


class Skipping:
    """Skips its body, and does nothing else."""

    def __enter__(self):
        self.skip = Skip(sys._getframe(1))

    def __exit__(self, kind, error, traceback):
        self.swallowed = self.skip.swallow(error)
        return self.swallowed


@pytest.fixture(autouse=True)
def tracing_is_as_before():
    before = sys.gettrace(), sys.getprofile()
    yield
    assert (sys.gettrace(), sys.getprofile()) == before
    if NEW:
        assert [sys.monitoring.get_tool(t) for t in (3, 4)] == [None, None]


def tracing_of(frame):
    return sys.gettrace(), frame.f_trace, frame.f_trace_lines, frame.f_trace_opcodes


def test_a_body_is_skipped_and_what_follows_runs():
    ran = []
    with Skipping() as _: ran.append(1)  # fmt: skip  # noqa: E701
    ran.append(2)
    for _ in range(3):
        with Skipping():
            ran.append(3)
        ran.append(4)
    assert ran == [2, 4, 4, 4]


def test_nothing_of_the_frame_is_left_changed():
    frame = sys._getframe()
    before = tracing_of(frame)
    with Skipping():
        pass
    assert tracing_of(frame) == before
    skipping = Skipping()
    with skipping:
        pass
    assert skipping.skip.frame is None
    if NEW:
        code = frame.f_code
        assert not any(sys.monitoring.get_local_events(tool, code) for tool in range(6) if
                       sys.monitoring.get_tool(tool))  # fmt: skip


def test_a_skip_swallows_its_own_exception_only():
    class Failing(Skipping):
        def __exit__(self, kind, error, traceback):
            super().__exit__(kind, KeyError(), traceback)
            return self.swallowed

    failing = Failing()
    with pytest.raises(BaseException) as caught:
        with failing:
            pass
    assert type(caught.value).__name__ == "Skipped"
    assert failing.skip.swallow(caught.value) is False


def test_items_after_the_skipping_one_are_skipped_too():
    with Skipping(), {}["not evaluated"]:
        pass


def test_threads_skip_the_same_body_at_once():
    ran, done = [], []

    def work():
        for _ in range(300):
            with Skipping():
                ran.append(1)
            done.append(1)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert (len(ran), len(done)) == (0, 1200)


@pytest.mark.skipif(not NEW, reason="needs sys.monitoring")
def test_where_no_monitoring_tool_is_free_tracing_is_used():
    taken = [t for t in range(6) if sys.monitoring.get_tool(t) is None]
    for tool in taken:
        sys.monitoring.use_tool_id(tool, "another")
    ran = []
    try:
        with Skipping():
            ran.append(1)
    finally:
        for tool in taken:
            sys.monitoring.free_tool_id(tool)
    assert ran == []


# Others that trace --------------------------------------------------------------------------------


def test_a_tracing_function_sees_every_line_around_and_in_the_body():
    lines = []

    def look(frame, event, argument):
        if frame.f_code.co_filename != __file__:
            return None
        if event in ("line", "exception"):
            lines.append((event, frame.f_lineno, frame.f_code.co_name))
        return look

    def block():
        with Trace() as tracer:
            with tracer.invoke(3) as given:
                a = given
                b = a + 1
            c = 5
        return b + c

    first = block.__code__.co_firstlineno
    before = sys.gettrace()
    sys.settrace(look)
    try:
        assert block() == 9
        assert sys.gettrace() is look
    finally:
        sys.settrace(before)
    seen = [(line - first, event) for event, line, name in lines if name == "block"]
    assert {event for _, event in seen} == {"line"}
    assert [line for line, _ in seen if line != 2] == [1, 5, 1, 3, 4, 6]


class Stepper(bdb.Bdb):
    """Goes through one function with `next`, and notes where it stops."""

    def __init__(self, code):
        super().__init__()
        self.code, self.stops, self.names = code, [], []

    def user_line(self, frame):
        if frame.f_code.co_filename == __file__ and frame.f_code.co_name == self.code.co_name:
            self.stops.append(frame.f_lineno - self.code.co_firstlineno)
            self.names.append(frame.f_locals.get("b"))
            self.set_next(frame)
        else:
            self.set_next(frame)

    def user_exception(self, frame, error):
        self.stops.append("exception")


def test_a_debugger_goes_on_with_the_line_after_the_body():
    def block():
        a = 1
        with now(a) as given:
            b = given
            b += 1
        c = b
        with now(a): b = 10  # fmt: skip  # noqa: E701
        return b + c

    stepper = Stepper(block.__code__)
    stepper.botframe = None
    result = []
    before = sys.gettrace()
    stepper.reset()
    stepper.botframe = sys._getframe()
    stepper.set_step()
    sys.settrace(stepper.trace_dispatch)
    try:
        result.append(block())
    finally:
        sys.settrace(before)
        sys._getframe().f_trace = None
    assert result == [12]
    assert "exception" not in stepper.stops
    outside = [line for line in stepper.stops if line not in (2, 3, 4, 6)]
    assert outside == [1, 5, 7]
    assert stepper.names[-1] == 10


def test_a_breakpoint_in_a_body_is_hit_in_pdb(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent("""
        from fake_trace import Trace
        def run():
            with Trace() as tracer:
                for i in range(2):
                    with tracer.invoke(i) as given:
                        doubled = given * 2
                        tripled = given * 3
            return doubled, tripled
        print("result", run())
    """)
    )
    said = subprocess.run(
        [sys.executable, "-m", "pdb", str(path)], capture_output=True, text=True, timeout=60,
        input="b 8\nc\np 'doubled', doubled, given\nn\nc\np 'doubled', doubled, given\nu\nu\nu\nu\n"
        "cl 1\ny\nc\nq\n",
        env=STUB, check=False,
    ).stdout  # fmt: skip
    assert "('doubled', 0, 0)" in said
    assert "('doubled', 2, 1)" in said
    assert "program.py(8)run()" in said
    assert "result (2, 3)" in said


def test_a_profiler_sees_calls_return():
    calls = []

    def look(frame, event, argument):
        if frame.f_code.co_name == "block":
            calls.append(event)

    def block():
        with now(1) as a:
            b = a + 1
        return b

    sys.setprofile(look)
    try:
        assert block() == 2
        assert sys.getprofile() is look
    finally:
        sys.setprofile(None)
    assert calls.count("call") == calls.count("return")


def covered(tmp_path, program):
    """What a program says that coverage.py runs; its measurements are in the folder."""
    site = str(pathlib.Path(pytest.importorskip("coverage").__file__).parents[1])
    environment = {**STUB, "PYTHONPATH": os.pathsep.join((STUB["PYTHONPATH"], site))}
    environment.pop("COVERAGE_FILE", None)
    path = tmp_path / "covered.py"
    path.write_text(program)
    asked = (
        "import coverage, sys; data = coverage.CoverageData(); data.read(); "
        "print(sorted(data.lines(sys.argv[1])))"
    )
    runs = [
        subprocess.run(
            [sys.executable, *arguments],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )
        for arguments in (
            ["-m", "coverage", "run", "--include", str(path), str(path)], ["-c", asked, str(path)],
        )
    ]  # fmt: skip
    assert runs[0].returncode == 0, runs[0].stderr
    return runs[0].stdout, runs[1].stdout


def test_coverage_sees_the_body(tmp_path):
    program = "from fake_trace import now\nwith now(1) as a:\n    b = a\n    c = b\nd = 1\n"
    assert covered(tmp_path, program) == ("", "[1, 2, 3, 4, 5]\n")


def test_under_coverage_a_skip_keeps_nothing_of_its_caller(tmp_path):
    program = """
import gc, weakref
from fake_trace import now

class Big:
    pass

def block():
    big = Big()
    with now(1) as a:
        b = a
    return weakref.ref(big)

gc.disable()
print(block()())
"""
    assert covered(tmp_path, program)[0] == "None\n"


def test_an_error_of_a_body_tells_of_no_skip_however_deep():
    def block():
        with now(1):
            try:
                raise LookupError("first")
            except LookupError:
                raise KeyError("second")  # noqa: B904

    with pytest.raises(KeyError, match="second") as caught:
        block()
    chain, error = [], caught.value
    while error is not None:
        chain.append(type(error).__name__)
        error = error.__context__
    assert chain == ["KeyError", "LookupError"]


def test_a_function_that_keeps_its_locals_keeps_what_is_in_them():
    def block():
        a = 1
        mine = locals()
        with now(2) as b:
            c = a + b
        return a, b, c, mine["a"]

    assert block() == (1, 2, 3, 1)
