"""Long runs: threads that trace at once, and a hundred thousand traces that leave nothing."""

import gc
import os
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from leftovers import unparked
from torch import nn
from untouched import state

from insitu import NNsight


class Net(nn.Module):
    """A module called twice, and one with a hook."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.last = (nn.Linear(8, 8) for _ in range(3))
        self.last.register_forward_hook(lambda m, args, output: output * 2)
        self.requires_grad_(False)

    def forward(self, x):
        return self.last(self.twice(torch.tanh(self.twice(self.first(x)))))


class Wanted(Exception):
    pass


def read(model, x):
    with model.trace(x):
        first = model.first.output
        return first, model.output


def edit(model, x):
    with model.trace(x) as tracer:
        model.first.output = model.first.output * 2
        model.twice.input[:] += 1
        return tracer.result


def stop(model, x):
    with model.trace(x) as tracer:
        h = model.twice.output
        tracer.stop()
    return h


def fail(model, x):
    try:
        with model.trace(x):
            model.first.output
            raise Wanted
    except Wanted:
        return


def skip(model, x):
    with model.trace(x):
        model.twice.skip(x * 3)
        return model.output


def stale(model, x):
    with pytest.raises(RuntimeError), model.trace(x):
        model.last.output
        model.first.output


def invoke(model, x):
    with model.trace() as tracer:
        with tracer.invoke(x):
            first = model.first.output
        with tracer.invoke(x * 2):
            model.first.output = first
            out = model.output
    return first, out


def fail_in_invoke(model, x):
    try:
        with model.trace() as tracer:
            with tracer.invoke(x):
                model.first.output
            with tracer.invoke(x):
                model.twice.output
                raise Wanted
    except Wanted:
        return


def stop_in_invoke(model, x):
    with model.trace() as tracer:
        with tracer.invoke(x):
            first = model.first.output
            tracer.stop()
    return first


def edit_beside(model, x):
    with model.edit() as edited:
        model.first.output[:] *= 2
    with edited.trace(x):
        return model.twice.output, edited.output


def edit_in_place(model, x):
    own = NNsight(model._module)
    with own.edit(inplace=True):
        own.first.output[:] *= 2
    edited = own(x)
    own.clear_edits()
    return edited, own(x)


def fail_in_edit(model, x):
    with model.edit() as edited:
        model.first.output
        raise Wanted
    with pytest.raises(Wanted):
        edited(x)


def operations(model, x):
    with model.trace(x):
        before = model.source.torch_tanh_0.output.clone()
        model.source.torch_tanh_0.output[:] = 0
        return before, model.output


def backward(model, x):
    with model.trace(x):
        first = model.first.output.requires_grad_()
        with model.output.sum().backward():
            return first.grad


def fail_in_backward(model, x):
    try:
        with model.trace(x):
            first = model.first.output.requires_grad_()
            with model.output.sum().backward():
                first.grad
                raise Wanted
    except Wanted:
        return


def steps(model, x):
    seen = []
    with model.trace(x) as tracer:
        for _ in tracer.iter[:]:
            seen.append(model.twice.output)
    return tuple(seen)


def captured_steps(model, x):
    seen = []
    with model.trace(x) as tracer:
        with tracer.iter[:]:
            seen.append(model.twice.output)
    return tuple(seen)


def fail_in_a_step(model, x):
    try:
        with model.trace(x) as tracer:
            with tracer.iter[:]:
                model.twice.output
                raise Wanted
    except Wanted:
        return


def cache(model, x):
    with model.trace(x) as tracer:
        kept = tracer.cache(["first", "twice"])
    return kept["first"].output, *kept["twice"].output


def held(model, x):
    run = model.open(x)
    return model.first.output, run.finish()


IN_PLACE = (read, edit, stop, fail, skip, stale)
ACTS = (
    *IN_PLACE, invoke, fail_in_invoke, stop_in_invoke, edit_beside, edit_in_place, fail_in_edit,
    operations, backward, fail_in_backward, steps, captured_steps, fail_in_a_step, cache, held,
)  # fmt: skip
"""What a trace can be: a body in place, then those that are captured, kept, or run backwards."""


def right(net, act, x):
    """What an act gives, from plain torch; None where it fails on purpose."""
    if act is backward:
        first = net.first(x).requires_grad_()
        return torch.autograd.grad(after(net, first).sum(), first)[0]
    with torch.no_grad():
        first = net.first(x)
        once, doubled = net.twice(first), net.twice(first * 2)
        again = net.twice(torch.tanh(once))
        rows = net.first(torch.cat((x, x * 2)))[:1]
        return {
            read: (first, net(x)),
            edit: after(net, first * 2 + 1),
            stop: once,
            skip: net.last(net.twice(torch.tanh(x * 3))),
            invoke: (rows, after(net, rows.repeat(2, 1))[1:]),
            stop_in_invoke: first,
            edit_beside: (doubled, after(net, first * 2)),
            edit_in_place: (after(net, first * 2), net(x)),
            operations: (torch.tanh(once), net.last(net.twice(torch.zeros_like(x)))),
            steps: (once, again),
            captured_steps: (once, again),
            cache: (first, once, again),
            held: (first, net(x)),
        }.get(act)


def after(net, first):
    """What the net makes of its first layer's output."""
    return net.last(net.twice(torch.tanh(net.twice(first))))


