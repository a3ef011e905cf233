"""Further ways for a pass held open to go on, without a view."""

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
