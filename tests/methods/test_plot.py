"""Figures: what is drawn for how many axes, and that it can be read."""

import math

import pytest
import torch

from insitu.errors import UsageError
from insitu.methods import Axis, Result
from insitu.methods.plot import LINES, PAPER, TEXT

TOKENS = ("The", " Eiffel", " Tower", " is")


def result_of(*axes, values=None, **further):
    shape = [len(axis) for axis in axes]
    if values is None:
        values = torch.linspace(0, 1, math.prod(shape)).reshape(shape)
    return Result(values, axes, "effect", "logits", "A title", **further)


LAYER, HEAD, POS = Axis("layer", range(3)), Axis("head", range(2)), Axis("pos", TOKENS)


def test_one_axis_of_numbers_is_a_line_and_one_of_words_are_bars():
    line = result_of(LAYER).plot()
    assert line.data[0].type == "scatter"
    assert list(line.data[0].x) == [0, 1, 2]
    assert line.layout.xaxis.title.text == "layer"
    assert line.layout.yaxis.title.text == "effect (logits)"
    bars = result_of(POS).plot()
    assert bars.data[0].type == "bar"
    assert bars.layout.xaxis.ticktext == ("The", "·Eiffel", "·Tower", "·is")


def test_bars_below_zero_have_another_colour():
    bars = result_of(POS, values=torch.tensor([1.0, -1.0, 2.0, -2.0])).plot()
    assert tuple(bars.data[0].marker.color) == (LINES[False][0], LINES[False][1]) * 2


def test_two_axes_are_a_heat_map_with_tokens_at_it():
    result = result_of(LAYER, POS, texts=["a b"] * 12)
    shown = result.plot()
    assert shown.data[0].type == "heatmap"
    assert torch.equal(torch.tensor(shown.data[0].z), result.values)
    assert shown.layout.xaxis.title.text == "pos"
    assert shown.layout.yaxis.title.text == "layer"
    assert shown.layout.yaxis.autorange is None  # layers grow upwards
    assert shown.layout.title.text == "A title"
    assert shown.layout.title.subtitle.text == "effect (logits)"
    assert shown.data[0].text[0][0] == "a·b"


def test_fractions_and_steps_are_lines_one_for_each_place_of_the_other_axis():
    kinds = Axis("direction", ("steered", "random"))
    shown = result_of(kinds, Axis("coefficient", (0.0, 0.5, 1.0))).plot()
    assert [trace.name for trace in shown.data] == ["steered", "random"]
    assert list(shown.data[1].y) == pytest.approx([0.6, 0.8, 1])
    result = result_of(Axis("step", range(5)), LAYER)
    shown = result.plot()
    assert [trace.name for trace in shown.data] == ["layer 0", "layer 1", "layer 2"]
    assert list(shown.data[2].y) == pytest.approx(result.values[:, 2].tolist())
    assert len({(trace.line.color, trace.line.dash) for trace in shown.data}) == 3


def test_three_axes_are_small_maps_of_one_scale():
    result = result_of(Axis("kind", ("one", "two")), LAYER, HEAD)
    shown = result.plot()
    assert [trace.coloraxis for trace in shown.data] == ["coloraxis"] * 2
    assert torch.equal(torch.tensor(shown.data[1].z), result.values[1])
    assert [note.text for note in shown.layout.annotations] == ["one", "two"]


def test_many_maps_and_a_fourth_axis_get_a_slider():
    shown = result_of(Axis("prompt", range(20)), LAYER, HEAD).plot()
    assert len(shown.layout.sliders[0].steps) == 20
    assert [trace.visible for trace in shown.data] == [True] + [False] * 19
    result = result_of(LAYER, HEAD, Axis("query_pos", TOKENS), Axis("key_pos", TOKENS))
    shown = result.plot()
    assert len(shown.layout.sliders[0].steps) == 3
    visible = shown.layout.sliders[0].steps[1].args[0]["visible"]
    seen = [trace.z for trace, it in zip(shown.data, visible, strict=True) if it]
    assert torch.equal(torch.tensor(seen), result.values[1])
    assert shown.layout.yaxis.autorange == "reversed"  # queries go down, as they are read


@pytest.mark.parametrize("axes", [(), (LAYER, HEAD, POS, Axis("a", (1,)), Axis("b", (1,)))])
def test_no_axis_and_too_many_are_refused(axes):
    with pytest.raises(UsageError, match=f"with {len(axes)} axes cannot be plotted"):
        result_of(*axes).plot()


def test_signed_numbers_part_at_zero_and_others_begin_there():
    signed = result_of(LAYER, HEAD, values=torch.tensor([[-1.0, 0.0], [1.0, 2.0], [3.0, 1.0]]))
    axis = signed.plot().layout.coloraxis
    assert (axis.cmin, axis.cmax) == (-3, 3)
    assert axis.colorscale[5] == (0.5, "#f7f7f7")
    axis = result_of(LAYER, HEAD).plot().layout.coloraxis
    assert (axis.cmin, axis.cmax) == (0, 1)
    axis = result_of(LAYER, HEAD, limits=(0, 5)).plot().layout.coloraxis
    assert (axis.cmin, axis.cmax) == (0, 5)


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_have_paper_and_ink_of_their_own(dark):
    layout = result_of(LAYER, HEAD).plot(dark=dark, title="Mine").layout
    assert layout.template.layout.paper_bgcolor == PAPER[dark]
    assert layout.template.layout.font.color == TEXT[dark]
    assert layout.title.text == "Mine"


def test_places_without_a_number_are_drawn_as_gaps():
    values = torch.tensor([[math.nan, 1.0], [2.0, 3.0], [4.0, math.inf]])
    axis = result_of(LAYER, HEAD, values=values).plot().layout.coloraxis
    assert (axis.cmin, axis.cmax) == (0, 4)
