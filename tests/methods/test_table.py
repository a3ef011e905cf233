"""The table a cell shows for a result: no script, every number readable."""

import math
import re
from html.parser import HTMLParser

import pytest
import torch

from insitu.methods import Axis, Result
from insitu.methods.scales import BLUE_RED, VIRIDIS, css, ink, rounded


class Cells(HTMLParser):
    """The texts of a page's cells, row by row; checks that tags close in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.rows, self.papers = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        assert tag != "script"
        if tag != "br":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            style = dict(attributes)["style"]
            self.papers += re.findall("background:(#.{6});color:(#.{3})", style)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def result_of(*shape, **further):
    values = torch.arange(math.prod(shape), dtype=torch.float).reshape(shape)
    axes = [Axis(f"axis{i}", range(n)) for i, n in enumerate(shape)]
    return Result(values, axes, "effect", **further)


def test_two_axes_are_a_table_with_their_labels():
    tokens = Axis("pos", ("The", " <b>", "\n"))
    result = Result(torch.tensor([[1.0, 2.5, -3.25]]), (Axis("layer", (4,)), tokens), "effect")
    assert Cells(result._repr_html_()).rows == [
        [r"layer \ pos", "The", "·<b>", "⏎"],
        ["4", "1.00", "2.50", "-3.25"],
    ]


def test_one_axis_is_one_row_and_none_a_number():
    assert Cells(result_of(3)._repr_html_()).rows[1] == ["", "0.00", "1.00", "2.00"]
    assert "<p>7</p>" in Result(torch.tensor(7.0), ())._repr_html_()


def test_three_axes_are_a_table_for_each_place_of_the_first():
    page = result_of(3, 2, 2)._repr_html_()
    assert len(Cells(page).rows) == 9
    assert "axis0 2" in page


def test_large_results_are_cut_and_say_so():
    assert "the first of 90 of axis0 and 70 of axis1" in result_of(90, 70)._repr_html_()
    assert "and 16 more" in result_of(20, 2, 2)._repr_html_()


def test_words_stand_above_their_numbers():
    result = result_of(1, 2, texts=[" Paris", " Rome"])
    assert Cells(result._repr_html_()).rows[1] == ["0", "·Paris0.000", "·Rome1.000"]


def test_a_place_without_a_number_is_empty():
    result = Result(torch.tensor([[math.nan, math.inf]]), (Axis("a", "x"), Axis("b", "yz")))
    assert Cells(result._repr_html_()).rows[1] == ["x", "", "inf"]


def test_zero_is_white_and_signs_part_where_there_are_signs():
    result = Result(torch.tensor([[-2.0, 0.0, 2.0]]), (Axis("a", "x"), Axis("b", "uvw")))
    papers = [paper for paper, _ in Cells(result._repr_html_()).papers]
    assert papers == [BLUE_RED[0], "#f7f7f7", BLUE_RED[-1]]


@pytest.mark.parametrize("value", [0.0, 0.1, 0.35, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("signed", [True, False])
def test_ink_on_every_colour_is_readable(value, signed):
    paper, chosen = css(value, (-1, 1) if signed else (0, 1), signed=signed)

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    one, other = sorted((light(paper), {"#000": 0.0, "#fff": 1.0}[chosen]), reverse=True)
    assert (one + 0.05) / (other + 0.05) >= 4.5  # WCAG's AA for small text


def test_viridis_only_gets_lighter():
    assert [ink(colour) for colour in VIRIDIS] == sorted(map(ink, VIRIDIS), reverse=True)


@pytest.mark.parametrize(
    ("value", "limits", "said"),
    [
        (4.66e-8, (0, 1), "0.000"),
        (-4.66e-8, (-1, 1), "0.000"),
        (0.12345, (0, 1), "0.123"),
        (-3.456, (-20, 20), "-3.46"),
        (-123.4, (-200, 200), "-123.4"),
        (1680.2, (0, 2000), "1680"),
        (0.00012, (0, 0.001), "1.20e-04"),
        (0.0, (0, 0.001), "0"),
        (-0.0, (-0.001, 0.001), "0"),
        (-1e-9, (-0.001, 0.001), "-1.00e-09"),
    ],
)
def test_numbers_have_as_many_places_as_tell_them_apart(value, limits, said):
    assert rounded(value, limits) == said
