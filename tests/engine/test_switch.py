"""Coroutines on greenlets: a C++ error in one kills no process; finished ones are reused."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref

import pytest
import torch
from torch import nn

from insitu import NNsight
from insitu.engine import switch


def run_python(code, timeout_s=120):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, timeout=timeout_s, env=environment, check=False,
    )  # fmt: skip


STRESS = """
    import random, sys
    import torch
    from torch import nn
    from insitu import NNsight

    runs, seed = int({runs}), int({seed})
    random.seed(seed)

    def fail(depth):
        if depth:
            return fail(depth - 1)
        return torch.ones(2, 3) @ torch.ones(2, 3)   # a real c10::Error

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        def forward(self, x, depth=0, wrong=False):
            if depth:
                return self.forward(x, depth - 1, wrong)
            x = self.first(x)
            if wrong:
                fail(random.randrange(40))
            return self.last(x)

    model, x, caught, held = NNsight(Deep()), torch.ones(1, 4), 0, []
    for _ in range(runs):
        in_model, in_block = random.random() < 0.5, random.random() < 0.5
        try:
            with model.trace(x, depth=random.randrange(60), wrong=in_model):
                model.first.output
                try:
                    fail(random.randrange(60))
                except RuntimeError:
                    caught += 1
                if random.random() < 0.3:      # more greenlets alive at once
                    with NNsight(model._module).trace(x):
                        NNsight(model._module)
                if in_block:
                    fail(random.randrange(60))
                model.last.output
        except RuntimeError as error:
            assert "shapes cannot be multiplied" in str(error), error
            caught += 1
        if random.random() < 0.2:  # parked half-way, so that new ones are made
            one = NNsight(Deep())
            run = one.open(x)
            run.step()
            held.append((one, run))
        if len(held) > 12:
            held.pop(random.randrange(len(held)))[1].close()
    for _, run in held:
        run.close()
    print("caught", caught)
"""


def test_c_plus_plus_errors_at_random_depths_do_not_kill_the_process():
    done = run_python(STRESS.format(runs=60, seed=0))
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("caught ")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_stress_of_300_greenlets(seed):
    done = run_python(STRESS.format(runs=300, seed=seed), timeout_s=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_error_with_a_backtrace_in_three_hundred_fresh_greenlets():
    done = run_python("""
        import contextvars, torch
        from insitu.engine import switch

        back = switch.getcurrent()
        def wrong():
            try:
                torch.ones(2, 3) @ torch.ones(2, 3)
            except RuntimeError:
                pass
            return back
        workers = []
        for _ in range(300):
            worker = switch.acquire()
            worker.begin(wrong, contextvars.copy_context())
            workers.append(worker)
        print("alive", sum(not w.dead for w in workers))
    """)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "alive 300\n"


def test_finished_workers_are_parked_and_used_again(net, x):
    model = NNsight(net)
    with model.trace(x):
        model.layer1.output
    parked = switch.parked()
    assert parked >= 1
    for _ in range(20):
        with model.trace(x):
            model.layer1.output
            assert switch.parked() == parked - 1
    assert switch.parked() == parked


def test_no_more_than_a_few_are_kept(x):
    models = [NNsight(nn.Linear(5, 5)) for _ in range(3 * switch.PARKED_MAX)]
    runs = [model.open(x).step() for model in models]
    for run in runs:
        run.close()
    assert switch.parked() == switch.PARKED_MAX


def test_parked_workers_hold_nothing_of_the_last_run(x):
    net = nn.Linear(5, 5)
    model = NNsight(net)
    with model.trace(x):
        hidden = weakref.ref(model.output)
    gone = weakref.ref(net)
    del model, net
    gc.collect()
    assert hidden() is None
    assert gone() is None


def test_threads_that_end_leave_no_greenlets(net, x):
    model = NNsight(net)

    def work():
        with model.trace(x):
            model.layer1.output

    def alive():
        gc.collect()
        return sum(type(o) is switch.Worker for o in gc.get_objects())

    work()
    before = alive()
    for _ in range(30):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    work()
    assert alive() <= before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forked_after_a_trace_traces_too():
    done = run_python("""
        import multiprocessing, torch
        torch.set_num_threads(1)  # a fork after OpenMP's threads started hangs anywhere
        from insitu import NNsight
        model, x = NNsight(torch.nn.Linear(3, 3)), torch.ones(1, 3)
        def work():
            with model.trace(x):
                out = model.output
            print("child", tuple(out.shape), flush=True)
        work()
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        child.join(30)
        print("exit", child.exitcode)
    """)
    assert done.stdout.count("child (1, 3)") == 2, done.stderr
    assert "exit 0" in done.stdout


def test_importing_starts_no_thread_and_computes_nothing():
    done = run_python("""
        import threading, torch
        from torch.utils._python_dispatch import TorchDispatchMode
        class Nothing(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                raise AssertionError(f"{func} was computed")
        before = set(threading.enumerate())
        import os
        tasks = len(os.listdir("/proc/self/task"))
        with Nothing():
            import insitu
        assert set(threading.enumerate()) == before
        assert len(os.listdir("/proc/self/task")) == tasks
    """)
    assert done.returncode == 0, done.stderr


def test_a_recursion_limit_hit_in_the_model_is_an_ordinary_error(x):
    class Endless(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 5)

        def forward(self, x):
            self.inner(x)
            return self.forward(x)

    model = NNsight(Endless())
    with pytest.raises(RecursionError), model.trace(x):
        for _ in range(3):
            model.inner.output
    assert torch.equal(NNsight(model._module.inner).open(x).finish(), model._module.inner(x))
