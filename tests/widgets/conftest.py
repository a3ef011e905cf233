"""After every test of a view none is open, and nothing is selected: both are one for all tests."""

import pytest
from ipywidgets import Widget

import insitu


@pytest.fixture(autouse=True)
def nothing_selected():
    yield
    insitu.selection.clear()


@pytest.fixture(autouse=True)
def none_open(nothing_selected):
    yield
    Widget.close_all()  # ipywidgets keeps what is open alive
