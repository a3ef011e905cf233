"""A result: numbers, the names of their axes, and the ways out of it."""

import builtins
import math
import sys

import pytest
import torch

from insitu.errors import MissingPackageError, UsageError
from insitu.methods import Axis, Result

TOKENS = ("The", " tower", " of", " the", " city", " of")


@pytest.fixture
def effects():
    values = torch.arange(24, dtype=torch.float).reshape(4, 6) - 5
    axes = (Axis("layer", range(4)), Axis("pos", TOKENS))
    each = Result(torch.arange(48).reshape(4, 6, 2), (*axes, Axis("prompt", range(2))), "each")
    return Result(
        values, axes, "logit difference restored", "logits", "Patching", "Somebody (2020)",
        texts=[f"t{i}" for i in range(24)], further={"each": each},
        info={"passes": 2},
    )  # fmt: skip


def test_an_axis_of_words_is_found_by_word_and_by_position(effects):
    assert float(effects.sel(layer=3, pos=" tower")) == effects.values[3, 1]
    assert float(effects.sel(layer=3, pos="tower")) == effects.values[3, 1]
    assert float(effects.sel(layer=3, pos=2)) == effects.values[3, 2]
    assert float(effects.sel(layer=-1, pos=-1)) == effects.values[3, 5]


def test_selecting_keeps_axes_labels_texts_and_what_goes_with_them(effects):
    part = effects.sel(layer=[3, 1], pos=slice(1, 3))
    assert part.names == ("layer", "pos")
    assert part.axis("layer").labels == (3, 1)
    assert part.axis("pos").labels == (" tower", " of")
    assert torch.equal(part.values, effects.values[[3, 1]][:, 1:3])
    assert list(part.texts) == ["t19", "t20", "t7", "t8"]
    assert torch.equal(part.further["each"].values, effects.further["each"].values[[3, 1]][:, 1:3])
    assert part.quantity == effects.quantity


def test_a_label_is_not_a_place_once_some_labels_are_left_out(effects):
    part = effects.sel(layer=[3, 1])
    assert torch.equal(part.sel(layer=1).values, effects.values[1])
    with pytest.raises(UsageError, match="0 is not on the axis layer"):
        part.sel(layer=0)


def test_square_brackets_go_by_the_order_of_axes(effects):
    assert float(effects[2, "tower"]) == effects.values[2, 1]
    assert torch.equal(effects[1:3].values, effects.values[1:3])
    assert [float(row.max().value) for row in effects] == [0, 6, 12, 18]
    assert len(effects) == 4


def test_fractions_are_labels_too():
    sweep = Result(torch.tensor([1.0, 2.0]), (Axis("coefficient", (0.5, 1.5)),))
    assert float(sweep.sel(coefficient=1.5)) == 2


def test_a_word_that_stands_twice_is_asked_for_by_position(effects):
    with pytest.raises(UsageError) as raised:
        effects.sel(pos=" of")
    assert "' of' stands 2 times on the axis pos." in raised.value.what
    assert "positions 2, 5" in raised.value.why


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"layer": 4}, "4 is not on the axis layer"),
        ({"pos": "towers"}, "did you mean pos=' tower'"),
        ({"pos": 9}, "9 is not on the axis pos"),
        ({"head": 0}, "this result has no axis 'head'"),
    ],
)
def test_what_is_not_there_says_what_is(effects, wanted, said):
    with pytest.raises(UsageError, match=said.replace("?", r"\?")):
        effects.sel(**wanted)


def test_too_many_labels_are_refused(effects):
    with pytest.raises(UsageError, match="3 labels were given for 2 axes"):
        effects[0, 0, 0]


def test_values_must_fit_their_axes():
    with pytest.raises(UsageError, match=r"values have shape \[2, 3\]; its axes are \[layer 2\]"):
        Result(torch.zeros(2, 3), (Axis("layer", range(2)),))
    with pytest.raises(UsageError, match="two axes of a result have one name"):
        Result(torch.zeros(2, 2), (Axis("pos", range(2)), Axis("pos", range(2))))
    with pytest.raises(UsageError, match="1 texts for 2 numbers"):
        Result(torch.zeros(2), (Axis("pos", range(2)),), texts=["a"])


