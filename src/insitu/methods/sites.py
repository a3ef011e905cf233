"""The places in a layer that methods read and patch, under the field's names.

site = site_of("heads")
with model.trace(prompt):
    z = site.read(model.layers[3])                  # [batch, pos, head, d_head]
    site.write(model.layers[3], z * 0)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor

from insitu.errors import UsageError
from insitu.methods.axes import Axis
from insitu.methods.prompts import chosen

Positions = Literal["each", "all"] | Sequence[int] | None
"""Each position by itself, all at once, or some, each by itself."""


@dataclass(frozen=True)
class Site:
    """One place in every layer: what it is called, and which axes its value has.

    Attributes:
        name: the name a user gives.
        path: where it is in a layer, `attention.z`.
        axes: those between the batch and the last, `("pos",)` or `("pos", "head")`.
    """

    name: str
    path: str
    axes: tuple[str, ...] = ("pos",)

    def read(self, layer: Any) -> Tensor:
        """Its value in the pass that runs, `[batch, pos, …, width]`."""
        value: Any = getattr(*self._at(layer))
        tensor: Tensor = value[0] if isinstance(value, tuple) else value
        return tensor

    def write(self, layer: Any, value: Tensor) -> None:
        """Let the model go on with another value; what came in a tuple stays in it."""
        owner, name = self._at(layer)
        now = getattr(owner, name)
        setattr(owner, name, (value, *now[1:]) if isinstance(now, tuple) else value)

    def _at(self, layer: Any) -> tuple[Any, str]:
        *owners, name = self.path.split(".")
        for owner in owners:
            layer = getattr(layer, owner)
        return layer, name


SITES = {
    site.name: site
    for site in (
        Site("resid_pre", "resid_pre"),
        Site("resid_mid", "resid_mid"),
        Site("resid_post", "resid_post"),
        Site("attention", "attn_out"),
        Site("mlp", "mlp_out"),
        Site("heads", "attention.z", ("pos", "head")),
        Site("q", "attention.q", ("pos", "head")),
        Site("k", "attention.k", ("pos", "head")),
        Site("v", "attention.v", ("pos", "head")),
    )
}


def site_of(name: str) -> Site:
    """The site of that name; `z` is `heads`.

    Raises:
        UsageError: there is none.
    """
    wanted = "heads" if name == "z" else name
    if wanted in SITES:
        return SITES[wanted]
    near = get_close_matches(str(name), SITES, 1, 0.5)
    raise UsageError(
        f"of={name!r} is no place in a layer.",
        f"the places are {', '.join(SITES)}.",
        f"did you mean of={near[0]!r}?" if near else "give one of them.",
    )


def patterns(
    model: Any, site: Site, positions: Positions, labels: Sequence[str],
    heads: Sequence[int] | None = None,
) -> tuple[Tensor, list[Axis]]:  # fmt: skip
    """What to patch at once in a layer, and the axes of all of that together.

        patterns(model, site_of("heads"), "all", labels)    # [head, pos, head], (head,)
        patterns(model, site_of("mlp"), "each", labels)     # [pos, pos], (pos,)
        patterns(model, site_of("q"), "all", labels, [3])   # [1, pos, head], (head,)

    Where there are heads, each of those wanted is by itself, at all positions by default; else each
    position is.

    Raises:
        UsageError: there is no such position or head.
    """
    if isinstance(positions, str) and positions not in ("each", "all"):
        raise UsageError(
            f"positions={positions!r} was given.",
            "each position is patched by itself, all at once, or some, each by itself.",
            'write positions="each", positions="all" or positions=[3, 4].',
        )
    by_head = site.axes == ("pos", "head")
    together = positions == "all" or (positions is None and by_head)
    wanted = chosen(None if isinstance(positions, str) else positions, len(labels), "position")
    everywhere = torch.ones(1, len(labels), dtype=torch.bool)
    masks = everywhere if together else torch.eye(len(labels), dtype=torch.bool)[wanted]
    axes = [] if together else [Axis("pos", [labels[at] for at in wanted])]
    if by_head:
        count = model.dims.n_kv_heads if site.name in ("k", "v") else model.dims.n_heads
        these = chosen(heads, count, "head")
        each = torch.eye(count, dtype=torch.bool)[these]
        masks = (masks[:, None, :, None] & each[None, :, None, :]).flatten(0, 1)
        axes = [*axes, Axis("head", these if heads is not None else range(count))]
    elif heads is not None:
        raise UsageError(
            f"heads={list(heads)} was given for of={site.name!r}.",
            f"{site.name!r} has positions, and no heads.",
            "leave heads out, or patch one of heads, q, k and v.",
        )
    return masks, axes
