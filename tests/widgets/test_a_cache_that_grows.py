"""A cache inspector opened during a pass follows it; the oracle is one opened after it."""

import copy
import gc
import json
import pickle
import time
import weakref

import pytest
import torch
from asking import trouble_with, value_of
from torch import nn

import insitu
from insitu import NNsight
from insitu.widgets import CacheInspector

PROMPT = "Once upon a time"


@pytest.fixture
def heard(monkeypatch):
    """What views tell without having been asked, in order."""
    told = []
    send = CacheInspector.send

    def kept(view, content, buffers=None):
        if "news" in content:
            told.append(json.loads(json.dumps(content["news"], allow_nan=False)))
        send(view, content, buffers)

    monkeypatch.setattr(CacheInspector, "send", kept)
    return told


def rows_of(view):
    """Every row, as the page would have it."""
    return value_of(view, "rows", first=0, end=10_000)["rows"]


def unnumbered(view):
    return sorted(row[1:] for row in rows_of(view))


def until(is_so, patience_s=5.0):
    end = time.monotonic() + patience_s
    while not is_so() and time.monotonic() < end:
        time.sleep(0.01)
    assert is_so()


def test_a_view_opened_as_a_generation_begins_follows_it(llm, heard):
    with llm.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer:
        cache = tracer.cache()
        view = cache.view()
        assert (view.count, view.growing, rows_of(view)) == (0, True, [])
    after = cache.view()
    assert (view.count, view.growing) == (after.count, False)
    assert view.size_bytes == after.size_bytes
    assert unnumbered(view) == unnumbered(after)
    assert view.first == value_of(view, "rows", first=0, end=60)
    assert (view.text(), view.html()) == (after.text(), after.html())
    assert heard[-1]["count"] == after.count
    steps = [row[2] for row in rows_of(view)]
    assert steps == sorted(steps)  # in the order they came, and so step by step
    assert set(steps) == {0, 1, 2}


def test_a_pass_parked_between_cells_shows_what_it_kept_so_far(llm, heard):
    run = llm.open(PROMPT)
    cache = run.cache("transformer.h.*")
    view = cache.view()
    run.until("transformer.h.1")
    run.step()
    until(lambda: view.count)
    kept = list(cache)
    assert [row[1] for row in rows_of(view)] == [f"{path}.output" for path in kept]
    view.chosen = 0
    first = view.tensor
    run.finish()
    assert view.count == len(cache) == len(llm.transformer.h)
    assert view.tensor is first  # a number stays that of its tensor
    assert not view.growing


def test_news_are_few_and_hold_only_what_is_new(heard):
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(40))

        def forward(self, x):
            for layer in self.layers:
                time.sleep(0.01)
                x = layer(x)
            return x

    model = NNsight(Slow())
    with model.trace(torch.ones(1, 4)) as tracer:
        view = tracer.cache("layers.*").view()
        began = time.monotonic()
    seconds = time.monotonic() - began
    assert 2 <= len(heard) <= seconds / 0.1 + 2
    told = [row for news in heard for row in news["rows"]]
    assert [row[0] for row in told] == list(range(40))
    assert told == rows_of(view)
    assert all(not news["rest"] and news["stale"] == [] for news in heard)


def test_the_first_call_is_named_anew_when_there_is_a_second(heard):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(self.inner(x))

    with NNsight(Twice()).trace(torch.ones(1, 3)) as tracer:
        cache = tracer.cache(include_inputs=True)
        view = cache.view()
    names = [row[1] for row in rows_of(view)]
    assert names == [
        "model.inner[0].input", "model.inner[0].output",
        "model.inner[1].input", "model.inner[1].output", "model.input", "model.output",
    ]  # fmt: skip


