"""Probes, against a regression of their own on the same streams."""

import random

import pytest
import torch
from random_llama import tiny_llama
from reference import outputs

from insitu import InputError, UsageError
from insitu.methods import linear_probes
from insitu.methods.logistic import L2
from insitu.models.demo.words import BLAME, PRAISE, REVIEWED


@pytest.fixture(scope="module")
def reviews():
    rng = random.Random(0)
    praised = [f"The {rng.choice(REVIEWED)} was {rng.choice(PRAISE)}. I" for _ in range(30)]
    return praised + [f"The {rng.choice(REVIEWED)} was {rng.choice(BLAME)}. I" for _ in range(30)]


@pytest.fixture(scope="module")
def found(demo, reviews):
    return linear_probes(demo, reviews, [True] * 30 + [False] * 30, pos=(1, 3, -1))


def test_the_property_is_found_where_the_word_is_and_not_before(found):
    assert found.names == ("layer", "pos")
    assert found.axis("pos").labels == (1, 3, -1)
    assert float(found.sel(pos=1).values.max()) < 0.85
    assert found.sel(pos=3).values.min() > 0.9
    assert found.sel(pos=-1).values[2:].min() > 0.9
    assert found.info == {"chance": 0.5, "prompts to train": 42, "held out": 18}


def test_selectivity_is_what_is_left_beside_random_labels(found):
    control = found.further["control"]
    torch.testing.assert_close(found.further["selectivity"].values, found.values - control.values)
    assert control.sel(pos=-1).values.mean() < 0.75
    assert found.further["train"].sel(pos=-1).values.min() == 1


@torch.no_grad()
def streams(demo, texts, layer, pos):
    path = f"transformer.h.{layer}"
    seen = [
        outputs(demo._module, [path], **demo.tokenizer(t, return_tensors="pt"))[path][0]
        for t in texts
    ]
    return torch.stack([(s[0] if isinstance(s, tuple) else s)[0, pos] for s in seen]).double()


def test_a_probe_is_the_best_regression_on_the_prompts_it_was_trained_on(demo, reviews):
    """In double precision, by Newton's method on a single place."""
    labels = [True] * 30 + [False] * 30
    found = linear_probes(demo, reviews, labels, pos=(3,))
    direction = found.further["directions"].sel(layer=4, pos=3).values.double()
    inputs, truth = streams(demo, reviews, 4, 3), torch.tensor(labels).long()
    draw = torch.Generator().manual_seed(0)
    train = torch.ones(60, dtype=torch.bool)
    for label in (0, 1):
        members = (truth == label).nonzero()[:, 0]
        train[members[torch.randperm(30, generator=draw)[:9]]] = False
    mean, spread = inputs[train].mean(0), inputs[train].std(0)
    inputs = (inputs - mean) / spread

    def loss(both):
        weight, bias = both[:256].reshape(128, 2), both[256:]
        wrong = torch.nn.functional.cross_entropy(inputs[train] @ weight + bias, truth[train])
        return wrong + L2 * weight.square().sum()

    both = torch.zeros(258, dtype=torch.double)
    for _ in range(8):  # one bias is free, hence the pseudo-inverse
        slope = torch.autograd.functional.jacobian(loss, both)
        both = both - torch.linalg.pinv(torch.autograd.functional.hessian(loss, both)) @ slope
    weight, bias = both[:256].reshape(128, 2), both[256:]
    expected = (weight / spread[:, None]).T
    near = 2e-3 * float(expected.abs().max())
    torch.testing.assert_close(direction, expected, atol=near, rtol=0.01)
    accuracy = ((inputs @ weight + bias).argmax(-1) == truth)[~train].double().mean()
    assert float(found.sel(layer=4, pos=3)) == pytest.approx(float(accuracy), abs=1e-6)


def test_prompts_of_any_length_and_labels_of_any_kind(demo):
    texts = [
        f"{start} {noun}"
        for noun in ("dog", "cat", "king")
        for start in ("The", "A big", "An old red", "The")
    ]
    labels = [text.split()[-1] for text in texts]
    found = linear_probes(demo, texts, labels)
    assert found.further["directions"].axis("label").labels == ("cat", "dog", "king")
    assert float(found.sel(layer=0)) == 1
    with pytest.raises(InputError, match="tokens"):
        linear_probes(demo, texts, labels, pos=(1,))


def test_a_control_by_word_can_be_learned_by_heart(demo):
    """Hewitt and Liang's: random labels by word type, which a probe on the word can learn."""
    rng = random.Random(1)
    nouns = ("dog", "cat", "king", "tree", "book", "lamp")
    words = [rng.choice(nouns) for _ in range(60)]
    texts = [f"{rng.choice(('The', 'A', 'One'))} {word}" for word in words]
    labels = [word in ("dog", "cat", "king") for word in words]
    found = linear_probes(demo, texts, labels, types=words)
    assert float(found.further["control"].sel(layer=0, pos=-1)) > 0.95
    assert float(found.further["selectivity"].sel(layer=0, pos=-1)) < 0.05


def test_seeds_decide_what_is_held_out(demo, reviews):
    labels = [True] * 30 + [False] * 30
    one, same, other = (linear_probes(demo, reviews, labels, pos=(1,), seed=s) for s in (1, 1, 2))
    assert torch.equal(one.values, same.values)
    assert not torch.equal(one.values, other.values)


def test_another_family():
    model, _ = tiny_llama()
    rows = torch.randint(1, 97, (40, 6), generator=torch.Generator().manual_seed(0)).tolist()
    found = linear_probes(model, rows, [row[-1] > 48 for row in rows])
    assert found.shape == (3, 1)
    assert found.further["train"].values.min() == 1


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([True, False], "was given 2 labels of 2 kinds"),
        ([True] * 4, "was given 4 labels of 1 kinds"),
        ([True, True, True, False], "was given 4 labels of 2 kinds"),
    ],
)
def test_labels_that_no_probe_can_learn_are_refused(demo, labels, said):
    with pytest.raises(InputError, match=said):
        linear_probes(demo, ["The dog", "The cat", "A dog", "A cat"], labels)


def test_a_position_that_a_prompt_lacks_is_refused(demo):
    with pytest.raises(UsageError, match="there is no position 7"):
        linear_probes(demo, ["The dog", "The cat"] * 2, [True, False] * 2, pos=(7,))
