"""The stepper: a pass held open, moved, looked at and edited from a view."""

import gc
import json
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import value_of
from reference import edited
from torch import nn

import insitu
from insitu import NNsight
from insitu.errors import PassClosedError, UsageError, WriteError
from insitu.widgets import Stepper

PROMPT = "Once upon a time"
SAMPLE = Path(__file__).parents[2] / "labextension" / "samples" / "stepper.json"


@pytest.fixture(autouse=True)
def no_shell(monkeypatch):
    monkeypatch.setattr("insitu.widgets.main_thread.shell", lambda: None)


@pytest.fixture
def run(llm):
    with llm.open(PROMPT) as run:
        yield run


def do(stepper, what, **given):
    """What the view asks for; what comes of it shows in the stepper's state."""
    value_of(stepper, "do", what=what, **{"with": given})
    return stepper.trouble


def here(stepper):
    return [path for path, *_, state, _, _ in stepper.rows if state == "here"]


def small_net():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    return nn.Sequential(nn.Linear(2, 2), inner, nn.Linear(2, 2)).requires_grad_(False)


# Going on ---------------------------------------------------------------------------------------


def test_buttons_move_the_pass_and_the_view_says_where_it_stands(llm, run):
    stepper = run.view()
    assert stepper.place["state"] == "ready"
    do(stepper, "module")
    assert run.where == stepper.place["where"] == "transformer.wte.output"
    do(stepper, "layer")
    assert here(stepper) == ["transformer.h.0"]
    do(stepper, "operation")
    assert stepper.place["operation"] == run.where.removesuffix(".output")
    assert stepper.source["stands"] == run.where.split(".source.")[1].removesuffix(".output")
    do(stepper, "to", path="transformer.h.2.mlp", side="input")
    assert run.where == "transformer.h.2.mlp.input"
    do(stepper, "to", path="lm_head")
    do(stepper, "finish")
    assert stepper.place["state"] == "finished"
    assert torch.equal(stepper.result.logits, llm(PROMPT).logits)
    assert stepper.run is None


def test_next_layer_stops_at_each_block_and_then_at_the_models_output(llm, run):
    stepper = Stepper(run)
    places = []
    for _ in range(5):
        stepper.next_layer()
        places.append(run.where)
    assert places == [*(f"transformer.h.{n}.output" for n in range(4)), "model.output"]


def test_next_layer_goes_on_through_the_steps_of_a_generation(llm):
    with llm.open(PROMPT, generate=2) as run:
        stepper = Stepper(run)
        for _ in range(6):
            stepper.next_layer()
        assert run.where == "transformer.h.0.output (step 1)"
        assert insitu.selection.as_dict() == {"layer": 0, "step": 1, "token": None, "head": None}
        assert stepper.place["step"] == 1
        stepper.finish()
        assert stepper.value["text"] == llm.tokenizer.decode(stepper.result[0])


def test_operations_are_gone_through_in_the_order_they_finish(llm, run):
    stepper = Stepper(run)
    stepper.to("transformer.h.1.attn", "input")
    places = []
    while run.where != "transformer.h.1.attn.output" and len(places) < 40:
        stepper.next_operation()
        places.append(run.where)
        if places[-1].startswith("transformer.h.1.attn.c_proj"):
            stepper.next_module()
            stepper.next_module()  # resid_dropout
            stepper.next_module()
    names = "c_attn.source.torch_addmm_0", "source.split_1", "source.attention_interface_0"
    wanted = [f"transformer.h.1.attn.{name}.output" for name in names]
    assert [it for it in places if it in wanted] == wanted


def test_a_clicked_operation_is_run_to(llm, run):
    stepper = Stepper(run)
    stepper.to("transformer.h.1.attn", operation="attention_interface_0")
    assert run.where == "transformer.h.1.attn.source.attention_interface_0.output"
    assert stepper.source["module"] == "transformer.h.1.attn"
    assert stepper.source["lines"][stepper.source["line"] - stepper.source["lines"][0][0]][2] == [
        "attention_interface_0"
    ]


def test_at_a_modules_output_the_text_is_that_of_its_caller(llm, run):
    stepper = Stepper(run)
    stepper.to("transformer.h.1.mlp.c_fc")
    line = next(text for n, text, _ in stepper.source["lines"] if n == stepper.source["line"])
    assert stepper.source["path"] == "transformer.h.1.mlp.source"
    assert "self.c_fc(" in line


def test_an_error_of_going_on_comes_to_the_view(llm, run):
    stepper = Stepper(run)
    stepper.to("transformer.h.2")
    trouble = do(stepper, "to", path="transformer.h.0")
    assert "transformer.h.0.output" in trouble["what"]
    assert stepper.busy == ""
    assert do(stepper, "to", path="transformer.hh")
    assert "did you mean" in stepper.trouble["next"]
    assert do(stepper, "module") == {}


