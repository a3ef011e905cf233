"""The ledger of runs and its view: filled by `%%trace`, compared, run again, taken away."""

import json
from pathlib import Path

import nbformat
import pytest
import torch
from asking import value_of

import insitu
from insitu.errors import InsituWarning, UsageError
from insitu.twins.ledger import Ledger
from insitu.widgets import RunLedger, ledger

SAMPLE = Path(__file__).parents[2] / "labextension" / "samples" / "run_ledger.json"
CODE = "%%trace model 'Once upon a time'\nmodel.transformer.h[1].output[:] *= {}\n"


@pytest.fixture(autouse=True)
def no_earlier_runs():
    ledger.clear()  # what the cells of other tests have left


@pytest.fixture
def own():
    return Ledger(kept=5)


@pytest.fixture
def shell(bare_shell, llm):
    bare_shell.run_line_magic("load_ext", "insitu")
    bare_shell.user_ns["model"] = llm
    yield bare_shell
    bare_shell.run_line_magic("unload_ext", "insitu")
    ledger.clear()


def two(own):
    own.add(CODE.format(2), prompt="a", run_s=0.5, top=((" x", 0.75), (" y", 0.25)))
    own.add(CODE.format(3), prompt="b", run_s=0.5, top=((" y", 0.5),))


def test_a_trace_cell_is_noted_with_its_code_prompt_edits_and_effect(shell, capsys):
    view = RunLedger()
    shell.run_cell(CODE.format(2)).raise_error()
    (entry,) = ledger
    assert entry.code == CODE.format(2)
    assert entry.prompt == "'Once upon a time'"
    assert entry.edits == ("transformer.h.1.output, line 2: edited in place",)
    assert 0 < entry.moved <= 1
    assert entry.run_s > 0
    assert len(entry.top) == len(entry.bare_top) == 5
    assert view.rows[0][0] == entry.number
    shell.run_cell("%%trace model 'Once' --quiet\nmodel.lm_head.output").raise_error()
    _, quiet = ledger
    assert (quiet.prompt, quiet.model, quiet.moved) == ("'Once'", entry.model, None)
    assert 0 < quiet.run_s < 60


@pytest.mark.parametrize("options", ["", " --quiet", " --generate 2"])
def test_a_run_that_fails_is_noted_with_what_it_raised(shell, capsys, options):
    cell = f"%%trace model 'Once'{options}\nmodel.transformer.h[0].output\n1 / 0"
    assert isinstance(shell.run_cell(cell).error_in_exec, ZeroDivisionError)
    (entry,) = ledger
    assert entry.code == cell
    assert (entry.failed, entry.moved) == ("ZeroDivisionError: division by zero", None)
    view = RunLedger()
    assert view.rows[0][8] == entry.failed
    assert value_of(view, "about", number=entry.number)["failed"] == entry.failed
    assert "failed: ZeroDivisionError: division by zero" in view.text()
    assert "ZeroDivisionError" in view.html()
    shell.run_cell("%%trace model 'Once'\nraise KeyboardInterrupt")
    assert [it.failed for it in ledger][1:] == ["interrupted"]


def test_what_never_ran_is_not_noted(shell, capsys):
    for cell in (
        "%%trace model 'Once' --nonsense\nmodel.output",
        "%%trace nothing 'Once'\nmodel.output",
        "%%trace model 'Once' --scan\nmodel.output",
        "with model.trace('Once'):\n    model.output",
    ):
        shell.run_cell(cell)
    assert len(ledger) == 0


def test_a_run_is_run_again_from_the_view(shell, capsys):
    shell.run_cell(CODE.format(2)).raise_error()
    view = RunLedger()
    value_of(view, "again", number=view.rows[0][0], seeded=True)
    assert view.busy == 0
    assert view.trouble == {}
    first, again = ledger
    assert (again.code, again.moved, again.top) == (first.code, first.moved, first.top)
    ledger.add("raise RuntimeError('no such luck')")
    value_of(view, "again", number=again.number + 1)
    assert "no such luck" in view.trouble["what"]


