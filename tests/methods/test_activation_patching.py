import patched_by_hooks as oracle
import pytest
import torch
from families import FAMILIES
from patched_by_hooks import GIVING, SHORT
from random_llama import tiny_llama

import insitu
from insitu import InputError, LanguageModel, NNsight, UsageError
from insitu.errors import MetricError
from insitu.methods import sweep
from insitu.methods.activation_patching import activation_patching
from insitu.methods.metrics import logit_difference, probability

TOWERS = ("The Eiffel Tower is in the city of", "The Trevi Fountain is in the city of")


def by_hooks(demo, pair, right, wrong, name="resid_pre"):
    clean, corrupt = (oracle.ids_of(demo.tokenizer, text) for text in pair)
    metric = oracle.last_difference(demo.tokenizer, right, wrong)
    return oracle.each_layer_and_position(demo._module, clean, corrupt, metric, name)


@pytest.mark.parametrize("name", ["resid_pre", "resid_post", "attention", "mlp"])
def test_every_layer_and_position_is_that_of_a_loop_of_plain_hooks(demo, paris, name):
    found = activation_patching(demo, *SHORT, paris, of=name)
    assert found.names == ("layer", "pos")
    expected = by_hooks(demo, SHORT, " Paris", " Rome", name)
    torch.testing.assert_close(found.further["metric"].values, expected, atol=1e-5, rtol=1e-5)


def test_the_residual_stream_between_attention_and_mlp_is_patched_as_their_sum(demo, paris):
    found = activation_patching(demo, *SHORT, paris, of="resid_mid", layers=[2], positions=[-1])
    net = demo._module
    clean, corrupt = (oracle.ids_of(demo.tokenizer, text) for text in SHORT)
    wanted = oracle.values(net, clean, "resid_pre", 2) + oracle.values(net, clean, "attention", 2)
    new = wanted - oracle.values(net, corrupt, "resid_pre", 2)
    change = {("attention", 2): oracle.patched(new, (slice(None), -1))}
    metric = oracle.last_difference(demo.tokenizer, " Paris", " Rome")
    expected = metric(oracle.logits(net, corrupt, change))
    torch.testing.assert_close(found.further["metric"].values[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["heads", "q", "k", "v"])
def test_heads_are_those_of_plain_hooks_at_all_positions_and_at_each(demo, paris, name):
    net, metric = demo._module, oracle.last_difference(demo.tokenizer, " Paris", " Rome")
    clean, corrupt = (oracle.ids_of(demo.tokenizer, text) for text in SHORT)
    source = oracle.values(net, clean, name, 1)

    def at(*place):
        change = {(name, 1): oracle.patched(source, place)}
        return metric(oracle.logits(net, corrupt, change)).item()

    every = slice(None)
    together = activation_patching(demo, *SHORT, paris, of=name, layers=[1])
    assert together.names == ("layer", "head")
    each = activation_patching(demo, *SHORT, paris, of=name, layers=[1], positions="each")
    assert each.names == ("layer", "pos", "head")
    for head in range(4):
        expected = at(every, every, head)
        assert together.further["metric"].values[0, head] == pytest.approx(expected, abs=1e-4)
        expected = at(every, 2, head)
        assert each.further["metric"].values[0, 2, head] == pytest.approx(expected, abs=1e-4)


def test_what_carries_the_answer_is_found(demo):
    mary = logit_difference(demo, " Mary", " John")
    found = activation_patching(demo, *GIVING, mary)
    assert float(found.sel(layer=0, pos=9)) > 0.95  # the name that differs, before it has moved on
    assert float(found.sel(layer=5, pos=-1)) > 0.95  # and the last position, after
    assert abs(float(found.sel(layer=5, pos=9))) < 0.05
    assert found.info["clean"] > 5 > -5 > found.info["corrupt"]


def test_positions_that_do_not_differ_cost_no_row(demo):
    mary = logit_difference(demo, " Mary", " John")
    found = activation_patching(demo, *GIVING, mary)
    assert (found.values[:, :9] == 0).all()  # both prompts are the same up to there
    assert found.info["rows"] < 6 * 5 + 8
    assert found.info["passes"] < 8


def test_several_pairs_are_averaged(demo):
    clean, corrupt = ([GIVING[0], GIVING[1]], [GIVING[1], GIVING[0]])
    each = logit_difference(demo, [" Mary", " John"], [" John", " Mary"])
    both = activation_patching(demo, clean, corrupt, each)
    one = activation_patching(demo, *GIVING, logit_difference(demo, " Mary", " John"))
    other = activation_patching(demo, *GIVING[::-1], logit_difference(demo, " John", " Mary"))
    mean = (one.further["metric"].values + other.further["metric"].values) / 2
    torch.testing.assert_close(both.further["metric"].values, mean, atol=1e-4, rtol=1e-4)


def test_a_metric_of_ones_own_sees_the_prompts_as_they_were_given(demo):
    ids = [demo.tokenizer(text).input_ids[0] for text in (" Mary", " John")]
    shapes = []

    def first_and_second(logits):
        shapes.append(tuple(logits.shape))
        return torch.stack([logits[0, -1, ids[0]], logits[1, -1, ids[1]]])

    clean, corrupt = ([GIVING[0], GIVING[1]], [GIVING[1], GIVING[0]])
    found = activation_patching(demo, clean, corrupt, first_and_second, layers=[3])
    assert set(shapes) == {(2, 14, 2884)}
    assert float(found.sel(layer=3, pos=-1)) > 0.5


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_small_batches_give_the_same_numbers(demo, paris, batch_size):
    found = activation_patching(demo, *SHORT, paris, batch_size=batch_size)
    expected = activation_patching(demo, *SHORT, paris)
    torch.testing.assert_close(found.values, expected.values, atol=1e-5, rtol=1e-5)


def test_a_model_whose_layers_cannot_be_skipped_is_patched_in_whole_passes(demo, paris):
    """Here a hook makes the last layer depend on the first one's having run."""
    net, seen = demo._module, []
    first = net.transformer.h[0].register_forward_hook(lambda m, a, out: seen.append(out.mean()))
    last = net.transformer.h[5].register_forward_hook(lambda m, a, out: out + seen.pop())
    try:
        found = activation_patching(demo, *SHORT, paris, layers=[0, 4])
        seen.clear()
        expected = by_hooks(demo, SHORT, " Paris", " Rome")
    finally:
        first.remove()
        last.remove()
    torch.testing.assert_close(found.further["metric"].values, expected[[0, 4]], atol=1e-4, rtol=0)


def test_the_model_is_as_before_and_keeps_its_gradients(demo, paris):
    before = demo.trace(SHORT[0]).logits
    activation_patching(demo, *SHORT, paris, layers=[1])
    after = demo.trace(SHORT[0]).logits
    assert torch.equal(before, after)
    assert after.requires_grad


def test_prompts_of_unequal_length_are_refused_before_anything_runs(demo, paris):
    with pytest.raises(InputError, match="tokens"):
        activation_patching(demo, TOWERS[0], SHORT[1], paris)


def test_a_metric_that_is_not_one_number_a_row_is_refused(demo):
    with pytest.raises(MetricError, match="metric gave"):
        activation_patching(demo, *SHORT, lambda logits: logits[:, -1])


def test_a_metric_that_tells_the_prompts_not_apart_is_refused(demo):
    with pytest.raises(MetricError, match="for the clean prompts and for the corrupted"):
        activation_patching(demo, SHORT[0], SHORT[0], probability(demo, " Paris"))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"of": "residual"}, "no place"), ({"of": "head"}, "heads"), ({"layers": [6]}, "layer 6"),
     ({"positions": [7]}, "position 7"), ({"positions": "every"}, "every")],
)  # fmt: skip
def test_what_does_not_exist_is_refused(demo, paris, wrong, told):
    with pytest.raises(UsageError, match=told):
        activation_patching(demo, *SHORT, paris, **wrong)


