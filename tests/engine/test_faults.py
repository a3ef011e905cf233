"""Whatever goes wrong: the error is the user's own or says what to do; the next trace is right."""

import os
import signal
import subprocess
import sys
import textwrap
import traceback

import pytest
import torch
from torch import nn

from insitu import NNsight


class Faulty(nn.Module):
    """Does something in the middle of its forward."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 2)
        self.act = act

    def forward(self, x, act=True):
        x = self.first(x)
        if act:
            self.act()
        return self.last(x)


def fails(act, expected, x, passes_before=1, **match):
    """The error of a trace of a model that acts up; the next trace is right."""
    net = Faulty(act)
    model = NNsight(net)
    for _ in range(passes_before):
        with model.trace(x, act=False):
            pass
    with pytest.raises(expected, **match) as caught, model.trace(x):
        model.first.output
        model.last.output
    with pytest.raises(expected), model.trace(x):
        pass
    with model.trace(x, act=False):
        first = model.first.output
        out = model.output
    assert torch.equal(first, net.first(x))
    assert torch.equal(out, net(x, act=False))
    return caught.value


# The model --------------------------------------------------------------------------------------


def divide():
    return 1 / 0


def from_another():
    try:
        divide()
    except ZeroDivisionError as error:
        raise LookupError("mine") from error


@pytest.mark.parametrize("passes_before", [0, 1])
def test_an_error_in_the_model_keeps_class_message_and_frames(x, passes_before):
    error = fails(divide, ZeroDivisionError, x, passes_before)
    frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames]
    assert str(error) == "division by zero"
    assert names[-2:] == ["forward", "divide"]
    assert "fails" in names
    assert not [f for f in frames if f"{os.sep}insitu{os.sep}engine{os.sep}" in f.filename]


def test_a_chain_of_errors_stays_a_chain(x):
    error = fails(from_another, LookupError, x)
    assert isinstance(error.__cause__, ZeroDivisionError)


def raise_memory_error():
    raise MemoryError("CUDA out of memory")


def test_a_memory_error_in_the_model(x):
    fails(raise_memory_error, MemoryError, x, match="out of memory")


def test_sys_exit_in_the_model(x):
    assert fails(lambda: sys.exit(3), SystemExit, x).code == 3


def test_a_keyboard_interrupt_in_the_middle_of_a_forward(x):
    fails(lambda: signal.raise_signal(signal.SIGINT), KeyboardInterrupt, x)


def raise_stop_iteration():
    raise StopIteration


def test_stop_iteration_and_generator_exit_in_the_model(x):
    def generator_exit():
        raise GeneratorExit

    fails(raise_stop_iteration, StopIteration, x)
    fails(generator_exit, GeneratorExit, x)


def test_a_c_plus_plus_error_in_the_model(x):
    fails(lambda: torch.ones(2, 3) @ torch.ones(2, 3), RuntimeError, x, match="multiplied")


def test_an_error_in_a_users_forward_hook(net, x):
    model = NNsight(net)
    for hook in (lambda *_: 1 / 0, lambda m, a, o: divide()):
        handle = net.layer1.register_forward_hook(hook)
        with pytest.raises(ZeroDivisionError), model.trace(x):
            model.layer2.output
        handle.remove()
    with model.trace(x):
        out = model.layer2.output
    assert torch.equal(out, net(x))


class Stubborn(nn.Module):
    """Catches everything, GreenletExit and KeyboardInterrupt too."""

    def __init__(self):
        super().__init__()
        self.inner, self.after = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, x):
        try:
            x = self.inner(x)
        except BaseException:
            x = x * 0
        return self.after(x)


def test_a_model_that_swallows_everything_is_left_too(x):
    net = Stubborn()
    model = NNsight(net)
    for _ in range(3):
        with model.trace(x) as tracer:
            model.inner.output
            tracer.stop()
        with pytest.raises(KeyError), model.trace(x):
            model.inner.input
            raise KeyError
        run = model.open(x).until("inner")
        run.close()
        with model.trace(x):
            out = model.output
        assert torch.equal(out, net(x))


def test_an_error_the_model_itself_catches_is_none(x):
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.risky, self.safe = Faulty(divide), nn.Linear(5, 2)

        def forward(self, x):
            try:
                return self.risky(x)
            except ZeroDivisionError:
                return self.safe(x)

    net = Careful()
    model = NNsight(net)
    for _ in range(3):
        with model.trace(x):
            first = model.risky.first.output
            out = model.safe.output
        assert torch.equal(first, net.risky.first(x))
        assert torch.equal(out, net(x))


def test_an_error_in_the_third_step_of_a_generation(llm):
    calls = []

    def third(module, args):
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError("third")

    handle = llm._module.transformer.register_forward_pre_hook(third)
    steps = []
    with pytest.raises(ZeroDivisionError, match="third"):
        with llm.generate("Once upon a time", max_new_tokens=5) as tracer:
            for step in tracer.iter[:]:
                steps.append(step)
                llm.lm_head.output
    handle.remove()
    assert steps == [0, 1, 2]
    with llm.generate("Once upon a time", max_new_tokens=2) as tracer:
        assert len([llm.lm_head.output for _step in tracer.iter[:]]) == 2


# The block --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [KeyError("mine"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()]
)
@pytest.mark.parametrize("reads", [0, 1, 2])
def test_an_error_in_the_block_is_the_users_own(net, x, error, reads):
    model = NNsight(net)
    for _ in range(2):
        with pytest.raises(type(error)) as caught, model.trace(x):
            for node in (model.layer1, model.layer2)[:reads]:
                node.output
            raise error
        assert caught.value is error
        with model.trace(x):
            out = model.output
        assert torch.equal(out, net(x))


def test_an_index_out_of_range_in_the_block(llm):
    with pytest.raises(IndexError) as caught, llm.trace("Once upon a time"):
        llm.transformer.h[0].output[0, 999]
    assert traceback.extract_tb(caught.value.__traceback__)[-1].filename == __file__
    with pytest.raises(IndexError, match="4 modules"), llm.trace("Once upon a time"):
        llm.transformer.h[4].output


def test_an_error_after_the_block_ended_in_the_rest_of_the_model(x):
    net = Faulty(divide)
    with pytest.raises(ZeroDivisionError) as caught, NNsight(net).trace(x) as tracer:
        tracer.log
        NNsight(net)
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "divide"


def test_an_error_in_the_block_while_the_model_has_one_of_its_own(x):
    class Cleans(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 5)

        def forward(self, x):
            try:
                return self.inner(x)
            finally:
                self.cleaned = True

    net = Cleans()
    with pytest.raises(KeyError), NNsight(net).trace(x) as tracer:
        tracer._root.inner.output
        raise KeyError
    assert net.cleaned


# Signals ----------------------------------------------------------------------------------------


def test_ctrl_c_in_a_forward_of_another_process():
    code = """
        import os, signal, sys, threading, time
        import torch
        from insitu import NNsight

        class Slow(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = torch.nn.Linear(3, 3)
                self.slow = True
            def forward(self, x):
                x = self.inner(x)
                if self.slow:
                    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
                    time.sleep(20)
                return x
        net = Slow()
        model, x = NNsight(net), torch.ones(1, 3)
        for _ in range(2):
            try:
                with model.trace(x):
                    model.inner.output
                    model.output
            except KeyboardInterrupt:
                print("interrupted", "forward" in net.__dict__ or "forward" in net.inner.__dict__)
        net.slow = False
        with model.trace(x):
            out = model.output
        print("right", torch.equal(out, net(x)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "interrupted False\ninterrupted False\nright True\n", done.stderr


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
def test_alarms_at_any_moment_leave_a_model_that_works():
    """An alarm may strike between any two instructions, of the engine's too."""
    code = """
        import signal, torch
        from insitu import NNsight

        def strike(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, strike)
        net = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        model, x, struck = NNsight(net), torch.ones(1, 3), 0
        for i in range(200):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00005 + i * 0.000002)
                with model.trace(x):
                    for _ in range(20):
                        model[0].output = model[0].output * 1
                    model[1].output
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                struck += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        with model.trace(x):
            first = model[0].output
            out = model.output
        assert torch.equal(first, net[0](x)) and torch.equal(out, net(x))
        assert not any("forward" in m.__dict__ for m in net.modules())
        print("struck", struck > 0)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "struck True\n", done.stderr
