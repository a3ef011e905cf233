"""Views that follow the passes of a model: told of each, kept alive by none, never in the way."""

import gc

import pytest
import torch

from insitu import NNsight
from insitu.engine.beside import Watcher
from insitu.engine.onlookers import look_at, look_away
from insitu.notebook.recorder import Recorder


class View(Watcher):
    """Notes what it is told; with `fails`, gets all of it wrong."""

    def __init__(self, fails=False):
        self.told = []
        self.fails = fails

    def note(self, *told):
        self.told.append(told)
        if self.fails:
            raise ZeroDivisionError

    def follow(self, run):
        self.note("follow", run.kind)
        return self

    def moved(self, run):
        self.note("moved")

    def arrived(self, node, kind, value, line, step):
        self.note("arrived", node._path)

    def skipped(self, node, value, line, step):
        self.note("skipped", node._path)

    def leaving(self, value):
        self.note("leaving")


def test_an_onlooker_is_told_of_every_pass(net, x):
    model, view = NNsight(net), View()
    look_at(model, view)
    with model.trace(x):
        model.layer1.output
        model.layer2.output
    assert view.told == [
        *(("follow", "trace"), ("arrived", "layer1"), ("leaving",)),
        *(("arrived", "layer2"), ("leaving",)),
    ]
    look_away(model, view)
    look_away(model, view)
    assert model._onlookers is None
    with model.trace(x):
        model.layer1.output
    assert len(view.told) == 5


def test_who_watches_one_pass_and_who_follows_all_are_both_told(net, x):
    model, view, recorder = NNsight(net), View(), Recorder()
    look_at(model, view)
    tracer = model.trace(x)
    tracer.watch = recorder
    with tracer:
        model.layer1.output[:] = 0
    assert [visit.written for visit in recorder.visits] == ["edited in place"]
    assert ("arrived", "layer1") in view.told


def test_an_onlooker_is_told_of_inputs_and_of_skips(net, x):
    model, view = NNsight(net), View()
    look_at(model, view)
    for _ in range(2):
        view.told.clear()
        with model.trace(x):
            model.layer1.input
            model.layer2.skip(torch.zeros(1, 2))
            out = model.output
        assert view.told == [
            *(("follow", "trace"), ("arrived", "layer1"), ("leaving",)),
            *(("skipped", "layer2"), ("arrived", "model"), ("leaving",)),
        ]
        assert not out.any()


def test_an_input_that_the_block_writes_is_told_as_written(net, x):
    model, recorder = NNsight(net), Recorder()
    tracer = model.trace(x)
    tracer.watch = recorder
    with tracer:
        model.layer2.input[:] = 0
        out = model.output
    assert [(visit.path, visit.written) for visit in recorder.visits][:1] == [
        ("layer2.input", "edited in place")
    ]
    assert torch.equal(out, net.layer2(torch.zeros(1, 10)))


def test_when_one_of_two_looks_away_the_other_goes_on(net, x):
    model, one, other = NNsight(net), View(), View()
    look_at(model, one)
    look_at(model, other)
    look_away(model, one)
    with model.trace(x):
        model.layer1.output
    assert one.told == []
    assert ("arrived", "layer1") in other.told


def test_what_an_onlooker_raises_does_not_reach_the_pass(net, x):
    model, view = NNsight(net), View(fails=True)
    look_at(model, view)
    with model.trace(x):
        h = model.layer1.output
        model.layer2.skip(h[:, :2])
    run = model.open(x)
    run.step()
    run.close()
    assert h.shape == (1, 10)
    assert view.told


def test_an_onlooker_is_not_kept_alive(net, x):
    model = NNsight(net)
    look_at(model, View())
    gc.collect()
    with model.trace(x):
        h = model.layer1.output
    assert h.shape == (1, 10)
    assert not model._onlookers.all


def test_a_pass_held_open_tells_where_it_moves(net, x):
    model, view = NNsight(net), View()
    look_at(model, view)
    run = model.open(x)
    run.step()
    run.until(model.layer2)
    run.finish()
    names = [told[0] for told in view.told]
    assert names == ["follow", "moved", "leaving", "arrived", "moved", "leaving"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_wrappers_made_by_edit_are_followed_too(net, x, when):
    model, view = NNsight(net), View()
    if when == "before":
        look_at(model, view)
    with model.edit() as edited:
        model.layer1.output[:] = 0
    if when == "after":
        look_at(model, view)
    edited(x)
    assert ("arrived", "layer1") in view.told
    look_away(edited, view)
    assert model._onlookers is edited._onlookers is None
