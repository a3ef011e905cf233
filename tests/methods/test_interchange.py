import patched_by_hooks as oracle
import pytest
import torch

from insitu import InputError, UsageError
from insitu.methods.interchange import interchange

PARIS, ROME, LONDON = (
    "The Louvre is in the city of",
    "The Colosseum is in the city of",
    "Tower Bridge is in the city of",
)
CITIES = {PARIS: " Paris", ROME: " Rome", LONDON: " London"}
BASES, SOURCES = [PARIS, ROME, LONDON], [ROME, LONDON, PARIS]


def by_hooks(demo, layer, pos, mix):
    """The share of pairs whose answer is the source's, with `mix(base, source)` put in."""
    net, right = demo._module, 0
    for base, source in zip(BASES, SOURCES, strict=True):
        one, other = (oracle.ids_of(demo.tokenizer, text) for text in (base, source))
        values = oracle.values(net, other, "resid_post", layer)

        def change(value, values=values):
            value[:, pos] = mix(value[:, pos], values[:, pos])
            return value

        found = oracle.logits(net, one, {("resid_post", layer): change})[0, -1].argmax()
        right += int(found) == demo.tokenizer(CITIES[source]).input_ids[0]
    return right / len(BASES)


def test_accuracies_are_those_of_plain_hooks(demo):
    found = interchange(demo, BASES, SOURCES, lambda base, source: CITIES[source])
    assert found.names == ("layer", "pos")
    for layer, pos in ((0, 1), (0, 6), (3, 6), (5, 2)):
        expected = by_hooks(demo, layer, pos, lambda base, source: source)
        assert found.values[layer, pos] == pytest.approx(expected)
    assert float(found.sel(layer=2, pos=-1)) == 1
    assert found.axis("pos").labels[:3] == ("[0]", "[1]", " is")  # where prompts differ, a number
    assert found.info["unchanged"] == 0


def test_answers_can_be_a_list_and_stay_as_they_are_where_nothing_is_carried(demo):
    found = interchange(demo, BASES, SOURCES, [CITIES[base] for base in BASES], layers=[4])
    assert found.info["unchanged"] == 1
    assert float(found.sel(layer=4, pos=2)) == 1
    assert float(found.sel(layer=4, pos=-1)) == 0


def test_a_subspace_is_swapped_alone(demo):
    torch.manual_seed(0)
    directions = torch.randn(128, 40)
    basis = torch.linalg.qr(directions)[0]
    mix = lambda base, source: base + (source - base) @ basis @ basis.T  # noqa: E731
    found = interchange(
        demo, BASES, SOURCES, lambda base, source: CITIES[source],
        subspace={2: directions, 3: directions}, positions=[-1], layers=[2, 3],
    )  # fmt: skip
    for layer in (2, 3):
        assert found.sel(layer=layer).item() == pytest.approx(by_hooks(demo, layer, -1, mix))


def test_the_whole_space_as_a_subspace_is_the_whole_swap(demo):
    given = (demo, BASES, SOURCES, lambda base, source: CITIES[source])
    whole = interchange(*given, layers=[1])
    found = interchange(*given, layers=[1], subspace=torch.eye(128))
    torch.testing.assert_close(found.values, whole.values)


def test_answers_can_be_taken_among_some_tokens(demo):
    found = interchange(
        demo, BASES, SOURCES, [" Tokyo"] * 3, among=[" Tokyo", " Oslo"], layers=[0], positions=[0]
    )
    assert found.info["unchanged"] >= 0  # whichever of the two is likelier
    sure = interchange(demo, BASES, SOURCES, [" Tokyo"] * 3, among=[" Tokyo"], layers=[0])
    assert sure.info["unchanged"] == 1


def test_heads_can_be_swapped(demo):
    found = interchange(demo, BASES, SOURCES, lambda base, source: CITIES[source], of="heads")
    assert found.names == ("layer", "head")
    assert found.max().value == 1  # one head of the first layer reads the landmark
    assert found.max().at["layer"] == 0


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [((BASES, SOURCES[:2], [" Rome"] * 3), InputError, "rows"),
     ((BASES, SOURCES, [" Rome"]), InputError, "1 answers are expected of 3 pairs"),
     ((BASES, SOURCES, [" San Francisco"] * 3), InputError, "not one token"),
     ((BASES, ["The Eiffel Tower is in the city of"] * 3, [" Rome"] * 3), InputError, "tokens")],
)  # fmt: skip
def test_pairs_that_do_not_fit_are_refused(demo, given, error, told):
    with pytest.raises(error, match=told):
        interchange(demo, *given)


@pytest.mark.parametrize(
    "subspace", [torch.eye(64), torch.ones(128), {0: torch.eye(128)}, {1: torch.ones(3, 128, 1)}]
)
def test_directions_that_do_not_fit_are_refused(demo, subspace):
    with pytest.raises(UsageError, match="width 128"):
        interchange(demo, BASES, SOURCES, [" Rome"] * 3, subspace=subspace, layers=[1])
