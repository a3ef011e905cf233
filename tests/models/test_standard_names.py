"""Standard names: when they are looked up, whose come first, and what is said without them."""

import contextlib
import subprocess
import sys

import pytest
import torch
import transformers
from families import FAMILIES
from standard_oracle import CLOSE, IDS

import insitu
from insitu import LanguageModel, NNsight, View
from insitu.models.standard.pattern import additive
from insitu.notebook.complete import candidates

PROMPT = "The Eiffel Tower is in the city of"


def wrapped(name, **further):
    return LanguageModel(FAMILIES[name].build(**further))


def named(model):
    return "_standing" in model.__dict__


# When ---------------------------------------------------------------------------------------------


def test_nothing_is_looked_up_before_a_standard_name_is_used(llm):
    before = repr(llm)
    assert not named(llm)
    with llm.trace(PROMPT):
        llm.transformer.h[0].attn.c_proj.output
    assert not named(llm)
    with contextlib.suppress(insitu.UnknownModuleError):
        llm.no_such_name
    assert not named(llm)
    assert repr(llm) == before
    assert llm.layers[0].attention is llm.transformer.h[0].attn
    assert named(llm)


def test_importing_insitu_imports_no_descriptions_of_families():
    program = (
        "import sys, insitu; insitu.LanguageModel; "
        "print([m for m in sys.modules if m.startswith('insitu.models.standard.')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "['insitu.models.standard.offer']"


@pytest.mark.parametrize("ask", [
    lambda m: m.layers[1].attention, lambda m: m.transformer.h[1].attention,
    lambda m: m["layers.1.attention"], lambda m: m["transformer.h.1.attention"],
])  # fmt: skip
def test_the_first_name_may_be_asked_for_anywhere(llm, ask):
    assert ask(llm) is llm.transformer.h[1].attn


def test_the_first_name_may_be_a_write(llm):
    with llm.trace(PROMPT):
        llm.transformer.h[3].resid_post = llm.transformer.h[3].output * 0
        logits = llm.lm_head.output
    assert torch.equal(logits[0, 0], logits[0, 1])


def test_names_are_there_in_every_wrapper_made_of_this_one(llm):
    with llm.edit() as edited:
        llm.layers[1].resid_post[:] = 0
    assert edited.layers[1] is edited.transformer.h[1]
    assert edited.dims == llm.dims


def test_a_scan_and_a_checked_block_know_them(llm):
    with llm.scan(PROMPT):
        pattern = llm.layers[1].attention.pattern.shape
        mid = llm.layers[1].resid_mid.shape
    length = mid[1]
    assert tuple(pattern) == (1, 4, length, length)
    with llm.trace(PROMPT, validate=True):
        llm.layers[1].attention.pattern[:, 0] = 0
        llm.layers[1].resid_mid = llm.layers[1].resid_mid * 2
        checked = llm.unembed.output
    with llm.trace(PROMPT):
        llm.layers[1].attention.pattern[:, 0] = 0
        llm.layers[1].resid_mid = llm.layers[1].resid_mid * 2
        assert torch.equal(checked, llm.unembed.output)


def test_a_pass_held_open_knows_them(llm):
    with llm.open(PROMPT) as run:
        pre = llm.layers[2].resid_pre
        llm.layers[2].resid_mid = llm.layers[2].resid_mid + 1
        post = llm.layers[2].resid_post
        run.finish()
    assert not torch.allclose(pre, post)


# Whose names come first ---------------------------------------------------------------------------


def test_the_users_further_names_come_first(tiny_gpt2):
    net, tokenizer = tiny_gpt2

    class Mine(View):
        @property
        def q(self):
            return "mine"

    kind = type(net.transformer.h[0].attn)
    model = LanguageModel(
        net, tokenizer=tokenizer, rename={"transformer.wpe": "embed"}, views={kind: Mine}
    )
    assert model.layers[0] is model.transformer.h[0]
    assert model.embed is model.transformer.wpe
    assert model.layers[0].attention.q == "mine"
    with model.trace(PROMPT):
        assert model.layers[0].attention.z.shape[2:] == (4, 8)


def test_a_model_whose_own_names_are_the_standard_ones_keeps_them():
    model = wrapped("gpt_neox")
    layer = model.layers[1]
    assert layer.attention._module is model._module.gpt_neox.layers[1].attention
    assert layer.mlp._module is model._module.gpt_neox.layers[1].mlp
    t5 = wrapped("t5")
    assert t5.layers[1].attention.q._module is t5._module.decoder.block[1].layer[0].SelfAttention.q


def test_renaming_after_standard_names_were_used(llm):
    assert llm.layers
    llm.rename({"transformer.h": "layers", "attn": "attention", "ln_1": "first_norm"})
    assert llm.layers[0].first_norm is llm.transformer.h[0].ln_1
    with pytest.raises(
        insitu.UsageError, match=r"'layers' already: another name of transformer\.h"
    ):
        llm.rename({"transformer.wpe": "layers"})


# What is shown ------------------------------------------------------------------------------------


def test_print_and_completion_show_them(llm):
    words = candidates("llm.layers[0].", {"llm": llm})[1]
    assert {"attention", "resid_pre", "resid_mid", "resid_post", "attn", "output"} <= set(words)
    words = candidates("llm.", {"llm": llm})[1]
    assert {"layers", "embed", "final_norm", "unembed", "dims", "transformer", "trace"} <= set(
        words
    )
    words = candidates("llm.transformer.h[0].attn.", {"llm": llm})[1]
    assert {"q", "k", "v", "z", "pattern", "scores", "c_attn"} <= set(words)
    text = repr(llm)
    assert "layers = transformer.h" in text
    assert "attention = attn (anywhere)" in text
    assert "GPT2Block.resid_mid" in text


def test_completion_of_a_model_without_standard_names_is_as_before():
    model = wrapped("bloom")
    assert "transformer" in dir(model)
    assert "layers" not in dir(model)
    assert "h" in candidates("m.transformer.", {"m": model})[1]


# Where there is nothing ---------------------------------------------------------------------------


def said(model, ask):
    with pytest.raises(insitu.UnknownModuleError) as caught:
        ask(model)
    return caught.value


@pytest.mark.parametrize("name", ["phi", "gpt_neox"])
def test_between_parallel_parts_there_is_no_stream(name):
    error = said(wrapped(name), lambda m: m.layers[1].resid_mid)
    assert error.what.endswith("has no resid_mid.")
    assert "both read what the layer is given" in error.why
    assert "attn_out, mlp_out" in error.next
    model = wrapped(name)
    assert not hasattr(model.layers[1], "resid_mid")
    with pytest.raises(insitu.UnknownModuleError, match="has no resid_mid"):
        with model.trace(IDS):
            model.layers[1].resid_mid = 0


def test_a_state_space_model_says_what_it_has_instead_of_attention():
    model = wrapped("mamba")
    for name in ("attention", "mlp", "resid_mid", "attn_out"):
        error = said(model, lambda m, name=name: getattr(m.layers[0], name))
        assert error.what == f"backbone.layers.0 of this MambaForCausalLM has no {name}."
        assert ".mixer" in error.why
    error = said(model, lambda m: m.layers[0].attention)
    assert error.next == "use its mixer: backbone.layers.0.mixer."


def test_an_encoder_has_no_unembedding_and_no_last_norm():
    model = wrapped("bert")
    assert said(model, lambda m: m.unembed).what == "model of this BertModel has no unembed."
    assert "each layer ends with a norm" in said(model, lambda m: m.final_norm).why
    error = said(model, lambda m: m.encoder_layers)
    assert error.what == "model of this BertModel has no encoder_layers."


def test_an_unknown_family_says_which_names_it_lacks_and_how_to_give_them():
    for ask in (lambda m: m.layers, lambda m: m.transformer.h[0].resid_mid):
        model = wrapped("bloom")
        error = said(model, ask)
        assert "the family 'bloom' has no standard names yet" in error.what
        assert "embed, final_norm, unembed, attention, mlp" in error.why
        assert "gpt2, llama" in error.why
        assert 'model.rename({"transformer.h": "layers"}' in error.next
    model.rename({"transformer.h": "layers"})
    assert model.layers is model.transformer.h


def test_a_model_that_is_not_as_its_family_is_described_gets_no_names():
    net = FAMILIES["llama"].build()
    net.model.layers[1].self_attn.o_proj = torch.nn.Linear(24, 32)
    error = said(LanguageModel(net), lambda m: m.layers)
    assert error.what == "the standard names of this LlamaForCausalLM cannot be given."
    assert "o_proj takes 24 numbers, not 32" in error.why
    assert "rename=" in error.next

    net = FAMILIES["gpt2"].build()
    net.transformer.h[1].attn = torch.nn.Identity()
    assert (
        "its attention is Identity, not GPT2Attention"
        in said(LanguageModel(net), lambda m: m.layers).why
    )

    net = FAMILIES["llama"].build()
    del net.model.layers[0].mlp
    assert "a LlamaDecoderLayer has no mlp" in said(LanguageModel(net), lambda m: m.layers).why


def test_other_models_have_no_standard_names(net):
    with pytest.raises(insitu.UnknownModuleError, match="has no module or attribute 'layers'"):
        NNsight(net).layers


def test_names_of_other_places_are_unknown_as_ever(llm):
    assert llm.layers
    for ask in (lambda m: m.pattern, lambda m: m.layers[0].q, lambda m: m.transformer.resid_mid):
        assert "has no module or attribute" in said(llm, ask).what


# Order and lines ----------------------------------------------------------------------------------


def test_a_value_asked_for_too_late_names_the_users_line(llm):
    with pytest.raises(insitu.OutOfOrderError) as caught, llm.trace(PROMPT):
        llm.layers[2].resid_mid
        late = "the line above"
        llm.layers[1].resid_post
    line = test_a_value_asked_for_too_late_names_the_users_line.__code__.co_firstlineno + 2
    assert late in "the line above"
    assert f"(line {line})" in caught.value.why
    assert f"above line {line}" in caught.value.next


def test_a_pattern_asked_for_after_the_inside_of_its_attention_says_so(llm):
    with pytest.raises(insitu.TraceError) as caught, llm.trace(PROMPT):
        llm.layers[1].attention.c_attn.output
        llm.layers[1].attention.pattern
    assert caught.value.what.startswith("transformer.h.1.attn.pattern.input was asked for")
    assert "had begun transformer.h.1.attn before" in caught.value.why


def test_values_outside_a_trace_say_so(llm):
    for ask in (lambda m: m.layers[0].resid_pre, lambda m: m.layers[0].attention.pattern):
        with pytest.raises(insitu.NoTraceError, match="outside a trace"):
            ask(llm)


# Wrapped models -----------------------------------------------------------------------------------


def test_adapters_are_seen_through():
    peft = pytest.importorskip("peft")
    net = FAMILIES["llama"].build()
    adapted = peft.get_peft_model(
        net, peft.LoraConfig(target_modules=["q_proj", "o_proj"], init_lora_weights=False)
    ).eval()
    model = LanguageModel(adapted)
    assert model.layers._module is net.model.layers
    assert model.unembed._module is net.lm_head
    with model.trace(input_ids=IDS):
        q = model.layers[1].attention.q.clone()
        pattern = model.layers[1].attention.pattern.clone()
        model.layers[1].resid_mid = model.layers[1].resid_mid * 1
        logits = model.unembed.output.clone()
    assert q.shape == (1, 6, 4, 8)
    torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 4, 6), **CLOSE)
    torch.testing.assert_close(logits, adapted(input_ids=IDS).logits, **CLOSE)


