"""Shares of a logit add up to it, and each is what the part's own weights write."""

import pytest
import torch
import transformers
from families import FAMILIES
from random_llama import tiny_llama
from reference import hooks, inputs, outputs

from insitu import InputError, LanguageModel
from insitu.methods import direct_logit_attribution
from insitu.methods.frozen import FrozenNorm
from insitu.models.standard.families import KNOWN

PROMPT = "When Mary and John went to the store, John gave a drink to"
IDS = [5, 9, 2, 40, 11]


def ids_of(demo, *tokens):
    return [demo.tokenizer(token).input_ids[0] for token in tokens]


@torch.no_grad()
def test_shares_add_up_to_the_logit_difference(demo):
    right, wrong = ids_of(demo, " Mary", " John")
    logits = demo._module(**demo.tokenizer(PROMPT, return_tensors="pt")).logits[0, -1]
    shares = direct_logit_attribution(demo, PROMPT, " Mary", " John")
    assert float(shares.values.sum()) == pytest.approx(
        float(logits[right] - logits[wrong]), rel=1e-5
    )
    alone = direct_logit_attribution(demo, PROMPT, " Mary")
    assert float(alone.values.sum()) == pytest.approx(float(logits[right]), rel=1e-5)
    assert "other" not in shares.axis("component").labels


@torch.no_grad()
def test_every_head_and_mlp_is_what_its_weights_write(demo):
    net = demo._module
    right, wrong = ids_of(demo, " Mary", " John")
    encoded = demo.tokenizer(PROMPT, return_tensors="pt")
    paths = [f"transformer.h.{i}.{part}" for i in range(6) for part in ("mlp", "attn.c_proj")]
    seen = outputs(net, paths, **encoded)
    given = inputs(net, [*paths, "transformer.ln_f"], **encoded)
    stream = given["transformer.ln_f"][0][0][0][0, -1].double()
    spread = (stream.var(unbiased=False) + net.transformer.ln_f.eps).sqrt()
    direction = (net.lm_head.weight[right] - net.lm_head.weight[wrong]).double()

    def share(part):
        part = part.double()
        return ((part - part.mean()) / spread * net.transformer.ln_f.weight.double()) @ direction

    shares = direct_logit_attribution(demo, PROMPT, " Mary", " John")
    for layer in range(6):
        written = share(seen[f"transformer.h.{layer}.mlp"][0][0, -1])
        assert float(shares.sel(component=f"L{layer} MLP")) == pytest.approx(
            float(written), abs=1e-4
        )
        z = given[f"transformer.h.{layer}.attn.c_proj"][0][0][0][0, -1].reshape(4, 32)
        weight = net.transformer.h[layer].attn.c_proj.weight.reshape(4, 32, 128)
        for head in range(4):
            written = float(share(z[head] @ weight[head]))
            assert float(shares.sel(component=f"L{layer}H{head}")) == pytest.approx(
                written, abs=1e-4
            )
            assert float(shares.further["heads"][layer, head]) == pytest.approx(written, abs=1e-4)
        bias = share(net.transformer.h[layer].attn.c_proj.bias)
        assert float(shares.sel(component=f"L{layer} bias")) == pytest.approx(float(bias), abs=1e-4)


@torch.no_grad()
def test_an_rms_norm_and_grouped_heads_add_up_too():
    model, net = tiny_llama()
    logits = net(torch.tensor([IDS])).logits[0]
    shares = direct_logit_attribution(model, IDS, 7, 8, pos=2)
    assert float(shares.values.sum()) == pytest.approx(float(logits[2, 7] - logits[2, 8]), rel=1e-4)
    assert "other" not in shares.axis("component").labels


@torch.no_grad()
@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.LayerNorm(33),
        torch.nn.LayerNorm(32, eps=0.1),
        torch.nn.RMSNorm(32),
        transformers.models.gemma.modeling_gemma.GemmaRMSNorm(32),
    ],
    ids=["layer norm of odd width", "layer norm, large epsilon", "RMS norm", "Gemma's"],
)
def test_a_frozen_norm_is_the_norm_at_its_stream(norm):
    torch.manual_seed(0)
    for weight in norm.parameters():
        weight += torch.randn_like(weight)
    stream = torch.randn(norm.weight.shape[0])
    frozen = FrozenNorm.of(norm, stream)
    torch.testing.assert_close(
        (frozen.linear(stream) + frozen.bias).float(), norm(stream), rtol=1e-4, atol=1e-5
    )
    parts = torch.randn(3, len(stream))
    assert torch.allclose(frozen.linear(parts).sum(0), frozen.linear(parts.sum(0)), atol=1e-6)


def test_what_is_not_one_token_or_not_one_prompt_is_refused(demo):
    with pytest.raises(InputError, match="is not one token"):
        direct_logit_attribution(demo, PROMPT, " Mary", " Mary and")
    with pytest.raises(InputError, match=r"direct_logit_attribution\(\) was given 2 prompts"):
        direct_logit_attribution(demo, [PROMPT, PROMPT], " Mary")


HEADED = [n for n, f in FAMILIES.items() if f.kind == "causal" and n in KNOWN and n != "mamba"]


@torch.no_grad()
@pytest.mark.parametrize("name", HEADED)
def test_in_every_family_with_heads_the_shares_add_up(name):
    net = FAMILIES[name].build()
    model = LanguageModel(net)
    with hooks(
        [net.get_output_embeddings().register_forward_hook(lambda m, a, out: seen.append(out))]
    ):
        seen = []
        net(torch.tensor([IDS]))
    logits = seen[0][0, -1]  # before any bounding
    shares = direct_logit_attribution(model, IDS, 7, 8)
    assert float(shares.values.sum()) == pytest.approx(
        float(logits[7] - logits[8]), rel=1e-4, abs=1e-5
    )
    assert "other" not in shares.axis("component").labels
