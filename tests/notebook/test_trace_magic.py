import pytest
import torch

import insitu
from insitu import InputError, NNsight, OutOfOrderError, UsageError

PROMPT = "The Eiffel Tower is in"


def raised(cell, code, kind):
    shown = cell(code)
    assert isinstance(shown.error, kind), shown.error
    return shown


def test_the_body_runs_in_the_notebooks_own_names(cell):
    shown = cell(f"%%trace model '{PROMPT}'\nlogits = model.lm_head.output\nsize = logits.shape[0]")
    assert shown.error is None
    assert cell.names["size"] == 1
    with torch.no_grad():
        bare = cell.names["model"]._module(
            cell.names["model"].tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        )
    assert torch.equal(cell.names["logits"], bare.logits)


def test_the_tracer_is_there_during_and_after_the_cell(cell):
    shown = cell(f"%%trace model '{PROMPT}'\nlogits = tracer.result.logits")
    assert shown.error is None
    assert cell.names["tracer"].result.logits is cell.names["logits"]


def test_every_step_of_a_generation_is_met(cell):
    shown = cell(
        f"%%trace model '{PROMPT}' --generate 3\n"
        "seen = []\n"
        "for step in tracer.iter[:]:\n"
        "    seen.append(model.lm_head.output.shape)\n"
        "ids = model.generator.output\n"
    )
    assert shown.error is None
    assert len(cell.names["seen"]) == 3
    assert "3 tokens generated" in shown.text


def test_the_last_expression_is_displayed(cell):
    assert "Out[" in cell(f"%%trace model '{PROMPT}' --quiet\nmodel.lm_head.output.dim()").printed
    assert "3" in cell(f"%%trace model '{PROMPT}' --quiet\nmodel.lm_head.output.dim()").printed


@pytest.mark.parametrize("line", ["model.lm_head.output.dim();", "n = model.lm_head.output.dim()"])
def test_a_semicolon_or_an_assignment_shows_nothing(cell, line):
    assert cell(f"%%trace model '{PROMPT}' --quiet\n{line}").printed == ""


def test_magics_and_shell_lines_work_in_the_body(cell):
    shown = cell(
        f"%%trace model '{PROMPT}' --quiet\nhere = %pwd\n!echo hello\nlogits = model.lm_head.output"
    )
    assert shown.error is None
    assert "hello" in shown.printed
    assert cell.names["here"]


def test_quiet_shows_no_card(cell):
    assert cell(f"%%trace model '{PROMPT}' --quiet\nlogits = model.lm_head.output").displayed == []


def test_a_prompt_may_be_any_expression(cell):
    cell("prompts = ['The Eiffel Tower', 'The Colosseum is in']")
    shown = cell("%%trace model prompts\nlogits = model.lm_head.output")
    assert shown.error is None
    assert cell.names["logits"].shape[0] == 2


def test_braces_and_dollars_in_a_prompt_are_left_alone(cell):
    shown = cell("%%trace model 'a {model} costs $model'\nids = model.transformer.wte.input")
    assert shown.error is None
    assert cell.names["model"].tokenizer.decode(cell.names["ids"][0]) == "a {model} costs $model"


def test_a_plain_module_takes_several_inputs(cell):
    cell.names["net"] = NNsight(torch.nn.Bilinear(2, 3, 4))
    cell.names.update(a=torch.ones(1, 2), b=torch.ones(1, 3))
    shown = cell("%%trace net a, b\nout = net.output")
    assert shown.error is None
    assert cell.names["out"].shape == (1, 4)
    assert "float32[1, 2], float32[1, 3]" in shown.text


# Errors --------------------------------------------------------------------------------------


def test_bare_words_are_told_to_go_in_quotes(cell):
    error = raised(cell, "%%trace model The Eiffel\nx = 1", UsageError).error
    assert error.what == "the prompt of %%trace is no Python expression: The Eiffel"
    assert error.next == 'put text in quotes: "The Eiffel".'
    assert raised(cell, "%%trace model Hello\nx = 1", UsageError).error.next.startswith(
        'put text in quotes: "Hello"'
    )


def test_an_unknown_model_names_the_near_one(cell):
    error = raised(cell, "%%trace modl 'Hello'\nx = 1", UsageError).error
    assert "modl" in error.what
    assert error.next == "did you mean model?"


