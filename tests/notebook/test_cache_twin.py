import re

import pytest
from torch import nn

from insitu import NNsight
from insitu.twins.cache import cache_html


def bundle(shell, value):
    return shell.display_formatter.format(value)[0]


@pytest.fixture
def cache(llm):
    with llm.trace("The Eiffel Tower") as tracer:
        return tracer.cache(budget=10**9)


def test_a_cache_shows_its_table(shell, cache):
    shown = bundle(shell, cache)
    assert shown["text/plain"] == repr(cache)
    html = shown["text/html"]
    assert "<b>ActivationCache of GPT2LMHeadModel</b>" in html
    assert "<code>model.transformer.h.*.mlp</code>" in html
    assert html.count("<tr>") == 1 + len(repr(cache).splitlines()) - 1
    assert "calls" not in html.partition("</style>")[2]  # each was called once


def test_a_forecast_shows_the_same_table(shell, cache):
    html = bundle(shell, cache.forecast)["text/html"]
    table = re.compile("<tbody>.*</tbody>")
    assert "<b>Forecast of a cache</b>" in html
    assert table.search(html)[0] == table.search(bundle(shell, cache)["text/html"])[0]


def test_it_fetches_nothing_and_reads_well_without_its_sheet(cache):
    html = cache_html(cache)
    bare = html.partition("<style>")[0] + html.partition("</style>")[2]
    assert not re.search(r"https?:|src=|<script|var\(", bare)
    assert "prefers-color-scheme:dark" in html
    words = re.sub(r"<[^>]*>", " ", bare)
    assert "55 modules" in words
    assert "float32[1, 6, 32]" in words


def test_names_are_escaped(x):
    net = nn.Sequential()
    net.add_module("<u>", nn.Identity())
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    html = cache_html(cache)
    assert "<u>" not in html
    assert "&lt;u&gt;" in html


def test_many_rows_fold(x):
    net = nn.Sequential()
    for n in range(40):
        net.add_module(f"layer{n}", nn.Identity())
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    html = cache_html(cache)
    assert "17 more rows</summary>" in html
    assert "layer39" in html


def test_an_empty_cache_has_no_table(x):
    with NNsight(nn.Identity()).trace(x) as tracer:
        cache = tracer.cache()
        assert "<table" not in cache_html(cache)
        assert repr(cache) == "ActivationCache of Identity: 0 modules, 0 B"


def test_the_extension_takes_its_displays_away(bare_shell, cache):
    assert "text/html" not in bundle(bare_shell, cache)
