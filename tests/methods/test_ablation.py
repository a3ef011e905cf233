"""Every ablation is one run with plain hooks, and all of them together are one pass."""

import sys

import pytest
import torch
from families import FAMILIES
from random_llama import tiny_llama
from reference import counting, edited, hooks, inputs, outputs

from insitu import InputError, LanguageModel, UsageError
from insitu.errors import MetricError
from insitu.methods import ablation, logit_difference, probability

PROMPT = "The Eiffel Tower is in the city of"
PAIR = ["The Eiffel Tower is in the city of", "The Trevi Fountain is in the city of"]
RAGGED = ["The Louvre is in the city of", "The Eiffel Tower is in the city of"]


def encoded(demo, texts):
    return dict(demo.tokenizer(texts, return_tensors="pt", padding=True))


@torch.no_grad()
def with_heads(net, path, heads, change, **encoding):
    """Run with one head's part of what goes into a projection changed: `change(part)`."""

    def hook(module, given):
        whole = given[0].unflatten(-1, (heads[1], -1)).clone()
        whole[:, :, heads[0]] = change(whole[:, :, heads[0]])
        return (whole.flatten(-2), *given[1:])

    with hooks([net.get_submodule(path).register_forward_pre_hook(hook)]):
        return net(**encoding).logits


def check_heads(demo, found, change, batch, metric):
    net = demo._module
    before = metric(net(**batch).logits)
    for layer in range(6):
        for head in range(4):
            logits = with_heads(
                net, f"transformer.h.{layer}.attn.c_proj", (head, 4),
                lambda part, at=(layer, head): change(*at, part), **batch,
            )  # fmt: skip
            expected = metric(logits) - before
            each = found.further["each"].sel(layer=layer, head=head).values
            torch.testing.assert_close(each, expected, atol=1e-4, rtol=1e-4)
            assert float(found[layer, head]) == pytest.approx(float(expected.mean()), abs=1e-4)


@torch.no_grad()
def test_zeroed_heads_are_those_of_plain_hooks_in_one_pass(demo, paris):
    with counting(demo._module) as calls:
        found = ablation(demo, PROMPT, paris)
    assert calls["transformer.h.0"] == 2  # one of them reads the shapes to be put there
    assert found.names == ("layer", "head")
    assert (found.quantity, found.unit) == ("change in logit difference", "logits")
    check_heads(demo, found, lambda *at: at[2] * 0, encoded(demo, [PROMPT]), paris)


@torch.no_grad()
def test_heads_at_the_mean_of_other_prompts(demo, paris):
    found = ablation(demo, PROMPT, paris, how="mean", reference=PAIR)
    paths = [f"transformer.h.{i}.attn.c_proj" for i in range(6)]
    seen = inputs(demo._module, paths, **encoded(demo, PAIR))
    means = [seen[p][0][0][0].unflatten(-1, (4, 32)).mean((0, 1)) for p in paths]
    check_heads(
        demo, found, lambda layer, head, part: means[layer][head].expand_as(part),
        encoded(demo, [PROMPT]), paris,
    )  # fmt: skip


@torch.no_grad()
def test_resampled_heads_get_the_next_prompt_s_values(demo, paris):
    found = ablation(demo, PAIR, paris, how="resample")
    check_heads(demo, found, lambda *at: at[2].flip(0), position_free(demo, PAIR), paris)
    other = ablation(demo, PAIR[0], paris, how="resample", reference=PAIR[1])
    torch.testing.assert_close(
        other.values, found.further["each"].sel(prompt=0).values, atol=1e-4, rtol=1e-4
    )


def position_free(demo, texts):
    return {"input_ids": encoded(demo, texts)["input_ids"]}


