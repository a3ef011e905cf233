"""What a watcher takes for written: replaced, or edited where it is, at any depth."""

import pytest
import torch

from insitu.engine.written import Before, leaves


def value():
    return (torch.zeros(2), [torch.ones(2), None], {"h": torch.arange(3), "n": 4}, "text")


def test_every_tensor_is_found_with_the_keys_that_lead_to_it():
    one = value()
    found = dict(leaves(one))
    assert list(found) == [(0,), (1, 0), (2, "h")]
    assert found[0,] is one[0]
    assert found[2, "h"] is one[2]["h"]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("leaf", [(0,), (1, 0), (2, "h")])
def test_an_edit_in_place_is_a_change(leaf, inference):
    with torch.inference_mode(inference):
        one = value()
        before = Before(one)
        assert not before.was_changed(one)
        assert not before.was_changed_in_place()
        tensor = before.tensors[leaf]
        tensor[0] = 7
        assert before.was_changed(one)
        assert before.was_changed_in_place()
        assert before.edited(leaf, tensor)
        others = before.tensors.keys() - {leaf}
        assert not any(before.edited(other, before.tensors[other]) for other in others)


def test_another_tensor_or_another_form_is_a_change_and_not_one_in_place():
    one = value()
    before = Before(one)
    assert before.was_changed((one[0].clone(), *one[1:]))
    assert before.was_changed(one[:2])
    assert before.was_changed(one[0])
    assert not before.was_changed_in_place()
    assert not before.was_changed((*one[:3], "other text"))  # of tensors alone


@pytest.mark.parametrize(("was", "now"), [(torch.nan, 0.0), (torch.inf, 1e30), (0.0, torch.nan)])
def test_numbers_that_are_none_are_told_from_numbers(was, now):
    with torch.inference_mode():
        tensor = torch.tensor([was, torch.nan])
        before = Before(tensor)
        assert not before.was_changed(tensor)
        tensor[0] = now
        assert before.was_changed(tensor)
