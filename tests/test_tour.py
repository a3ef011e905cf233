"""The tour of the demo model, and the command that shows it."""

import pytest

import insitu
from insitu import cli, tour


@pytest.fixture(scope="module")
def found():
    return tour.explore(insitu.LanguageModel("demo"))


def test_the_demo_model_knows_where_the_tower_is(found):
    assert found.answer[0][0] == " Paris"
    assert found.answer[0][1] > 0.9


def test_the_answer_forms_on_the_way_up(found):
    depths = [dict(guesses).get(" Paris", 0.0) for guesses in found.lens]
    assert depths[0] < depths[-1]
    assert depths[-1] == pytest.approx(found.answer[0][1], abs=1e-4)  # the lens at the top


def test_what_carries_the_answer_moves_from_the_subject_to_the_last_token(found):
    (subject_first, last_first), *_, (subject_end, last_end) = found.patched
    assert subject_first > 0.5 > last_first
    assert last_end > 0.9 > 0.1 > subject_end


def test_an_edit_at_one_step_changes_the_text_from_there_on(found):
    assert found.continued.startswith("The Eiffel Tower is in the city of Paris")
    assert found.continued_edited.startswith("The Eiffel Tower is in the city of Rome")


def test_the_page_needs_nothing_but_itself(found):
    page = tour.as_html(found)
    assert "<script" not in page
    assert "http" not in page
    assert "after 6 layers" in page


def test_the_command_prints_what_was_found_and_writes_the_page(tmp_path, capsys):
    page = tmp_path / "demo.html"
    cli.main(["demo", "--html", str(page)])
    printed = capsys.readouterr().out
    assert "' Paris'" in printed
    assert str(page) in printed
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_without_a_command_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    assert "demo" in capsys.readouterr().err
