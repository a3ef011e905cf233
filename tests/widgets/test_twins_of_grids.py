"""The text and HTML of views of numbers: what the picture shows, in a terminal's width."""

import math
from dataclasses import replace

import pytest
import torch
from every_widget import WIDGETS, small_lens, small_net

import insitu
from insitu import NNsight
from insitu.methods import attention_patterns, logit_lens
from insitu.methods.axes import Axis
from insitu.methods.result import Result
from insitu.twins.stepper import stepper_html, stepper_text
from insitu.widgets import AttentionView, CacheInspector, LensGrid, PatchMap, Stepper
from insitu.widgets import cache_inspector as inspector

TOKENS = ["The", " Eiffel", " Tower", " is", " in", " the", " city", " of"]


def fits(text, high=40):
    lines = text.splitlines()
    assert len(lines) <= high
    assert max(map(len, lines)) <= 100
    return lines


def estimate(layers, places):
    values = torch.rand(layers, places, generator=torch.Generator().manual_seed(0))
    axes = Axis("layer", range(layers)), Axis("pos", [f" t{n}" for n in range(places)])
    return Result(values, axes, "share restored, estimated", title="Attribution patching")


def patches(layers, places):
    found = estimate(layers, places)
    return PatchMap(found, lambda layer, there: found.values[layer][there] + 1)


def patterns(layers, heads, tokens):
    values = torch.rand(layers, heads, tokens, tokens).tril()
    return AttentionView.of(values / values.sum(-1, keepdim=True), tokens=(TOKENS * 99)[:tokens])


# The lens grid ------------------------------------------------------------------------------------


def test_a_lens_is_told_as_its_words_and_chances(llm):
    found = logit_lens(llm, "Once upon a time")
    lines = fits(LensGrid(found).text())
    layers, places = found.shape
    rows = [line for line in lines if line.split()[0].isdigit()][-layers:]
    for layer, row in enumerate(rows):
        assert row.split()[0] == str(layer)
        for place in range(places):
            chance = found.values[layer, place].item()
            assert f"{chance:.2f}" in row or chance == 0
    first = found.texts[0].strip()
    assert first[:5] in rows[0]
    assert "kl" in lines[-1]


def test_the_twins_of_a_lens_are_of_the_measure_in_sight():
    view = LensGrid(small_lens())
    assert view.text().startswith("Logit lens: probability")
    view.measure = 1
    lines = fits(view.text())
    assert lines[0] == "KL from the final prediction (nats) [layer 3 × pos 3]"
    assert lines[3].split() == ["0", "a", "1.00", "b", "0.89", "c", "0.78"]
    assert lines[-1] == "also: probability"
    assert "KL from the final prediction" in view.html()


def test_a_lens_too_wide_for_numbers_has_bars_and_says_of_what():
    values = torch.zeros(2, 9)
    values[1] = 1
    axes = Axis("layer", range(2)), Axis("pos", TOKENS + ["x"])
    lines = fits(LensGrid(Result(values, axes, limits=(0, 1), texts=[" word"] * 18)).text())
    assert lines[3].split()[1:] == ["▁·word"] * 9
    assert lines[4].split()[1:] == ["█·word"] * 9
    assert lines[-1] == "bars: value, ▁ 0 to █ 1"


@pytest.mark.parametrize("shape", [(48, 30), (400, 700), (1, 1), (2, 1_000_000)])
def test_a_lens_of_any_size_is_told_in_a_terminal(shape):
    axes = Axis("layer", range(shape[0])), Axis("pos", range(shape[1]))
    lines = fits(LensGrid(Result(torch.rand(shape), axes, limits=(0, 1))).text())
    is_whole = shape == (1, 1)
    assert any(line.startswith("left out: ") for line in lines) != is_whole


# Attention ----------------------------------------------------------------------------------------


def test_attention_is_told_of_the_head_that_is_selected(llm):
    found = attention_patterns(llm, "Once upon a time there was")
    view = AttentionView(found)
    view.selection = {"layer": 1, "head": 2}
    lines = fits(view.text())
    assert lines[0].endswith("layer 1, head 2: attention")
    queries = found.shape[2]
    rows = lines[3 : 3 + queries]
    for query, row in enumerate(rows):
        assert row.split()[0] == str(query)
        wanted = [it.item() for it in found.values[1, 2, query]]
        told = [float(it) for it in row.split()[2:]]
        assert told == pytest.approx(wanted, abs=0.0051)
    most = found.values[1, 2, -1].argmax().item()
    assert f"  2  {most} " in "\n".join(lines[3 + queries :])


def test_attention_without_a_selection_is_told_of_the_last_layer_and_the_first_head():
    assert patterns(3, 2, 4).text().startswith("Attention, layer 2, head 0: ")


@pytest.mark.parametrize(("layers", "heads", "tokens"), [(2, 12, 60), (1, 40, 3), (40, 1, 1)])
def test_attention_of_any_size_is_told_in_a_terminal(layers, heads, tokens):
    text = patterns(layers, heads, tokens).text()
    fits(text)
    assert ("more heads" in text) == (heads > 10)
    assert ("left out: query_pos" in text) == (tokens > 20)


def test_attention_of_some_layers_is_named_by_their_numbers():
    axes = Axis("layer", [2, 5]), Axis("query_pos", "ab"), Axis("key_pos", "ab")
    view = AttentionView(Result(torch.ones(2, 2, 2), axes, "weight", title="Mean of heads"))
    insitu.selection.layer = 2
    assert view.text().splitlines()[0] == "Mean of heads, layer 2: weight"


