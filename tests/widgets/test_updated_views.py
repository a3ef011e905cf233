"""Grids and attention whose numbers are put in place anew; the oracle is a view of them alone."""

import time

import pytest
import torch

from insitu.errors import UsageError
from insitu.methods import attention_patterns, logit_lens
from insitu.widgets import AttentionView, LensGrid

FIRST, SECOND = "Once upon a time", "The Eiffel Tower is in"


def as_sent(view):
    view._tell()
    state = view.get_state()
    named = {key: state[key] for key in state if not key.startswith("_") and key != "selection"}
    return {key: it for key, it in named.items() if key not in ("shown", "layout", "tabbable")}


def test_another_lens_takes_the_place_of_the_one_that_is_shown(llm):
    lens = logit_lens(llm, SECOND)
    view = LensGrid(logit_lens(llm, FIRST))
    view.update(lens)
    alone = LensGrid(lens)
    assert (view.text(), view.html()) == (alone.text(), alone.html())
    assert as_sent(view) == as_sent(alone)


def test_plain_numbers_of_the_same_size_keep_their_tokens_and_a_measure_that_is_gone_is_left(llm):
    lens = logit_lens(llm, FIRST)
    view = LensGrid(lens)
    view.measure = len(view.measures) - 1
    view.update(torch.zeros(lens.shape))
    assert "0" in view.text()
    view._tell()
    assert (view.measure, len(view.measures)) == (0, 1)
    assert view.columns == LensGrid(lens).columns
    view.update(torch.ones(1, 2), tokens=["a", "b"], texts=["x", "y"])
    view._tell()
    assert (view.rows, view.columns, view.texts) == (["0"], ["a", "b"], ["x", "y"])
    for wrong in (torch.ones(3), torch.tensor(1.0), torch.ones(4, 5)):
        with pytest.raises(UsageError):
            view.update(wrong)
    assert view.result.shape == (1, 2)


def test_other_patterns_take_the_place_of_those_that_are_shown(llm):
    patterns = attention_patterns(llm, SECOND)
    view = AttentionView(attention_patterns(llm, FIRST))
    view.update(patterns)
    alone = AttentionView(patterns)
    assert (view.text(), view.html()) == (alone.text(), alone.html())
    assert as_sent(view) == as_sent(alone)
    assert view.shown == 1
    view.update(torch.zeros(patterns.shape))
    assert view.answer_query({"layer": 0, "head": 0, "query": 0})[1] == [bytes(4 * view.size[1])]
    with pytest.raises(UsageError):
        view.update(torch.ones(2, 3, 3))


def test_many_updates_are_few_messages_and_the_last_is_shown():
    view = LensGrid.of(torch.zeros(2, 2), tokens=["a", "b"])
    sent = []
    view.observe(lambda change: sent.append(change["new"]), "values")
    for number in range(200):
        view.update(torch.full((2, 2), float(number)))
    end = time.monotonic() + 5
    while not sent and time.monotonic() < end:
        time.sleep(0.02)
    last = LensGrid.of(torch.full((2, 2), 199.0), tokens=["a", "b"]).values
    assert sent[-1] == last
    assert len(sent) <= 3