def test_a_base_model_without_head_has_its_layers(tiny_gpt2):
    model = LanguageModel(tiny_gpt2[0].transformer, tokenizer=tiny_gpt2[1])
    assert model.layers is model.h
    assert model.dims.n_layers == 4
    with model.trace(PROMPT):
        assert model.layers[0].attention.pattern.shape[1] == 4
    assert "wrap the model with its head" in said(model, lambda m: m.unembed).next


def test_half_precision_keeps_its_dtype():
    model = LanguageModel(FAMILIES["llama"].build().to(torch.bfloat16))
    with model.trace(input_ids=IDS):
        scores = model.layers[0].attention.scores.clone()
        pattern = model.layers[0].attention.pattern.clone()
        model.layers[0].resid_mid = model.layers[0].resid_mid * 2
    assert scores.dtype == pattern.dtype == torch.bfloat16
    assert torch.isfinite(scores).all()
    assert not pattern.triu(1).any()


PLAIN = {
    "vocab_size": 352, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 0,
}  # fmt: skip


def mixture():
    sizes = {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16}
    config = transformers.Qwen3MoeConfig(**PLAIN, **sizes, num_experts_per_tok=2)
    return transformers.Qwen3MoeForCausalLM(config)


def with_images():
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    text = transformers.LlamaConfig(**PLAIN)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
    return transformers.LlavaForConditionalGeneration(config)


