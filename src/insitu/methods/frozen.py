"""What a run does to the stream as linear maps: norms frozen at their scale, heads told apart.

norm = FrozenNorm.of(model.final_norm._module, stream)
norm.linear(part) + norm.bias           # over all parts of the stream: what the norm gave
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from insitu.models.language import LanguageModel
from insitu.models.standard.standing import standing

PROBE = 100.0
"""Large beside any epsilon in a norm, its square small enough for half precision."""


@dataclass(frozen=True)
class FrozenNorm:
    """A layer norm or an RMS norm at one position, with the scale it had there.

    Found by what the module does, not by its class: families write their norms differently (Gemma's
    weights are stored less one), but all of them scale, centre or not, multiply and add.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    centres: bool

    @classmethod
    def of(cls, norm: nn.Module, stream: Tensor) -> "FrozenNorm":
        """The norm as it was for a stream, `[d_model]`."""
        probe = PROBE * _balanced(stream)
        up, down, aside = norm(torch.stack([probe, -probe, probe + PROBE / 2])).double()
        bias = (up + down) / 2
        weight = (up - down) / 2 * (probe.double().square().mean().sqrt() / probe.double())
        centres = torch.allclose(up, aside, rtol=1e-2, atol=1e-2)
        frozen = cls(weight, bias, torch.ones((), dtype=torch.double), centres)
        plain, was = frozen.linear(stream), norm(stream).double() - bias
        return cls(weight, bias, (plain @ was) / (plain @ plain), centres)

    def linear(self, parts: Tensor) -> Tensor:
        """What it makes of parts of that stream, `[…, d_model]`, its bias left out."""
        parts = parts.double()
        if self.centres:
            parts = parts - parts.mean(-1, keepdim=True)
        return parts * self.weight * self.scale


def heads_out(model: LanguageModel, layer: int, z: Tensor) -> Tensor:
    """What each head adds to the stream at a position, its attention's bias left out.

    Args:
        model: a language model with standard names.
        layer: which layer.
        z: what its heads gave there, `[head, d_head]`.

    Returns:
        `[head, d_model]`.
    """
    attention: Any = model.layers[layer].attention
    family = standing(attention).family
    maps: Any = family.projections
    project = attention._at_path(maps.out)._module
    alone = torch.diag_embed(z.T).permute(1, 2, 0).flatten(1)  # [head, head * d_head]
    added: Tensor = (project(alone) - project(torch.zeros_like(alone[:1]))).double()
    if family.attn_out == family.attention:
        return added
    after = model.layers[layer]._at_path(family.attn_out)._module  # Gemma 2 has a norm there
    return FrozenNorm.of(after, project(z.flatten())).linear(added)


def _balanced(like: Tensor) -> Tensor:
    """Ones and minus ones that sum to nothing, `[d_model]`; of odd width with a minus two."""
    signs = torch.ones_like(like)
    signs[1::2] = -1
    if len(signs) % 2:
        signs[-3:] = torch.tensor([1.0, 1.0, -2.0])
    return signs
