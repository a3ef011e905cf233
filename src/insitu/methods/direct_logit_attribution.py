"""Direct logit attribution: how much each part of the model adds to an answer's logit itself.

shares = direct_logit_attribution(model, "The Eiffel Tower is in the city of", " Paris", " Rome")
shares.plot()                               # a bar for each part; together the logit difference
shares.further["heads"].plot()              # layer × head
"""

from typing import Any

import torch
from torch import Tensor

from insitu.methods.axes import Axis
from insitu.methods.frozen import FrozenNorm, heads_out
from insitu.methods.prompts import one_prompt, token_id
from insitu.methods.readout import logit_scale
from insitu.methods.result import Result
from insitu.models.language import LanguageModel

SOURCE = 'Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021)'


@torch.no_grad()
def direct_logit_attribution(
    model: LanguageModel, prompt: Any, right: str | int, wrong: str | int | None = None,
    *, pos: int = -1,
) -> Result:  # fmt: skip
    """Split a logit difference into what each part writes to the stream at one position; one pass.

        direct_logit_attribution(model, prompt, " Paris", " Rome").top(5, absolute=True)

    What the stream ends with is a sum: of the embedding, every head, the attentions' biases and
    the MLPs. The final norm is frozen at the scale it has in this run, which makes it linear, so
    that the parts' shares add up to the logit difference; "final norm" and "unembedding" are their
    biases, and "other" is what a family adds beside these parts.

    Args:
        model: a language model with standard names.
        prompt: one prompt.
        right: the token whose logit is split.
        wrong: the token whose logit is taken off; none by default.
        pos: at which position.

    Returns:
        Logits, `[component]`; before any bounding of logits (Gemma 2). `further`: `heads`
        `[layer, head]`, `mlps` `[layer]`.

    Raises:
        InputError: several prompts, or something that is not one token.

    Source: Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021).
    """
    ids, _ = one_prompt(model, prompt, "direct_logit_attribution")
    plus = token_id(model, right)
    minus = None if wrong is None else token_id(model, wrong)
    streams = _streams(model, ids, pos)
    unembed: Any = model.unembed._module
    norm = FrozenNorm.of(model.final_norm._module, streams["end"])
    direction = _difference(unembed.weight, plus, minus) * logit_scale(model)
    bias = getattr(unembed, "bias", None)
    heads = torch.stack([heads_out(model, i, z) for i, z in enumerate(streams["z"])])
    biases = streams["attention"].double() - heads.sum(1)
    known = streams["start"].double() + (streams["attention"] + streams["mlp"]).double().sum(0)
    parts = {"embedding": streams["start"], "heads": heads, "biases": biases}
    parts |= {"mlps": streams["mlp"], "other": streams["end"].double() - known}
    shares = {name: (norm.linear(part) @ direction).cpu() for name, part in parts.items()}
    shares["final norm"] = (norm.bias @ direction).cpu()
    shares["unembedding"] = torch.zeros(()) if bias is None else _difference(bias, plus, minus)
    told = f"{right!r}" + (f" less {wrong!r}" if minus is not None else "")
    return _result(shares, told)


def _streams(model: LanguageModel, ids: Tensor, pos: int) -> dict[str, Tensor]:
    """The stream at a position where it starts and ends, and what each layer adds to it."""
    found: dict[str, list[Tensor]] = {"z": [], "attention": [], "mlp": []}
    with model.trace(ids):
        for number, layer in enumerate(model.layers):
            if number == 0:
                start = layer.resid_pre[0, pos].clone()
            found["z"].append(layer.attention.z[0, pos].clone())
            found["attention"].append(layer.attn_out[0, pos].clone())
            found["mlp"].append(layer.mlp_out[0, pos].clone())
            end = layer.resid_post[0, pos].clone()
    named = {name: torch.stack(parts) for name, parts in found.items()}
    return {**named, "start": start, "end": end}


def _difference(rows: Tensor, plus: int, minus: int | None) -> Tensor:
    one = rows[plus].detach().double()
    return one if minus is None else one - rows[minus].detach().double()


def _result(shares: dict[str, Tensor], tokens: str) -> Result:
    """A share for each component; those of "other" are left out where the parts are all."""
    layers, heads = shares["heads"].shape
    named = {"embedding": float(shares["embedding"])}
    for i in range(layers):
        named |= {f"L{i}H{h}": float(shares["heads"][i, h]) for h in range(heads)}
        named |= {f"L{i} bias": float(shares["biases"][i]), f"L{i} MLP": float(shares["mlps"][i])}
    named |= {name: float(shares[name]) for name in ("final norm", "unembedding", "other")}
    if abs(named["other"]) < 1e-5 * sum(map(abs, named.values())):
        del named["other"]
    words: dict[str, Any] = {"quantity": "share of the logits", "unit": "logits", "source": SOURCE}
    words["title"] = f"Direct logit attribution, {tokens}"
    layer = Axis("layer", range(layers))
    further = {
        "heads": Result(shares["heads"].float(), (layer, Axis("head", range(heads))), **words),
        "mlps": Result(shares["mlps"].float(), (layer,), **words),
    }
    axis = Axis("component", tuple(named))
    return Result(torch.tensor([*named.values()]), (axis,), further=further, **words)