def test_a_run_draws_its_own_random_numbers_again(shell):
    code = "%%trace model 'Once upon a time'\ndrawn = torch.rand(1).item()\nmodel.output"
    shell.user_ns["torch"], drawn = torch, []
    for _ in range(2):
        shell.run_cell(code).raise_error()
        drawn.append(shell.user_ns["drawn"])
    assert drawn[0] != drawn[1]
    view = RunLedger()
    for number, expected in zip((1, 2), drawn, strict=True):
        view.again(view.rows[-number][0], seeded=True)
        assert shell.user_ns["drawn"] == expected


def test_two_runs_are_compared_line_by_line_and_token_by_token(own):
    two(own)
    told = value_of(RunLedger(own), "compare", first=1, second=2)
    assert [sign for sign, _ in told["code"]] == [" ", "-", "+"]
    assert told["top"] == [[" x", 0.75, None], [" y", 0.25, 0.5]]
    assert told["facts"] == [["prompt", "a", "b"]]


def test_chosen_runs_become_a_notebook_that_is_valid(own, tmp_path):
    two(own)
    view = RunLedger(own)
    view.chosen = [2, 1]
    book = nbformat.read(view.export(tmp_path / "runs.ipynb"), as_version=4)
    nbformat.validate(book)
    assert [cell.source for cell in book.cells if cell.id.startswith("run-")] == [
        CODE.format(2).rstrip(), CODE.format(3).rstrip()]  # fmt: skip
    assert json.loads(value_of(view, "export", numbers=[1])) == json.loads(
        value_of(view, "export", numbers=[1])
    )


def test_an_exported_notebook_loads_the_model_it_ran(own):
    own.add(CODE.format(2), name="model", origin="demo", model="GPT2LMHeadModel")
    own.add(CODE.format(2), name="models[0]")
    setup = json.loads(value_of(RunLedger(own), "export", numbers=[1, 2]))["cells"][1]["source"]
    assert 'model = insitu.LanguageModel("demo")' in setup.replace("'", '"')
    assert "# the model of run 2: models[0]" in setup


def test_the_oldest_runs_go_first_and_ticks_of_theirs_too(own):
    view = RunLedger(own)
    two(own)
    view.chosen = [1, 2]
    for number in range(4):
        own.add(str(number))
    assert [row[0] for row in view.rows] == [6, 5, 4, 3, 2]
    assert view.chosen == [2]
    with pytest.raises(UsageError, match="the ledger has no run 1"):
        view.code(1)


def test_a_file_keeps_runs_from_one_session_to_the_next(own, tmp_path):
    path = tmp_path / "runs.jsonl"
    own.keep_in(path)
    two(own)
    with path.open("a") as file:
        file.write('{"number": 3, "co\n[1]\n')  # cut short
    again = Ledger().keep_in(path)
    assert list(again) == list(own)
    again.add("later", prompt="été\n</script>")
    assert [entry.prompt for entry in Ledger().keep_in(path)] == ["a", "b", "été\n</script>"]


def test_a_file_that_cannot_be_written_does_not_fail_a_run(own, tmp_path):
    own.keep_in(tmp_path / "missing" / "runs.jsonl")
    with pytest.warns(InsituWarning, match="no longer kept"):
        own.add("1")
    own.add("2")
    assert len(own) == 2


def test_twins_tell_the_runs_and_run_no_script(own):
    view = RunLedger(own)
    assert view.text() == "No runs yet: %%trace fills the ledger."
    own.add("<script>alert(1)</script>", prompt="<b>", moved=0.25, top=(("\n", 0.5),))
    assert "<script" not in view.html()
    assert "<b>&" not in view.html()
    assert "moved 0.25 TV · then '\\n'" in view.text()


def test_only_ledgers_are_shown():
    assert isinstance(insitu.show(ledger), RunLedger)
    with pytest.raises(UsageError, match="shows a ledger, not list"):
        RunLedger([1])


def test_without_a_notebook_nothing_is_run_again(own, monkeypatch):
    monkeypatch.setattr("insitu.widgets.main_thread.shell", lambda: None)
    two(own)
    with pytest.raises(UsageError, match="in a notebook only"):
        RunLedger(own).again(1)


def test_the_sample_is_what_python_sends(own):
    two(own)
    view = RunLedger(own)
    sent = {
        "compared": value_of(view, "compare", first=1, second=2),
        "about": {**value_of(view, "about", number=1), "at": "", "seed": "0"},
        "rows": [[*row[:1], "", *row[2:]] for row in view.rows],
    }
    assert json.loads(SAMPLE.read_text()) == sent