@pytest.mark.parametrize("build", [mixture, with_images])
def test_the_language_model_inside_another_has_its_names(build):
    torch.manual_seed(0)
    net = build().eval().requires_grad_(False)
    model = LanguageModel(net)
    with model.trace(input_ids=IDS):
        layer = model.layers[1]
        pre, pattern = layer.resid_pre.clone(), layer.attention.pattern.clone()
        attn, mid = layer.attn_out.clone(), layer.resid_mid.clone()
        mlp, post = layer.mlp_out.clone(), layer.resid_post.clone()
        logits = model.unembed.output.clone()
    torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 4, 6), **CLOSE)
    torch.testing.assert_close(pre + attn, mid, **CLOSE)
    torch.testing.assert_close(mid + mlp, post, **CLOSE)
    torch.testing.assert_close(logits, net(input_ids=IDS).logits, **CLOSE)


# Masks of kernels ---------------------------------------------------------------------------------


class Kernel(torch.nn.Module):
    is_causal = True


def test_a_mask_is_what_the_kernel_makes_of_it():
    query, key = torch.zeros(2, 1, 4, 8), torch.zeros(2, 1, 4, 8)
    hidden = torch.ones(4, 4, dtype=torch.bool).triu(1)

    def shown(mask, further=None, q=query):
        added = additive(Kernel(), q, key, mask, further or {})
        return None if added is None else added < -1

    assert torch.equal(shown(None)[0, 0], hidden)
    assert shown(None, {"is_causal": False}) is None
    assert shown(None, q=query[:, :, :1]) is None
    window = shown(None, {"sliding_window": 2})[0, 0]
    assert torch.equal(window, hidden | torch.ones(4, 4, dtype=torch.bool).tril(-2))
    assert shown(None, {"sliding_window": 3}, query[:, :, :1])[0, 0].tolist() == [
        [True, False, False, False]
    ]
    padded = shown(torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    assert padded[0, 0, :, 0].all()
    assert torch.equal(padded[1, 0], hidden)
    given = torch.rand(2, 1, 4, 4)
    assert additive(Kernel(), query, key, given, {}) is given
    with pytest.raises(insitu.SourceError, match="only its kernel reads"):
        additive(Kernel(), query, key, "blocks", {})
