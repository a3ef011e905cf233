import patched_by_hooks as oracle
import pytest
import torch

from insitu import InputError, UsageError
from insitu.methods.causal_tracing import causal_tracing, noises, positions_of
from insitu.methods.metrics import probability
from insitu.methods.sweep import window

PROMPT, SUBJECT = "The Eiffel Tower is in the city of", "The Eiffel Tower"


@pytest.fixture
def paris(demo):
    return probability(demo, " Paris")


def by_hooks(demo, name, layers, pos, runs):
    """The mean effect of restoring some layers at one position, one forward for each draw."""
    net, ids = demo._module, oracle.ids_of(demo.tokenizer, PROMPT)
    paris = demo.tokenizer(" Paris").input_ids[0]
    effects = []
    for noise in noises(demo, {"runs": runs}, [0, 1, 2], ids.shape[1]):
        hidden = lambda out, noise=noise: out + noise  # noqa: E731
        changes = {
            (name, layer): oracle.patched(oracle.values(net, ids, name, layer), (slice(None), pos))
            for layer in layers
        }
        restored, corrupt = (
            oracle.logits(net, ids, some, hidden)[0, -1].softmax(-1)[paris]
            for some in (changes, {})
        )
        effects.append(restored - corrupt)
    return torch.stack(effects).mean().item()


def test_effects_are_those_of_plain_hooks(demo, paris):
    found = causal_tracing(demo, PROMPT, SUBJECT, paris, of="resid_pre", runs=4)
    for layer, pos in ((0, 1), (0, 2), (1, 7), (3, 4)):
        expected = by_hooks(demo, "resid_pre", [layer], pos, 4)
        assert found.values[layer, pos] == pytest.approx(expected, abs=1e-5)


def test_a_window_restores_the_layers_around(demo, paris):
    found = causal_tracing(demo, PROMPT, SUBJECT, paris, of="mlp", runs=3, window=3)
    for layer, layers in ((0, [0, 1]), (3, [2, 3, 4])):
        expected = by_hooks(demo, "mlp", layers, 7, 3)
        assert found.values[layer, 7] == pytest.approx(expected, abs=1e-5)


def test_the_subject_matters_first_and_the_last_position_after(demo, paris):
    found = causal_tracing(demo, PROMPT, SUBJECT, paris, of="resid_pre")
    early = found.sel(layer=0)
    assert early.max().at["pos"] in (" Eiffel", " Tower")
    assert float(early.max().value) > 0.1
    for layer in range(1, 6):
        assert found.sel(layer=layer).max().at["pos"] == " of"
    assert found.info["corrupt"] < 0.1 < 0.9 < found.info["clean"]


def test_all_draws_are_rows_of_the_same_passes(demo, paris):
    calls = []
    hook = demo._module.register_forward_hook(lambda *_: calls.append(1))
    found = causal_tracing(demo, PROMPT, SUBJECT, paris, runs=10)
    hook.remove()
    assert len(calls) == found.info["passes"] <= 8


def test_the_noise_is_that_of_its_seed(demo, paris):
    given = (demo, PROMPT, SUBJECT, paris)
    one = causal_tracing(*given, runs=2, layers=[2], seed=5)
    again = causal_tracing(*given, runs=2, layers=[2], seed=5)
    other = causal_tracing(*given, runs=2, layers=[2], seed=6)
    assert torch.equal(one.values, again.values)
    assert not torch.equal(one.values, other.values)


def test_no_noise_has_no_effect(demo, paris):
    found = causal_tracing(demo, PROMPT, SUBJECT, paris, runs=1, noise=0)
    assert found.values.abs().max() < 1e-6
    assert found.info["rows"] == 2  # nothing differs, so nothing is restored


def test_a_subject_is_found_by_its_words_or_positions(demo):
    assert positions_of(demo, PROMPT, "Eiffel Tower", 8) == [1, 2]
    assert positions_of(demo, PROMPT, [1, -1], 8) == [1, 7]
    with pytest.raises(InputError, match="'Big Ben' is not in the prompt"):
        positions_of(demo, PROMPT, "Big Ben", 8)
    with pytest.raises(UsageError, match="position 8"):
        positions_of(demo, PROMPT, [8], 8)


def test_windows_stay_in_the_model():
    assert window(0, 3, 6) == range(2)
    assert window(3, 3, 6) == range(2, 5)
    assert window(5, 10, 6) == range(6)
    assert window(2, 1, 6) == range(2, 3)
