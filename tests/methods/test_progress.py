"""A bar after two seconds, nothing before, and no thread afterwards."""

import threading

from insitu.methods import progress as module
from insitu.methods.progress import progress


def test_what_is_quick_shows_nothing(capsys):
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_what_takes_long_shows_a_bar_and_leaves_nothing(capsys, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    before = threading.active_count()
    for _ in progress([1, 2, 3], "patching"):
        pass
    assert "patching" in capsys.readouterr().err
    assert threading.active_count() == before
