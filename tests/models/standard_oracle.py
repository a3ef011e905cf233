"""What the standard names stand for in each family, by plain torch hooks and own arithmetic.

ORACLES["llama"].attention          # "self_attn", from a layer on
q_k_v(net, "llama", IDS, 1)         # [batch, pos, head, d_head] of layer 1, by hooks
"""

from dataclasses import dataclass

import pytest
import torch
from families import FAMILIES, HEADS
from reference import hooks

IDS = torch.tensor([[3, 14, 15, 9, 2, 6]])
D_HEAD = 8


@dataclass(frozen=True)
class Oracle:
    """Where things are in one family, said a second time. Paths from the layer on."""

    base: str
    embed: str
    final_norm: str | None
    unembed: str | None
    attention: str = "self_attn"
    q: str = "q_proj"
    k: str = "k_proj"
    v: str = "v_proj"
    out: str = "o_proj"
    fused: str = ""
    mlp: str | None = "mlp"
    attn_adds: str = "self_attn"
    mlp_adds: str = "mlp"
    norm_of_mlp: str | None = "post_attention_layernorm"
    causal: bool = True
    kv_heads: int = HEADS

    def layer(self, index):
        return f"{self.base}.{index}"


def grouped(**different):
    plain = {
        "base": "model.layers", "embed": "model.embed_tokens", "final_norm": "model.norm",
        "unembed": "lm_head", "kv_heads": 2,
    }  # fmt: skip
    return Oracle(**{**plain, **different})


_TWICE = {
    "attn_adds": "post_attention_layernorm",
    "mlp_adds": "post_feedforward_layernorm",
    "norm_of_mlp": "pre_feedforward_layernorm",
}
ORACLES = {
    "gpt2": Oracle(
        "transformer.h", "transformer.wte", "transformer.ln_f", "lm_head", "attn",
        "c_attn", "c_attn", "c_attn", "c_proj", "blocks", "mlp", "attn", "mlp", "ln_2",
    ),
    **{name: grouped() for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "mixtral")},
    "gemma2": grouped(**_TWICE),
    "gemma3_text": grouped(**_TWICE),
    "phi": grouped(final_norm="model.final_layernorm", out="dense", norm_of_mlp=None),
    "phi3": grouped(q="qkv_proj", k="qkv_proj", v="qkv_proj", fused="blocks"),
    "gpt_neox": Oracle(
        "gpt_neox.layers", "gpt_neox.embed_in", "gpt_neox.final_layer_norm", "lm_head",
        "attention", *["query_key_value"] * 3, "dense", "by head", "mlp", "attention", "mlp", None,
    ),
    "opt": Oracle(
        "model.decoder.layers", "model.decoder.embed_tokens", "model.decoder.final_layer_norm",
        "lm_head", out="out_proj", mlp=None, mlp_adds="fc2", norm_of_mlp="final_layer_norm",
    ),
    "bert": Oracle(
        "encoder.layer", "embeddings.word_embeddings", None, None, "attention",
        "self.query", "self.key", "self.value", "output.dense", mlp=None,
        attn_adds="attention.output.dense", mlp_adds="output.dense", norm_of_mlp=None, causal=False,
    ),
    "t5": Oracle(
        "decoder.block", "shared", "decoder.final_layer_norm", "lm_head",
        "layer.0.SelfAttention", "q", "k", "v", "o", "", "layer.2.DenseReluDense",
        "layer.0.SelfAttention", "layer.2.DenseReluDense", None,
    ),
}  # fmt: skip
ATTENDING = tuple(ORACLES)
LIKE_ANOTHER = {"mistral": "llama", "qwen2": "llama", "gemma": "llama", "gemma3_text": "gemma2"}
"""Families whose layers are built as another's; their writes are tested with the slow ones."""
REAL_QKV = ("t5",)
"""Families whose own modules are called q, k and v, which comes first."""
LOCAL = tuple(name for name, it in ORACLES.items() if it.norm_of_mlp is not None)
"""Families whose layers hold the stream between their parts in a local name."""
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def each(names):
    """Names of families as parameters of a test, those that are built as another marked slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in LIKE_ANOTHER else n for n in names]


def given(name, ids=IDS):
    return FAMILIES[name].given(ids)


def result(name, out):
    return FAMILIES[name].result(out)


def run(net, name, changes=(), ids=IDS, **further):
    """The model's result when hooks change what modules give or are given.

    `changes` are `(path, change, at)` with `at` "output" or "input"; `change` gives another tensor.
    """

    def after(change):
        def hook(module, args, out):
            if isinstance(out, (tuple, list)):
                return (change(out[0]), *out[1:])
            return change(out)

        return hook

    def before(change):
        def hook(module, args, kwargs):
            if args:
                return (change(args[0]), *args[1:]), kwargs
            key = next(iter(kwargs))
            return args, {**kwargs, key: change(kwargs[key])}

        return hook

    handles = []
    for path, change, at in changes:
        module = net.get_submodule(path)
        if at == "output":
            handles.append(module.register_forward_hook(after(change)))
        else:
            handles.append(module.register_forward_pre_hook(before(change), with_kwargs=True))
    with hooks(handles):
        return net(**given(name, ids), **further)


def seen(net, name, path, at="output", ids=IDS):
    """What a module gave, or was given, in a plain run."""
    kept = []

    def keep(value):
        kept.append(value.detach().clone())
        return value

    run(net, name, [(path, keep, at)], ids)
    return kept[0]


def split(name, fused, which):
    """Queries, keys or values (0, 1, 2) of a projection's output, [batch, pos, head, d_head]."""
    oracle = ORACLES[name]
    heads = (HEADS, oracle.kv_heads, oracle.kv_heads)
    if not oracle.fused:
        return fused.reshape(*fused.shape[:2], heads[which], D_HEAD)
    if oracle.fused == "by head":
        return fused.reshape(*fused.shape[:2], HEADS, 3, D_HEAD)[..., which, :]
    start = sum(heads[:which]) * D_HEAD
    part = fused[..., start : start + heads[which] * D_HEAD]
    return part.reshape(*fused.shape[:2], heads[which], D_HEAD)


def with_part(name, fused, which, part):
    """A projection's output with another value for queries, keys or values."""
    oracle, after = ORACLES[name], fused.clone()
    heads = (HEADS, oracle.kv_heads, oracle.kv_heads)
    if not oracle.fused:
        return part.reshape(fused.shape)
    if oracle.fused == "by head":
        after.view(*fused.shape[:2], HEADS, 3, D_HEAD)[..., which, :] = part
        return after
    start = sum(heads[:which]) * D_HEAD
    after[..., start : start + heads[which] * D_HEAD] = part.flatten(-2)
    return after
