"""The hottest functions in C mean what they mean in Python, and are there where they can be.

The other tests of the engine run both: `make test` runs the central ones again in Python alone.
"""

import contextvars
import gc
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import threading
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack

import insitu
from insitu import NNsight
from insitu.engine import hot, modes, reading
from insitu.engine.switch import getcurrent

in_c_only = pytest.mark.skipif(hot.compiled is None, reason="the engine is not compiled here")
QUESTIONS = (
    modes.grad_on,
    modes.inference_on,
    modes.autocast_on,
    modes.functions_on,
    modes.dispatches_on,
    getcurrent,
)


class Branching(nn.Module):
    """Calls its second layer, and fails, only when told to."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(3, 3) for _ in range(3))
        self.calls_second, self.failure = True, None

    def forward(self, x):
        x = self.first(x)
        if self.calls_second:
            x = self.second(x)
        if self.failure is not None:
            raise self.failure
        return self.third(x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Branching().requires_grad_(False)


@pytest.fixture
def model(net):
    return NNsight(net)


@pytest.fixture
def x():
    return torch.rand(2, 3)


def read_all(model, x):
    with model.trace(x):
        seen = [model.first.output, model.second.output, model.third.output]
    return seen


@pytest.fixture
def known(model, x):
    """A model whose block has run before: from here on the short way is taken."""
    for _ in range(3):
        read_all(model, x)
    return model


# Where it is --------------------------------------------------------------------------------------


def run(program, **environment):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_is_compiled_where_there_is_a_compiler_and_python_h():
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not (shutil.which("cc") and headers.exists()) or os.environ.get("INSITU_PURE_PYTHON"):
        pytest.skip("no compiler here, or not asked for")
    assert hot.compiled is not None
    assert reading.output.fget is hot.compiled.read


def test_the_environment_chooses_python():
    program = """
        import torch
        from insitu import NNsight
        from insitu.engine import hot, reading
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        model, x = NNsight(net), torch.ones(1, 2)
        for _ in range(3):
            with model.trace(x):
                model[0].output = model[0].output * 2
                last = model[1].output
        assert torch.equal(last, net[1](net[0](x) * 2))
        print(hot.compiled is None and reading.output.fget is reading.read)
    """
    assert run(program, INSITU_PURE_PYTHON="1") == "True"
    is_there = importlib.util.find_spec("insitu.engine._hot") is not None
    assert run(program, INSITU_PURE_PYTHON="0") == str(not is_there)


@in_c_only
@pytest.mark.parametrize("wrong", [lambda: True, len, torch._C._set_grad_enabled])
def test_a_torch_whose_modes_cannot_be_asked_for_from_c_has_python_ask(wrong, known, net, x):
    assert not hot.compiled.can_ask(*QUESTIONS[:-1], wrong)
    assert not hot.compiled.can_ask(*QUESTIONS[:-1])
    assert hot.compiled.can_ask(*QUESTIONS)
    assert torch.equal(read_all(known, x)[2], net(x))


@in_c_only
def test_what_it_is_bound_to_must_have_slots():
    class Other:
        near = 1

    with pytest.raises(TypeError, match=r"Other.*near is no slot"):
        hot.compiled.bind(*[None] * 2, Other, *[None] * 8)


def test_it_says_what_a_read_is():
    assert "edit in place" in type(NNsight(nn.Linear(1, 1))).output.__doc__


# What is told -------------------------------------------------------------------------------------


def test_a_layer_that_is_not_called_this_time_is_told_at_the_line_that_asks(known, net, x):
    net.calls_second = False
    with pytest.raises(insitu.OutOfOrderError, match="second did not run after line") as caught:
        read_all(known, x)
    assert caught.traceback[-1].path == Path(__file__)
    with pytest.raises(insitu.NeverRanError, match="second did not run in this pass"):
        with known.trace(x):
            known.second.output
    net.calls_second = True
    assert torch.equal(read_all(known, x)[2], net(x))


@pytest.mark.parametrize("failure", [ValueError, AttributeError, KeyboardInterrupt])
def test_an_error_of_the_model_comes_out_of_the_read_as_it_is(known, net, x, failure):
    net.failure = failure("of the model")
    for _ in range(3):
        with pytest.raises(failure, match="of the model") as caught:
            read_all(known, x)
        assert caught.value is net.failure
        assert "read_all" in [entry.name for entry in caught.traceback]
    net.failure = None
    assert torch.equal(read_all(known, x)[2], net(x))


def test_a_read_in_another_thread_says_so_and_the_pass_goes_on(known, net, x):
    told = []

    def elsewhere():
        with pytest.raises(insitu.PassClosedError, match="another thread") as caught:
            known.second.output
        told.append(caught.value.__cause__)

    for _ in range(3):
        with known.trace(x):
            known.first.output
            thread = threading.Thread(target=contextvars.copy_context().run, args=(elsewhere,))
            thread.start()
            thread.join()
    assert len(told) == 3


def test_a_value_is_the_same_object_each_time_it_is_asked_for(known, x):
    with known.trace(x):
        assert known.first.output is known.first.output


def test_a_write_is_named_by_an_error_that_it_leads_to(known, net, x):
    def write_and_go_on():
        with known.trace(x):
            known.first.output = known.first.output * 2  # this line
            known.second.output
            known.third.output

    for _ in range(3):
        write_and_go_on()
    net.failure = ValueError("of the model")
    with pytest.raises(ValueError, match="of the model") as caught:
        write_and_go_on()
    assert any("replaced first.output" in note for note in caught.value.__notes__)
    line = write_and_go_on.__code__.co_firstlineno + 2
    assert any(f"line {line} " in note for note in caught.value.__notes__)


@pytest.mark.parametrize(
    "other",
    [
        lambda value: value[:, :2],
        lambda value: value.double(),
        lambda value: value.to("meta"),
        lambda value: "no tensor",
        lambda value: None,
    ],
)
def test_a_value_that_does_not_fit_is_refused(known, net, x, other):
    for _ in range(3):
        with pytest.raises(insitu.WriteError), known.trace(x):
            known.first.output
            known.second.output = other(known.second.output)
    assert torch.equal(read_all(known, x)[2], net(x))


def test_a_parameter_a_forced_value_and_a_view_can_be_written(known, net, x):
    for value in (nn.Parameter(torch.ones(2, 3)), insitu.force(torch.ones(1, 3))):
        for _ in range(3):
            with known.trace(x):
                known.first.output
                known.second.output = value
                out = known.third.output
            assert torch.equal(out, net.third(torch.ones(2, 3))[: len(out)])


# Modes --------------------------------------------------------------------------------------------


def in_force():
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
    functions = [type(mode) for mode in _get_current_function_mode_stack()]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), dtype, functions


@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("cpu"),
    ],
)
def test_each_side_keeps_its_modes(net, x, mode):
    net.requires_grad_(True)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = net, []

        def forward(self, x):
            with mode():
                self.seen.append(in_force())
                y = self.net.second(self.net.first(x))
                self.seen.append(in_force())
            self.seen.append(in_force())
            return self.net.third(y.to(x.dtype).clone())

    inner = Inner()
    model = NNsight(inner)
    for _ in range(4):
        inner.seen.clear()
        with model.trace(x):
            here = [in_force()]
            for layer in (model.net.first, model.net.second, model.net.third):
                layer.output
                here.append(in_force())
        assert here == [in_force()] * 4
        with mode():
            assert inner.seen == [in_force(), in_force(), here[0]]


# Memory -------------------------------------------------------------------------------------------


def test_values_go_with_the_names_that_hold_them(known, x):
    seen = read_all(known, x)
    alive = [weakref.ref(value) for value in seen]
    del seen
    assert [ref() for ref in alive] == [None] * 3


def test_nothing_is_counted_twice_or_given_back_twice(known, net, x):
    def once(fails):
        with known.trace(x):
            known.first.output = known.first.output * 1
            known.second.output[:] += 0
            known.third.output
            if fails:
                known.first.output

    def several():
        for fails in (False, True) * 50:
            try:
                once(fails)
            except insitu.OutOfOrderError as error:
                error.__traceback__ = None
        net.failure = AttributeError("of the model")
        for _ in range(50):
            with pytest.raises(AttributeError):
                once(False)
        net.failure = None
        gc.collect()

    watched = None, True, False, known, known.first, net, net.first, once.__code__, x, (), "output"
    several()
    before = [sys.getrefcount(it) for it in watched]
    several()
    after = [sys.getrefcount(it) for it in watched]
    assert all(abs(a - b) < 40 for a, b in zip(after, before, strict=True)), (before, after)
