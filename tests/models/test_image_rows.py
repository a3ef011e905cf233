"""Whose images are where, without a model."""

import pytest
import torch
from torch import nn

from insitu import InputError
from insitu.engine.batch import Rows, plan, put, stack, take
from insitu.models import image_rows
from insitu.models.image_rows import About

TOWER, TEXT = nn.Linear(2, 2), nn.Linear(2, 2)
ABOUT = About(frozenset({TOWER}), 9)


def ids(*numbers):
    return torch.tensor([numbers])


def apart(parts, tokens, rows):
    return image_rows.apart(parts, tokens, rows, ABOUT)


def two_prompts():
    """The first with one image of two tokens, the second with two."""
    parts = [{"pixel_values": torch.ones(1, 3, 4, 4)}, {"pixel_values": torch.ones(2, 3, 4, 4)}]
    rows = plan([1, 1])
    return apart(parts, [ids(9, 9, 1), ids(9, 9, 9, 9, 1)], rows), rows


def test_a_tower_has_rows_of_images_or_of_their_tokens():
    whose, _ = two_prompts()
    assert whose.split(TOWER, (), torch.zeros(3, 5)) == {0: Rows(0, 1, 3), 1: Rows(1, 2, 3)}
    assert whose.split(TOWER, (), torch.zeros(6, 5)) == {0: Rows(0, 2, 6), 1: Rows(2, 4, 6)}
    assert whose.split(TOWER, (), torch.zeros(7, 5)) == {}


def test_other_modules_have_rows_of_prompts_but_for_named_images():
    whose, _ = two_prompts()
    assert whose.split(TEXT, (), torch.zeros(3, 5)) is None
    assert whose.split(TEXT, (1, "input_ids"), torch.zeros(3, 5)) is None
    assert whose.split(TEXT, (1, "pixel_values"), torch.zeros(3, 5))[1] == Rows(1, 2, 3)
    assert whose.split(TEXT, ("image_hidden_states",), torch.zeros(6, 5))[1] == Rows(2, 4, 6)


def test_rows_are_taken_and_put_back_by_them():
    whose, (first, second) = two_prompts()

    def is_batch(path, tensor):
        return whose.split(TOWER, path, tensor)

    value = torch.arange(3.0)
    assert take(value, first, is_batch).tolist() == [0]
    assert take(value, second, is_batch).tolist() == [1, 2]
    assert put(value, torch.tensor([7.0, 8.0]), second, is_batch).tolist() == [0, 7, 8]
    parts = {second: torch.tensor([7.0, 8.0]), first: torch.tensor([5.0])}
    assert stack(parts, is_batch).tolist() == [5, 7, 8]
    table = torch.arange(4.0)
    assert take(table, first, is_batch) is table
    assert put(table, table * 2, first, is_batch).tolist() == [0, 2, 4, 6]


def test_patches_of_a_grid_are_counted_by_image():
    parts = [
        {"pixel_values": torch.ones(16, 2), "image_grid_thw": torch.tensor([[1, 4, 4]])},
        {},
        {"pixel_values": torch.ones(24, 2), "image_grid_thw": torch.tensor([[1, 4, 4], [1, 2, 4]])},
    ]
    rows = plan([1, 1, 1])
    whose = apart(parts, [ids(*[9] * 4), ids(1), ids(*[9] * 6)], rows)
    assert whose.split(TOWER, (), torch.zeros(40, 5))[2] == Rows(16, 24, 40)
    assert whose.split(TOWER, (), torch.zeros(40, 5))[1] == Rows(16, 0, 40)
    assert whose.split(TOWER, (), torch.zeros(10, 5))[2] == Rows(4, 6, 10)
    assert whose.split(TOWER, (1, "grid_thw"), torch.zeros(3, 3))[2] == Rows(1, 2, 3)
    assert whose.split(TOWER, (), torch.zeros(3, 40)) == {}, "a table of three is no image"
    joined = image_rows.joined_images(parts, rows)
    assert joined["pixel_values"].shape == (40, 2)
    assert joined["image_grid_thw"].shape == (3, 3)


def test_images_in_rows_of_prompts_are_filled_up():
    parts = [
        {"pixel_values": torch.ones(1, 2, 3, 4, 4), "pixel_attention_mask": torch.ones(1, 2, 4, 4)},
        {},
        {"pixel_values": torch.ones(1, 1, 3, 4, 6), "pixel_attention_mask": torch.ones(1, 1, 4, 6)},
    ]
    rows = plan([1, 2, 1])
    joined = image_rows.joined_images(parts, rows)
    assert joined["pixel_values"].shape == (4, 2, 3, 4, 6)
    assert joined["pixel_attention_mask"].sum((1, 2, 3)).tolist() == [32, 0, 0, 24]
    whose = apart(parts, [ids(9), torch.zeros(2, 1), ids(9)], rows)
    assert whose.split(TEXT, (1, "pixel_values"), joined["pixel_values"]) is None
    assert whose.split(TOWER, (), torch.zeros(3, 5))[0] == Rows(0, 2, 3)


def test_tiles_that_are_padding_are_not_seen_by_a_tower():
    tiles = torch.ones(2, 3, 3, 4, 4)
    tiles[1, 1:] = 0
    parts = [{"pixel_values": torch.ones(1, 2, 3, 4, 4)}, {"pixel_values": tiles}]
    whose = apart(parts, [ids(9), ids(9)], plan([1, 1]))
    assert whose.split(TOWER, (), torch.zeros(6, 5))[1] == Rows(2, 4, 6)
    assert image_rows.joined_images(parts, plan([1, 1]))["pixel_values"].shape == (3, 3, 3, 4, 4)


def test_images_that_cannot_be_joined_are_named():
    parts = [{"pixel_values": torch.ones(1, 3, 4, 4)}, {"pixel_values": torch.ones(1, 3, 4, 6)}]
    with pytest.raises(InputError, match=r"(?s)cannot be joined: .*\[1, 3, 4, 6\].*one by one"):
        image_rows.joined_images(parts, plan([1, 1]))


def test_kinds_of_tokens_are_given_to_texts_too():
    batches = [{"input_ids": ids(1, 2)}, {"input_ids": ids(9), "mm_token_type_ids": ids(1)}]
    first, _ = image_rows.with_token_types(batches)
    assert first["mm_token_type_ids"].tolist() == [[0, 0]]
