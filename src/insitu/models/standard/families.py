"""Where the parts of each family of language models are, one small description per family.

    family_of(model.config).layers          # "h", from the base of the model on
    family_of(model.config).attention       # "attn", from a layer on

A family is known by the `model_type` of its configuration. What is said here is checked against the
modules of the very model before it is used (`verify`). Paths may count from the end: `layer.-1`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SEPARATE, BLOCKS, BY_HEAD = "separate", "blocks", "by head"
"""Queries, keys and values: a module each; side by side in one output, [q of all heads | k | v];
or head by head in one output, [q k v of head 0 | q k v of head 1 | …]."""


@dataclass(frozen=True)
class Projections:
    """The linear maps around the heads of an attention, by their paths from the attention on."""

    q: str
    k: str
    v: str
    out: str
    layout: str = SEPARATE


@dataclass(frozen=True)
class Family:
    """One family: paths from the base model on, then from a layer on."""

    name: str
    layer_class: str
    layers: str
    embed: str
    final_norm: str | None
    stacks: Mapping[str, str] = field(default_factory=dict)
    """Further stacks of layers: `{"encoder_layers": "encoder.block"}`."""
    attention: str | None = None
    attention_class: str = ""
    core: str = ""
    """Where in the attention the forward is that calls the kernel."""
    cross_attention: str | None = None
    projections: Projections | None = None
    mlp: str | tuple[str, str] | None = None
    """A module; or the first and the last of several that have none around them."""
    router: str | None = None
    """In the MLP, what chooses experts."""
    attn_out: str | None = None
    """The module whose output is what the attention adds to the stream."""
    mlp_out: str | None = None
    mid: str | None = None
    """The site that holds the stream between attention and MLP: `"ln_2.input"`."""
    mid_is_local: bool = False
    """The layer keeps that stream in a local name besides what it gives to the site."""
    is_flat: bool = False
    """The layer runs its MLP on [batch * pos, d_model]."""
    unembed: str = "lm_head"
    """The path from the module around the base, with the head, on."""
    lacks: Mapping[str, str] = field(default_factory=dict)
    """Standard names that the architecture has nothing for, and why."""


_PARALLEL = "attention and MLP both read what the layer is given, and no stream lies between them"

_LLAMA = Family(
    name="Llama",
    layer_class="LlamaDecoderLayer",
    layers="layers",
    embed="embed_tokens",
    final_norm="norm",
    attention="self_attn",
    attention_class="LlamaAttention",
    projections=Projections("q_proj", "k_proj", "v_proj", "o_proj"),
    mlp="mlp",
    attn_out="self_attn",
    mlp_out="mlp",
    mid="post_attention_layernorm.input",
    mid_is_local=True,
)


def _like_llama(name: str, stem: str, **other: Any) -> Family:
    classes = {"layer_class": f"{stem}DecoderLayer", "attention_class": f"{stem}Attention"}
    return replace(_LLAMA, name=name, **{**classes, **other})


def _normed_twice(name: str, stem: str) -> Family:
    """With a norm after each part as well as before it."""
    return _like_llama(
        name,
        stem,
        attn_out="post_attention_layernorm",
        mlp_out="post_feedforward_layernorm",
        mid="pre_feedforward_layernorm.input",
    )


_GPT2 = Family(
    name="GPT-2",
    layer_class="GPT2Block",
    layers="h",
    embed="wte",
    final_norm="ln_f",
    attention="attn",
    attention_class="GPT2Attention",
    projections=Projections("c_attn", "c_attn", "c_attn", "c_proj", BLOCKS),
    mlp="mlp",
    attn_out="attn",
    mlp_out="mlp",
    mid="ln_2.input",
    mid_is_local=True,
)
_PHI = _like_llama(
    "Phi",
    "Phi",
    final_norm="final_layernorm",
    projections=Projections("q_proj", "k_proj", "v_proj", "dense"),
    mid=None,
    mid_is_local=False,
    lacks={"resid_mid": _PARALLEL},
)
_PHI3 = _like_llama(
    "Phi-3",
    "Phi3",
    projections=Projections("qkv_proj", "qkv_proj", "qkv_proj", "o_proj", BLOCKS),
    attn_out="resid_attn_dropout",
    mlp_out="resid_mlp_dropout",
)
_NEOX = Family(
    name="GPT-NeoX",
    layer_class="GPTNeoXLayer",
    layers="layers",
    embed="embed_in",
    final_norm="final_layer_norm",
    attention="attention",
    attention_class="GPTNeoXAttention",
    projections=Projections(
        "query_key_value", "query_key_value", "query_key_value", "dense", BY_HEAD
    ),
    mlp="mlp",
    attn_out="post_attention_dropout",
    mlp_out="post_mlp_dropout",
    lacks={"resid_mid": _PARALLEL},
)
_NEOX_IN_SEQUENCE = replace(
    _NEOX, mid="post_attention_layernorm.input", mid_is_local=True, lacks={}
)
_OPT = Family(
    name="OPT",
    layer_class="OPTDecoderLayer",
    layers="decoder.layers",
    embed="decoder.embed_tokens",
    final_norm="decoder.final_layer_norm",
    attention="self_attn",
    attention_class="OPTAttention",
    projections=Projections("q_proj", "k_proj", "v_proj", "out_proj"),
    mlp=("fc1", "fc2"),
    attn_out="self_attn",
    mlp_out="fc2",
    mid="final_layer_norm.input",
    mid_is_local=True,
    is_flat=True,
)
_NORMED_AFTER = "each layer ends with a norm of its own, and none follows the last"
_OPT_NORMED_AFTER = replace(
    _OPT,
    final_norm=None,
    mid="self_attn_layer_norm.output",
    mid_is_local=False,
    lacks={"final_norm": _NORMED_AFTER},
)
_NO_ATTENTION = "its layers mix positions by a state-space model, .mixer, which has no attention"
_MAMBA = Family(
    name="Mamba",
    layer_class="MambaBlock",
    layers="layers",
    embed="embeddings",
    final_norm="norm_f",
    lacks={
        "attention": _NO_ATTENTION,
        "attn_out": _NO_ATTENTION,
        "mlp": "its layers have one part, .mixer, and no MLP",
        "mlp_out": "its layers have one part, .mixer, and no MLP",
        "resid_mid": "its layers have one part, .mixer: there is no stream between two",
    },
)
_BERT = Family(
    name="BERT",
    layer_class="BertLayer",
    layers="encoder.layer",
    embed="embeddings.word_embeddings",
    final_norm=None,
    attention="attention",
    attention_class="BertAttention",
    core="self",
    projections=Projections("self.query", "self.key", "self.value", "output.dense"),
    mlp=("intermediate", "output.dense"),
    attn_out="attention.output.dropout",
    mlp_out="output.dropout",
    mid="attention.output",
    unembed="cls.predictions.decoder",
    lacks={"final_norm": _NORMED_AFTER},
)
_T5 = Family(
    name="T5",
    layer_class="T5Block",
    layers="decoder.block",
    stacks={"encoder_layers": "encoder.block", "decoder_layers": "decoder.block"},
    embed="shared",
    final_norm="decoder.final_layer_norm",
    attention="layer.0.SelfAttention",
    attention_class="T5Attention",
    cross_attention="layer.1.EncDecAttention",
    projections=Projections("q", "k", "v", "o"),
    mlp="layer.-1.DenseReluDense",
    attn_out="layer.0.dropout",
    mlp_out="layer.-1.dropout",
    mid="layer.-1.input",
)
_MIXTRAL = _like_llama("Mixtral", "Mixtral", router="gate")

_FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _like_llama("Mistral", "Mistral"),
    "qwen2": _like_llama("Qwen2", "Qwen2"),
    "qwen3": _like_llama("Qwen3", "Qwen3"),
    "gemma": _like_llama("Gemma", "Gemma"),
    "gemma2": _normed_twice("Gemma 2", "Gemma2"),
    "gemma3_text": _normed_twice("Gemma 3", "Gemma3"),
    "qwen2_moe": _like_llama("Qwen2-MoE", "Qwen2Moe", router="gate"),
    "qwen3_moe": _like_llama("Qwen3-MoE", "Qwen3Moe", router="gate"),
    "qwen2_vl_text": _like_llama("Qwen2-VL", "Qwen2VL"),
    "qwen2_5_vl_text": _like_llama("Qwen2.5-VL", "Qwen2_5_VL"),
    "phi": _PHI,
    "phi3": _PHI3,
    "gpt_neox": _NEOX,
    "opt": _OPT,
    "mixtral": _MIXTRAL,
    "mamba": _MAMBA,
    "bert": _BERT,
    "t5": _T5,
}
KNOWN = tuple(_FAMILIES)
"""Every `model_type` that is described."""


def family_of(config: Any) -> Family | None:
    """The family of a model with this configuration; None for one that is not described."""
    kind = getattr(config, "model_type", None)
    if kind == "opt" and not config.do_layer_norm_before:
        return _OPT_NORMED_AFTER
    if kind == "gpt_neox" and not config.use_parallel_residual:
        return _NEOX_IN_SEQUENCE
    return _FAMILIES.get(kind) if isinstance(kind, str) else None
