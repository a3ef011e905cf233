"""The residual stream at a site of a layer, [batch, pos, d_model], whatever the module makes of it.

    read(layer, "ln_2.input")
    write(layer, "ln_2.input", value, "resid_mid")

Some modules return the stream first among others; some layers flatten it to [batch * pos, d_model].
And where a layer adds to the stream, it keeps it in a local name, besides giving it to the norm of
the next part: replacing one alone would leave half of the model with the old stream.
"""

from collections.abc import Iterator
from typing import Any

import torch

from insitu.engine.reachable import self_of
from insitu.engine.running import find
from insitu.engine.values import Forced, fit
from insitu.models.standard.local import parked, replace
from insitu.models.standard.standing import at, standing


def read(layer: Any, place: str) -> torch.Tensor:
    """The stream at a site of a layer."""
    node, site = _site(layer, place)
    return _seen(layer, _first(getattr(node, site)))


def write(layer: Any, place: str, value: Any, name: str) -> None:
    """Replace the stream at a site of a layer.

    Args:
        layer: the wrapped layer.
        place: a path from the layer on, and a site.
        value: the new stream.
        name: what an error calls it.
    """
    node, site = _site(layer, place)
    given = getattr(node, site)
    old = _first(given)
    seen = _seen(layer, old)
    fitting = fit(value, seen, layer, name)
    if _is_the_same(fitting, seen):
        return  # `resid_mid += 1` has edited it already
    whole = fitting if seen.shape == old.shape else _whole(layer, old, seen, fitting)
    family = standing(layer).family
    if family.mid_is_local and place == family.mid:
        replace(layer, node, old, whole)
    if old is given:
        setattr(node, site, Forced(whole) if isinstance(value, Forced) else whole)
    else:
        setattr(node, site, Forced(type(given)((whole, *given[1:]))))


def _site(layer: Any, place: str) -> tuple[Any, str]:
    path, _, site = place.rpartition(".")
    return at(layer, path), site


def _first(value: Any) -> torch.Tensor:
    found: torch.Tensor = value[0] if isinstance(value, (tuple, list)) else value
    return found


def _is_the_same(one: Any, other: torch.Tensor) -> bool:
    return one is other or (
        isinstance(one, torch.Tensor)
        and one.untyped_storage()._cdata == other.untyped_storage()._cdata
        and one.storage_offset() == other.storage_offset()
        and (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
    )


# Flattened layers ---------------------------------------------------------------------------------


def _seen(layer: Any, value: torch.Tensor) -> torch.Tensor:
    """The stream as [batch, pos, d_model], of the caller's own rows."""
    if value.dim() != 2 or not standing(layer).family.is_flat:
        return value
    batch, rows = _batch(layer, value)
    whole = value.view(batch, -1, value.shape[-1])
    return whole if rows is None else whole.narrow(0, rows.start, rows.size)


def _whole(layer: Any, old: torch.Tensor, seen: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A new flattened stream in which the caller's own rows are these."""
    batch, rows = _batch(layer, old)
    if rows is not None:
        before = old.view(batch, -1, old.shape[-1])
        end = rows.start + rows.size
        value = torch.cat([before[: rows.start], value, before[end:]])
    return value.flatten(0, 1)


def _batch(layer: Any, flat: torch.Tensor) -> tuple[int, Any]:
    """How many prompts a flattened value is of, and which of them the caller's are, if not all."""
    run = find(layer)
    rows = getattr(run, "rows", None)
    if rows is not None and flat.shape[0] < rows.total:
        return rows.size, None  # one position a prompt: the engine has taken the rows
    if rows is not None:
        return rows.total, None if rows.are_all else rows
    return next(_shapes(layer, run, flat))[0], None


def _shapes(layer: Any, run: Any, flat: torch.Tensor) -> Iterator[torch.Size]:
    """The shapes that a layer under way remembers, in order to undo its flattening."""
    for frame in parked(run):
        if self_of(frame) is layer._module:
            for local in frame.f_locals.values():
                is_shape = isinstance(local, torch.Size) and len(local) == 3
                if is_shape and local[0] * local[1] == flat.shape[0]:
                    yield local