# The value --------------------------------------------------------------------------------------


def test_the_value_is_told_in_numbers_and_as_a_picture(llm, run):
    stepper = Stepper(run)
    stepper.to("transformer.h.1")
    value = llm.transformer.h[1].output
    assert stepper.value["kind"] == f"float32{list(value.shape)}"
    assert stepper.value["numbers"]["mean"] == pytest.approx(float(value.mean()), rel=1e-4)
    picture = torch.tensor(np.frombuffer(stepper.picture, "<f4")).view(stepper.value["picture"])
    assert torch.equal(picture, value[0])
    assert "".join(stepper.value["tokens"]) == PROMPT


def test_each_tensor_of_a_call_or_a_tuple_can_be_looked_at(llm, run):
    stepper = Stepper(run)
    stepper.to("transformer.h.1.attn")
    assert stepper.value["parts"] == ["[0]"] or len(stepper.value["parts"]) > 1
    stepper.to("transformer.h.2", "input")
    assert stepper.value["parts"][0] == "argument 0"
    do(stepper, "look", part=0, at=[99])
    assert stepper.value["at"] == [0]


def test_logits_are_told_as_the_likeliest_next_tokens(llm, run):
    stepper = Stepper(run)
    stepper.to("lm_head")
    logits = llm.lm_head.output[0, -1]
    assert stepper.value["top"][0][0] == llm.tokenizer.decode([int(logits.argmax())])
    assert stepper.value["top"][0][1] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)


@pytest.mark.parametrize("value", [
    torch.zeros(()), torch.zeros(0, 3), torch.tensor([True]), torch.tensor([1 + 2j]),
    torch.full((2, 2), float("nan")), torch.ones(2, 2, dtype=torch.bfloat16),
    torch.ones(1, 300, 500),
], ids=lambda it: f"{it.dtype}{list(it.shape)}")  # fmt: skip
def test_any_value_can_be_shown(value):
    class Odd(nn.Module):
        def forward(self, x):
            return value

    with NNsight(nn.Sequential(Odd())).open(torch.zeros(1)) as run:
        stepper = Stepper(run)
        stepper.next_module()
        assert stepper.value["shape"] == list(value.shape)
        assert json.dumps(stepper.value)
        assert stepper.text()
        assert "<script" not in stepper.html()


# Edits ------------------------------------------------------------------------------------------


def test_an_edit_is_what_the_model_goes_on_with():
    net, x = small_net(), torch.rand(1, 2)
    run = NNsight(net).open(x)
    stepper = Stepper(run)
    stepper.to("1.0")
    do(stepper, "edit", text="value * 2")
    stepper.to("2", "input")
    do(stepper, "edit", text="value[:, 0] = 0")
    do(stepper, "finish")

    def halved(value, call):
        return torch.cat((torch.zeros_like(value[:, :1]), value[:, 1:]), 1)

    expected = edited(net, {"1.0": lambda value, call: value * 2, "1": halved}, x)
    assert torch.equal(stepper.result, expected)
    assert stepper.code == [
        "run.until(model[1][0])",
        "value = model[1][0].output",
        "model[1][0].output = value * 2",
        "model[2].inputs",
        "value = model[2].input",
        "value[:, 0] = 0",
        "out = run.finish()",
    ]


def test_the_code_of_what_was_done_does_it_again(llm):
    stepper = llm.open(PROMPT).view()
    stepper.next_layer()
    stepper.edit("value * 2")
    stepper.next_operation()
    stepper.edit("torch.zeros_like(value)")
    stepper.finish()
    names = {"model": llm, "run": llm.open(PROMPT), "torch": torch}
    exec("\n".join(stepper.code), names)
    assert torch.equal(names["out"].logits, stepper.result.logits)
    assert not torch.equal(names["out"].logits, llm(PROMPT).logits)


def test_an_edit_that_does_not_fit_says_why_and_the_pass_stays(llm, run):
    stepper = Stepper(run)
    stepper.to("transformer.h.1")
    trouble = do(stepper, "edit", text="value[:, :2]")
    assert "does not fit: shape" in trouble["what"]
    assert trouble["why"].startswith("Why:")
    assert trouble["next"].startswith("Next:")
    with pytest.raises(WriteError, match="dtype float64, not float32"):
        stepper.edit("value.double()")
    assert do(stepper, "edit", text="value *")
    assert "SyntaxError" in stepper.trouble["what"]
    assert "NameError" in do(stepper, "edit", text="valu * 2")["what"]
    assert run.where == "transformer.h.1.output"
    assert len(stepper.code) == 1
    run.finish()


