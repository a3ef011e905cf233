"""Bodies of unusual forms mean what the same statements mean where they stand."""

import ast
import linecache
import os
import sys
import textwrap
import types

import pytest
import torch
from fake_trace import CaptureError, capture, find_body, now
from test_capture import Body

import insitu
from insitu import NNsight

PROMPT = "Once upon a time"

# The same with `if True:` in place of `with now(1):` is the oracle.
FORMS = {
    "nonlocal of the caller": """
        def run():
            n, m = 1, 1
            def inner():
                with now(1):
                    nonlocal n
                    n = n + 4
            inner()
            return n, m
    """,
    "nonlocal of two scopes": """
        def run():
            total = 1
            def inner():
                with now(1):
                    def f(x):
                        nonlocal total
                        total += 1
                        def g():
                            nonlocal x, total
                            x += 10
                            total += 100
                        g()
                        return x
                    return_value.append(f(5))
                return total
            return inner(), total
    """,
    "nonlocal of an import": """
        def run():
            def inner():
                with now(1):
                    def f():
                        import os.path as place, string
                        before = place.__name__, string.digits
                        def g():
                            nonlocal place, string
                            place = string = 7
                        g()
                        return before, place, string
                    return_value.append(f())
            inner()
    """,
    "private nonlocal in a class": """
        class Counter:
            def run(self):
                __n = 1
                with now(1):
                    def up(__by):
                        nonlocal __n
                        __n = __n + __by
                        return __n
                    return_value.append(up(_Counter__by=4))
                return __n, sorted(name for name in locals() if name.endswith("n"))
        run = Counter().run
    """,
    "global": """
        shared = 1
        def run():
            global shared
            with now(1):
                global shared_too
                shared, shared_too = shared + 1, 5
            return shared, shared_too
    """,
    "super without an argument": """
        class Base:
            def name(self):
                return "base"
        class Derived(Base):
            def name(self):
                return "derived"
            def run(self):
                with now(1):
                    return_value.append(super().name())
                    def method(it):
                        return super().name()
                    return_value.append(method(self))
                    def none():
                        return super().name()
                    try:
                        none()
                    except RuntimeError as error:
                        return_value.append(str(error))
        run = Derived().run
    """,
    "a set of constants": """
        def run():
            found = []
            with now(1):
                for a in range(6):
                    if a in {1, 3, 5}:
                        found.append(a)
            return found
    """,
}


def outcome(text):
    """What a program's `run()` returns, and what it appended meanwhile."""
    name, appended = f"<{len(linecache.cache)} made up>", []
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace = {"now": now, "return_value": appended}
    try:
        exec(compile(text, name, "exec"), namespace)
        return namespace["run"](), appended
    finally:
        linecache.cache.pop(name)


@pytest.mark.parametrize("form", FORMS)
def test_a_form_means_what_it_means_where_it_stands(form):
    text = textwrap.dedent(FORMS[form]).lstrip()
    assert "with now(1):" in text
    assert outcome(text) == outcome(text.replace("with now(1):", "if True:"))


def captured(text, **names):
    """The first body of a text."""
    text, name, found = textwrap.dedent(text).lstrip(), "<cut>", []

    def take():
        found.append(Body())
        return found[-1]

    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        exec(compile(text, name, "exec"), {"take": take, **names})
    finally:
        linecache.cache.pop(name)
    return found[0].body


# A body in parts ----------------------------------------------------------------------------------


def test_a_part_of_a_body_is_a_body_with_the_same_caller():
    body = captured("""
        def f(a):
            with take():
                b = a + 1
                "only a string"
                c = b * 2
                return_ = [b, c]
        f(3)
    """)
    tree = capture.tree_of(body)
    assert [ast.unparse(statement) for statement in tree.body] == [
        "b = a + 1", "'only a string'", "c = b * 2", "return_ = [b, c]",
    ]  # fmt: skip
    part = capture.cut_out(body, tree.body[1:3], "with insitu.local()")
    assert part.names == {"b", "c"}
    assert part.stored == {"c"}
    assert part.in_function is body.in_function
    assert (part.code.co_name, part.code.co_filename) == ("f", "<cut>")
    names = {"b": 4}
    exec(part.code, names)
    assert names["c"] == 8
    assert "__doc__" not in names
    with pytest.raises(CaptureError, match="has a `return`"):
        capture.cut_out(body, ast.parse("return 1").body, "with insitu.local()")


def test_a_program_is_compiled_so_that_bodies_in_it_can_be_captured():
    text = "def f(x):\n    with take() as y:\n        z = y + x\n    return z\n\nf(1)\n"
    found = []

    def take():
        found.append(Body())
        return found[-1]

    def run(code):
        with pytest.raises(UnboundLocalError):  # its body was taken away
            exec(code, {"take": take})
        return found.pop().body

    code = capture.program(ast.parse(text), text.splitlines(keepends=True), "not a file")
    assert run(code).text == "z = y + x\n"
    with pytest.raises(CaptureError, match="needs the text"):
        run(compile(text, "not a file either", "exec"))


# Texts that are not there -------------------------------------------------------------------------


