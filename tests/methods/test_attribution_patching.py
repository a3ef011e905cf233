import patched_by_hooks as oracle
import pytest
import torch
from patched_by_hooks import GIVING, SHORT
from random_llama import tiny_llama

from insitu import InputError
from insitu.errors import MetricError
from insitu.methods.activation_patching import activation_patching
from insitu.methods.attribution_patching import attribution_patching


def by_hooks(demo, name, layer, pair=GIVING):
    """(clean − corrupted) · gradient, by a forward hook that takes the value out."""
    net = demo._module
    metric = oracle.last_difference(demo.tokenizer, " Mary", " John")
    clean, corrupt = (oracle.ids_of(demo.tokenizer, text) for text in pair)
    seen = []

    def keep(value):
        value.retain_grad()
        seen.append(value)
        return value

    hook = oracle.hooked(net, name, layer, keep)
    metric(net(corrupt).logits).sum().backward()
    hook.remove()
    net.zero_grad()
    gradient = oracle.split(seen[0].grad, name)
    difference = oracle.values(net, clean, name, layer) - oracle.values(net, corrupt, name, layer)
    return (difference * gradient).sum(-1)[0].detach()


@pytest.mark.parametrize("name", ["resid_post", "mlp", "heads", "q", "v"])
def test_estimates_are_difference_times_gradient_by_plain_hooks(demo, mary, name):
    found = attribution_patching(demo, *GIVING, mary, of=name, positions="each")
    for layer in (0, 3):
        expected = by_hooks(demo, name, layer)
        torch.testing.assert_close(
            found.further["metric"].values[layer], expected, atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("name", ["heads", "mlp", "attention", "v"])
def test_estimates_go_with_exact_effects(demo, mary, name):
    estimated = attribution_patching(demo, *GIVING, mary, of=name).values.flatten()
    exact = activation_patching(demo, *GIVING, mary, of=name).values.flatten()
    assert torch.corrcoef(torch.stack([estimated, exact]))[0, 1] > 0.95  # 0.99 was measured


def test_two_forwards_and_a_backward_are_all_it_takes(demo, mary):
    calls = []
    hook = demo._module.register_forward_hook(lambda *_: calls.append(1))
    found = attribution_patching(demo, *GIVING, mary)
    hook.remove()
    assert len(calls) == found.info["passes"] == 2
    assert found.info["backwards"] == 1
    assert all(weight.grad is None for weight in demo._module.parameters())


def test_it_works_where_no_parameter_requires_gradients_and_none_are_on(demo, mary):
    expected = attribution_patching(demo, *GIVING, mary, of="heads").values
    demo._module.requires_grad_(False)
    try:
        with torch.no_grad():
            found = attribution_patching(demo, *GIVING, mary, of="heads").values
    finally:
        demo._module.requires_grad_(True)
    torch.testing.assert_close(found, expected)


def test_heads_at_all_positions_are_the_sum_of_each(demo, mary):
    each = attribution_patching(demo, *GIVING, mary, of="heads", positions="each")
    together = attribution_patching(demo, *GIVING, mary, of="heads")
    assert together.names == ("layer", "head")
    torch.testing.assert_close(each.values.sum(1), together.values, atol=1e-5, rtol=1e-4)


def test_a_random_llama_is_attributed_too():
    model, _ = tiny_llama()
    torch.manual_seed(1)
    clean = torch.randint(0, 90, (1, 6))
    corrupt = clean.clone()
    corrupt[0, 2] = 7
    metric = lambda logits: logits[:, -1, 5] - logits[:, -1, 9]  # noqa: E731
    for name in ("resid_post", "k"):
        found = attribution_patching(model, clean, corrupt, metric, of=name)
        exact = activation_patching(model, clean, corrupt, metric, of=name)
        assert found.names == exact.names
        assert found.shape == exact.shape
    last = found.further["metric"].axes
    assert last[0].name == "layer"


def test_unequal_prompts_and_useless_metrics_are_refused(demo, mary):
    with pytest.raises(InputError, match="tokens"):
        attribution_patching(demo, GIVING[0], SHORT[0], mary)
    with pytest.raises(MetricError, match="there is none"):
        attribution_patching(demo, GIVING[0], GIVING[0], mary)
    with pytest.raises(MetricError, match="one number"):
        attribution_patching(demo, *GIVING, lambda logits: logits.sum())
