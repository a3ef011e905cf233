"""The line magics: what each opens or lists, and three lines for each wrong word."""

import pytest
import torch

from insitu import InputError, NNsight, PassClosedError, UnknownModuleError, UsageError
from insitu.engine.source.operations import Operation
from insitu.notebook.magics.register import SYNTAXES
from insitu.twins.table import Table
from insitu.widgets import (
    AttentionView,
    CacheInspector,
    JobDock,
    LensGrid,
    LocalJob,
    ModuleTree,
    PatchMap,
    RunLedger,
    SourceBrowser,
)

PROMPT = '"The Eiffel Tower is in"'
MARY = "'When Mary and John went to the store, John gave a drink to'"
JOHN = "'When Mary and John went to the store, Mary gave a drink to'"


@pytest.fixture
def do(cell):
    """What a magic gives: `do("%sites")`."""

    def run(line):
        shown = cell(f"given = {line}")
        if shown.error is not None:
            raise shown.error
        return cell.names["given"]

    run.names = cell.names
    run.cell = cell
    return run


def refused(do, line, kind=UsageError):
    with pytest.raises(kind) as caught:
        do(line)
    assert len(str(caught.value).splitlines()) == 3
    return caught.value


# Opening -----------------------------------------------------------------------------------------


def test_modules_opens_the_tree_of_the_only_model_or_of_a_module(do):
    assert isinstance(do("%modules"), ModuleTree)
    assert do("%modules model").title == "GPT2LMHeadModel"
    assert do("%modules model.transformer.h[1]").title == "GPT2Block"


def test_modules_lists_what_a_pattern_names(do):
    found = do("%modules transformer.h.*.mlp")
    assert isinstance(found, Table)
    assert [row[:2] for row in found.rows] == [
        (f"transformer.h.{n}.mlp", "GPT2MLP") for n in range(4)
    ]
    assert do("%modules model 'lm_head'").rows[0][1] == "Linear"
    assert "did you mean" in refused(do, "%modules transformer.*.mlq", UnknownModuleError).next


def test_sites_lists_what_ran_in_its_order_with_kinds(do):
    assert "nothing is known yet" in refused(do, "%sites").what
    do.cell(f"%%trace model {PROMPT} --quiet\nx = 1")
    rows = do("%sites").rows
    assert rows[-1][0] == "model.output"
    assert rows[-2][:2] == ("lm_head.output", f"float32[1, {rows[-2][1].split(', ')[1]}, 330]")
    paths = [row[0] for row in rows]
    assert paths.index("transformer.h.0.attn.output") < paths.index("transformer.h.0.mlp.output")
    assert all("transformer.h.1." in row[0] for row in do("%sites model transformer.h.1.**").rows)


def test_source_opens_the_browser_or_shows_an_operation(do):
    assert isinstance(do("%source model.transformer.h[0].attn"), SourceBrowser)
    assert isinstance(do("%source"), SourceBrowser)
    for line in ("attn.attention_interface_0", "attn.source.attention_interface_0.output"):
        found = do(f"%source model.transformer.h[0].{line}")
        assert isinstance(found, Operation)
        assert "-->" in repr(found)
    assert "did you mean model.lm_head?" in refused(do, "%source modle.lm_head").next
    assert "2 words" in refused(do, "%source model model").what


def test_cache_opens_the_last_one_or_compares_two(do):
    assert "no cache" in refused(do, "%cache").what
    for name in ("first", "second"):
        do.cell(f"with model.trace({PROMPT}) as tracer:\n    {name} = tracer.cache('lm_head')")
    do.cell(f"with model.trace({PROMPT}) as tracer:\n    first = tracer.cache('transformer.h.*')")
    assert isinstance(do("%cache"), CacheInspector)
    assert do("%cache").count == 4  # `first` was bound again
    assert do("%cache second").count == 1
    assert do("%cache first second").compares
    do.names["tensors"] = {"a": torch.ones(2)}
    assert do("%cache tensors").count == 1
    assert "3 words" in refused(do, "%cache a b c").what
    assert "run the cell" in refused(do, "%cache zzzzzz").next


def test_lens_and_attention_open_grids_of_a_prompt(do, tmp_path):
    grid = do(f"%lens {PROMPT}")
    assert isinstance(grid, LensGrid)
    assert "transformer" not in grid.title
    assert "P" in do(f"%lens model {PROMPT} --target 'P'").measures[0]["quantity"]
    patterns = do(f"%attention model {PROMPT} --layers 1,2")
    assert isinstance(patterns, AttentionView)
    assert patterns.layers == ["1", "2"]
    assert do(f"%attention {PROMPT} --layers [3]").layers == ["3"]


def test_a_tuned_lens_is_read_from_its_file(do, tmp_path):
    from insitu.methods.tuned_lens import TunedLens

    TunedLens(4, 32).save(tmp_path / "lens.pt")
    assert do(f"%lens {PROMPT} --tuned {tmp_path}/lens.pt").title == "Tuned lens"
    assert "there is no file" in refused(do, f"%lens {PROMPT} --tuned none.pt").what


