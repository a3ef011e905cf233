"""Named tensors and their numbers, whatever they are made of."""

import math

import pytest
import torch

from insitu.errors import InputTypeError
from insitu.widgets import numbers, tensors


def test_a_cache_is_flattened_in_the_models_order(llm):
    with llm.trace("Once upon a time") as tracer:
        cache = tracer.cache(include_inputs=True)
    found = tensors.of(cache)
    names = [it.name for it in found]
    assert names[-1].startswith("model.lm_head.")
    assert all(torch.equal(it.read(), it.value) for it in found)
    assert torch.equal(found[names.index("model.lm_head.output")].read(), cache["lm_head"].output)


def test_each_call_of_a_generation_is_there(llm):
    with llm.generate("Once upon a time", max_new_tokens=3) as tracer:
        cache = tracer.cache(modules=[llm.lm_head])
    found = tensors.of(cache)
    assert [it.name for it in found] == [f"model.lm_head[{n}].output" for n in range(3)]
    assert [it.step for it in found] == [0, 1, 2]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.tensor([1 + 1j, 3 - 4j]),
        torch.linspace(-3, 3, 20).reshape(4, 5).to(torch.bfloat16),
        torch.tensor([math.nan, math.inf, 1.0]),
        torch.arange(5),
    ],
    ids=str,
)
def test_numbers_are_told_of_any_tensor(tensor):
    told = tensors.statistics(tensor)
    plain = numbers.plain(tensor)[0].flatten()
    finite = plain[plain.isfinite()]
    assert told["nan"] == int(plain.isnan().sum())
    assert told["inf"] == int(plain.isinf().sum())
    if len(finite):
        assert told["mean"] == pytest.approx(float(finite.mean()))
        assert told["min"] == float(finite.min())
    else:
        assert told["mean"] is None


def test_complex_numbers_are_shown_by_their_size():
    values, note = numbers.plain(torch.tensor([3 - 4j]))
    assert values.tolist() == [5.0]
    assert note == "sizes of complex numbers"


def test_how_far_two_tensors_are_apart():
    a = torch.tensor([3.0, 4.0])
    assert tensors.difference(a, a) == {"largest": 0.0, "relative": 0.0, "cosine": 1.0}
    told = tensors.difference(a * 2, a)
    assert told["largest"] == 4.0
    assert told["relative"] == pytest.approx(1.0)
    assert tensors.difference(a, torch.zeros(3))["largest"] is None


def test_what_has_no_tensor_is_refused():
    with pytest.raises(InputTypeError, match="no tensors to show in object"):
        tensors.of(object())
