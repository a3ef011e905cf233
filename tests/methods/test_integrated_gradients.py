import patched_by_hooks as oracle
import pytest
import torch

from insitu import InputError, InsituWarning, UsageError
from insitu.methods.integrated_gradients import gauss_legendre, integrated_gradients

PROMPT, OTHER = "The Eiffel Tower is in the city of", "The Trevi Fountain is in the city of"


def by_hooks(demo, steps):
    """The mean gradient at the middles of equal steps, one forward and backward for each."""
    net, metric = demo._module, oracle.last_difference(demo.tokenizer, " Paris", " Rome")
    ids = oracle.ids_of(demo.tokenizer, PROMPT)
    other = oracle.ids_of(demo.tokenizer, OTHER)
    end, start = (net.transformer.wte(it).detach() for it in (ids, other))
    total = torch.zeros_like(end)
    for step in range(steps):
        point = (start + (step + 0.5) / steps * (end - start)).requires_grad_()
        metric(net(inputs_embeds=point).logits).backward()
        total += point.grad / steps
    net.zero_grad()
    return (total * (end - start)).sum(-1)[0]


def test_attributions_are_those_of_a_plain_sum_of_gradients(demo, paris):
    found = integrated_gradients(demo, PROMPT, paris, OTHER)
    torch.testing.assert_close(found.values, by_hooks(demo, 30), atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize(
    ("baseline", "settings"),
    [(None, {}), (OTHER, {}), (None, {"of": "heads"}), (OTHER, {"of": "resid_pre", "layer": 3})],
)
def test_attributions_sum_to_the_difference_of_the_metric(demo, paris, baseline, settings):
    found = integrated_gradients(demo, PROMPT, paris, baseline, **settings)
    difference = found.info["prompt"] - found.info["baseline"]
    assert float(found.values.sum()) == pytest.approx(difference, abs=0.02)
    assert found.info["gap"] == pytest.approx(difference - float(found.values.sum()), abs=1e-5)
    assert found.info["passes"] == 2  # both ends of the path, and all of its points


def test_the_ends_are_the_metric_of_prompt_and_baseline(demo, paris):
    found = integrated_gradients(demo, PROMPT, paris, OTHER, steps=4)
    for name, text in (("prompt", PROMPT), ("baseline", OTHER)):
        logits = oracle.logits(demo._module, oracle.ids_of(demo.tokenizer, text))
        expected = oracle.last_difference(demo.tokenizer, " Paris", " Rome")(logits)
        assert found.info[name] == pytest.approx(expected.item(), abs=1e-4)


def test_the_subject_carries_what_it_differs_by(demo, paris):
    found = integrated_gradients(demo, PROMPT, paris, OTHER)
    assert float(found.sel(pos=[1, 2]).values.sum()) == pytest.approx(33, abs=1)
    assert (found.values[3:] == 0).all()


def test_small_batches_give_the_same_numbers(demo, paris):
    found = integrated_gradients(demo, PROMPT, paris, steps=20, batch_size=7)
    expected = integrated_gradients(demo, PROMPT, paris, steps=20)
    torch.testing.assert_close(found.values, expected.values, atol=1e-4, rtol=1e-4)
    assert found.info["passes"] == 5


def test_heads_have_an_axis_of_their_own(demo, paris):
    found = integrated_gradients(demo, PROMPT, paris, OTHER, of="heads", layer=0, steps=8)
    assert found.names == ("pos", "head")
    assert found.max().at["pos"] == " of"


def test_points_and_weights_integrate_polynomials_exactly():
    points, weights = gauss_legendre(5)
    assert points[:2].tolist() == [0, 1]
    assert weights[:2].tolist() == [0, 0]
    for power in range(10):
        assert float((weights * points**power).sum()) == pytest.approx(1 / (power + 1), abs=1e-12)


def test_a_path_that_is_not_smooth_is_told(demo, paris):
    with pytest.warns(InsituWarning, match="other than zero"):
        found = integrated_gradients(demo, PROMPT, paris, of="resid_pre", layer=3)
    assert abs(found.info["gap"]) > 1  # from zero, a layer norm jumps


def test_no_gradient_stays_on_the_model_even_without_grad_mode(demo, paris):
    with torch.no_grad():
        integrated_gradients(demo, PROMPT, paris, OTHER, steps=4)
    assert all(weight.grad is None for weight in demo._module.parameters())


def test_bad_requests_are_refused(demo, paris):
    with pytest.raises(InputError, match="2 prompts"):
        integrated_gradients(demo, [PROMPT, OTHER], paris)
    with pytest.raises(InputError, match="tokens"):
        integrated_gradients(demo, PROMPT, paris, "The Louvre is in the city of")
    with pytest.raises(UsageError, match="steps"):
        integrated_gradients(demo, PROMPT, paris, steps=0)
    with pytest.raises(UsageError, match="layer 6"):
        integrated_gradients(demo, PROMPT, paris, of="mlp", layer=6)
    with pytest.raises(UsageError, match="no place"):
        integrated_gradients(demo, PROMPT, paris, of="embeddings")
