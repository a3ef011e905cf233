"""Joining inputs and slicing rows, without a model."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from insitu import InputError
from insitu.engine.batch import Rows, join, plan, put, rows_of, stack, take, tensors


def anything(path, tensor):
    return True


def test_rows_follow_each_other():
    assert plan([1, 2, 1]) == (Rows(0, 1, 4), Rows(1, 2, 4), Rows(3, 1, 4))
    assert plan([3])[0].are_all


def test_tensors_at_the_same_place_are_joined():
    a, b, mask = torch.rand(1, 5), torch.rand(2, 5), torch.ones(1, 1)
    joined = join([((a,), {"scale": 2}), ((b,), {"scale": 2})])
    assert torch.equal(joined.args[0], torch.cat([a, b]))
    assert joined.kwargs == {"scale": 2}
    assert joined.rows == (Rows(0, 1, 3), Rows(1, 2, 3))
    joined = join([((), {"x": {"ids": a}, "m": mask}), ((), {"x": {"ids": a * 2}, "m": mask})])
    assert torch.equal(joined.kwargs["x"]["ids"], torch.cat([a, a * 2]))
    assert joined.kwargs["m"].shape == (2, 1)


def test_what_has_no_rows_must_be_equal():
    a, table = torch.rand(2, 5), torch.rand(7, 7)
    joined = join([((a, table, 0.5), {}), ((a, table, 0.5), {})])
    assert joined.args[1] is table
    assert joined.args[2] == 0.5
    with pytest.raises(InputError, match=r"invoke 2 does not fit.*differ"):
        join([((a, 0.5), {}), ((a, 0.7), {})])


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (((torch.rand(1, 4),), {}), r"float32\[1, 5\] and float32\[1, 4\]"),
        (((torch.rand(1, 5).double(),), {}), "float64"),
        (((torch.rand(1, 5), 1), {}), "int"),
        (((), {"x": torch.rand(1, 5)}), "x=float32"),
        ((("text",), {}), "str"),
    ],
)
def test_inputs_that_cannot_be_joined_are_named(second, told):
    with pytest.raises(InputError, match=told):
        join([((torch.rand(1, 5),), {}), second])


def test_rows_are_counted_by_the_first_tensor():
    assert rows_of(((None, torch.tensor(3.0), [torch.rand(4, 2)]), {})) == 4
    assert rows_of((("text",), {})) == 1


Pair = namedtuple("Pair", "left right")


@dataclass
class Out:
    logits: torch.Tensor
    extra: tuple | None = None


NESTED = [
    lambda t: t,
    lambda t: (t, None, "x"),
    lambda t: [t, {"h": (t, 3)}],
    lambda t: Pair(t, t + 1),
    lambda t: Out(t, (t,)),
]


@pytest.mark.parametrize("shape", NESTED)
def test_taking_and_putting_back_rows_of_nested_values(shape):
    whole, rows = torch.arange(12.0).reshape(4, 3), Rows(1, 2, 4)
    value = shape(whole)
    part = take(value, rows, anything)
    assert type(part) is type(value)
    for (_, mine), (_, full) in zip(tensors(part), tensors(value), strict=True):
        assert torch.equal(mine, full[1:3])
    changed = put(value, shape(torch.full((2, 3), -1.0)), rows, anything)
    for (_, new), (_, full) in zip(tensors(changed), tensors(value), strict=True):
        assert torch.equal(new[0], full[0])
        assert torch.equal(new[3], full[3])
        assert (new[1:3] <= 0).all()
    assert torch.equal(whole, torch.arange(12.0).reshape(4, 3))


def test_editing_taken_rows_in_place_edits_the_value():
    whole = torch.zeros(3, 2)
    take((whole,), Rows(1, 1, 3), anything)[0][:] = 5
    assert whole.tolist() == [[0, 0], [5, 5], [0, 0]]


def test_what_does_not_hold_the_batch_is_left_whole():
    table, whole, rows = torch.rand(4, 2), torch.rand(4, 3), Rows(0, 1, 4)
    part = take((table, whole), rows, lambda path, tensor: path == (1,))
    assert part[0] is table
    assert part[1].shape == (1, 3)
    changed = put((table, whole), (table * 2, whole[:1] * 2), rows, lambda p, t: p == (1,))
    assert torch.equal(changed[0], table * 2)
    assert torch.equal(changed[1][1:], whole[1:])


def test_putting_rows_back_keeps_gradients():
    whole = torch.ones(3, 2, requires_grad=True)
    part = torch.ones(1, 2, requires_grad=True)
    put(whole * 1, part * 2, Rows(1, 1, 3), anything).sum().backward()
    assert whole.grad.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert part.grad.tolist() == [[2, 2]]


def test_values_are_stacked_row_below_row():
    bias = torch.rand(4)
    parts = {
        Rows(1, 2, 3): (torch.ones(2, 2), 1, bias),
        Rows(0, 1, 3): (torch.zeros(1, 2), 1, bias),
    }
    joined, number, table = stack(parts, anything)
    assert joined[:, 0].tolist() == [0, 1, 1]
    assert number == 1
    assert table is bias
