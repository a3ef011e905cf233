"""Standard names beside a model's own: the same words for every family of language models.

model.layers[3].attention.pattern       # transformer.h[3].attn, or model.layers[3].self_attn, …
model.layers[3].resid_mid
model.dims.n_heads
"""
