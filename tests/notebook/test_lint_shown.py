"""Where findings are shown, and where not; the widget that repairs a cell."""

import json
import re
from pathlib import Path

from insitu.notebook.lint import shown
from insitu.widgets.lint_fixes import LintFixes

SAMPLES = Path(__file__).parents[2] / "labextension" / "samples"
TWICE = "h = model.transformer.h[1].output\nh = h * 2\nlogits = model.lm_head.output\n"


def found_in(told):
    texts = [data["text/plain"] for data in told.displayed]
    return [text for text in texts if "before the run" in text]


def test_findings_stand_above_the_card(cell):
    told = cell(f"%%trace model 'The'\n{TWICE}")
    first, second = (data["text/plain"] for data in told.displayed)
    assert first.startswith("1 finding before the run\nline 3: h = h * 2 gives the name h")
    assert "h[:] = h * 2" in first
    assert "one forward" in second


def test_findings_are_there_when_the_run_fails(cell):
    cell("%%trace model 'The' --quiet\nx = 1")
    told = cell("%%trace model 'The'\nx = model.lm_head.output\nh = model.transformer.h[1].output")
    assert told.error is not None
    assert len(found_in(told)) == 1


def test_an_ordinary_cell_that_traces_is_looked_at_too(cell):
    assert found_in(cell("with model.trace('The', max_new_tokens=3):\n    pass"))
    told = cell(
        "with model.edit() as edited:\n    h = model.transformer.h[1].output\n    h = h * 2"
    )
    assert len(found_in(told)) == 1


def test_they_can_be_switched_off(cell):
    assert not found_in(cell(f"%%trace model 'The' --no-lint\n{TWICE}"))
    assert not found_in(cell(f"%%trace model 'The' --quiet\n{TWICE}"))
    assert not found_in(cell(f"%%trace model 'The'\n# no-lint\n{TWICE}"))


def test_a_cell_without_findings_shows_nothing_more(cell):
    assert len(cell("%%trace model 'The'\nx = model.lm_head.output").displayed) == 1
    assert cell("with model.trace('The'):\n    x = model.lm_head.output").displayed == []


def test_what_goes_wrong_in_the_linter_stays_there(cell, monkeypatch):
    def fails(text, names):
        raise RuntimeError

    monkeypatch.setattr(shown, "findings", fails)
    told = cell(f"%%trace model 'The'\n{TWICE}")
    assert told.error is None
    assert len(told.displayed) == 1


def test_the_widget_has_the_findings_and_their_repairs(cell, llm, shell, monkeypatch):
    monkeypatch.setattr(shell, "kernel", object(), raising=False)
    given = []
    monkeypatch.setattr(shown, "display", given.append)
    sample = json.loads((SAMPLES / "lint_fixes.json").read_text())
    shown.show(shell, sample["cell"])
    (widget,) = given
    assert isinstance(widget, LintFixes)
    assert widget.items == sample["items"]
    assert widget.cell == sample["cell"]
    assert widget.fixed() == sample["items"][0]["fixed"]


def test_its_twins_say_the_same_without_scripts():
    item = {
        "rule": "r", "line": 2, "column": 0, "what": "<b>what", "why": "why & why", "next": "next",
        "change": [["+", "<script>"]], "fixed": "",
    }  # fmt: skip
    widget = LintFixes([item], "cell")
    assert widget.fixed() == "cell"
    assert "line 2: <b>what" in widget.text()
    assert "<script" not in widget.html()
    assert "why &amp; why" in re.sub(r"\s+", " ", widget.html())


def test_a_change_is_told_by_the_lines_that_go_and_come():
    before = "a\n    b\n    c\n    d\ne"
    assert shown.change(before, "a\n    d\n    b\n    c\ne") == [
        ["+", "d"], [" ", "b"], [" ", "c"], ["−", "d"],
    ]  # fmt: skip
    assert shown.change("a\nb", "a\nx") == [["−", "b"], ["+", "x"]]
    long = [str(n) for n in range(20)]
    told = shown.change("\n".join(["x", *long, "y"]), "\n".join(["z", *long, "w"]))
    assert [sign for sign, _ in told] == ["−", "+", " ", " ", "−", "+"]
    assert told[3] == [" ", "…"]