def same(got, wanted):
    if isinstance(wanted, tuple):
        return all(map(same, got, wanted))
    return got is wanted if wanted is None else torch.equal(got, wanted)


@pytest.mark.parametrize("act", ACTS)
def test_each_act_gives_what_plain_torch_does(act):
    net, x = Net(), torch.rand(1, 8)
    assert same(act(NNsight(net), x), right(net, act, x))


# Threads ------------------------------------------------------------------------------------------


def work(net, model, number, traces):
    """Traces of one thread; gives what went wrong."""
    wrong = []
    for i in range(traces):
        x = torch.full((1, 8), number + i / traces)
        act = IN_PLACE[(i + number) % len(IN_PLACE)]
        try:
            if not same(act(model, x), right(net, act, x)):
                wrong.append(f"thread {number}, trace {i}: {act.__name__} gave other numbers")
        except Exception as error:
            wrong.append(f"thread {number}, trace {i}: {act.__name__} raised {error!r}")
    return wrong


def soak_threads(traces, threads=4):
    net = Net()
    model, before, interval = NNsight(net), state(net), sys.getswitchinterval()
    began = time.perf_counter()
    sys.setswitchinterval(1e-6)  # threads change places as often as Python can
    try:
        with ThreadPoolExecutor(threads) as pool:
            found = pool.map(lambda n: work(net, model, n, traces), range(threads))
            wrong = [line for lines in found for line in lines]
    finally:
        sys.setswitchinterval(interval)
    print(f"{threads} threads x {traces} traces: {len(wrong)} wrong, "
          f"{time.perf_counter() - began:.1f} s")  # fmt: skip
    assert not wrong, "\n".join(wrong[:5])
    assert state(net) == before


def test_four_threads_read_edit_fail_and_stop_at_once():
    soak_threads(500)


@pytest.mark.slow
def test_four_threads_do_so_twenty_thousand_times_each():
    soak_threads(20_000)


# Leaks --------------------------------------------------------------------------------------------


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def measured():
    """What a leak would make grow."""
    gc.collect()
    return {
        "resident MB": round(resident_mb(), 1),
        "traced kB": round(tracemalloc.get_traced_memory()[0] / 1024, 1),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "greenlets": len(unparked()),
        "objects": len(gc.get_objects()),
    }


def soak_memory(traces, warm_up):
    """Traces of every kind, and what has grown meanwhile."""
    net, x = Net(), torch.rand(1, 8)
    model = NNsight(net)

    def trace(count):
        for i in range(count):
            ACTS[i % len(ACTS)](model, x)

    trace(warm_up)
    modules = state(net)
    tracemalloc.start()
    try:
        trace(warm_up)  # tracemalloc's own tables
        before, snapshot, began = measured(), tracemalloc.take_snapshot(), time.perf_counter()
        trace(traces)
        took = time.perf_counter() - began
        after, grown = measured(), tracemalloc.take_snapshot().compare_to(snapshot, "lineno")
    finally:
        tracemalloc.stop()
    top = max(grown, key=lambda line: line.size_diff)
    print(f"{traces} traces, {took / traces * 1e6:.0f} us each while watched: {before} -> {after}; "
          f"top {top.size_diff / 1024:.1f} kB at {top.traceback}")  # fmt: skip
    assert state(net) == modules
    return before, after, top.size_diff


def assert_nothing_grew(before, after, top):
    assert after["resident MB"] - before["resident MB"] < 5
    assert after["traced kB"] - before["traced kB"] < 100
    assert top < 50 * 1024
    assert after["objects"] - before["objects"] < 200
    for kind in ("files", "threads", "greenlets"):
        assert after[kind] == before[kind], kind


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_a_thousand_traces_leave_nothing():
    assert_nothing_grew(*soak_memory(1000, 200))


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_a_hundred_thousand_traces_leave_nothing():
    assert_nothing_grew(*soak_memory(100_000, 2000))