def test_the_largest_the_smallest_and_where_they_are(effects):
    value, at, place = effects.max()
    assert (value, at, place) == (18, {"layer": 3, "pos": " of"}, (3, 5))
    assert effects.min().value == -5
    assert effects.max(absolute=True).value == 18
    assert [peak.value for peak in effects.top(3)] == [18, 17, 16]


def test_what_is_not_a_number_is_never_the_largest():
    values = torch.tensor([1.0, math.nan, -3.0])
    result = Result(values, (Axis("pos", range(3)),))
    assert result.max().value == 1
    assert result.max(absolute=True).value == -3
    assert result.min().value == -3
    assert float(result.mean()) == -1


def test_means_take_axes_away(effects):
    assert torch.allclose(effects.mean("pos").values, effects.values.mean(1))
    assert effects.mean("pos").names == ("layer",)
    assert float(effects.mean()) == effects.values.mean()


def test_the_numbers_cannot_be_moved_by_hand(effects):
    with pytest.raises(AttributeError):
        effects.quantity = "other"


def test_the_text_says_what_how_much_and_where(effects):
    assert repr(effects) == (
        "Result: logit difference restored (logits) [layer 4 × pos 6]\n"
        "  Patching\n"
        "  largest  18 at layer 3, pos 5 (' of')\n"
        "  smallest -5 at layer 0, pos 0 ('The')\n"
        "  further  each\n"
        "  info     passes 2\n"
        "  source   Somebody (2020)"
    )
    assert repr(effects.sel(layer=0, pos=0)).startswith(
        "Result: logit difference restored (logits) = -5"
    )


def test_a_frame_has_one_row_for_each_number(effects):
    frame = effects.to_frame()
    assert list(frame.columns) == ["layer", "pos", "pos_index", "value", "text"]
    assert len(frame) == 24
    table = frame.pivot(index="layer", columns="pos_index", values="value")
    assert torch.equal(torch.tensor(table.to_numpy()), effects.values)
    row = frame.iloc[13]
    assert (row["layer"], row["pos"], row["value"], row["text"]) == (2, " tower", 8, "t13")


def test_a_frame_of_one_number_has_one_row(effects):
    assert effects.sel(layer=1, pos=1).to_frame()["value"].tolist() == [2]


def test_it_is_written_and_read_again(effects, tmp_path):
    again = Result.load(effects.save(tmp_path / "effects.json"))
    assert torch.equal(again.values, effects.values)
    assert again.values.dtype == effects.values.dtype
    assert again.axes == effects.axes
    assert (again.title, again.unit, again.info) == ("Patching", "logits", {"passes": 2})
    assert torch.equal(again.further["each"].values, effects.further["each"].values)
    assert repr(again) == repr(effects)


def test_numbers_that_are_not_finite_are_kept(tmp_path):
    odd = Result(torch.tensor([math.nan, math.inf, 0.1]), (Axis("pos", range(3)),), limits=(0, 1))
    again = Result.load(odd.save(tmp_path / "odd.json"))
    assert torch.equal(again.values.nan_to_num(-1), odd.values.nan_to_num(-1))
    assert again.limits == (0, 1)


@pytest.mark.parametrize("package", ["pandas", "plotly"])
def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(effects, monkeypatch, package):
    real = builtins.__import__

    def refuse(name, *rest, **further):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *rest, **further)

    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingPackageError) as raised:
        effects.to_frame() if package == "pandas" else effects.plot()
    assert raised.value.what == f"the package {package} is not installed."
    assert "insitu[lab]" in raised.value.next
    assert isinstance(raised.value, ImportError)


def test_the_title_says_what_was_selected(effects):
    assert effects.sel(layer=3, pos=-1).title == "Patching, layer 3, pos 5 (' of')"
    assert effects.sel(layer=[1, 2]).title == "Patching"