def test_an_edit_that_reads_on_is_refused(llm, run):
    import __main__

    __main__.model_of_test = llm
    stepper = Stepper(run)
    stepper.to("transformer.h.1")
    with pytest.raises(UsageError, match="the edit has moved the pass"):
        stepper.edit("model_of_test.transformer.h[2].output")
    del __main__.model_of_test


def test_without_a_value_there_is_nothing_to_edit(run):
    with pytest.raises(UsageError, match="no tensor to edit"):
        Stepper(run).edit("value * 2")


# Elsewhere --------------------------------------------------------------------------------------


def test_what_later_cells_do_with_the_run_is_seen(llm, run):
    stepper = Stepper(run)
    run.step()
    assert stepper.place["where"] == "transformer.wte.output"
    llm.transformer.h[1].output[:] *= 2
    stepper._after_cell()
    assert stepper.place["where"] == "transformer.h.1.output"
    run.finish()
    assert stepper.place["state"] == "finished"
    with pytest.raises(PassClosedError, match="this pass has finished"):
        stepper.next_module()
    assert "has finished" in do(stepper, "layer")["what"]


def test_another_pass_of_the_model_closes_the_first_and_its_view_says_so(llm, run):
    stepper = Stepper(run)
    llm.open(PROMPT).close()
    stepper._after_cell()
    assert stepper.place["state"] == "closed"
    assert stepper.value["parts"] == []


def test_a_pass_that_fails_says_so():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such luck")

    run = NNsight(nn.Sequential(nn.Linear(2, 2), Fails())).open(torch.ones(1, 2))
    stepper = Stepper(run)
    stepper.next_module()
    assert "no such luck" in do(stepper, "module")["what"]
    assert stepper.place["state"] == "failed"


def test_a_pass_of_another_thread_is_shown_and_not_moved(llm):
    made = []
    thread = threading.Thread(target=lambda: made.append(llm.open(PROMPT)))
    thread.start()
    thread.join()
    stepper = Stepper(made[0])
    assert stepper.place["elsewhere"]
    assert "another thread" in do(stepper, "module")["what"]
    made[0].close()


def test_a_fast_loop_is_not_held_up_by_its_view(llm, run):
    stepper = Stepper(run)
    shown = []
    stepper.observe(lambda change: shown.append(change.new["where"]), "place")
    stepper._took_s, stepper._hears_cells = 3600, True  # as in a notebook
    for _ in range(20):
        run.step()
    assert shown == []
    stepper._after_cell()
    assert shown == [run.where]


def test_a_view_of_a_pass_that_is_over_keeps_no_model_alive():
    model = NNsight(small_net())
    stepper = model.open(torch.ones(1, 2)).view()
    stepper.finish()
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert stepper.place["state"] == "finished"


def test_a_closed_view_lets_go_of_the_run(run):
    stepper = Stepper(run)
    stepper.close()
    run.step()
    assert stepper.place["state"] == "ready"
    assert stepper.run is None


def test_only_runs_are_stepped(llm):
    with pytest.raises(UsageError, match="drives a pass held open, not LanguageModel"):
        Stepper(llm)
    with llm.open(PROMPT) as run:
        assert isinstance(insitu.show(run), Stepper)


# Large and shared -------------------------------------------------------------------------------


def test_a_long_stack_is_shown_about_the_pass():
    net = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(100)))
    with NNsight(net).open(torch.ones(1, 2)) as run:
        stepper = Stepper(run)
        stepper.to("50")
        assert len(stepper.rows) < 30
        assert sum(state == "gap" for *_, state, _, _ in stepper.rows) == 2
        gap = next(row for row in stepper.rows if row[4] == "gap")
        do(stepper, "open", path=gap[0])
        assert len(stepper.rows) > 100


def test_the_sample_is_what_python_sends():
    x = torch.tensor([[1.0, -2.0]])
    net = nn.Sequential(nn.Identity(), nn.Sequential(nn.Identity(), nn.ReLU()), nn.Identity())
    with NNsight(net).open(x) as run:
        stepper = Stepper(run)
        stepper.to("1.0")
        sent = {
            name: getattr(stepper, name)
            for name in ("title", "place", "blocks", "rows", "value", "code")
        }
        sent["source"] = {**stepper.source, "file": "container.py:1"}
        sent["picture"] = np.frombuffer(stepper.picture, "<f4").tolist()
    sent = json.loads(json.dumps(sent))
    assert json.loads(SAMPLE.read_text()) == sent
