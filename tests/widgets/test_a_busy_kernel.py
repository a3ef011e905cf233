"""Views and a kernel that is busy: they are heard meanwhile, and what they began can be ended."""

import asyncio
import gc
import signal
import sys
import threading
import types

import pytest
import torch
from asking import value_of
from every_widget import WIDGETS, small_estimate, small_net
from ipykernel.comm.comm import BaseComm
from ipykernel.kernelbase import Kernel
from torch import nn

from insitu import NNsight
from insitu.errors import InsituError
from insitu.widgets import (
    AttentionView,
    LensGrid,
    ModuleTree,
    PatchMap,
    RemoteLog,
    RunLedger,
    SourceBrowser,
    Stepper,
    main_thread,
    showing,
)
from insitu.widgets.trouble import trouble_of


class CellsComm(BaseComm):
    """ipykernel's own, in a kernel that runs a cell."""

    kernel = types.SimpleNamespace(
        get_parent=lambda: {"header": {"msg_id": "the cell's"}},
        session=types.SimpleNamespace(send=lambda *_, **__: None),
        iopub_socket=None,
    )


@pytest.mark.parametrize("name", WIDGETS)
def test_every_view_is_heard_while_a_cell_runs(name, monkeypatch):
    monkeypatch.setattr(Kernel, "initialized", lambda: True)
    monkeypatch.setattr("comm.create_comm", lambda **settings: CellsComm(**settings))

    def thread_of(widget):
        """Where ipykernel would hand a message of the page, which asks for its own thread."""
        assert isinstance(widget.comm, CellsComm)
        return widget.comm._reply_subshell_for({}, "the page's thread")

    widget = WIDGETS[name]()
    try:
        assert thread_of(widget) == "the page's thread"  # after it was opened
        widget.send({"news": 1})
        assert thread_of(widget) == "the page's thread"
        widget.selection = {"layer": 3}
        assert thread_of(widget) == "the page's thread"
    finally:
        widget.close()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModuleTree(nn.Linear(2, 2)),
        lambda: SourceBrowser(3),
        lambda: LensGrid(AttentionView.of(torch.rand(1, 2, 2), tokens="ab").result),
        lambda: PatchMap(AttentionView.of(torch.rand(1, 2, 2), tokens="ab").result, None),
        lambda: RemoteLog(3),
        lambda: RunLedger(3),
        lambda: Stepper(3),
        lambda: RemoteLog(types.SimpleNamespace(id="a", title="b", listen=lambda heard: 1 / 0)),
    ],
)
def test_a_view_that_is_refused_goes_without_a_word(make, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with pytest.raises((InsituError, ZeroDivisionError)):
        make()
    gc.collect()
    assert not said


# Interrupts ---------------------------------------------------------------------------------------


@pytest.fixture
def loop(monkeypatch):
    """The loop of a kernel's main thread, with the interrupt ignored between cells."""
    loop = asyncio.new_event_loop()
    monkeypatch.setattr(main_thread, "_main_loop", lambda: loop)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield loop
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    signal.signal(signal.SIGINT, before)
    loop.close()


def asked_from_elsewhere(loop, widget, name, **given):
    """A question that comes on Jupyter's thread for messages; then the main loop gets to it."""

    def come():
        value_of(widget, name, **given)
        loop.call_soon_threadsafe(loop.call_soon, loop.stop)

    thread = threading.Thread(target=come)
    thread.start()
    loop.run_forever()
    thread.join()


def test_a_patch_sweep_ends_with_the_kernels_interrupt_and_keeps_what_ran(loop):
    def run(layer, places):
        assert threading.current_thread() is threading.main_thread()
        if layer == 1:
            signal.raise_signal(signal.SIGINT)
        return torch.full((len(places),), float(layer))

    patches = PatchMap(small_estimate(), run)
    asked_from_elsewhere(loop, patches, "run", layers=[0, 1], places=[2])
    assert patches.state == {"stopped": [1, 2]}
    assert patches.exact.values.isfinite().sum() == 1
    with pytest.raises(KeyboardInterrupt):  # a cell that runs them ends as any cell does
        signal.signal(signal.SIGINT, signal.default_int_handler)
        patches.run([0, 1], [0])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert patches.state == {"stopped": [1, 2]}
    asked_from_elsewhere(loop, patches, "run", layers=[0], places=[0])
    assert patches.state == {}


def test_a_step_that_hangs_ends_with_the_kernels_interrupt_and_the_pass_with_it(loop):
    class Slow(nn.Module):
        def forward(self, x):
            signal.raise_signal(signal.SIGINT)
            return x

    model = NNsight(nn.Sequential(nn.Linear(2, 2), Slow()))
    with model.open(torch.ones(1, 2)) as run:
        stepper = Stepper(run)
        asked_from_elsewhere(loop, stepper, "do", what="module")
        assert stepper.place["where"] == "0.output"
        asked_from_elsewhere(loop, stepper, "do", what="finish")
    assert stepper.trouble["what"] == "it was interrupted."
    assert (stepper.busy, stepper.place["state"], stepper.run) == ("", "failed", None)


def test_what_a_view_began_does_not_end_the_kernels_loop(loop):
    failed = []

    def come():
        main_thread.call(lambda: signal.raise_signal(signal.SIGINT), failed.append)
        main_thread.call(lambda: 1 / 0, failed.append)
        loop.call_soon_threadsafe(loop.call_soon, loop.stop)

    thread = threading.Thread(target=come)
    thread.start()
    loop.run_forever()
    thread.join()
    assert [type(error) for error in failed] == [KeyboardInterrupt, ZeroDivisionError]


def test_outside_a_kernel_it_is_done_at_once(loop, monkeypatch):
    monkeypatch.setattr(main_thread, "_main_loop", lambda: None)
    done = []
    main_thread.call(lambda: done.append(1), done.append)
    assert done == [1]


def test_how_work_ended_is_told():
    told = []
    showing.carry_out(lambda: None, lambda *state: told.append(state))
    showing.carry_out(lambda: None, lambda *state: told.append(state), lambda: True)
    showing.carry_out(lambda: signal.raise_signal(signal.SIGINT), lambda *state: told.append(state))
    with pytest.raises(ZeroDivisionError) as caught:
        showing.carry_out(lambda: 1 / 0, lambda *state: told.append(state))
    running = ("running", None)
    ends = (
        ("done", None),
        ("stopped", None),
        ("stopped", None),
        ("failed", trouble_of(caught.value)),
    )
    assert told == [it for end in ends for it in (running, end)]
    assert told[-1][1]["why"].startswith("test_a_busy_kernel.py, line ")


def test_a_tree_whose_model_is_deleted_while_it_is_open_goes_on_showing_it():
    model = NNsight(small_net())
    tree = ModuleTree(model)
    seen = dict(tree.nodes)
    tree.selected = "1.0"
    del model
    gc.collect()
    tree.mark(read=[])
    tree._tell()
    assert tree.nodes == seen
    with pytest.raises(InsituError, match="the model of this tree is gone"):
        tree.module
    data, _ = tree._repr_mimebundle_()
    assert repr(tree) == data["text/plain"]
    assert data["text/plain"].startswith("the model of this tree is gone.")
    assert data["text/html"].startswith("<pre>the model of this tree is gone.")
    tree.close()
