"""Views of things of the engine, opened by whoever said where their functions are."""

import sys
import types

import pytest

import insitu
from insitu import NNsight
from insitu.engine import opening


@pytest.fixture
def opener(monkeypatch):
    """A module whose `open` gives back what it was called with, in place of every view."""
    module = types.ModuleType("openers")
    module.open = lambda thing, **settings: (thing, settings)
    monkeypatch.setitem(sys.modules, "openers", module)
    monkeypatch.setattr(opening, "_places", {})
    opening.register(tree="openers:open", run="openers:open", view="openers:open")
    return module


def test_a_model_a_cache_and_a_pass_open_their_own_views(opener, net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        cache, other = tracer.cache(), tracer.cache("layer1")
    assert model.tree() == (model, {})
    assert model.layer1.tree() == (model.layer1, {})
    assert cache.view() == (cache, {"other": None})
    assert cache.view(other)[1]["other"] is other
    with model.open(x) as run:
        assert run.view() == (run, {})


@pytest.mark.parametrize("place", ["not_installed_here:open", "openers:not_there"])
def test_a_view_whose_package_is_missing_says_what_to_install(opener, net, place, monkeypatch):
    def missing(name):
        raise ImportError("No module named 'widgets_of_it'", name="widgets_of_it")

    opener.__getattr__ = missing
    opening.register(tree=place)
    with pytest.raises(insitu.MissingPackageError) as caught:
        NNsight(net).tree()
    first, why, what = str(caught.value).splitlines()
    name = "not_installed_here" if place.startswith("not") else "widgets_of_it"
    assert first == f"the view could not be opened: {name} is not installed."
    assert "the extra `lab`" in why
    assert 'pip install "insitu[lab]"' in what
    assert isinstance(caught.value.__cause__, ImportError)