@torch.no_grad()
def test_prompts_of_unequal_length_give_what_each_gives_alone(demo, paris):
    together = ablation(demo, RAGGED, paris).further["each"]
    for number, text in enumerate(RAGGED):
        alone = ablation(demo, text, paris)
        torch.testing.assert_close(
            together.sel(prompt=number).values, alone.values, atol=1e-3, rtol=1e-3
        )
    mean = ablation(demo, PROMPT, paris, how="mean", reference=RAGGED)  # padding left out
    seen = [
        inputs(demo._module, ["transformer.h.3.attn.c_proj"], **encoded(demo, [t])) for t in RAGGED
    ]
    every = torch.cat([s["transformer.h.3.attn.c_proj"][0][0][0][0] for s in seen]).mean(0)
    logits = with_heads(
        demo._module, "transformer.h.3.attn.c_proj", (1, 4),
        lambda part: every.unflatten(-1, (4, 32))[1].expand_as(part), **encoded(demo, [PROMPT]),
    )  # fmt: skip
    expected = paris(logits) - paris(demo._module(**encoded(demo, [PROMPT])).logits)
    assert float(mean[3, 1]) == pytest.approx(float(expected), abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(("of", "part"), [("mlp", "mlp"), ("attention", "attn")])
def test_whole_parts_of_a_layer(demo, paris, of, part):
    found = ablation(demo, PROMPT, paris, of=of)
    net, batch = demo._module, encoded(demo, [PROMPT])
    assert found.names == ("layer",)
    for layer in range(6):

        def zero(out, call):
            return (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0

        logits = edited(net, {f"transformer.h.{layer}.{part}": zero}, **batch).logits
        expected = paris(logits) - paris(net(**batch).logits)
        assert float(found[layer]) == pytest.approx(float(expected), abs=1e-4)


@torch.no_grad()
def test_the_stream_at_each_layer_and_position(demo, paris):
    found = ablation(demo, PAIR, paris, of="resid_post", how="resample")
    net, batch = demo._module, position_free(demo, PAIR)
    assert found.names == ("layer", "pos")
    assert found.axis("pos").labels[1] == " Eiffel"
    paths = [f"transformer.h.{i}" for i in range(6)]
    seen = outputs(net, paths, **batch)
    before = paris(net(**batch).logits)
    for layer, path in enumerate(paths):
        value = seen[path][0]
        value = value[0] if isinstance(value, tuple) else value
        for pos in range(8):

            def swap(out, call, value=value, pos=pos):
                stream = (out[0] if isinstance(out, tuple) else out).clone()
                stream[:, pos] = value.flip(0)[:, pos]
                return (stream, *out[1:]) if isinstance(out, tuple) else stream

            expected = paris(edited(net, {path: swap}, **batch).logits) - before
            each = found.further["each"].sel(layer=layer, pos=pos).values
            torch.testing.assert_close(each, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_another_family():
    model, net = tiny_llama()
    ids = torch.tensor([[5, 9, 2, 40, 11], [6, 9, 3, 40, 12]])
    metric = logit_difference(model, 7, 8)
    found = ablation(model, ids, metric)
    before = metric(net(ids).logits)
    for layer in range(3):
        for head in range(4):
            logits = with_heads(
                net, f"model.layers.{layer}.self_attn.o_proj", (head, 4),
                lambda part: part * 0, input_ids=ids,
            )  # fmt: skip
            expected = float((metric(logits) - before).mean())
            assert float(found[layer, head]) == pytest.approx(expected, abs=1e-3)
    assert ablation(model, ids, metric, of="resid_post", how="mean").shape == (3, 5)


def test_a_metric_of_one_s_own_sees_the_prompts_in_their_order(demo):
    answers = torch.tensor([demo.tokenizer(t).input_ids[0] for t in (" Paris", " Rome")])
    found = ablation(demo, PAIR, lambda logits: logits[torch.arange(2), -1, answers], of="mlp")
    first = ablation(demo, PAIR[0], lambda logits: logits[:, -1, answers[0]], of="mlp")
    torch.testing.assert_close(
        found.further["each"].sel(prompt=0).values, first.values, atol=1e-3, rtol=1e-3
    )
    assert found.quantity == "change in metric"


def test_many_rows_are_several_passes_with_the_same_numbers(demo, paris, monkeypatch):
    at_once = ablation(demo, PROMPT, paris)
    monkeypatch.setattr(sys.modules["insitu.methods.ablation"], "ROWS", 5)
    torch.testing.assert_close(
        ablation(demo, PROMPT, paris).values, at_once.values, atol=1e-4, rtol=1e-4
    )


def test_nothing_of_it_stays_in_the_model(demo, paris):
    before = demo._module(**encoded(demo, [PROMPT])).logits
    ablation(demo, PROMPT, paris)
    assert torch.equal(demo._module(**encoded(demo, [PROMPT])).logits, before)


@pytest.mark.parametrize(
    ("settings", "kind", "said"),
    [
        ({"of": "head"}, UsageError, "of='head' is no place in a layer"),
        ({"how": "average"}, UsageError, "how='average' is nothing that can be put"),
        ({"how": "resample"}, InputError, "one prompt cannot be resampled"),
        (
            {"how": "resample", "reference": "The key to"},
            InputError,
            "the prompts have 8, 3 tokens",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(demo, paris, settings, kind, said):
    with pytest.raises(kind, match=said):
        ablation(demo, PROMPT, paris, **settings)


def test_positions_need_prompts_of_equal_length(demo, paris):
    with pytest.raises(InputError, match="the prompts have 7, 8 tokens"):
        ablation(demo, RAGGED, paris, of="resid_post")


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda logits: logits[:, -1], r"the metric gave shape \[25, 2884\] for 25 rows"),
        (lambda logits: 3, "the metric gave int for 25 rows"),
    ],
)
def test_a_metric_gives_one_number_for_each_row(demo, metric, said):
    with pytest.raises(MetricError, match=said):
        ablation(demo, PROMPT, metric)


def test_probabilities_are_a_metric_too(demo):
    found = ablation(demo, PROMPT, probability(demo, " Paris"), of="mlp")
    assert found.quantity == "change in probability of ' Paris'"
    assert found.values.min() < -0.5


@torch.no_grad()
def test_the_stream_between_attention_and_mlp(demo, paris):
    found = ablation(demo, PROMPT, paris, of="resid_mid")
    net, batch = demo._module, encoded(demo, [PROMPT])
    before = paris(net(**batch).logits)
    for layer, pos in ((0, 2), (3, 7), (5, 7)):
        entering = inputs(net, [f"transformer.h.{layer}"], **batch)[f"transformer.h.{layer}"]

        def cancel(out, call, entering=entering, pos=pos):
            out = out.clone()
            out[:, pos] = -entering[0][0][0][:, pos]  # what is added to it is then nothing
            return out

        logits = edited(net, {f"transformer.h.{layer}.attn.c_proj": cancel}, **batch).logits
        assert float(found[layer, pos]) == pytest.approx(float(paris(logits) - before), abs=1e-3)


def test_what_a_layer_is_given_is_what_the_one_before_gave(demo, paris):
    given = ablation(demo, PROMPT, paris, of="resid_pre").values
    gave = ablation(demo, PROMPT, paris, of="resid_post").values
    torch.testing.assert_close(given[1:], gave[:-1], atol=1e-3, rtol=1e-3)


MLPS = {
    "gemma2": "model.layers.{}.post_feedforward_layernorm",
    "opt": "model.decoder.layers.{}.fc2",
    "mixtral": "model.layers.{}.mlp",
    "gpt_neox": "gpt_neox.layers.{}.mlp",
    "phi3": "model.layers.{}.mlp",
}


@torch.no_grad()
@pytest.mark.parametrize("name", MLPS)
def test_mlps_of_several_families(name):
    net, ids = FAMILIES[name].build(), torch.tensor([[5, 9, 2, 40, 11], [6, 9, 3, 40, 12]])
    model = LanguageModel(net)
    metric = logit_difference(model, 7, 8)
    found = ablation(model, ids, metric, of="mlp")
    before = metric(net(ids).logits)
    for layer in range(2):
        zeroed = {MLPS[name].format(layer): lambda out, call: out * 0}
        expected = metric(edited(net, zeroed, ids).logits) - before
        each = found.further["each"].sel(layer=layer).values
        torch.testing.assert_close(each, expected, atol=1e-4, rtol=1e-3)
