import re
import time

import pytest
import torch
from torch import nn

from insitu import NNsight
from insitu.twins.model import model_html
from insitu.twins.tree import grow


def bundle(shell, value):
    return shell.display_formatter.format(value)[0]


def test_a_model_shows_its_tree_with_repeated_blocks_folded(shell, llm):
    shown = bundle(shell, llm)
    assert "(0-3): 4 × GPT2Block" in shown["text/plain"]
    assert "4 × GPT2Block" in shown["text/html"]
    assert shown["text/html"].count("GPT2Attention") == 1


def test_parameters_used_twice_count_once(llm):
    tree = grow(llm)
    assert tree.parameters == sum(p.numel() for p in llm._module.parameters())
    assert tree.parameters < sum(child.parameters for child in tree.children)


def test_shapes_are_those_of_the_first_pass(shell, llm):
    assert "→" not in bundle(shell, llm)["text/plain"]
    with llm.trace("The Eiffel Tower") as tracer:
        shape = list(tracer.result.logits.shape)
    assert f"→ float32{shape}" in bundle(shell, llm)["text/plain"]
    block = bundle(shell, llm.transformer.h[0])
    assert "GPT2Block" in block["text/plain"]
    assert "→ float32" in block["text/html"]


def without_sheet(html):
    """What JupyterLab shows of a notebook that is not trusted."""
    return html.partition("<style>")[0] + html.partition("</style>")[2]


def test_a_tree_reads_well_without_its_sheet(llm):
    html = without_sheet(model_html(llm))
    words = re.sub(r"<[^>]*>", "", html)
    assert "wte Embedding · 10,560 parameters" in words
    assert html.count("<ul") == html.count("</ul>") > 3
    assert "var(" not in html  # JupyterLab keeps literal values only


def test_a_small_tree_is_open_to_what_its_first_block_holds(llm):
    before, _, inside = model_html(llm).partition("GPT2Block")
    assert before.count("<details open>") == before.count("<details") == 3
    assert "<details open>" not in inside


def test_a_large_tree_stays_folded():
    blocks = [nn.Sequential(nn.Linear(2, size), nn.ReLU()) for size in range(1, 40)]
    twice = [nn.Sequential(nn.Linear(9, 9)) for _ in range(2)]
    deep = nn.Sequential(nn.Sequential(nn.Sequential(nn.ModuleList(twice))), *blocks)
    assert "2 × Sequential" in model_html(NNsight(deep))
    before = model_html(NNsight(deep)).partition("2 × Sequential")[0]
    assert before.count("<details open>") < before.count("<details")


def test_neighbours_that_differ_are_not_folded():
    model = NNsight(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3), nn.ReLU()))
    assert [child.name for child in grow(model).children] == ["0-1", "2", "3"]


def test_a_module_used_in_two_places_is_counted_in_both():
    shared = nn.ModuleList([nn.Linear(2, 2)])
    first, second = grow(NNsight(nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)}))).children
    assert first.parameters == second.parameters == 6


def test_a_display_escapes_names():
    model = nn.Module()
    model.add_module("<u>", nn.Linear(1, 1))
    assert "<u>" not in model_html(NNsight(model)).partition("</style>")[2]


def test_a_display_never_raises_and_runs_nothing(shell):
    class Broken(nn.Module):
        @property
        def _parameters(self):
            raise RuntimeError("<no>")

        @_parameters.setter
        def _parameters(self, value):
            pass

        def forward(self):
            raise AssertionError("a display ran the model")

    shown = bundle(shell, NNsight(nn.Sequential(Broken())))
    assert "not shown: RuntimeError: &lt;no&gt;" in shown["text/html"]


class Block(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.norm = nn.LayerNorm(2 + number % 7)
        self.parts = nn.ModuleList([nn.Linear(1, 1) for _ in range(5)])
        self.rest = nn.Sequential(nn.Linear(1, 1 + number % 5), nn.ReLU())


def test_ten_thousand_modules_stay_small_and_quick():
    model = NNsight(nn.ModuleList([Block(number) for number in range(910)]))
    assert sum(1 for _ in model._module.modules()) > 10_000
    took_s = []
    for _ in range(3):
        began = time.thread_time()
        html = model_html(model)
        took_s.append(time.thread_time() - began)
    assert len(html.encode()) < 200_000
    assert "rows more" in html
    assert min(took_s) < 0.15


def test_a_pass_held_open_shows_where_it_stands(shell, llm):
    with llm.open("The Eiffel Tower") as run:
        run.until(llm.transformer.h[1])
        shown = bundle(shell, run)
        assert "transformer.h.1.output" in shown["text/html"]
        assert "float32[1, " in shown["text/html"]
        assert "transformer.h.1.output" in shown["text/plain"]
    assert "transformer.h.1" not in bundle(shell, run)["text/html"]


@pytest.mark.parametrize("value", [nn.Linear(1, 1), torch.ones(1), [1]])
def test_other_values_look_as_before(shell, value):
    assert bundle(shell, value)["text/plain"] == repr(value)
    assert "text/html" not in bundle(shell, value)
