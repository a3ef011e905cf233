"""Further ways for a pass held open to go on, without a view."""

import pytest
import torch
from torch import nn

from insitu import NNsight
from insitu.engine.stepping import (
    source_of_standing,
    to_input_of,
    to_next_of,
    to_next_operation,
)

PROMPT = "Once upon a time"


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        y = self.inner(x)
        z = torch.relu(y)
        return z + 1


def test_operations_stop_in_the_order_they_finish_in_whatever_forward():
    with NNsight(Twice()).open(torch.ones(1, 2)) as run:
        places = []
        while run.move(to_next_operation).where not in ("model.output", "finished"):
            places.append(run.where)
    assert places == ["inner.source.F_linear_0.output", "model.source.torch_relu_0.output"]


def test_a_pass_that_steps_by_operations_gives_what_the_bare_model_gives(llm):
    with torch.no_grad():
        bare = llm(PROMPT).logits
    for _ in range(2):  # observed, then with the order known
        run = llm.open(PROMPT)
        count = 0
        while run.move(to_next_operation).where != "model.output":
            count += 1
        assert count > 60
        assert torch.equal(run.finish().logits, bare)


def test_an_input_that_has_passed_is_reached_in_the_next_step(llm):
    with llm.open(PROMPT, generate=2) as run:
        run.until(llm.lm_head)
        run.move(to_input_of(llm.transformer.h[0]))
        assert run.where == "transformer.h.0.input (step 1)"


def test_layers_are_stopped_at_and_the_models_output(llm):
    blocks = set(llm._module.transformer.h)
    with llm.open(PROMPT) as run:
        places = [run.move(to_next_of(blocks)).where for _ in range(5)]
    assert places == [*(f"transformer.h.{n}.output" for n in range(4)), "model.output"]


def test_the_line_is_that_of_the_call_where_a_module_has_returned():
    with NNsight(Twice()).open(torch.ones(1, 2)) as run:
        assert source_of_standing(run._pass) is None
        run.step()
        source, line = source_of_standing(run._pass)
        assert source._path == "model.source"
        assert source._plan.definition.lines[line - source._plan.definition.first].strip() == (
            "y = self.inner(x)"
        )


def test_who_listens_to_a_run_hears_of_each_move_and_is_not_kept(llm):
    class Listener:
        moves = 0

        def heard(self):
            self.moves += 1

    listener = Listener()
    with llm.open(PROMPT) as run:
        run.on_move(listener.heard)
        run.step().until(llm.transformer.h[1])
        assert listener.moves == 2
        run.finish()
        assert listener.moves == 3
    del listener
    assert [it for it in run._heard if it() is not None] == []


# Where a pass stands ------------------------------------------------------------------------------


def shown(run):
    """The source a pass stands in, and the text of the line."""
    source, line = source_of_standing(run._pass)
    first = source._plan.definition.first
    return source._path, source._plan.definition.lines[line - first].strip()


def test_the_line_is_that_of_the_operation_where_a_pass_stands():
    model, x = NNsight(Twice()), torch.ones(1, 2)
    with model.open(x) as run:
        run.until(model.source.torch_relu_0)
        assert shown(run) == ("model.source", "z = torch.relu(y)")
    with model.open(x) as run:
        run.move(to_input_of(model.source.torch_relu_0))
        assert shown(run) == ("model.source", "z = torch.relu(y)")
        assert torch.equal(run.value[0][0], model._module.inner(x))


def test_at_a_modules_input_the_line_is_that_of_its_forward():
    model = NNsight(Twice())
    with model.open(torch.ones(1, 2)) as run:
        run.move(to_input_of(model.inner))
        path, line = shown(run)
    assert path == "inner.source"
    assert line.startswith("def forward(self, input")


def test_from_an_input_on_the_operations_inside_are_met(llm):
    with llm.open(PROMPT) as run:
        run.move(to_input_of(llm.transformer.h[1].mlp))
        assert run.where == "transformer.h.1.mlp.input"
        run.move(to_next_operation)
        assert run.where.startswith("transformer.h.1.mlp.")
        assert run.where != "transformer.h.1.mlp.output"


def test_layers_after_the_last_are_not_waited_for_in_vain(llm):
    blocks = set(llm._module.transformer.h)
    with llm.open(PROMPT) as run:
        run.until(llm)
        assert run.move(to_next_of(blocks)).where == "finished"


@pytest.mark.filterwarnings("ignore:.torch.jit.*:DeprecationWarning")
def test_a_module_without_a_text_is_passed_over_by_operations():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2)))
    made = {}
    exec("def forward(self, x):\n    return x * 2\n", made)
    nameless = type("Nameless", (nn.Module,), {"forward": made["forward"]})()
    net, x = nn.Sequential(scripted, nameless, Twice()), torch.ones(1, 2)
    with NNsight(net).open(x) as run:
        places = []
        while run.move(to_next_operation).where not in ("model.output", "finished"):
            places.append(run.where)
        assert torch.equal(run.finish(), net(x))
    assert "2.source.torch_relu_0.output" in places
    assert not any(place.startswith(("0.source", "1.source")) for place in places)
    with NNsight(net).open(x) as run:
        run.until("1.input")
        assert source_of_standing(run._pass) is None
