"""Grids as text: labels, cells, and what is left out where a terminal is too narrow."""

import math
import unicodedata

import pytest

from insitu.twins.grid import WIDE, Grid, bar, cut, grid_text, number, seen


def grid(rows, columns, cell=None, **further):
    return Grid(
        ("layer", "pos"), (rows, columns), cell or (lambda r, c: (f"{r}.{c}", "")), **further
    )


def columns_of(text):
    """How many columns of a terminal a text takes, told apart from how the grid counts them."""
    wide = sum(unicodedata.east_asian_width(it) in "WF" for it in text)
    return len(text) + wide - sum(bool(unicodedata.combining(it)) for it in text)


def test_rows_and_columns_have_their_labels_and_words_their_places():
    shown = grid_text([grid(range(2), ["The", " city"], lambda r, c: (f"w{r}{c}", f"0.{r}{c}"))])
    assert shown == [
        "pos →    0         1",
        "layer ↓  The       ·city",
        "0        w00 0.00  w01 0.01",
        "1        w10 0.10  w11 0.11",
    ]


def test_labels_that_are_numbers_stand_in_one_line():
    shown = grid_text([grid([2, 5], [0, 10], sides=">>")])
    assert shown == [
        "layer ↓ pos →    0   10",
        "2              0.0  0.1",
        "5              1.0  1.1",
    ]


def test_of_a_wide_grid_the_first_and_the_last_stay_and_the_rest_is_named():
    *lines, left = grid_text([grid(range(3), [f"token{n}" for n in range(500)])])
    first, *_, last = lines[0].removeprefix("pos →").split()
    assert (first, last) == ("0", "499")
    places = [int(it) for it in lines[0].split() if it.isdigit()]
    assert left == f"left out: pos 1 to {places[1] - 1} ({500 - len(places)} of 500)"
    assert max(map(len, lines)) <= WIDE
    assert all(line.split()[2] == "…" for line in lines[2:])


def test_of_a_high_grid_the_first_row_and_the_last_stay():
    *lines, left = grid_text([grid(range(10, 58), range(2))], 8)
    assert [line.split()[0] for line in lines[1:]] == [
        "10",
        "…",
        "52",
        "53",
        "54",
        "55",
        "56",
        "57",
    ]
    assert left == "left out: layer 11 to 51 (41 of 48)"


def test_rows_and_columns_that_are_to_be_kept_are_shown():
    *lines, left = grid_text([grid(range(90), range(200), kept=([40], [77]))], 6)
    assert "40" in [line.split()[0] for line in lines]
    assert "77" in lines[0].split()
    assert "layer 1 to 39, 41 to " in left
    assert "pos 1 to 76, 78 to " in left


def test_the_first_form_that_fits_whole_is_taken():
    wide = grid(range(2), range(12), lambda r, c: ("w" * 12, "0.50"), caps=(12,))
    small = grid(range(2), range(12), lambda r, c: ("▄", ""), legend="bars")
    assert grid_text([wide, small])[-1] == "bars"
    assert grid_text([grid(range(2), range(2)), small])[-1] != "bars"


@pytest.mark.parametrize("words", [["漢字", "a", "e\u0301e"], ["\x1b[31m", "\ud800", "\n"]])
def test_columns_stand_below_each_other_whatever_words_hold(words):
    cells = grid_text([grid(range(3), ["x", "y"], lambda r, c: (words[r], "|"))])[2:]
    bars = [[columns_of(line[:at]) for at, it in enumerate(line) if it == "|"] for line in cells]
    assert bars[0] == bars[1] == bars[2]
    assert all(line.isprintable() for line in cells)


def test_a_grid_of_nothing_says_so():
    assert grid_text([grid([], range(3))]) == ["(no numbers: layer 0 × pos 3)"]


def test_a_grid_of_a_million_columns_asks_for_few_cells():
    asked = []
    grid_text([grid(range(2), range(1_000_000), lambda r, c: (asked.append(c) or "0.5", ""))])
    assert len(asked) < 500


def test_numbers_have_as_many_places_as_tell_them_apart():
    told = [number(*it) for it in (
        (0.1234, (0, 1)), (0.0, (0, 1)), (12.345, (0, 20)), (123.4, (0, 300)), (1e-4, (0, 1e-3)),
        (math.nan, (0, 1)), (-math.inf, (0, 1)), (-0.0001, (-1, 1)), (3.4e38, (0, 3.4e38)),
    )]  # fmt: skip
    assert told == ["0.123", "0", "12.35", "123", "1.0e-04", "NaN", "-inf", "0.000", "3.4e+38"]


def test_a_bar_is_as_high_as_its_number_and_none_is_drawn_of_no_number():
    assert [bar(it, (0, 1)) for it in (0, 0.5, 1, 2, math.nan)] == ["▁", "▅", "█", "█", "×"]


def test_a_label_shows_its_blanks_and_is_cut_to_a_width():
    assert [seen(it) for it in (" a b ", "\n", "\t", "\x00", 0.5, " ")] == [
        "·a b·", "⏎", "⇥", "\\x00", "0.5", "·",
    ]  # fmt: skip
    assert cut("漢字漢字", 5) == "漢字…"
    assert cut("abc", 3) == "abc"
