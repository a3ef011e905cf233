"""The logit lens: every layer's residual stream, read as a prediction of the next token.

lens = logit_lens(model, "The Eiffel Tower is in the city of", target=" Paris")
lens.plot()                                 # layer × position, the likeliest token in each cell
lens.sel(pos=-1)                            # how the answer forms at the last position
lens.further["kl"].plot()                   # how far each layer is from the final prediction
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from insitu.methods.axes import Axis
from insitu.methods.metrics import kl
from insitu.methods.prompts import labels_of, one_prompt, token_id
from insitu.methods.readout import read_out
from insitu.methods.result import Result
from insitu.models.language import LanguageModel

SOURCE = 'nostalgebraist, "interpreting GPT: the logit lens" (2020)'

Read = Callable[[int, Tensor], Tensor]
"""Gives the logits of a layer's residual stream: of its number and `[row, pos, d_model]`."""


def logit_lens(
    model: LanguageModel, prompt: Any, *, target: str | int | None = None, top: int = 5
) -> Result:
    """Read the residual stream after every layer by the final norm and the unembedding; one pass.

        lens = logit_lens(model, "The Eiffel Tower is in the city of", target=" Paris")
        lens.sel(layer=4, pos=-1)

    Args:
        model: a language model with standard names.
        prompt: one prompt.
        target: the token whose probability is given; without one, each cell's likeliest.
        top: how many of the likeliest tokens `further["top"]` has.

    Returns:
        Probabilities, 0 to 1, `[layer, pos]`, each cell's likeliest token as its text. The last
        layer's are the model's own. `further`: `kl` from the final prediction, in nats; `rank` of
        the target, 0 for the likeliest; `top`, the likeliest tokens' `[layer, pos, rank]`.

    Raises:
        InputError: several prompts, or a target that is not one token.
    """
    return lens_of(model, prompt, lambda _, stream: read_out(model, stream), target, top)


@torch.no_grad()
def lens_of(
    model: LanguageModel, prompt: Any, read: Read, target: str | int | None, top: int, **words: str
) -> Result:
    """A lens of any kind: `read` makes logits of a layer's residual stream.

    Args:
        model, prompt, target, top: as for `logit_lens`.
        read: gives the logits of a layer's number and its residual stream.
        **words: the result's title and source.
    """
    ids, labels = one_prompt(model, prompt, "logit_lens")
    wanted = None if target is None else token_id(model, target)
    with model.trace(ids):
        streams = [layer.resid_post.clone() for layer in model.layers]
        final = model.output.logits[0]
    numbers: dict[str, list[Tensor]] = {"value": [], "kl": [], "rank": [], "top": [], "tokens": []}
    for layer, stream in enumerate(streams):
        logits = read(layer, stream)[0]
        chances = logits.float().softmax(-1)
        best = chances.topk(top, -1)
        numbers["top"].append(best.values)
        numbers["tokens"].append(best.indices)
        numbers["kl"].append(kl(logits, final))
        chosen = best.values[:, :1] if wanted is None else chances[:, wanted, None]
        numbers["value"].append(chosen[:, 0])
        numbers["rank"].append((chances > chosen).sum(-1))
    found = {name: torch.stack(parts).cpu() for name, parts in numbers.items()}
    likeliest = labels_of(model, found.pop("tokens").flatten())
    words = {"title": "Logit lens", "source": SOURCE, **words}
    return _result(found, likeliest, labels, target, words)


def _result(
    found: dict[str, Tensor], likeliest: Any, labels: Any, target: Any, words: dict[str, Any]
) -> Result:
    axes = (Axis("layer", range(len(found["value"]))), Axis("pos", labels))
    ranks = Axis("rank", range(found["top"].shape[-1]))
    best = likeliest[:: len(ranks)]
    sure: dict[str, Any] = {"limits": (0.0, 1.0), **words}
    what = "the likeliest token" if target is None else repr(target)
    of = {
        "kl": Result(
            found["kl"], axes, "KL from the final prediction", "nats", texts=best, **words
        ),
        "rank": Result(found["rank"], axes, "rank of the target", texts=best, **words),
        "top": Result(found["top"], (*axes, ranks), "probability", texts=likeliest, **sure),
    }
    if target is None:
        del of["rank"]
    return Result(found["value"], axes, f"probability of {what}", texts=best, further=of, **sure)
