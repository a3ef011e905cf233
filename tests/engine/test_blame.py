"""A model that fails after a block has changed something says in its error what that was."""

import pytest
import torch
from torch import nn

import insitu
from insitu import NNsight, View


def notes(error):
    return getattr(error.value, "__notes__", [])


def line_of(error, text):
    """The line of a statement in the test that raised."""
    frame = error.traceback[0].frame
    lines = str(frame.code.fullsource).split("\n")
    first = frame.code.firstlineno
    return next(
        n + 1 for n in range(first, len(lines)) if text in lines[n] and "line_of" not in lines[n]
    )


def test_a_forced_value_that_breaks_the_model_is_named(net, x):
    model = NNsight(net)
    with pytest.raises(RuntimeError, match="multiplied") as error:
        with model.trace(x):
            model.layer1.output = insitu.force(torch.zeros(1, 7))
    line = line_of(error, "model.layer1.output = ")
    assert notes(error) == [
        f"Insitu: in this pass, line {line} replaced layer1.output "
        "(float32[1, 10] → float32[1, 7]), forced past the check."
    ]


def test_the_error_itself_is_torchs_own(net, x):
    model, wrong = NNsight(net), torch.zeros(1, 7)
    with pytest.raises(RuntimeError) as plain:
        net.layer2(wrong)
    with pytest.raises(RuntimeError) as error:
        with model.trace(x):
            model.layer1.output = insitu.force(wrong)
    assert type(error.value) is type(plain.value)
    assert error.value.args == plain.value.args


def test_a_forced_input_and_forced_arguments_are_named(net, x):
    model = NNsight(net)
    with pytest.raises(RuntimeError) as error:
        with model.trace(x):
            model.layer2.input = insitu.force(torch.zeros(1, 3))
    assert "replaced layer2.input (float32[1, 10] → float32[1, 3]), forced" in notes(error)[0]
    with pytest.raises(TypeError) as error:
        with model.trace(x):
            model.layer2.inputs = insitu.force(((), {}))
    assert "replaced layer2.inputs (((float32[1, 10]), dict) → ((), dict))" in notes(error)[0]


def test_a_value_on_another_device_is_named_with_the_devices(net, x):
    model = NNsight(net)
    with pytest.raises(RuntimeError) as error:
        with model.trace(x):
            model.layer1.output = insitu.force(torch.zeros(1, 10, device="meta"))
    assert "(float32[1, 10] on cpu → float32[1, 10] on meta), forced" in notes(error)[0]


def test_a_skip_that_breaks_the_model_is_named(net, x):
    for first in (False, True):
        model = NNsight(net)
        if not first:
            with model.trace(x):
                pass
        with pytest.raises(RuntimeError) as error:
            with model.trace(x):
                model.layer1.skip(insitu.force(torch.zeros(1, 4)))
        line = line_of(error, "layer1.skip")
        told = f"line {line} skipped layer1, for which it gave float32[1, 4]"
        assert notes(error) == [f"Insitu: in this pass, {told}."]


def test_a_skip_the_model_had_not_come_to_is_not_named(x):
    class Breaks(nn.Module):
        def forward(self, x):
            raise LookupError("by itself")

    model = NNsight(nn.Sequential(Breaks(), nn.Linear(5, 5)))
    with pytest.raises(LookupError) as error:
        with model.trace(x):
            model[1].skip(torch.zeros(1, 5))
    assert notes(error) == []


def test_a_write_that_fits_is_named_too(llm):
    with pytest.raises(IndexError) as error:
        with llm.trace("Hello"):
            ids = llm.transformer.wte.input
            llm.transformer.wte.input = ids + 100_000
    assert "replaced transformer.wte.input." in notes(error)[0]
    with pytest.raises(RuntimeError) as error:
        with llm.trace("Hello"):
            llm.transformer.wte.output = llm.transformer.wte.output * 2
            llm.transformer.h[1].output = insitu.force(torch.zeros(1, 1, 3))
    first, second = notes(error)[0].split("; ")
    assert "h.1.output" in first
    assert first.endswith("forced past the check")
    assert second.endswith("replaced transformer.wte.output.")


def test_at_most_three_writes_are_named_the_forced_first_and_the_latest(x):
    model = NNsight(nn.Sequential(*[nn.Identity() for _ in range(8)], nn.Linear(5, 5)))
    with pytest.raises(RuntimeError) as error:
        with model.trace(x):
            model[0].output = insitu.force(torch.zeros(1, 4))
            for layer in model[1:8]:
                layer.output = torch.zeros(1, 4)
    told = notes(error)[0].split("; ")
    assert ["replaced 0.output" in told[0], "7.output" in told[1], "6.output" in told[2]] == [
        True
    ] * 3
    assert len(told) == 3


