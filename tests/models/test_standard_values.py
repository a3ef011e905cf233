"""Standard names: every value is what plain hooks and own arithmetic say, in every family."""

import pytest
import torch
from families import FAMILIES, HEADS
from standard_oracle import (
    ATTENDING,
    CLOSE,
    D_HEAD,
    IDS,
    LOCAL,
    ORACLES,
    REAL_QKV,
    given,
    seen,
    split,
)  # fmt: skip

from insitu import LanguageModel

SPLIT_QKV = [name for name in ATTENDING if name not in REAL_QKV]


def wrapped(name, kind=None):
    return LanguageModel(FAMILIES[name].built(kind))


def eager_patterns(name, ids=IDS, kind="sdpa", **further):
    """Every layer's pattern, as the model itself gives it out when it is built eager.

    transformers' sdpa leaves Gemma 2's soft cap out.
    """
    without = {"attn_logit_softcapping": None} if name == "gemma2" and kind == "sdpa" else {}
    net = FAMILIES[name].build("eager", **without)
    out = net(**given(name, ids), **further, output_attentions=True)
    return out.decoder_attentions if name == "t5" else out.attentions


@pytest.mark.parametrize("name", ATTENDING)
def test_modules_are_found_by_their_standard_names(name):
    model, oracle = wrapped(name), ORACLES[name]
    net = model._module
    assert model.embed._module is net.get_submodule(oracle.embed)
    assert model.layers._module is net.get_submodule(oracle.base)
    assert model.layers[1].attention._module is net.get_submodule(
        f"{oracle.layer(1)}.{oracle.attention}"
    )
    if oracle.final_norm is not None:
        assert model.final_norm._module is net.get_submodule(oracle.final_norm)
    if oracle.unembed is not None:
        assert model.unembed._module is net.get_submodule(oracle.unembed)
    if oracle.mlp is not None:
        assert model.layers[1].mlp._module is net.get_submodule(f"{oracle.layer(1)}.{oracle.mlp}")


@pytest.mark.parametrize("name", ATTENDING)
def test_dims_are_those_the_model_was_built_with(name):
    dims = wrapped(name).dims
    assert (dims.n_layers, dims.n_heads, dims.n_kv_heads) == (2, HEADS, ORACLES[name].kv_heads)
    assert (dims.d_model, dims.d_head, dims.d_vocab) == (32, D_HEAD, 352)


@pytest.mark.parametrize("name", SPLIT_QKV)
def test_queries_keys_and_values_are_the_projections_by_head(name):
    model, oracle = wrapped(name), ORACLES[name]
    with model.trace(**given(name)):
        attention = model.layers[1].attention
        found = {which: getattr(attention, which).clone() for which in "qkv"}
    for which, path in (("q", oracle.q), ("k", oracle.k), ("v", oracle.v)):
        fused = seen(model._module, name, f"{oracle.layer(1)}.{oracle.attention}.{path}")
        assert torch.equal(found[which], split(name, fused, "qkv".index(which)))
        assert found[which].shape == (1, 6, HEADS if which == "q" else oracle.kv_heads, D_HEAD)


