import patched_by_hooks as oracle
import pytest
import torch

from insitu import InputError, UsageError
from insitu.methods.sae import activations_of, insert_sae, loss_recovered
from insitu.methods.sae_features import sae_features
from insitu.methods.sparse_autoencoder import SparseAutoencoder

TEXTS = [
    "The Eiffel Tower is in the city of Paris. Paris is the capital of France.",
    "When Mary and John went to the store, John gave a drink to Mary.",
    "The Colosseum is in the city of Rome.",
]
PROMPT = TEXTS[2][:-6]


@pytest.fixture(scope="module")
def activations(demo):
    return activations_of(demo, TEXTS, layer=3)


@pytest.fixture(scope="module")
def sae(activations):
    return SparseAutoencoder(128, 64, top_k=8).fit(activations, steps=60)


def logits(model, prompt=PROMPT):
    with torch.no_grad():
        return model.trace(prompt).logits


def by_hooks(demo, through, name="resid_post", layer=3):
    ids = oracle.ids_of(demo.tokenizer, PROMPT)
    with torch.no_grad():
        return oracle.logits(demo._module, ids, {(name, layer): through})


# The autoencoder --------------------------------------------------------------------------------


def test_a_fit_explains_activations_and_is_the_same_for_the_same_seed(activations, sae):
    again = SparseAutoencoder(128, 64, top_k=8).fit(activations, steps=60)
    other = SparseAutoencoder(128, 64, top_k=8, seed=1).fit(activations, steps=60)
    assert torch.equal(again.decoder, sae.decoder)
    assert not torch.equal(other.decoder, sae.decoder)
    with torch.no_grad():
        missed = (sae(activations) - activations).square().sum()
    spread = (activations - activations.mean(0)).square().sum()
    assert missed / spread < 0.2


def test_top_k_features_are_on_and_never_below_zero(activations, sae):
    features = sae.encode(activations)
    assert ((features != 0).sum(-1) <= 8).all()
    assert (features >= 0).all()
    assert torch.allclose(sae.decoder.norm(dim=-1), torch.ones(64), atol=1e-5)


def test_a_stronger_penalty_leaves_fewer_features_on(activations):
    on = [
        (SparseAutoencoder(128, 64).fit(activations, steps=60, l1=l1).encode(activations) > 0)
        for l1 in (0.0, 0.3)
    ]
    assert on[1].float().mean() < on[0].float().mean() * 0.8


def test_decoding_is_a_sum_of_directions(sae):
    features = torch.zeros(1, 64)
    features[0, 3], features[0, 5] = 2.0, 0.5
    expected = sae.centre + sae.scale * (2 * sae.decoder[3] + 0.5 * sae.decoder[5])
    torch.testing.assert_close(sae.decode(features)[0], expected)


def test_a_fit_works_where_gradients_are_off_and_leaves_none(activations):
    with torch.no_grad():
        sae = SparseAutoencoder(128, 16).fit(activations[:5], steps=3, batch_size=2)
    assert all(parameter.grad is None for parameter in sae.parameters())


@pytest.mark.parametrize("shape", [(4, 64), (0, 128), (128,)])
def test_activations_of_another_shape_are_refused(sae, shape):
    with pytest.raises(InputError, match="width 128"):
        sae.fit(torch.zeros(shape), steps=1)


# In the model -----------------------------------------------------------------------------------