def test_an_answer_of_two_tokens_is_refused(demo):
    with pytest.raises(InputError, match="not one token"):
        logit_difference(demo, " Paris in Spring", " Rome")


def test_a_random_llama_is_patched_too():
    model, net = tiny_llama()
    torch.manual_seed(1)
    clean, corrupt = torch.randint(0, 90, (2, 1, 6))
    metric = lambda logits: logits[:, -1, 5] - logits[:, -1, 9]  # noqa: E731
    found = activation_patching(model, clean, corrupt, metric)
    for layer, pos in ((0, 2), (1, 5), (2, 3)):
        seen = []
        block = net.model.layers[layer]
        with torch.no_grad():
            hook = block.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone()))  # noqa: B023
            net(clean)
            hook.remove()

            def change(m, args):
                value = args[0].clone()
                value[:, pos] = seen[0][:, pos]  # noqa: B023
                return (value, *args[1:])

            hook = block.register_forward_pre_hook(change)
            expected = metric(net(corrupt).logits).item()
            hook.remove()
        assert found.further["metric"].values[layer, pos] == pytest.approx(expected, abs=1e-5)
    heads = activation_patching(model, clean, corrupt, metric, of="v")
    assert heads.shape == (3, 2)  # key-value heads


def test_a_module_without_a_tokenizer_or_names_says_so(net):
    with pytest.raises(insitu.InsituError):
        activation_patching(NNsight(net), "a", "b", lambda logits: logits[:, 0, 0])


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "phi", "gpt_neox", "opt", "mixtral", "mamba"]
)
def test_skipping_layers_changes_no_number_in_any_family(family, monkeypatch):
    monkeypatch.setitem(sweep.TOKENS_MIN, "cpu", 1)  # so that the last layer has its own pass
    model = LanguageModel(FAMILIES[family].built())
    torch.manual_seed(0)
    clean, corrupt = torch.randint(1, 300, (2, 1, 7))
    metric = lambda logits: logits[:, -1, 5] - logits[:, -1, 9]  # noqa: E731
    found = activation_patching(model, clean, corrupt, metric)
    assert found.info["passes"] == 3
    monkeypatch.setattr(sweep.Sweep, "__init__", without_sharing(sweep.Sweep.__init__))
    whole = activation_patching(model, clean, corrupt, metric)
    torch.testing.assert_close(found.values, whole.values, atol=1e-4, rtol=1e-4)


def without_sharing(begin):
    def begin_so(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.shares = False

    return begin_so


def test_models_of_two_stacks_and_without_logits_are_refused():
    ids = torch.randint(1, 300, (1, 5))
    metric = lambda logits: logits[:, -1, 5]  # noqa: E731
    with pytest.raises(UsageError, match="an encoder and a decoder"):
        activation_patching(LanguageModel(FAMILIES["t5"].built()), ids, ids, metric)
    with pytest.raises(UsageError, match="no logits"):
        activation_patching(LanguageModel(FAMILIES["bert"].built()), ids, ids, metric)