@pytest.fixture
def standard_input(tmp_path):
    """Lets this process read a text from its standard input, or from a pipe."""
    before, opened = os.dup(0), []

    def give(text, by_pipe=False):
        if by_pipe:
            reading, writing = os.pipe()
            os.write(writing, text)
            os.close(writing)
        else:
            (tmp_path / "input").write_bytes(text)
            reading = os.open(tmp_path / "input", os.O_RDONLY)
        opened.append(reading)
        os.dup2(reading, 0)

    yield give
    os.dup2(before, 0)
    for number in (before, *opened):
        os.close(number)


FROM_INPUT = (
    b"def f(x):\r\n    with now(2) as y:\r\n        z = x * y  # \xc3\xa9\r\n    return z\r\n"
)


@pytest.mark.parametrize("how", ["a file", "a pipe", "no text"])
def test_a_function_of_a_program_from_standard_input(standard_input, how):
    standard_input(FROM_INPUT if how != "no text" else b"\xff\xfe", by_pipe=how == "a pipe")
    names = {"now": now}
    exec(compile(FROM_INPUT.decode().replace("\r\n", "\n"), "<stdin>", "exec"), names)
    if how == "a file":
        assert names["f"](4) == 8
    else:
        with pytest.raises(CaptureError, match="needs the text of the function it is in"):
            names["f"](4)


@pytest.mark.parametrize("edited", ["def f(:", "def f():\n    pass\n", "x = (\x00)"])
def test_a_file_that_was_edited_so_that_it_no_longer_reads_is_told(tmp_path, edited):
    path = tmp_path / "edited.py"
    path.write_text("def f():\n    with now(2) as y:\n        z = y\n    return z\n")
    names = {"now": now}
    exec(compile(path.read_text(), str(path), "exec"), names)
    path.write_text(edited)
    with pytest.raises(CaptureError, match=r"edited\.py has been edited since it was loaded"):
        names["f"]()


# The rest of a block ------------------------------------------------------------------------------


def test_all_as_a_statement_is_found_again_in_every_round(llm):
    counts = []
    for tokens in (2, 3):
        with llm.generate(PROMPT, max_new_tokens=tokens):
            met = []
            llm.all()
            met.append(llm.lm_head.output)
        counts.append(len(met))
    assert counts == [2, 3]


def test_all_as_a_statement_of_another_function_than_the_traces_is_refused(llm):
    def rest(tracer):
        tracer.all()
        llm.lm_head.output

    with pytest.raises(insitu.CaptureError, match="does not stand directly in the trace's `with`"):
        with llm.generate(PROMPT, max_new_tokens=2) as tracer:
            rest(tracer)


def test_all_as_a_statement_outside_of_any_with_is_refused(llm):
    text, name = "tracer.all()\nmodel.lm_head.output\n", "<a cell of its own>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    try:
        with pytest.raises(insitu.CaptureError, match="does not stand directly"):
            with llm.generate(PROMPT, max_new_tokens=2) as tracer:
                exec(compile(text, name, "exec"), {"tracer": tracer, "model": llm})
    finally:
        linecache.cache.pop(name)


def test_all_as_a_statement_in_a_file_that_was_edited_is_told(llm, tmp_path):
    text = "def f(model):\n    with model.generate('a', max_new_tokens=2):\n        {}\n{}"
    rest = "        out = model.lm_head.output\n"
    path = tmp_path / "all_edited.py"
    path.write_text(text.format("model.all()", rest))
    names = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    path.write_text(text.format("model.all()", rest.replace("lm_head", "other_head")))
    with pytest.raises(insitu.CaptureError):
        names["f"](llm)


# How a trace is kept ------------------------------------------------------------------------------


def test_a_trace_that_is_kept_in_an_attribute_or_an_element_is_entered_later(net, x):
    model = NNsight(net)
    box, row = types.SimpleNamespace(), {}
    box.tracer = model.trace(x)
    row["tracer"] = model.trace(x)
    for tracer in (box.tracer, row["tracer"]):
        with tracer:
            out = model.output
        assert torch.equal(out, net(x))


def test_two_traces_kept_under_one_name_are_both_entered(net, x):
    model, outs = NNsight(net), []
    for factor in (1, 2):
        tracer = model.trace(x * factor)
        with tracer:
            outs.append(model.output)
    assert torch.equal(outs[0], net(x))
    assert torch.equal(outs[1], net(x * 2))


def test_a_name_like_that_of_what_shows_keeps_its_value_in_a_scan(net, x):
    model = NNsight(net)
    display, shown = 2, []
    with model.edit() as edited:
        model.layer1.output = model.layer1.output[:, ::display].repeat(1, display)
        print = shown.append
        print(1)
    with edited.scan(x):
        shape = edited.output.shape
    assert shape == (1, 2)
    hidden = net.layer1(x)[:, ::2].repeat(1, 2)
    with edited.trace(x):
        out = edited.output
    assert torch.equal(out, net.layer2(hidden))


def test_find_body_is_for_a_with_alone():
    with pytest.raises(CaptureError, match="is not entered by a `with` of its own"):
        find_body(sys._getframe(), "tracer.invoke")
