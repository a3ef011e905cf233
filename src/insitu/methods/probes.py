"""Linear probes: whether a property can be read off the residual stream by a linear map.

found = linear_probes(model, reviews, is_praise, pos=(-1,))
found.plot()                                    # accuracy on held-out prompts, layer × position
found.further["selectivity"].plot()             # what is left beside a control of random labels
found.further["directions"].sel(layer=3, pos=-1, label=True)
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from insitu.errors import InputError
from insitu.methods.axes import Axis
from insitu.methods.logistic import fit
from insitu.methods.prompts import encoded, position
from insitu.methods.result import Result
from insitu.models.language import LanguageModel

SOURCE = (
    'Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (2016); '
    'selectivity: Hewitt and Liang, "Designing and Interpreting Probes with Control Tasks" (2019)'
)
HELD_OUT = 0.3
"""Which share of each label's prompts the accuracy is measured on."""


def linear_probes(
    model: LanguageModel, prompts: Sequence[Any], labels: Sequence[Hashable], *,
    pos: Sequence[int] = (-1,), types: Sequence[Hashable] | None = None, seed: int = 0,
) -> Result:  # fmt: skip
    """Fit a logistic regression to the residual stream after every layer; one pass.

        linear_probes(model, reviews, [True, False, …], pos=(-2, -1)).max()

    The control gives each type of prompt a label drawn at random. A probe that does as well on it
    has learned the prompts, not the property.

    Args:
        model: a language model with standard names.
        prompts: texts or token ids.
        labels: the property of each prompt: words, numbers or truth values.
        pos: positions; those counted from the end fit prompts of any lengths.
        types: by what the control's labels go (the word that is probed); by default each prompt
            is a type of its own.
        seed: which prompts are held out, and the control's labels.

    Returns:
        Accuracy on held-out prompts, 0 to 1, `[layer, pos]`. `further`: `train`, the accuracy on
        the others; `control`; `selectivity`, accuracy less the control's; `directions`, the weights
        on the stream, `[layer, pos, label, d_model]`. `info["chance"]` is the commonest label's.

    Raises:
        InputError: not one label for each prompt, one label alone, or one prompt of a label.
    """
    classes, truth = _classes(labels, len(prompts))
    batch = encoded(model, list(prompts))
    where = [position(batch, one) for one in pos]
    with torch.no_grad(), model.trace(batch):
        streams = [layer.resid_post[:, where].float().cpu() for layer in model.layers]
    inputs = torch.stack(streams).transpose(1, 2)  # [layer, pos, prompt, d_model]
    draw = torch.Generator().manual_seed(seed)
    train = _split(truth, draw)
    control = _control(types or range(len(prompts)), len(classes), draw)
    weights, accuracy = fit(inputs, truth, len(classes), train)
    _, by_control = fit(inputs, control, len(classes), train)
    axes = (Axis("layer", range(len(inputs))), Axis("pos", pos))
    words: dict[str, Any] = {"title": "Linear probes", "source": SOURCE}
    sure: dict[str, Any] = {"limits": (0.0, 1.0), **words}
    outer = (*axes, Axis("label", classes), Axis("d_model", range(inputs.shape[-1])))
    further = {
        "train": Result(accuracy[0], axes, "accuracy on the training prompts", **sure),
        "control": Result(by_control[1], axes, "accuracy on random labels", **sure),
        "selectivity": Result(accuracy[1] - by_control[1], axes, "selectivity", **words),
        "directions": Result(weights, outer, "weight", **words),
    }
    chance = float(truth[~train].bincount().max() / (~train).sum())
    info = {"chance": chance, "prompts to train": int(train.sum()), "held out": int((~train).sum())}
    return Result(
        accuracy[1], axes, "accuracy on held-out prompts", further=further, info=info, **sure
    )


def _classes(labels: Sequence[Hashable], count: int) -> tuple[tuple[Any, ...], Tensor]:
    """The labels there are, and each prompt's number among them."""
    known = sorted(set(labels), key=str)
    fewest = min((list(labels).count(label) for label in known), default=0)
    if len(labels) != count or len(known) < 2 or fewest < 2:
        raise InputError(
            f"linear_probes() was given {len(labels)} labels of {len(known)} kinds.",
            f"there are {count} prompts, and the rarest label has {fewest}; a probe tells kinds "
            "apart, and is tried on prompts that it was not trained on.",
            "give one label for each prompt, of two kinds or more, each at least twice.",
        )
    return tuple(map(_label, known)), torch.tensor([known.index(label) for label in labels])


def _label(label: Any) -> Any:
    return label if isinstance(label, (str, int, float)) else str(label)


def _split(truth: Tensor, draw: torch.Generator) -> Tensor:
    """Which prompts are trained on: of each label some are held out, one at least."""
    train = torch.ones(len(truth), dtype=torch.bool)
    for label in range(int(truth.max()) + 1):
        members = (truth == label).nonzero()[:, 0]
        count = min(max(1, round(HELD_OUT * len(members))), len(members) - 1)
        train[members[torch.randperm(len(members), generator=draw)[:count]]] = False
    return train


def _control(types: Sequence[Hashable], count: int, draw: torch.Generator) -> Tensor:
    """A random label for each type, each of the labels as often."""
    known = list(dict.fromkeys(types))
    drawn = (torch.randperm(len(known), generator=draw) % count).tolist()
    by_type = dict(zip(known, drawn, strict=True))
    return torch.tensor([by_type[one] for one in types])
