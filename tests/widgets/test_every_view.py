"""Each view's state, answers and twins, and the samples it shares with the front end."""

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from asking import ask, numbers_of, rows_of, trouble_with, value_of
from every_widget import WIDGETS, small_estimate, small_net
from torch import nn

import insitu
from insitu import NNsight
from insitu.errors import InputTypeError, UsageError
from insitu.methods import activation_patching, attention_patterns, logit_lens
from insitu.methods.axes import Axis
from insitu.methods.metrics import logit_difference
from insitu.methods.result import Result
from insitu.widgets import AttentionView, CacheInspector, LensGrid, ModuleTree, SourceBrowser
from insitu.widgets.base import Widget
from insitu.widgets.patch_map import PatchMap, patch_map

SAMPLES = Path(__file__).parents[2] / "labextension" / "samples"


def sample(name):
    return json.loads((SAMPLES / f"{name}.json").read_text())


# Every view ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WIDGETS)
def test_a_view_has_its_bundle_and_twins_of_text_and_html(name):
    widget = WIDGETS[name]()
    assert "render" in str(widget._esm), "run `make widgets`"
    data, _ = widget._repr_mimebundle_()
    assert set(data) >= {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
    assert "<script" not in data["text/html"]
    assert data["text/plain"] == repr(widget)


@pytest.mark.parametrize("name", WIDGETS)
def test_a_question_that_cannot_be_answered_comes_back_as_trouble(name):
    assert "answers no 'nonsense'" in trouble_with(WIDGETS[name](), "nonsense")["what"]


def test_a_view_selects_what_it_names_and_its_old_news_of_the_rest_is_left():
    view = WIDGETS["lens_grid"]()
    insitu.selection.head = 2  # which the page has not heard of when a step is clicked there
    view.selection = {"step": 1, "head": None, "named": ["step"]}
    assert (insitu.selection.step, insitu.selection.head) == (1, 2)
    assert view.selection == insitu.selection.as_dict()


def test_a_view_is_told_which_of_its_choices_was_heard_and_python_may_choose_after_it():
    first, second = WIDGETS["lens_grid"](), WIDGETS["attention_view"]()
    first.selection = {"layer": 2, "named": ["layer"], "serial": "page 1"}
    assert first.selection == {**insitu.selection.as_dict(), "heard": "page 1"}
    assert second.selection == insitu.selection.as_dict()
    insitu.selection.layer = 1
    assert first.selection == {**insitu.selection.as_dict(), "heard": "page 1"}
    second.selection = {**insitu.selection.as_dict(), "serial": "page 7"}
    assert (first.selection["heard"], second.selection["heard"]) == ("page 1", "page 7")


def test_views_share_one_selection_with_python():
    first, second = WIDGETS["lens_grid"](), WIDGETS["attention_view"]()
    first.selection = {"layer": 2, "token": 1}
    assert (insitu.selection.layer, insitu.selection.token) == (2, 1)
    assert second.selection["layer"] == 2
    insitu.selection.head = 3
    assert first.selection == {"token": 1, "layer": 2, "head": 3, "step": None}
    second.close()
    insitu.selection.head = 1
    assert first.selection["head"] == 1
    assert first.cell == (2, 1)


def test_show_takes_plain_modules_arrays_and_results_of_one_axis(llm):
    assert isinstance(insitu.show(torch.nn.Linear(2, 2)), ModuleTree)
    assert insitu.show(torch.arange(6.0).numpy()).count == 1
    assert insitu.show({"a": torch.arange(6.0).numpy()}).count == 1
    row = Result(torch.arange(3.0), (Axis("component", ["embed", "attn", "mlp"]),))
    assert len(insitu.show(row).rows) == 1
    assert insitu.show(row).columns == ["embed", "attn", "mlp"]


@pytest.mark.parametrize("nothing", [["The", " Eiffel"], "text", 3])
def test_show_refuses_what_has_no_view(nothing):
    with pytest.raises(insitu.InputTypeError, match="no view"):
        insitu.show(nothing)


def test_show_refuses_a_setting_that_a_view_does_not_take(llm):
    with pytest.raises(insitu.UsageError, match="nonsense"):
        insitu.show(llm, nonsense=3)


def test_show_opens_the_view_that_suits(llm):
    with llm.trace("Once upon a time") as tracer:
        cache = tracer.cache()
    assert isinstance(insitu.show(llm), ModuleTree)
    assert isinstance(insitu.show(cache), CacheInspector)
    assert isinstance(insitu.show([torch.ones(2)]), CacheInspector)
    assert isinstance(insitu.show(logit_lens(llm, "Once upon")), LensGrid)
    assert isinstance(insitu.show(attention_patterns(llm, "Once upon")), AttentionView)
    assert isinstance(cache.view(), Widget)
    with pytest.raises(InputTypeError, match="there is no view of int"):
        insitu.show(3)


# The module tree ----------------------------------------------------------------------------------


def test_the_trees_sample_is_what_python_sends():
    net = small_net()
    model = NNsight(net)
    tree = ModuleTree(model)
    net[1].compile(backend="eager")
    tree.overlay = True
    paths = [name for name, _ in net.named_modules()]
    nodes = {
        **tree.nodes,
        "numbers": np.frombuffer(tree.nodes["numbers"], "<i4").tolist(),
        "sizes": np.frombuffer(tree.nodes["sizes"], "<f8").tolist(),
    }
    told = {"title": tree.title, "nodes": nodes, "paths": paths, "reach": tree.reach}
    assert sample("module_tree") == told


def test_a_tree_counts_what_torch_counts_and_shows_shapes_after_a_pass(llm):
    with llm.trace("Once upon a time"):
        llm.lm_head.output
    nodes = rows_of(llm.tree())
    assert nodes["size"][0] == sum(p.numel() for p in llm._module.parameters())
    modules = dict(llm._module.named_modules())
    assert nodes["name"] == [path.rpartition(".")[2] for path in modules]
    parents = [-1, *(list(modules).index(path.rpartition(".")[0]) for path in modules if path)]
    assert nodes["parent"] == parents
    assert [nodes["kinds"][kind] for kind in nodes["kind"]] == [
        type(module).__name__ for module in modules.values()
    ]
    row = nodes["name"].index("lm_head")
    assert "float32[1, " in nodes["outputs"][nodes["output"][row]]


def test_what_is_selected_in_a_tree_is_a_wrapped_module(llm):
    tree = llm.tree()
    tree.selected = "transformer.h.1.mlp"
    assert tree.module is llm.transformer.h[1].mlp
    row = [name for name, _ in llm._module.named_modules()].index("transformer.h.1.mlp")
    assert value_of(tree, "about", row=row)["class"].endswith("GPT2MLP")


def test_a_tree_outlives_its_model():
    model = NNsight(small_net())
    tree = ModuleTree(model)
    del model
    gc.collect()
    assert trouble_with(tree, "about", row=0)["what"] == "the model of this tree is gone."


def test_a_tree_of_no_wrapped_model_is_refused():
    with pytest.raises(UsageError, match="a tree shows a wrapped model, not Linear"):
        ModuleTree(nn.Linear(2, 2))


# The source browser -------------------------------------------------------------------------------


def test_the_source_sample_is_what_python_sends():
    model = NNsight(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    browser = SourceBrowser(model)
    listing = {**browser.listing, "file": "container.py:1"}
    assert sample("source_browser") == {"title": browser.title, "listing": listing}


def test_a_browser_goes_into_operations_and_selects_them_for_a_block(llm):
    browser = SourceBrowser(llm.transformer.h[0].attn)
    into = value_of(browser, "into", trail=["attention_interface_0"])
    names = [name for _, _, names in into["lines"] for name in names]
    inner = next(name for name in names if "scaled_dot_product" in name)
    browser.selected = f"attention_interface_0.source.{inner}"
    with llm.trace("Once upon a time"):
        value = browser.operation.output
        expected = llm.transformer.h[0].attn.c_proj.input
    assert value.numel() == expected.numel()
    assert "nonsense" in trouble_with(browser, "into", trail=["nonsense"])["what"]


# The lens grid ------------------------------------------------------------------------------------


def test_the_lens_sample_is_what_python_sends():
    grid = WIDGETS["lens_grid"]()
    names = ("title", "names", "chooses", "rows", "columns", "texts", "measures")
    sent = {name: getattr(grid, name) for name in names}
    sent["values"] = [np.frombuffer(part, "<f4").tolist() for part in grid.values]
    assert sample("lens_grid") == json.loads(json.dumps(sent))


def test_a_grid_tells_the_likeliest_of_a_cell(llm):
    lens = logit_lens(llm, "Once upon a time")
    words = [word for word, _ in value_of(LensGrid(lens), "top", row=1, column=2)]
    top = lens.further["top"].sel(layer=1, pos=2)
    assert words == list(top.texts)


def test_a_grid_wants_two_axes():
    with pytest.raises(UsageError, match="a grid shows two axes, and this result has 1"):
        LensGrid(Result(torch.ones(2), (Axis("layer", range(2)),)))


# Attention ----------------------------------------------------------------------------------------


def test_attention_gives_what_is_in_sight(llm):
    found = attention_patterns(llm, "Once upon a time there was")
    view = AttentionView(found)
    about, (tile,) = numbers_of(view, "tile", layer=1, head=2, rows=[1, 3], columns=[0, 2])
    expected = found.values[1, 2, 1:3, 0:2]
    assert about["shape"] == [2, 2]
    assert torch.equal(tile.view(2, 2), expected)
    _, (row,) = numbers_of(view, "query", layer=0, head=1, query=2)
    assert torch.equal(row, found.values[0, 1, 2])


def test_the_brightest_cell_of_a_large_map_is_not_lost():
    pattern = torch.zeros(1, 3000, 3000)
    pattern[0, 1234, 567] = 1
    view = AttentionView.of(pattern, tokens=[str(n) for n in range(3000)])
    about, (tile,) = numbers_of(view, "tile", layer=0, head=0, rows=[0, 3000], columns=[0, 3000])
    assert about["shape"] == [240, 240]
    assert tile.max() == 1


# The cache inspector ------------------------------------------------------------------------------


def test_rows_come_a_window_at_a_time_and_are_found_by_name():
    view = CacheInspector({f"layer.{n}": torch.full((2, 3), float(n)) for n in range(500)})
    window = value_of(view, "rows", first=10, end=12)
    assert window["total"] == 500
    assert [row[1] for row in window["rows"]] == ["layer.10", "layer.11"]
    found = value_of(view, "rows", first=0, end=60, words="99")["rows"]
    assert [row[1] for row in found] == [f"layer.{n}" for n in (99, 199, 299, 399, 499)]
    assert value_of(view, "numbers", which=[3])["3"]["mean"] == 3.0
    assert view.first == value_of(view, "rows", first=0, end=60)
    assert len(view.first["rows"]) == 60


def test_a_hunt_finds_the_next_nan():
    given = {f"t{n}": torch.zeros(3) for n in range(5)}
    given["t3"][1] = float("nan")
    view = CacheInspector(given)
    assert value_of(view, "hunt", start=0) == {"found": 3, "next": 4}
    assert value_of(view, "hunt", start=4) == {"found": None, "next": None}


def test_a_picture_keeps_the_extremes_and_the_nan_of_a_large_tensor():
    tensor = torch.zeros(2, 1000, 1000)
    tensor[1, 10, 10], tensor[1, 500, 500] = -7.0, float("nan")
    view = CacheInspector(tensor)
    about, (picture, counts) = numbers_of(view, "picture", which=0, at=[1])
    assert about["picture"] == [200, 200]
    assert picture[picture.isfinite()].min() == -7
    assert int(picture.isnan().sum()) == 1
    assert counts.sum() == tensor.numel() - 1
    about, (part, _) = numbers_of(view, "picture", which=0, at=[1], rows=[8, 12], columns=[8, 12])
    assert torch.equal(part.view(4, 4), tensor[1, 8:12, 8:12])


@pytest.mark.parametrize(
    "tensor", [torch.tensor(1.0), torch.zeros(0, 3), torch.tensor([1j])], ids=str
)
def test_any_tensor_has_a_picture(tensor):
    _, parts = numbers_of(CacheInspector(tensor), "picture", which=0)
    assert parts[0].numel() == tensor.numel()


def test_two_caches_are_compared_by_name(llm):
    with llm.trace("Once upon a time") as tracer:
        cache = tracer.cache()
    with llm.trace("Once upon a time") as tracer:
        other = tracer.cache()
        llm.transformer.h[1].output[:] *= 2
    view = cache.view(other)
    names = [it.name for it in view._found]
    same, changed = names.index("model.transformer.h.0.output"), names.index("model.lm_head.output")
    numbers = value_of(view, "numbers", which=[same, changed])
    assert numbers[str(same)]["apart"]["largest"] == 0
    assert numbers[str(changed)]["apart"]["largest"] > 0


# The patch map ------------------------------------------------------------------------------------


def test_brushed_patches_are_run_and_no_others(llm):
    clean, corrupt = "Once upon a time", "Once upon a while"
    tokens = llm.tokenizer(clean)["input_ids"], llm.tokenizer(corrupt)["input_ids"]
    if len(tokens[0]) != len(tokens[1]):
        clean, corrupt = tokens[0], [*tokens[0][:-1], tokens[0][0]]
    metric = logit_difference(llm, tokens[0][1], tokens[0][2])
    patches = patch_map(llm, clean, corrupt, metric)
    last = len(patches.columns) - 1
    expected = activation_patching(llm, clean, corrupt, metric).values
    exact = patches.run([1, 3], [last]).values
    assert torch.allclose(exact[[1, 3], last], expected[[1, 3], last], atol=1e-5)
    assert int(exact.isfinite().sum()) == 2
    assert patches.state == {}
    again = {"model": llm}
    exec(patches.code, again)
    assert torch.allclose(again["exact"].values, exact[[1, 3], last][:, None], atol=1e-5)


def test_the_program_of_brushed_heads_names_a_metric_of_ones_own(llm):
    def metric(logits):
        return logits[:, -1, 3] - logits[:, -1, 5]

    patches = patch_map(llm, "Once upon a time", "Once upon the time", metric, of="heads")
    exact = patches.run([1], [2, 0]).values
    again = {"model": llm, "metric": metric}
    exec(patches.code, again)
    assert torch.allclose(again["exact"].values[0], exact[1, [2, 0]], atol=1e-5)


def test_a_patch_that_fails_is_told_in_the_view():
    def fail(layer, places):
        raise RuntimeError("the model is gone")

    patches = PatchMap(small_estimate(), fail)
    ask(patches, "run", layers=[0], places=[1])
    assert patches.state["trouble"]["what"] == "RuntimeError: the model is gone"
    with pytest.raises(RuntimeError, match="gone"):
        patches.run([0], [1])


def test_a_patch_map_wants_layers_first():
    with pytest.raises(UsageError, match=r"a patch map has the axes"):
        PatchMap(Result(torch.ones(2), (Axis("layer", range(2)),)), lambda layer, places: 0)
