"""Tiny random models of many families, each described once.

FAMILIES["llama"].built("sdpa")          # a LlamaForCausalLM of 2 layers, width 32, seeded
FAMILIES["llama"].layer                  # "model.layers.0", a module to read and edit
FAMILIES["llama"].attention              # "model.layers.1.self_attn"
FEATURES["trace"]                        # what each family is checked for, and by which test

Two layers, width 32, 4 heads, a vocabulary of 352 (that of the tests' tokenizer and a little more),
64 positions at least.
"""

import functools
from dataclasses import dataclass, field, replace

import torch
import transformers
from torch import nn

VOCAB, WIDTH, HEADS, LAYERS, POSITIONS = 352, 32, 4, 2, 64
CAUSAL, ENCODER, SEQ2SEQ = "causal", "encoder", "seq2seq"

_ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_PLAIN = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    **_ENDS,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}


@dataclass(frozen=True)
class Family:
    """One family of models: how to build a tiny one, and where its parts are.

    Args:
        name: as `model_type` in transformers.
        model: name of the model class in transformers; the configuration's is `config`.
        sizes: what the configuration is given.
        layer: path of a layer to read and edit, the first one.
        attention: path of the attention of the last layer; of its mixer, where it has none.
        projection: the module in it that the heads' outputs go into; "" where it lies outside.
        kind: whether it is causal, an encoder, or both in a row.
        operation: the operation in its forward that is the attention, for `.source`: transformers'
            interface, whose output is (heads [batch, pos, head, d_head], weights), else the one
            that makes what the projection is given, [batch, pos, d_model]; mamba's is the scan,
            whose output is (what the projection is given, [batch, d_inner, pos], last state).
        kinds: its implementations of attention.
        notes: what is different about it, or not possible, and why.
    """

    name: str
    model: str
    config: str
    sizes: dict = field(hash=False)
    layer: str
    attention: str
    projection: str
    kind: str = CAUSAL
    operation: str = "attention_interface_0"
    kinds: tuple[str, ...] = ("eager", "sdpa")
    notes: tuple[str, ...] = ()

    @property
    def generates(self) -> bool:
        return self.kind != ENCODER

    @property
    def layers(self) -> str:
        """Path of the list of layers."""
        return self.layer.rpartition(".")[0]

    def build(self, kind: str | None = None, **further) -> nn.Module:
        """A fresh model, always with the same weights, in evaluation mode."""
        torch.manual_seed(0)
        settings = {**self.sizes, **further}
        if self.kinds:
            settings["attn_implementation"] = kind or self.kinds[-1]
        config = getattr(transformers, self.config)(**settings)
        net = getattr(transformers, self.model)(config).eval().requires_grad_(False)
        for weight in net.parameters():
            if weight.dim() > 1:  # wide enough that a change inside shows at the end
                weight.normal_(0, weight.shape[-1] ** -0.5)
        if self.generates:
            net.generation_config.update(
                eos_token_id=None, pad_token_id=0, do_sample=False, max_length=None
            )
        return net

    def built(self, kind: str | None = None) -> nn.Module:
        """The same one for every test of a run. Leave it as it was."""
        return _built(self, kind or (self.kinds[-1] if self.kinds else None))

    def given(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What its forward is given for these token ids."""
        return {"input_ids": ids, **({"decoder_input_ids": ids} if self.kind == SEQ2SEQ else {})}

    def result(self, out) -> torch.Tensor:
        """The tensor that matters in what its forward returned."""
        return out.last_hidden_state if self.kind == ENCODER else out.logits


@functools.cache
def _built(family: Family, kind: str | None) -> nn.Module:
    return family.build(kind)


def _llama_like(name: str, stem: str, notes: tuple[str, ...] = (), **further) -> Family:
    return Family(
        name=name,
        model=f"{stem}ForCausalLM",
        config=f"{stem}Config",
        sizes={**_GROUPED, **further},
        layer="model.layers.0",
        attention="model.layers.1.self_attn",
        projection="o_proj",
        notes=notes,
    )


_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_UNTIED = {"tie_word_embeddings": False}  # tied and random, some only repeat their last token
_GEMMA = {"head_dim": 8, **_UNTIED}

_ALL: tuple[Family, ...] = (
    Family(
        "gpt2", "GPT2LMHeadModel", "GPT2Config",
        {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": HEADS, "vocab_size": VOCAB,
         "n_positions": POSITIONS, **_ENDS},
        "transformer.h.0", "transformer.h.1.attn", "c_proj",
    ),
    _llama_like("llama", "Llama"),
    _llama_like("mistral", "Mistral", sliding_window=4),
    _llama_like("qwen2", "Qwen2"),
    _llama_like("qwen3", "Qwen3", head_dim=8),
    _llama_like("gemma", "Gemma", **_GEMMA),
    _llama_like(
        "gemma2", "Gemma2", **_GEMMA, query_pre_attn_scalar=8, sliding_window=16,
        notes=("transformers' sdpa leaves out the soft cap of its scores; eager has it.",),
    ),
    replace(
        _llama_like("gemma3_text", "Gemma3", **_GEMMA, query_pre_attn_scalar=8, sliding_window=16),
        config="Gemma3TextConfig",
    ),
    Family(
        "phi", "PhiForCausalLM", "PhiConfig", {**_GROUPED},
        "model.layers.0", "model.layers.1.self_attn", "dense",
    ),
    _llama_like("phi3", "Phi3"),
    Family(
        "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXConfig",
        {**_PLAIN, "max_position_embeddings": POSITIONS},
        "gpt_neox.layers.0", "gpt_neox.layers.1.attention", "dense",
    ),
    Family(
        "opt", "OPTForCausalLM", "OPTConfig",
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "ffn_dim": 48,
         "num_attention_heads": HEADS, "word_embed_proj_dim": WIDTH,
         "max_position_embeddings": POSITIONS, **_ENDS},
        "model.decoder.layers.0", "model.decoder.layers.1.self_attn", "out_proj",
    ),
    _llama_like(
        "mixtral", "Mixtral", **_EXPERTS,
        notes=("its experts are one module, which computes all of them as one product; with "
               '`experts_implementation="eager"` each is an operation of its `.source`.',),
    ),
    Family(
        "mamba", "MambaForCausalLM", "MambaConfig",
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 4,
         **_ENDS},
        "backbone.layers.0", "backbone.layers.1.mixer", "out_proj", kinds=(),
        operation="mamba_selective_scan_0",
        notes=("has no attention: `source` is checked on its scan, `head` on channels of it.",),
    ),
    Family(
        "falcon", "FalconForCausalLM", "FalconConfig",
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
         "num_attention_heads": HEADS, "alibi": False, **_ENDS},
        "transformer.h.0", "transformer.h.1.self_attention", "dense",
        operation="attn_output_reshape_0",
        notes=("adds to what its MLP returned in place: a cache needs `clone=True`, and says so; "
               "its heads are merged in its forward, not by transformers' attention interface.",),
    ),
    Family(
        "bloom", "BloomForCausalLM", "BloomConfig",
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS,
         **_UNTIED, **_ENDS},
        "transformer.h.0", "transformer.h.1.self_attention", "dense",
        operation="self__merge_heads_0", kinds=("eager",),
        notes=("transformers has eager attention alone for it.",),
    ),
    Family(
        "bert", "BertModel", "BertConfig",
        {**_PLAIN, "max_position_embeddings": POSITIONS},
        "encoder.layer.0", "encoder.layer.1.attention.self", "", kind=ENCODER,
        notes=("an encoder does not generate.",),
    ),
    Family(
        "t5", "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": VOCAB, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS,
         "num_heads": HEADS, "decoder_start_token_id": 0, "eos_token_id": 0, "pad_token_id": 0},
        "decoder.block.0", "decoder.block.1.layer.0.SelfAttention", "o", kind=SEQ2SEQ,
    ),
)  # fmt: skip

FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


@dataclass(frozen=True)
class Feature:
    """A column of docs/families.md: a test of tests/models/test_families.py, and its oracle."""

    test: str
    compared: str


FEATURES: dict[str, Feature] = {
    "trace": Feature(
        "test_every_modules_output_is_that_of_plain_hooks",
        "the output of every module that runs, with a hook's, to the bit",
    ),
    "inputs": Feature(
        "test_every_modules_inputs_are_those_of_plain_hooks",
        "the arguments of every module that runs, with a hook's, to the bit",
    ),
    "edit": Feature(
        "test_an_edit_in_place_is_that_of_a_hook",
        "the result after one position of a layer was doubled in place, with a hook's, to the bit",
    ),
    "replace": Feature(
        "test_an_output_replaced_is_one_replaced_by_a_hook",
        "the result after a layer's output was replaced, with a hook's, to the bit",
    ),
    "skip": Feature(
        "test_a_layer_skipped_is_one_whose_output_is_its_input",
        "the result without a layer, with a hook that returns its input, to the bit",
    ),
    "generate": Feature(
        "test_a_generation_gives_the_ids_and_steps_of_transformers",
        "ids and a layer's output in each of 4 steps, with `generate` under hooks, to the bit",
    ),
    "step": Feature(
        "test_an_edit_in_one_step_of_a_generation_is_that_of_a_hook",
        "the logits of all steps after an edit in the second, with a hook's, to the bit",
    ),
    "cache": Feature(
        "test_a_cache_of_all_modules_holds_what_plain_hooks_see",
        "every call of every module, with a hook's, to the bit",
    ),
    "source": Feature(
        "test_the_operation_of_attention_is_the_attention",
        "the operation of attention, with attention written out (1e-4) and with what the "
        "projection is given (to the bit), for each implementation of attention",
    ),
    "head": Feature(
        "test_a_head_ablated_at_the_operation_is_one_ablated_before_the_projection",
        "the result after a head was zeroed at that operation, with a hook's, to the bit",
    ),
    "gradient": Feature(
        "test_the_gradient_of_a_loss_at_a_layer_is_autograds",
        "the gradient of a loss at a layer, with autograd's through a hook, to the bit",
    ),
    "batch": Feature(
        "test_invokes_of_unequal_prompts_equal_single_runs",
        "prompts of 7 and 3 tokens in one pass, with each alone (1e-4)",
    ),
    "edit in a batch": Feature(
        "test_an_edit_in_one_invoke_leaves_the_other_alone",
        "both results after an edit in one of the two, with each alone (1e-4)",
    ),
    "scan": Feature(
        "test_a_scan_gives_the_shapes_of_a_real_pass",
        "shape and dtype of every module's output on fake tensors, with the real ones",
    ),
    "edit()": Feature(
        "test_an_edit_stays_for_every_later_pass_and_leaves_the_model_alone",
        "two later passes of an edited model, with a hook's, to the bit; the model is unchanged",
    ),
    "session": Feature(
        "test_a_value_of_one_trace_is_used_in_the_next_one_of_a_session",
        "a layer patched from another trace's, with a hook's, to the bit",
    ),
    "rename": Feature(
        "test_a_renamed_list_of_layers_is_the_same_one",
        "a layer read under a further name, with a hook's, to the bit",
    ),
}