@pytest.mark.parametrize("name", SPLIT_QKV)
def test_heads_are_split_as_the_attention_itself_does(name):
    """At position 0 rotary embedding turns nothing, so the kernel is given the projections."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    net, kept = FAMILIES[name].build("eager"), {}
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module, query, key, value, mask, **settings):
        kept[getattr(module, "layer_idx", None)] = query, key, value
        return plain(module, query, key, value, mask, **settings)

    model = LanguageModel(net)
    with model.trace(**given(name)):
        attention = model.layers[0].attention
        q, k, v = attention.q.clone(), attention.k.clone(), attention.v.clone()
    ALL_ATTENTION_FUNCTIONS.register("spy", spy)
    try:
        net.config._attn_implementation = "spy"
        net(**given(name))
    finally:
        del ALL_ATTENTION_FUNCTIONS._global_mapping["spy"]
    query, key, value = kept[0]
    torch.testing.assert_close(value.transpose(1, 2), v, **CLOSE)
    if name in ("qwen3", "gemma3_text"):  # these norm them first
        attention = net.get_submodule(f"{ORACLES[name].layer(0)}.self_attn")
        q, k = attention.q_norm(q), attention.k_norm(k)
    scale = D_HEAD**-0.5 if name == "opt" else 1
    torch.testing.assert_close(query.transpose(1, 2)[:, 0], q[:, 0] * scale, **CLOSE)
    torch.testing.assert_close(key.transpose(1, 2)[:, 0], k[:, 0], **CLOSE)


@pytest.mark.parametrize("name", ATTENDING)
def test_the_pattern_is_the_models_own_and_scores_are_it_before_softmax(name):
    for kind in FAMILIES[name].kinds:
        model, patterns, scores = wrapped(name, kind), [], []
        with model.trace(**given(name)):
            for layer in model.layers:
                scores.append(layer.attention.scores.clone())
                patterns.append(layer.attention.pattern.clone())
        expected = eager_patterns(name, kind=kind)
        for score, pattern, other in zip(scores, patterns, expected, strict=True):
            if kind == "eager":
                assert torch.equal(pattern, other)
            torch.testing.assert_close(pattern, other, **CLOSE)
            torch.testing.assert_close(pattern.sum(-1), torch.ones(1, HEADS, 6), **CLOSE)
            assert bool(pattern.triu(1).any()) is not ORACLES[name].causal
            assert torch.equal(score.softmax(-1), pattern)


@pytest.mark.parametrize("name", ATTENDING)
def test_a_pattern_of_padded_prompts_is_the_models_own(name):
    ids = torch.tensor([[0, 0, 15, 9, 2, 6], [3, 14, 15, 9, 2, 6]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    model = wrapped(name)
    with model.trace(**given(name, ids), attention_mask=mask):
        pattern = model.layers[1].attention.pattern.clone()
    further = {"attention_mask": mask}
    if name == "gpt2":  # the others have no positions of their own, or find them out
        further["position_ids"] = torch.tensor([[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]])
    expected = eager_patterns(name, ids, **further)[1]
    seen_rows = slice(None) if name in ("bert", "t5") else slice(2, None)
    torch.testing.assert_close(pattern[:, :, seen_rows], expected[:, :, seen_rows], **CLOSE)


@pytest.mark.parametrize("name", ATTENDING)
def test_heads_weigh_values_and_their_projection_is_what_the_attention_gives(name):
    model, oracle = wrapped(name), ORACLES[name]
    with model.trace(**given(name)):
        attention = model.layers[1].attention
        v = None if name in REAL_QKV else attention.v.clone()
        pattern, z = attention.pattern.clone(), attention.z.clone()
    if v is None:
        path = f"{oracle.layer(1)}.{oracle.attention}.{oracle.v}"
        v = seen(model._module, name, path).view(1, 6, HEADS, D_HEAD)
    repeated = v.repeat_interleave(HEADS // v.shape[2], 2)
    torch.testing.assert_close(torch.einsum("bhqk,bkhd->bqhd", pattern, repeated), z, **CLOSE)
    path = f"{oracle.layer(1)}.{oracle.attention}.{oracle.out}"
    plain = seen(model._module, name, path, "input")
    torch.testing.assert_close(z.flatten(-2), plain, **CLOSE)
    out = model._module.get_submodule(path)
    torch.testing.assert_close(out(z.flatten(-2)), seen(model._module, name, path), **CLOSE)


@pytest.mark.parametrize("name", ATTENDING)
def test_parts_and_stream_are_what_hooks_see(name):
    model, oracle = wrapped(name), ORACLES[name]
    net, layer = model._module, model.layers[1]
    with model.trace(**given(name)):
        pre, attn = layer.resid_pre.clone(), layer.attn_out.clone()
        mlp, post = layer.mlp_out.clone(), layer.resid_post.clone()
    path = oracle.layer(1)
    assert torch.equal(pre, seen(net, name, path, "input"))
    assert torch.equal(attn, seen(net, name, f"{path}.{oracle.attn_adds}"))
    assert torch.equal(mlp, seen(net, name, f"{path}.{oracle.mlp_adds}").view(1, 6, 32))
    assert torch.equal(post, seen(net, name, path))
    if name not in ("bert", "t5"):  # normed after each part; a third part, which reads the encoder
        torch.testing.assert_close(pre + attn + mlp, post, **CLOSE)


@pytest.mark.parametrize("name", [*LOCAL, "bert", "t5"])
def test_the_stream_between_the_parts_is_what_the_mlp_adds_to(name):
    model, oracle = wrapped(name), ORACLES[name]
    net, path = model._module, oracle.layer(1)
    with model.trace(**given(name)):
        layer = model.layers[1]
        pre, attn = layer.resid_pre.clone(), layer.attn_out.clone()
        mid, mlp, post = layer.resid_mid.clone(), layer.mlp_out.clone(), layer.resid_post.clone()
    if name == "bert":
        norm = net.get_submodule(f"{path}.attention.output.LayerNorm")
        torch.testing.assert_close(mid, norm(pre + attn), **CLOSE)
        torch.testing.assert_close(
            net.get_submodule(f"{path}.output.LayerNorm")(mid + mlp), post, **CLOSE
        )
        return
    torch.testing.assert_close(mid + mlp, post, **CLOSE)
    if name != "t5":
        torch.testing.assert_close(pre + attn, mid, **CLOSE)
        expected = seen(net, name, f"{path}.{oracle.norm_of_mlp}", "input")
        assert torch.equal(mid, expected.view(1, 6, 32))


def test_a_decoder_has_two_stacks_and_attends_across():
    model = wrapped("t5")
    net = model._module
    assert model.encoder_layers._module is net.encoder.block
    assert model.decoder_layers._module is model.layers._module is net.decoder.block
    out = FAMILIES["t5"].built("eager")(**given("t5"), output_attentions=True)
    with model.trace(**given("t5")):
        encoder = model.encoder_layers[0].attention.pattern.clone()
        pre = model.encoder_layers[1].resid_pre.clone()
        added = model.encoder_layers[1].attn_out + model.encoder_layers[1].mlp_out
        post = model.encoder_layers[1].resid_post.clone()
        across = model.decoder_layers[1].cross_attention.pattern.clone()
    torch.testing.assert_close(encoder, out.encoder_attentions[0], **CLOSE)
    torch.testing.assert_close(across, out.cross_attentions[1], **CLOSE)
    torch.testing.assert_close(pre + added, post, **CLOSE)


def test_a_mixture_of_experts_has_a_router():
    model = wrapped("mixtral")
    mlp = model.layers[1].mlp
    assert mlp.router._module is model._module.model.layers[1].mlp.gate
    assert mlp.experts._module is model._module.model.layers[1].mlp.experts
    with model.trace(**given("mixtral")):
        logits = mlp.router.output[0].clone()
    assert torch.equal(logits, seen(model._module, "mixtral", "model.layers.1.mlp.gate"))


@pytest.mark.parametrize("name", ["opt", "bert"])
def test_an_mlp_without_a_module_of_its_own_has_input_and_output(name):
    model, oracle = wrapped(name), ORACLES[name]
    first_module = {"opt": "fc1", "bert": "intermediate"}[name]
    with model.trace(**given(name)):
        given_to, gives = model.layers[1].mlp.input.clone(), model.layers[1].mlp.output.clone()
    path = oracle.layer(1)
    expected = seen(model._module, name, f"{path}.{first_module}", "input")
    assert torch.equal(given_to, expected.view(1, 6, 32))
    assert torch.equal(gives, seen(model._module, name, f"{path}.{oracle.mlp_adds}").view(1, 6, 32))
    assert "fc1 to fc2" in repr(model.layers[0].mlp) or name == "bert"


@pytest.mark.parametrize(
    ("name", "further"), [("opt", {"do_layer_norm_before": False}),
                          ("gpt_neox", {"use_parallel_residual": False})]
)  # fmt: skip
def test_variants_of_a_family_are_told_apart(name, further):
    net = FAMILIES[name].build(**further)
    model = LanguageModel(net)
    layer = model.layers[1]
    with model.trace(**given(name)):
        pre, attn = layer.resid_pre.clone(), layer.attn_out.clone()
        mid, mlp, post = layer.resid_mid.clone(), layer.mlp_out.clone(), layer.resid_post.clone()
    norms = (torch.nn.Identity(),) * 2
    if name == "opt":
        norms = layer._module.self_attn_layer_norm, layer._module.final_layer_norm
    torch.testing.assert_close(norms[0](pre + attn), mid, **CLOSE)
    torch.testing.assert_close(norms[1](mid + mlp), post, **CLOSE)
    with model.trace(**given(name)):
        layer.resid_mid = layer.resid_mid * 0
        out = layer.resid_post.clone()
    with torch.no_grad():
        if name == "opt":
            zero = torch.zeros(1, 6, 32)
            fed = layer._module.fc2(torch.relu(layer._module.fc1(zero)))
            torch.testing.assert_close(out, layer._module.final_layer_norm(zero + fed), **CLOSE)
        else:
            norm = layer._module.post_attention_layernorm(torch.zeros(1, 6, 32))
            torch.testing.assert_close(out, layer._module.mlp(norm), **CLOSE)


def test_state_space_layers_have_their_two_ends():
    model = LanguageModel(FAMILIES["mamba"].built())
    with model.trace(input_ids=IDS):
        pre, post = model.layers[1].resid_pre.clone(), model.layers[1].resid_post.clone()
    assert torch.equal(pre, seen(model._module, "mamba", "backbone.layers.1", "input"))
    assert torch.equal(post, seen(model._module, "mamba", "backbone.layers.1"))
    assert model.dims.n_layers == 2
    assert model.dims.n_heads == 0
