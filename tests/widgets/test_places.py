"""What a click on a cell selects: the layer, the head, the position it is labelled with."""

import torch
from asking import numbers_of, value_of

import insitu
from insitu.methods import attention_patterns, logit_lens
from insitu.methods.axes import Axis
from insitu.methods.result import Result
from insitu.widgets import AttentionView, CacheInspector, LensGrid
from insitu.widgets.places import chooses
from insitu.widgets.standing import layers


def test_an_axis_chooses_by_its_labels_where_they_are_numbers_and_by_place_where_they_are_words():
    axes = Axis("layer", [2, 5, 3]), Axis("pos", ["The", "2", " city"])
    assert chooses(axes) == [["layer", [2, 5, 3]], ["token", 0]]
    assert chooses((Axis("head", range(4)), Axis("pos", range(7, 9)))) == [
        ["head", 0],
        ["token", 7],
    ]
    assert chooses(axes, [1, 2]) == [["layer", [5, 3]], ["token", 2]]
    assert chooses((Axis("component", ["embed", "mlp 0"]), Axis("step", range(3)))) == [
        ["", 0],
        ["step", 0],
    ]


def test_of_two_axes_that_choose_the_same_the_first_does():
    axes = Axis("query_pos", ["a", "b"]), Axis("key_pos", ["a", "b"])
    assert chooses(axes) == [["token", 0], ["", 0]]


def test_a_grid_of_some_layers_knows_which_they_are(llm):
    lens = logit_lens(llm, "Once upon a time").sel(layer=[1, 2])
    assert LensGrid(lens).chooses == [["layer", 1], ["token", 0]]


def test_attention_of_some_layers_and_heads_knows_which_they_are(llm):
    found = attention_patterns(llm, "Once upon a time")
    view = AttentionView(found.sel(layer=[1, 2], head=[3, 0]))
    assert view.names == ["layer", "head"]
    assert view.chooses == [["layer", 1], ["head", [3, 0]], ["token", 0]]


def test_attention_over_heads_has_layers_and_no_head(llm):
    found = attention_patterns(llm, "Once upon a time").mean("head")
    view = AttentionView(found)
    assert view.names == ["layer", ""]
    assert view.layers == [str(layer) for layer in found.axes[0].labels]
    assert view.chooses == [["layer", 0], ["", 0], ["token", 0]]
    _, (row,) = numbers_of(view, "query", layer=1, head=0, query=2)
    assert torch.equal(row, found.values[1, 2])


def test_attention_of_one_layer_has_heads_and_no_layer(llm):
    view = AttentionView(attention_patterns(llm, "Once upon a time").sel(layer=2))
    assert (view.names, view.layers) == (["", "head"], [""])
    assert view.chooses[:2] == [["", 0], ["head", 0]]
    assert AttentionView.of(torch.rand(2, 3, 3), tokens="abc").names == ["", "head"]


def test_attention_along_another_axis_is_called_by_it():
    axes = (Axis("step", [4, 6]), Axis("query_pos", "ab"), Axis("key_pos", "ab"))
    view = AttentionView(Result(torch.rand(2, 2, 2), axes))
    assert (view.names, view.heads) == (["", "step"], ["4", "6"])
    assert view.chooses[1] == ["step", [4, 6]]


def test_the_twin_of_attention_shows_the_layer_that_is_selected_by_its_label(llm):
    found = attention_patterns(llm, "Once upon a time").sel(layer=[1, 2])
    view = AttentionView(found)
    insitu.selection.layer = 1
    assert view.html() == found.sel(layer=1)._repr_html_()
    insitu.selection.layer = 0
    assert view.html() == found.sel(layer=2)._repr_html_()


def test_a_tree_tells_which_rows_are_layers(llm):
    modules = list(llm._module.modules())
    expected = [[modules.index(block), number] for block, number in layers(llm._module).items()]
    assert llm.tree().nodes["layers"] == expected
    assert [number for _, number in expected] == list(range(len(llm.transformer.h)))
    part = llm.transformer.h[1].tree()
    assert part.nodes["layers"] == [[0, 1]]


# The cache inspector ------------------------------------------------------------------------------


def names_and_layers(view):
    rows = value_of(view, "rows", first=0, end=500)["rows"]
    return {row[1]: row[6] for row in rows}


def test_a_tensor_of_a_cache_knows_its_layer(llm):
    with llm.trace("Once upon a time") as tracer:
        cache = tracer.cache()
    told = names_and_layers(CacheInspector(cache))
    assert told["model.transformer.h.2.mlp.output"] == 2
    assert told["model.lm_head.output"] is None
    plain = CacheInspector({"layers.3": torch.ones(2), "x[4].output[5]": torch.ones(2)})
    assert names_and_layers(plain) == {"layers.3": 3, "x[4].output[5]": None}


def test_a_layer_that_is_selected_is_found_at_the_same_site_or_where_it_begins(llm):
    with llm.trace("Once upon a time") as tracer:
        cache = tracer.cache()
    view = CacheInspector(cache)
    names = list(names_and_layers(view))
    mlp = names.index("model.transformer.h.1.mlp.output")
    to = value_of(view, "place", layer=2, step=None, chosen=mlp)
    assert names[to] == "model.transformer.h.2.mlp.output"
    assert value_of(view, "place", layer=2, step=None, chosen=to) == to
    first = value_of(view, "place", layer=2, step=None, chosen=None)
    assert first == min(n for n, name in enumerate(names) if ".h.2." in name)
    assert (
        value_of(view, "place", layer=2, step=None, chosen=names.index("model.lm_head.output"))
        == first
    )
    assert value_of(view, "place", layer=99, step=None, chosen=mlp) is None


def test_a_step_that_is_selected_is_found_at_the_same_site(llm):
    with llm.generate("Once upon a time", max_new_tokens=3) as tracer:
        cache = tracer.cache()
    view = CacheInspector(cache)
    rows = value_of(view, "rows", first=0, end=500)["rows"]
    here = next(row for row in rows if ".h.1.mlp" in row[1] and row[2] == 0)
    to = value_of(view, "place", layer=2, step=1, chosen=here[0])
    assert ".h.2.mlp" in rows[to][1]
    assert rows[to][2] == 1
    assert value_of(view, "place", layer=None, step=77, chosen=to) is None
    later = value_of(view, "place", layer=99, step=1, chosen=here[0])
    assert (rows[later][1].count(".h.1.mlp"), rows[later][2]) == (1, 1)


def test_a_step_says_nothing_of_tensors_that_are_all_of_one(llm):
    with llm.trace("Once upon a time") as tracer:
        cache = tracer.cache()
    view = CacheInspector(cache)
    first = value_of(view, "place", layer=2, step=None, chosen=None)
    assert value_of(view, "place", layer=2, step=7, chosen=None) == first
    assert value_of(view, "place", layer=None, step=7, chosen=first) is None


def test_tensors_without_layers_follow_no_layer():
    view = CacheInspector([torch.ones(2), torch.ones(3)])
    assert value_of(view, "place", layer=1, step=None, chosen=None) is None