class Writes(nn.Module):
    """Changes in place what its first layer returned."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.ReLU(inplace=True)
        self.third = nn.Linear(5, 5)

    def forward(self, x):
        return self.third(self.second(self.first(x)))


@pytest.mark.filterwarnings("ignore:values of first")
def test_a_value_that_is_written_over_has_no_numbers_any_more(heard):
    model = NNsight(Writes())
    with model.trace(torch.ones(1, 5)) as tracer:
        view = tracer.cache().view()
        model.first.output
        view._tell()
        model.second.output
        view._tell()
        assert value_of(view, "numbers", which=[0])["0"]["mean"] is None  # it is read as it is now
    row = rows_of(view)[0]
    assert (row[1], row[3], row[4], row[5]) == ("model.first.output", [1, 5], "lost", 0)
    assert 0 in {number for news in heard for number in news["stale"]}
    assert view.size_bytes == 3 * 5 * 4
    assert value_of(view, "hunt", start=0) == {"found": None, "next": None}
    assert "model.first.output is lost" in trouble_with(view, "picture", which=0)["what"]


def test_a_cache_that_moves_to_disk_holds_no_tensor_in_memory(llm, tmp_path, heard):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache(budget=4000, spill=tmp_path / "kept")
        view = cache.view()
    assert not [it for it in view._found if isinstance(it.value, torch.Tensor)]
    assert unnumbered(view) == unnumbered(cache.view())
    assert value_of(view, "numbers", which=[0])["0"]["mean"] is not None


def test_a_spilled_pass_that_fails_leaves_rows_without_numbers(llm, tmp_path):
    with pytest.raises(ZeroDivisionError), llm.trace(PROMPT) as tracer:
        cache = tracer.cache(spill=tmp_path / "kept")
        view = cache.view()
        llm.transformer.h[2].output
        view._tell()
        1 / 0
    assert len(cache) == 0
    assert {row[4] for row in rows_of(view)} == {"lost"}
    assert not view.growing


def test_another_cache_that_grows_is_compared_as_it_comes(llm, heard):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache("transformer.h.*")
    with llm.trace(PROMPT) as tracer:
        other = tracer.cache("transformer.h.*")
        view = cache.view(other)
        assert value_of(view, "numbers", which=[0])["0"]["apart"] is None
        llm.transformer.h[0].output[:] *= 2
    assert value_of(view, "numbers", which=[0])["0"]["apart"]["largest"] > 0
    assert heard[-1]["stale"] is not None
    assert 0 in {number for news in heard for number in news["stale"]}
    after = cache.view(other)
    assert view.text() == after.text()


def test_nothing_is_hooked_where_no_view_is_open_and_a_closed_one_hears_no_more(llm):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache("transformer.h.*")
        news = cache.records["model.transformer.h.0"].news
        assert news.ears == []
        view = cache.view()
        assert len(news.ears) == 1
        view.close()
        assert news.ears == []
        dropped = cache.view()
        gone = weakref.ref(dropped)
        dropped.close()
        del dropped
        insitu.selection.layer = 1  # which closed views are linked to until it changes
        gc.collect()
        assert gone() is None
        open_ = cache.view()
    assert (news.ears, open_.growing) == ([], False)
    assert cache.view()._arriving.is_growing is False


def test_a_view_that_fails_does_not_reach_the_pass(llm, monkeypatch):
    def fail(*_):
        raise RuntimeError("a view broke")

    with pytest.warns(insitu.InsituWarning, match="a view broke"), llm.trace(PROMPT) as tracer:
        cache = tracer.cache("transformer.h.*")
        view = cache.view()
        monkeypatch.setattr(view._arriving, "take", fail)
        monkeypatch.setattr(view._arriving, "_heard", fail)
    assert len(cache) == len(llm.transformer.h)


def test_a_copied_or_pickled_cache_takes_no_listener_along(llm):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache("transformer.h.*")
        view = cache.view()
        copied = copy.deepcopy(cache.records["model.transformer.h.0"])
        assert copied.news.ears == []
    again = pickle.loads(pickle.dumps(cache))
    assert again.records["model.transformer.h.0"].news.ears == []
    assert view.count == len(again)


def test_ten_thousand_arrive_within_the_budget():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.ModuleList(nn.Identity() for _ in range(100))

        def forward(self, x):
            for _ in range(100):
                for module in self.inner:
                    x = module(x)
            return x

    with NNsight(Deep()).trace(torch.ones(2)) as tracer:
        cache = tracer.cache("inner.*")
        view = cache.view()
    assert view.count == 10_000
    sent = json.dumps([view.first, value_of(view, "rows", first=0, end=60)])
    assert len(sent) < 50_000
    before = time.perf_counter()
    opened = cache.view()
    assert opened.count == 10_000
    assert time.perf_counter() - before < 1  # 0.2 s where nothing else runs
