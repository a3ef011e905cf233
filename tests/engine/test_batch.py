"""Joining inputs and slicing rows, without a model."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch

from insitu import InputError
from insitu.engine.batch import Rows, join, plan, put, rows_of, stack, take, tensors
from insitu.engine.batch_dims import BatchDims
from insitu.engine.order import INPUT, OUTPUT


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


def test_a_tensor_without_the_rows_it_should_have_is_named():
    a = torch.rand(2, 5)
    with pytest.raises(InputError, match=r"invoke 2 does not fit.*float32\[3, 7\] has not 2 rows"):
        join([((a, torch.rand(2, 7)), {}), ((a, torch.rand(3, 7)), {})])


def test_what_cannot_be_compared_counts_as_different():
    class Vague:
        def __eq__(self, other):
            raise ValueError("which of them?")

        __hash__ = None

    a, vague = torch.rand(1, 5), Vague()
    assert join([((a, vague), {}), ((a, vague), {})]).args[1] is vague
    with pytest.raises(InputError, match="Vague and Vague differ"):
        join([((a, Vague()), {}), ((a, Vague()), {})])


def test_a_single_number_belongs_to_no_rows():
    rows, number = Rows(1, 1, 3), torch.tensor(2.0)
    assert take({"loss": number}, rows, anything)["loss"] is number
    other = torch.tensor(3.0)
    assert put((number, torch.zeros(3)), (other, torch.ones(1)), rows, anything)[0] is other
    parts = {Rows(0, 1, 2): number, Rows(1, 1, 2): other}
    assert stack(parts, anything) is number


# Rows in pieces: each image without its prompt and, below them all, each with it ------------------

GUIDED = {0: (Rows(0, 1, 4), Rows(2, 1, 4)), 1: (Rows(1, 1, 4), Rows(3, 1, 4))}


def guided(path, tensor):
    return GUIDED


@pytest.fixture
def images():
    return torch.arange(8.0).reshape(4, 2)


@pytest.mark.parametrize("number", [0, 1])
def test_rows_in_pieces_are_taken_one_below_the_other(images, number):
    rows = Rows(number, 1, 2)
    part = take((images,), rows, guided)[0]
    assert torch.equal(part, images[[number, number + 2]])
    part[:] = -1
    assert (images >= 0).all()  # it is a copy


@pytest.mark.parametrize("number", [0, 1])
def test_rows_in_pieces_are_put_back_where_they_stood(images, number):
    rows, wanted = Rows(number, 1, 2), images.clone()
    part = take(images, rows, guided)
    changed = put(images, part * 10, rows, guided, given=part)
    wanted[[number, number + 2]] *= 10
    assert torch.equal(changed, wanted)
    assert torch.equal(images, torch.arange(8.0).reshape(4, 2))


def test_an_edited_copy_of_rows_in_pieces_is_copied_back_and_another_is_not(images):
    rows, wanted = Rows(1, 1, 2), images.clone()
    part = take(images, rows, guided)
    version = images._version
    assert put(images, part, rows, guided, given=part) is images
    assert images._version == version
    part += 100
    wanted[[1, 3]] += 100
    assert put(images, part, rows, guided, given=part) is images  # whoever holds it sees the edit
    assert torch.equal(images, wanted)


def test_gradients_come_by_way_of_a_copy_of_rows_in_pieces(images):
    whole = images.requires_grad_() * 1
    part = take(whole, Rows(0, 1, 2), guided)
    edited = part * 1
    edited.mul_(3)
    put(whole, edited, Rows(0, 1, 2), guided, given=part).sum().backward()
    assert images.grad[:, 0].tolist() == [3, 1, 3, 1]


def test_rows_in_pieces_are_stacked_in_their_order(images):
    parts = {Rows(n, 1, 2): images[[n, n + 2]] for n in (1, 0)}
    assert torch.equal(stack(parts, guided), images)


# Which tensors hold the batch ---------------------------------------------------------------------


class Call:
    """A call of two prompts, whose images are told apart."""

    def __init__(self, module, x, apart=None):
        self.module, self.args, self.kwargs, self.apart = module, (x,), {}, apart


class Apart:
    inputs = frozenset()
    sizes = frozenset({2})
    knows_all = False

    def split(self, key, path, tensor):
        return GUIDED if len(tensor) == 4 else None


class Root:
    def __init__(self, module):
        self._module, self._sizes, self._batched = module, None, {}


def test_a_call_that_tells_whose_rows_are_whose_is_asked_first():
    net = torch.nn.Linear(5, 7)
    dims = BatchDims(Root(net), Call(net, torch.rand(2, 5), Apart()), 2)
    whose = dims.at(net, OUTPUT)
    assert whose((), torch.rand(4, 7)) is GUIDED
    assert whose((), torch.rand(2, 7)) is True
    assert not dims.in_pieces


def test_a_call_that_knows_all_is_not_made_to_find_out():
    def forward(x):
        raise AssertionError("this ran")

    net = torch.nn.Linear(2, 2)  # of the batch's own size, so others would be scanned
    net.forward = forward
    known = Apart()
    known.knows_all = known.in_pieces = True
    root = Root(net)
    dims = BatchDims(root, Call(net, torch.rand(2, 2), known), 2)
    assert dims.in_pieces
    assert root._batched == {}
    assert dims.at(net, INPUT)((), torch.rand(4, 2)) is GUIDED


def test_arguments_that_are_no_tensors_are_scanned_as_they_are():
    class Scaled(torch.nn.Linear):
        def forward(self, x, by, *, more=()):
            return torch.nn.functional.linear(x, self.weight) * by + sum(more), self.weight * by

    net = Scaled(2, 2)
    call = Call(net, torch.rand(2, 2))
    call.args, call.kwargs = (torch.rand(2, 2), 3.0), {"more": [1, 2]}
    whose = BatchDims(Root(net), call, 2).at(net, OUTPUT)
    rows, table = net(*call.args, **call.kwargs)
    assert whose((0,), rows)
    assert not whose((1,), table)