def test_what_is_no_model_is_told_how_to_become_one(cell):
    cell.names["net"] = torch.nn.Linear(2, 2)
    assert "insitu.NNsight(net)" in raised(cell, "%%trace net 'a'\n1", UsageError).error.next
    error = raised(cell, "%%trace model.lm_head 'a'\n1", UsageError).error
    assert "trace the whole model" in error.next


def test_no_prompt_says_where_to_write_it(cell):
    error = raised(cell, "%%trace model\nx = 1", InputError).error
    assert error.what == "%%trace was given no prompt."
    assert "%%trace model " in error.next


@pytest.mark.parametrize("count", ["0", "-1", "'a'", "1.5"])
def test_generate_takes_a_positive_number(cell, count):
    error = raised(cell, f"%%trace model 'Hello' --generate {count}\n1", UsageError).error
    assert error.what.startswith("--generate takes a number of tokens")


def test_only_a_language_model_generates(cell):
    cell.names["net"] = NNsight(torch.nn.Linear(2, 2))
    cell.names["x"] = torch.ones(1, 2)
    assert "cannot generate" in str(raised(cell, "%%trace net x --generate 2\n1", UsageError).error)


def test_a_usage_error_shows_three_lines_and_no_frames(cell):
    printed = raised(cell, "%%trace model 'Hello' --tim\nx = 1", UsageError).printed
    assert "did you mean --time?" in printed
    assert "File " not in printed
    assert "Cell " not in printed


def test_an_error_in_the_body_shows_the_users_line_alone(cell):
    shown = raised(
        cell,
        "%%trace model 'Hello'\nh = model.transformer.h[0].output\n\nh / none_such  # here\n",
        NameError,
    )
    assert "----> 4 h / none_such  # here" in shown.printed
    assert "insitu/notebook" not in shown.printed
    assert "interactiveshell" not in shown.printed


def test_an_error_in_the_body_closes_the_pass(cell):
    raised(cell, "%%trace model 'Hello'\nmodel.transformer.h[0].output\n1 / 0", ZeroDivisionError)
    model = cell.names["model"]
    with pytest.raises(insitu.NoTraceError):
        _ = model.lm_head.output
    assert cell("%%trace model 'Hello'\nlogits = model.lm_head.output").error is None


def test_an_error_raised_again_later_shows_as_usual(cell):
    error = raised(cell, "%%trace model 'Hello'\n1 / 0", ZeroDivisionError).error
    cell.names["error"] = error
    assert "raise error" in raised(cell, "\n\nraise error", ZeroDivisionError).printed


def test_an_out_of_order_read_names_the_cells_lines(cell):
    shown = raised(
        cell,
        "%%trace model 'Hello'\n\nlate = model.lm_head.output\n"
        "early = model.transformer.h[0].output",
        OutOfOrderError,
    )
    assert "(line 3)" in shown.error.why
    assert "----> 4 early = model.transformer.h[0].output" in shown.printed


def test_an_error_inside_the_model_reaches_the_user(cell):
    cell.names["insitu"] = insitu
    shown = raised(
        cell,
        "%%trace model 'Hello'\nmodel.transformer.h[0].output = insitu.force('no tensor')",
        Exception,
    )
    assert "insitu/notebook" not in shown.printed


def test_a_syntax_error_names_the_cells_line(cell):
    shown = raised(cell, "%%trace model 'Hello'\nx = 1\n\ny = = 2", SyntaxError)
    assert shown.error.lineno == 4


def test_await_is_refused_with_the_reason(cell):
    error = raised(cell, "%%trace model 'Hello'\nx = 1\nawait x", UsageError).error
    assert error.what == "line 3 awaits, and the body of %%trace cannot."


def test_an_empty_prompt_is_an_input_error(cell):
    assert "no tokens" in str(
        raised(cell, "%%trace model ''\nmodel.lm_head.output", InputError).error
    )


def test_a_cell_without_a_prompt_may_bring_several(cell):
    shown = cell(
        "%%trace model\n"
        f"with tracer.invoke('{PROMPT}'):\n"
        "    stream = model.transformer.h[3].output[:, -1]\n"
        "with tracer.invoke('The'):\n"
        "    model.transformer.h[3].output[:, -1] = stream\n"
        "    patched = model.lm_head.output[0, -1]\n"
    )
    with cell.names["model"].trace(PROMPT):
        want = cell.names["model"].lm_head.output[0, -1]
    assert torch.allclose(cell.names["patched"], want, atol=1e-4)
    assert "transformer.h.3.output" in shown.text