def test_a_write_in_a_loop_is_named_once(x):
    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 5)

        def forward(self, x):
            for _ in range(4):
                x = self.a(x)
            raise ValueError("at the end")

    model = NNsight(Loops())
    with pytest.raises(ValueError) as error:
        with model.trace(x) as tracer:
            for _ in tracer.iter[:4]:
                model.a.output = torch.zeros(1, 5)
            model.output
    assert notes(error)[0].count("replaced a.output") == 1


def test_reads_and_errors_of_the_block_get_no_note(net, x):
    model = NNsight(net)
    with pytest.raises(RuntimeError) as error:
        with model.trace(torch.zeros(1, 3)):
            model.layer1.input
    assert notes(error) == []
    with pytest.raises(ZeroDivisionError) as error:
        with model.trace(x):
            model.layer1.output = torch.zeros(1, 10)
            1 / 0
    assert notes(error) == []
    with pytest.raises(insitu.WriteError) as error:
        with model.trace(x):
            model.layer1.output = torch.zeros(1, 10)
            model.layer2.output = torch.zeros(1, 10)
    assert notes(error) == []


def test_writes_of_one_pass_are_not_named_in_the_next(net, x):
    model = NNsight(net)
    with model.trace(x):
        model.layer1.output = torch.zeros(1, 10)
    with pytest.raises(RuntimeError) as error:
        with model.trace(torch.zeros(1, 3)):
            pass
    assert notes(error) == []


def test_writes_of_invokes_are_named(net, x):
    model = NNsight(net)
    with pytest.raises(RuntimeError) as error:
        with model.trace() as tracer:
            with tracer.invoke(x):
                model.layer1.output = insitu.force(torch.zeros(1, 4))
    line = line_of(error, "layer1.output = ")
    assert f"line {line} replaced layer1.output (float32[1, 10] → float32[1, 4])" in notes(error)[0]
    with pytest.raises(RuntimeError) as error:
        with model.trace() as tracer:
            with tracer.invoke(torch.cat([x, x])):
                model.layer1.skip(insitu.force(torch.zeros(2, 4)))
    assert "skipped layer1, for which it gave float32[2, 4]" in notes(error)[0]


def test_writes_of_an_edit_are_named(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output = insitu.force(torch.zeros(1, 4))
    for run in (edited, edited.trace, lambda x: edited.open(x).finish()):
        with pytest.raises(RuntimeError) as error:
            run(x)
        assert "replaced layer1.output (float32[1, 10] → float32[1, 4])" in notes(error)[0]


def test_writes_of_operations_are_named(net, x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 5)

        def forward(self, x):
            y = torch.relu(x)
            return self.a(y)

    model = NNsight(Twice())
    with pytest.raises(RuntimeError) as error:
        with model.trace(x):
            model.source.torch_relu_0.output = insitu.force(torch.zeros(1, 4))
    assert (
        "replaced model.source.torch_relu_0.output (float32[1, 5] → float32[1, 4])"
        in notes(error)[0]
    )


def test_a_write_through_a_view_is_at_the_line_of_its_setter(x):
    class Doubled(View):
        @property
        def doubled(self):
            return self.output * 2

        @doubled.setter
        def doubled(self, value):
            self.output = insitu.force(value)

    model = NNsight(nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5)), views={nn.Linear: Doubled})
    with pytest.raises(RuntimeError) as error:
        with model.trace(x):
            model[0].doubled = torch.zeros(1, 4)
    line = line_of(error, "self.output = insitu.force(value)")
    assert f"line {line} replaced 0.output" in notes(error)[0]


def test_a_failing_generation_names_the_step_that_broke_it(llm):
    with pytest.raises(RuntimeError) as error:
        with llm.generate("Once", max_new_tokens=4) as tracer:
            for step in tracer.iter[:]:
                if step == 2:
                    llm.transformer.h[0].output = insitu.force(torch.zeros(1, 1, 7))
    assert (
        "replaced transformer.h.0.output (float32[1, 1, 32] → float32[1, 1, 7])" in notes(error)[0]
    )


def test_a_pass_that_reads_keeps_no_writes(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        model.layer1.output
        model.layer2.output
        assert tracer._run.writes is None