def test_patch_opens_the_map_of_two_prompts(do):
    found = do(f"%patch {MARY} {JOHN} --answer 'M' --wrong 'J' --of heads")
    assert isinstance(found, PatchMap)
    assert found.names == ["layer", "head"]
    assert "2" not in refused(do, f"%patch {MARY} --answer 'M' --wrong 'J'").what
    assert "--wrong" in refused(do, f"%patch {MARY} {JOHN} --answer 'M'").what
    assert (
        "did you mean --of heads?"
        in refused(do, f"%patch {MARY} {JOHN} --answer 'M' --wrong 'J' --of head").next
    )
    refused(do, "%patch 'The' 'The Eiffel Tower' --answer 'M' --wrong 'J'", InputError)


def test_jobs_opens_the_ledger_or_a_dock(do):
    do.cell(f"%%trace model {PROMPT}\nlogits = model.lm_head.output")
    ledger = do("%jobs")
    assert isinstance(ledger, RunLedger)
    assert "The Eiffel Tower" in str(ledger.rows[0])
    do.names["job"] = LocalJob(lambda log: None)
    assert isinstance(do("%jobs job"), JobDock)
    assert "run the cell" in refused(do, "%jobs zzzzzz").next


# Words -------------------------------------------------------------------------------------------


def test_a_model_that_is_not_clear_is_asked_for(do):
    do.names["net"] = NNsight(torch.nn.Linear(2, 2))
    assert "2" in refused(do, f"%lens {PROMPT}").what
    assert "needs a language model" in refused(do, f"%lens net {PROMPT}").what
    del do.names["model"], do.names["net"]
    assert "no model" in refused(do, f"%lens {PROMPT}").what


def test_a_model_with_two_names_is_one(do):
    do.names["again"] = do.names["model"]
    assert isinstance(do("%modules"), ModuleTree)
    do.names["models"] = [do.names["model"]]
    assert isinstance(do("%modules models[0]"), ModuleTree)


@pytest.mark.parametrize(
    ("line", "what", "next"),
    [
        ("%lens Hello", "names Hello", 'put text in quotes: "Hello"'),
        ("%lens The Eiffel", "names The", 'put text in quotes: "The"'),
        ("%lens", "no prompt", "write %lens model"),
        ("%lens 'a' 'b'", "1 word too many: 'b'", "quotes"),
        ("%lens 'a' --target", "no token", '--target " Paris"'),
        ("%lens 'a' --taget 'b'", "no option --taget", "did you mean --target?"),
        ("%lens 'a' --target 3", "is int, not text", "in quotes"),
        ("%lens 'a", "no Python expression", "in quotes"),
        ("%sites --all", "no option --all", "leave it out"),
        ("%run open", "no prompt", "%run open model"),
        ("%run step", "no pass is held open", "%run open"),
        ("%run open 'a' --generate 0", "from 1 on", "%run step 3"),
    ],
)
def test_a_wrong_word_is_told_in_three_lines(do, line, what, next):
    error = refused(do, line, Exception)
    assert what in error.what
    assert next in error.next


def test_an_error_shows_no_frames_of_ours(do):
    printed = do.cell("%lens Hello").printed
    assert "put text in quotes" in printed
    assert "File " not in printed


def test_each_magic_has_its_help(shell):
    for name in SYNTAXES:
        doc = shell.find_line_magic(name).__doc__
        assert f"%{name}" in doc
        assert "\n\n" in doc
    assert "Run the named file" in shell.find_line_magic("run").__doc__  # IPython's own too


# A pass held open --------------------------------------------------------------------------------


def test_a_pass_is_opened_driven_and_finished(do):
    run = do(f"%run open {PROMPT}")
    assert do.names["run"] is run
    assert do("%run until model.transformer.h[2]").where == "transformer.h.2.output"
    do.cell("model.transformer.h[2].output[:] = 0")
    assert do("%run step").where == "transformer.h.3.ln_1.output"
    assert do("%run step 2").where == "transformer.h.3.attn.c_proj.output"
    assert do("%run where") is run
    assert do("%run until model.transformer.h[3].mlp.input").where == "transformer.h.3.mlp.input"
    assert do("%run until transformer.h.3.mlp").where == "transformer.h.3.mlp.output"
    out = do("%run finish")
    with do.names["model"].trace(PROMPT.strip('"')):
        do.names["model"].transformer.h[2].output[:] = 0
        want = do.names["model"].lm_head.output
    assert torch.equal(out.logits, want)
    assert "is finished" in refused(do, "%run step", PassClosedError).why


def test_a_pass_can_be_left_and_a_generation_held(do):
    do(f"%run open {PROMPT} --generate 3")
    assert do("%run until model.lm_head").where == "lm_head.output"
    assert do("%run close") is None
    assert do.names["run"].where == "closed"
    do("%run close")


def test_an_operation_can_be_run_to(do):
    do(f"%run open {PROMPT}")
    site = "model.transformer.h[1].attn.source.attention_interface_0"
    assert "attention_interface_0" in do(f"%run until {site}.output").where
    do("%run close")


def test_any_other_word_is_a_script_as_ever(do, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('ran', sys.argv[1:])\nmade = 7\n")
    do.names["word"] = "hello"
    shown = do.cell(f"%run {script} {{1 + 1}} $word 'a b'")
    assert shown.printed == "ran ['2', 'hello', 'a b']\n"
    assert do.names["made"] == 7