# The patch map ------------------------------------------------------------------------------------


def test_exact_numbers_stand_beside_their_estimates():
    view = patches(3, 4)
    assert "no patch has been run" in view.text()
    view.run([1], [2])
    lines = fits(view.text())
    guess = view.estimate.values[1, 2].item()
    assert f"{guess:.3f} ={guess + 1:.3f}" in lines[4]
    assert "=" not in lines[3] + lines[5]
    assert lines[-1].startswith("= the exact number, of the 1 of 12 patches that were run")
    assert lines[-1].endswith("at most 1.000 from it")


def test_of_a_wide_map_what_was_run_is_shown_in_text_and_in_html():
    view = patches(40, 300)
    view.run([7], [150])
    lines = fits(view.text())
    exact = view.estimate.values[7, 150].item() + 1
    assert f"={exact:.3f}" in "\n".join(lines)
    assert any(line.startswith("left out: layer 1 to 6, 8 to ") for line in lines)
    assert f"{exact:.3f}" in view.html()


def test_a_map_tells_how_its_run_ended():
    view = PatchMap(estimate(2, 2), lambda layer, there: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        view.run([0], [0])
    assert "the last run failed: ZeroDivisionError" in view.text()


def test_a_map_of_no_numbers_is_told():
    view = PatchMap(replace(estimate(1, 2), values=torch.full((1, 2), math.nan)), lambda *_: 0)
    assert view.text().splitlines()[3].split() == ["0", "NaN", "NaN"]


# Two caches ---------------------------------------------------------------------------------------


def test_two_caches_are_told_by_their_differences_and_what_one_alone_has():
    first = {"same": torch.ones(4), "h.0": torch.tensor([3.0, 4.0]), "mine": torch.ones(1)}
    second = {"same": torch.ones(4), "h.0": torch.tensor([4.0, 3.0]), "other": torch.ones(1)}
    view = CacheInspector(first, second)
    for told in (view.text(), view.html()):
        assert "largest difference 1 at h.0" in told
        assert "least cosine 0.9600 at h.0" in told
        assert "no difference in 1 of 2" in told
        assert "only in the first: mine" in told
        assert "only in the second: other" in told
    row = next(line for line in view.text().splitlines() if line.strip().startswith("h.0 "))
    assert row.split() == ["h.0", "float32[2]", "1", "0.283", "0.9600"]


def test_tensors_of_two_shapes_are_not_compared_and_that_is_told():
    view = CacheInspector({"a": torch.ones(2)}, {"a": torch.ones(3)})
    assert "float32[2] | float32[3]  " in view.text()
    assert "another shape" in view.text()
    assert "another shape" in view.html()


def test_a_difference_that_is_no_number_is_not_called_none():
    view = CacheInspector({"a": torch.full((2,), math.nan)}, {"a": torch.ones(2)})
    assert "none of them has a difference that is a number" in view.text()


def test_of_large_caches_a_part_is_compared_and_the_twins_stay_the_same(monkeypatch):
    monkeypatch.setattr(inspector, "COMPARED_BYTES", 100)
    given = {f"t{n}": torch.ones(10) for n in range(50)}
    view = CacheInspector(given, given)
    text, html = view.twins()
    assert "48 more are not compared here" in text
    assert view.twins() == (text, html)


def test_of_many_tensors_those_that_differ_are_shown_and_the_furthest_is_named():
    first = {f"t{n}": torch.ones(2) for n in range(90)}
    second = {**first, **{f"t{n}": torch.ones(2) + n for n in range(50, 85)}}
    lines = fits(CacheInspector(first, second).text())
    assert [line.split()[0] for line in lines[2:32]] == [f"t{n}" for n in range(50, 80)]
    assert lines[32] == "… and 5 more that differ"
    assert lines[33] == "largest difference 84 at t84"
    assert lines[-1] == "no difference in 55 of 90, which are not listed"


def test_a_cache_alone_is_told_without_reading_its_numbers():
    view = CacheInspector({"a": torch.zeros(2, device="meta")})
    assert view.text().splitlines()[1] == "a  float32 meta[2]  8 B"


# The stepper --------------------------------------------------------------------------------------


def test_a_stepper_tells_what_was_written_and_the_lines_that_run():
    with NNsight(small_net()).open(torch.rand(1, 2)) as run:
        stepper = Stepper(run)
        stepper.to("0")
        stepper.edit("value * 2")
        stepper.to("1.0")
        text, html = stepper.twins()
        function, file, line = (stepper.source[it] for it in ("function", "file", "line"))
        said = next(it for number, it, _ in stepper.source["lines"] if number == line)
    for told in (text, html):
        assert "●   0 " in told
        assert "● has run, and was written" in told
        assert f"in {function}, {file}" in told
    assert any(it.startswith(f"▶ {line:>4}  {said.rstrip()}") for it in text.splitlines())
    assert f"▶ {line:>4}  " in html


def test_a_stepper_of_no_source_tells_the_rest():
    place = {"state": "finished"}
    assert stepper_text(place, [], {}, {}) == "A pass that has finished"
    assert "A pass that has finished" in stepper_html(place, [], {}, {})


# All ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lens_grid", "attention_view", "patch_map", "cache_inspector"])
def test_twins_are_the_same_each_time(name):
    view = WIDGETS[name]()
    assert view.twins() == view.twins()
