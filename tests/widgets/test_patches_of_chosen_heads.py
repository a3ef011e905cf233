"""What a patch map runs, and the cell it writes; the oracle is a sweep over every head."""

import sys

import pytest
import torch

import insitu
from insitu.errors import UsageError
from insitu.methods import activation_patching
from insitu.methods.metrics import logit_difference
from insitu.widgets import main_thread
from insitu.widgets.patch_map import patch_map

PAIR = "Once upon a time", "Once upon the time"


@pytest.fixture
def metric(llm):
    first, second = llm.tokenizer(PAIR[0])["input_ids"][:2]
    return logit_difference(llm, first, second)


@pytest.mark.parametrize("of", ["heads", "q", "k"])
def test_chosen_heads_are_those_of_a_sweep_over_all(llm, metric, of):
    every = activation_patching(llm, *PAIR, metric, of=of)
    found = activation_patching(llm, *PAIR, metric, of=of, heads=[-1, 0], layers=[1, 3])
    last = len(every.axes[1]) - 1
    assert list(found.axes[1].labels) == [last, 0]
    assert torch.allclose(found.values, every.values[[1, 3]][:, [last, 0]], atol=1e-5)
    assert found.info["rows"] < every.info["rows"]


def test_heads_at_each_position_may_be_chosen_too(llm, metric):
    every = activation_patching(llm, *PAIR, metric, of="heads", positions="each")
    found = activation_patching(llm, *PAIR, metric, of="heads", positions="each", heads=[1])
    assert torch.allclose(found.values, every.values[..., [1]], atol=1e-5)


def test_heads_that_are_not_there_are_refused(llm, metric):
    with pytest.raises(UsageError, match="there is no head 99"):
        activation_patching(llm, *PAIR, metric, of="heads", heads=[99])
    with pytest.raises(UsageError, match="'mlp' has positions, and no heads"):
        activation_patching(llm, *PAIR, metric, of="mlp", heads=[0])


def test_brushing_a_head_runs_that_head_alone(llm, metric, monkeypatch):
    patches = patch_map(llm, *PAIR, metric, of="heads")
    asked = []

    def watched(*given, **settings):
        found = activation_patching(*given, **settings)
        asked.append((settings["layers"], settings["heads"], tuple(found.shape)))
        return found

    module = sys.modules["insitu.widgets.patch_map"]  # insitu.widgets has a function of its name
    monkeypatch.setattr(module, "activation_patching", watched)
    patches.run([1, 2], [3])
    assert asked == [([1], [3], (1, 1)), ([2], [3], (1, 1))]
    assert int(patches.exact.values.isfinite().sum()) == 2


def test_the_cell_names_what_the_notebook_names_and_runs_there(llm, metric, monkeypatch):
    def margin(logits):
        return logits[:, -1, 3] - logits[:, -1, 5]

    there = {"_hidden": llm, "gpt": llm, "margin": margin}
    monkeypatch.setattr(main_thread, "names_of_the_user", lambda: there)
    for given in (metric, margin):
        patches = patch_map(llm, *PAIR, given, of="heads")
        exact = patches.run([1], [2, 0]).values
        names = dict(there)
        exec(patches.code, names)
        assert torch.allclose(names["exact"].values, exact[[1]][:, [2, 0]], atol=1e-5)
        assert "model" not in names
    assert "metric = " not in patches.code


def test_the_cell_loads_a_model_that_has_no_name(metric):
    model = insitu.LanguageModel("demo")
    patches = patch_map(
        model, torch.tensor([4, 5, 6]), torch.tensor([4, 7, 6]), logit_difference(model, 5, 6)
    )
    exact = patches.run([2], [1]).values
    assert "model = insitu.LanguageModel('demo')" in patches.code
    names = {}
    exec(patches.code, names)
    assert torch.allclose(names["exact"].values, exact[[2]][:, [1]], atol=1e-5)
