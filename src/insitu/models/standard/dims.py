"""The sizes of a language model, in the field's words.

model.dims.n_heads, model.dims.d_head
model.dims                  # Dims(n_layers=6, n_heads=4, n_kv_heads=4, d_model=128, …)
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Dims:
    """The sizes of a language model. A size that an architecture lacks is 0.

        model.dims.n_layers, model.dims.n_heads, model.dims.d_head

    Attributes:
        n_layers: how many layers `model.layers` has.
        n_heads: attention heads of a layer, as in `attention.q` and `attention.pattern`.
        n_kv_heads: heads of keys and values; fewer than `n_heads` where groups of queries share.
        d_model: width of the residual stream.
        d_head: width of a head.
        d_vocab: how many tokens the model can name.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_vocab: int


def width_in(module: Any) -> int:
    """How wide the vectors are that a linear map takes, quantised and adapted ones included."""
    for name in ("in_features", "nx"):
        if isinstance(size := getattr(module, name, None), int):
            return size
    return int(module.weight.shape[-1])


def width_out(module: Any) -> int:
    """How wide the vectors are that a linear map, or an embedding, gives."""
    for name in ("out_features", "nf", "embedding_dim"):
        if isinstance(size := getattr(module, name, None), int):
            return size
    return int(module.weight.shape[0])
