"""Queries, keys, values and what each head gives, [batch, pos, head, d_head], written through.

with model.trace(prompt):
    attention = model.layers[3].attention
    attention.q[:, :, 2] = 0            # one head's queries
    attention.z = attention.z.flip(2)   # what goes into the output projection, per head
"""

from typing import Any

import torch

from insitu.engine.values import Forced, fit
from insitu.engine.views import View
from insitu.models.standard.families import BY_HEAD, SEPARATE, Projections
from insitu.models.standard.pattern import prepare
from insitu.models.standard.standing import at, standing

_Q, _K, _V = range(3)


class Gives(View):
    """`z` of an attention, [batch, pos, head, d_head]."""

    @property
    def z(self) -> torch.Tensor:
        """What each head gives, [batch, pos, head, d_head], before the output projection."""
        return _by_head(_out(self._node).input, standing(self._node).dims.n_heads)

    @z.setter
    def z(self, value: Any) -> None:
        out = _out(self._node)
        old = out.input
        value = fit(value, self.z, self._node, "z")
        out.input = value.reshape(old.shape)


class Heads(Gives):
    """`q`, `k`, `v` and `z` of an attention, [batch, pos, head, d_head].

    Queries, keys and values are as the projections give them: before their norms (Qwen3, Gemma 3),
    before rotary embedding and before any scaling. With grouped queries `k` and `v` have
    `model.dims.n_kv_heads` heads.
    """

    @property
    def q(self) -> torch.Tensor:
        """Queries, [batch, pos, head, d_head], as projected: before norm, rotation and scaling."""
        return _read(self._node, _Q)

    @q.setter
    def q(self, value: Any) -> None:
        _write(self._node, _Q, value, "q")

    @property
    def k(self) -> torch.Tensor:
        """Keys, [batch, pos, head, d_head], as projected; `n_kv_heads` of them."""
        return _read(self._node, _K)

    @k.setter
    def k(self, value: Any) -> None:
        _write(self._node, _K, value, "k")

    @property
    def v(self) -> torch.Tensor:
        """Values, [batch, pos, head, d_head], as projected; `n_kv_heads` of them."""
        return _read(self._node, _V)

    @v.setter
    def v(self, value: Any) -> None:
        _write(self._node, _V, value, "v")


def _maps(node: Any) -> Projections:
    maps = standing(node).family.projections
    assert maps is not None
    return maps


def _out(node: Any) -> Any:
    return at(node, _maps(node).out)


def _projection(node: Any, which: int) -> Any:
    prepare(node)
    maps = _maps(node)
    return at(node, (maps.q, maps.k, maps.v)[which])


def _split(fused: torch.Tensor, node: Any) -> list[torch.Tensor]:
    """Queries, keys and values of one output, as views of it."""
    dims = standing(node).dims
    if _maps(node).layout == BY_HEAD:
        by_head, width = _by_head(fused, dims.n_heads), dims.d_head
        return [by_head[..., start * width : (start + 1) * width] for start in range(3)]
    sizes = (dims.n_heads, dims.n_kv_heads, dims.n_kv_heads)
    ends = [dims.d_head * sum(sizes[: i + 1]) for i in range(3)]
    starts = [0, *ends[:2]]  # slices, since what `split` gives cannot be edited where grads flow
    parts = [fused[..., start:end] for start, end in zip(starts, ends, strict=True)]
    return [_by_head(part, n) for part, n in zip(parts, sizes, strict=True)]


def _by_head(given: torch.Tensor, heads: int) -> torch.Tensor:
    """The numbers of a position divided among heads, as a view: [batch, pos, head, d_head]."""
    return given.view(*given.shape[:-1], heads, -1)


def _read(node: Any, which: int) -> torch.Tensor:
    given: torch.Tensor = _projection(node, which).output
    if _maps(node).layout == SEPARATE:
        dims = standing(node).dims
        return _by_head(given, dims.n_heads if which == _Q else dims.n_kv_heads)
    return _split(given, node)[which]


def _write(node: Any, which: int, value: Any, name: str) -> None:
    projection = _projection(node, which)
    given = projection.output
    old = _read(node, which)
    forced = isinstance(value, Forced)
    value = fit(value, old, node, name)
    if value is old or _is_the_same(value, old):
        return  # after `attention.q += 1` it is edited already
    layout = _maps(node).layout
    after = value.flatten(-2)
    if layout != SEPARATE:
        parts = _split(given, node)
        parts[which] = value
        if layout == BY_HEAD:
            after = torch.cat(parts, -1).flatten(-2)
        else:
            after = torch.cat([part.flatten(-2) for part in parts], -1)
    projection.output = Forced(after) if forced else after


def _is_the_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.untyped_storage()._cdata == other.untyped_storage()._cdata
        and one.storage_offset() == other.storage_offset()
        and (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
    )