def test_a_value_goes_by_way_of_the_features(demo, sae):
    spliced = insert_sae(demo, sae, 3)
    torch.testing.assert_close(logits(spliced), by_hooks(demo, sae), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("of", ["resid_pre", "attention", "mlp"])
def test_it_goes_in_at_other_places(demo, sae, of):
    spliced = insert_sae(demo, sae, 1, of)
    expected = by_hooks(demo, sae, of, 1)
    torch.testing.assert_close(logits(spliced), expected, atol=1e-4, rtol=1e-4)


def test_heads_have_features_of_their_own(demo, activations):
    small = SparseAutoencoder(32, 16)
    spliced = insert_sae(demo, small, 2, "heads")
    expected = by_hooks(demo, small, "heads", 2)
    torch.testing.assert_close(logits(spliced), expected, atol=1e-4, rtol=1e-4)


def test_with_its_error_nothing_changes_until_a_feature_does(demo, sae):
    spliced = insert_sae(demo, sae, 3, error=True)
    torch.testing.assert_close(logits(spliced), logits(demo), atol=1e-4, rtol=1e-4)
    with torch.no_grad(), spliced.trace(PROMPT):
        features = spliced.layers[3].sae.features.output
        strongest = features[0, -1].argmax()
        features[:, -1, strongest] = 0
        found = spliced.output.logits

    def without(value):
        features = sae.encode(value)
        error = value - sae.decode(features)
        features[:, -1, strongest] = 0
        return sae.decode(features) + error

    torch.testing.assert_close(found, by_hooks(demo, without), atol=1e-4, rtol=1e-4)
    assert (found[0, -1] - logits(demo)[0, -1]).abs().max() > 0.1


def test_features_are_read_in_place(demo, sae):
    spliced = insert_sae(demo, sae, 3)
    with torch.no_grad(), spliced.trace(PROMPT):
        features = spliced.layers[3].sae.features.output.clone()
    value = oracle.values(demo._module, oracle.ids_of(demo.tokenizer, PROMPT), "resid_post", 3)
    torch.testing.assert_close(features, sae.encode(value), atol=1e-4, rtol=1e-4)


def test_the_model_itself_is_as_before_and_two_can_be_inserted(demo, sae):
    before = logits(demo)
    first = insert_sae(demo, sae, 3)
    both = insert_sae(first, sae, 3, "mlp", name="mlp_sae")
    assert torch.equal(logits(demo), before)
    assert not torch.allclose(logits(both), logits(first), atol=1e-3)
    with torch.no_grad(), both.trace(PROMPT):
        one = both.layers[3].mlp_sae.features.output.shape
        other = both.layers[3].sae.features.output.shape
    assert one == other == (1, 7, 64)


def test_any_module_that_encodes_and_decodes_will_do(demo):
    class Turned(torch.nn.Module):
        def encode(self, x):
            return x.flip(-1)

        def decode(self, features):
            return features.flip(-1)

    spliced = insert_sae(demo, Turned(), 0)
    assert torch.equal(logits(spliced), logits(demo))
    with pytest.raises(UsageError, match=r"Linear has no encode\(\)"):
        insert_sae(demo, torch.nn.Linear(2, 2), 0)
    with pytest.raises(UsageError, match="layer 9"):
        insert_sae(demo, Turned(), 9)


def test_activations_leave_padding_out(demo, activations):
    rows = [
        oracle.values(demo._module, oracle.ids_of(demo.tokenizer, text), "resid_post", 3)[0]
        for text in TEXTS
    ]
    torch.testing.assert_close(activations, torch.cat(rows), atol=1e-4, rtol=1e-4)


def test_the_loss_recovered_is_that_of_plain_hooks(demo, sae, activations):
    found = loss_recovered(demo, TEXTS, sae, 3)

    def loss(through):
        total, count = 0.0, 0
        for text in TEXTS:
            ids = oracle.ids_of(demo.tokenizer, text)
            said = oracle.logits(demo._module, ids, {("resid_post", 3): through})[0, :-1]
            total += torch.nn.functional.cross_entropy(said, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
        return total / count

    with torch.no_grad():
        clean, kept = loss(lambda value: value), loss(sae)
        mean = loss(lambda value: activations.mean(0).expand_as(value))
    assert found.info["clean_nats"] == pytest.approx(clean, abs=1e-4)
    assert found.info["inserted_nats"] == pytest.approx(kept, abs=1e-4)
    assert found.info["mean_nats"] == pytest.approx(mean, abs=1e-4)
    assert float(found) == pytest.approx((mean - kept) / (mean - clean), abs=1e-4)
    assert 0 < found.info["features_on"] <= 8


def test_the_strongest_features_of_a_prompt_are_shown(demo, sae):
    found = sae_features(demo, PROMPT, sae, 3, count=5)
    assert found.names == ("pos", "feature")
    value = oracle.values(demo._module, oracle.ids_of(demo.tokenizer, PROMPT), "resid_post", 3)[0]
    features = sae.encode(value).detach()
    numbers = list(found.axis("feature").labels)
    torch.testing.assert_close(found.values, features[:, numbers], atol=1e-4, rtol=1e-4)
    assert numbers[0] == features.amax(0).argmax()
    assert sae_features(demo, PROMPT, SparseAutoencoder(32, 16), 2, "heads").shape == (7, 12)
    with pytest.raises(InputError, match="2 prompts"):
        sae_features(demo, [PROMPT, PROMPT], sae, 3)
