"""What a method measures: a function of the logits that gives one number for each row.

difference = logit_difference(model, " Paris", " Rome")
with model.trace(prompts):
    print(difference(model.output.logits))              # [row]

Any function of the logits `[row, pos, d_vocab]` that gives one number a row is a metric. Prompts
are padded on the left, so `logits[:, -1]` predicts what comes after each row's last token. The
name and unit that plots show are the function's `quantity` and `unit`, where it has them. Those
made here read the last position alone and say so (`reads_last`): the rest is then not computed.
Several prompts may each have tokens of their own, `logit_difference(model, [" Paris", " Rome"],
[" Rome", " Paris"])`; they also measure copies of those prompts, row after row.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from insitu.errors import MetricError
from insitu.methods.prompts import token_id
from insitu.models.language import LanguageModel

Token = str | int
Metric = Callable[[Tensor], Tensor]
"""Of logits `[row, pos, d_vocab]`, one number for each row: `[row]`."""


def logit_difference(
    model: LanguageModel, right: Token | Sequence[Token], wrong: Token | Sequence[Token]
) -> Metric:
    """By how much the logit of one token exceeds another's, at the last position.

        metric = logit_difference(model, " Paris", " Rome")

    Raises:
        InputError: one of them is not one token.
    """
    plus, minus = _ids(model, right), _ids(model, wrong)

    def difference(logits: Tensor) -> Tensor:
        return _of(logits[:, -1], plus) - _of(logits[:, -1], minus)

    call = f"logit_difference(model, {right!r}, {wrong!r})"
    return _named(difference, "logit difference", "logits", call)


def logprob(model: LanguageModel, token: Token | Sequence[Token]) -> Metric:
    """The log-probability of a token at the last position, in nats."""
    wanted = _ids(model, token)

    def of(logits: Tensor) -> Tensor:
        return _of(logits[:, -1].float().log_softmax(-1), wanted)

    return _named(of, f"log-probability of {token!r}", "nats", f"logprob(model, {token!r})")


def probability(model: LanguageModel, token: Token | Sequence[Token]) -> Metric:
    """The probability of a token at the last position, 0 to 1."""
    wanted = _ids(model, token)

    def of(logits: Tensor) -> Tensor:
        return _of(logits[:, -1].float().softmax(-1), wanted)

    return _named(of, f"probability of {token!r}", "", f"probability(model, {token!r})")


def measure(metric: Metric, logits: Tensor) -> Tensor:
    """The metric of each row, `[row]`.

    Raises:
        MetricError: it does not give one number for each.
    """
    found: Any = metric(logits)
    if isinstance(found, Tensor) and found.shape == logits.shape[:1]:
        return found
    kind = f"shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
    raise MetricError(
        f"the metric gave {kind} for {len(logits)} rows.",
        f"it was given logits of shape {list(logits.shape)}: [row, pos, d_vocab].",
        "return one number for each row, as in lambda logits: logits[:, -1, paris].",
    )


def measure_copies(metric: Metric, logits: Tensor, prompts: int) -> Tensor:
    """The metric of copies of some prompts that follow one another, `[copy, prompt]`.

    A metric of the user's is given one copy at a time: its rows may have answers of their own.

    Raises:
        MetricError: it does not give one number for each row.
    """
    if prompts == 1 or getattr(metric, "reads_last", False):
        return measure(metric, logits).reshape(-1, prompts)
    return torch.stack([measure(metric, copy) for copy in torch.split(logits, prompts)])


def told(metric: Metric) -> tuple[str, str]:
    """What a metric measures, and in which unit."""
    name = getattr(metric, "__name__", "metric")
    name = "metric" if name == "<lambda>" else name
    return getattr(metric, "quantity", name), getattr(metric, "unit", "")


def kl(logits: Tensor, other: Tensor) -> Tensor:
    """How far the predictions of one are from the other's: KL(other ‖ logits), in nats."""
    target = other.float().log_softmax(-1)
    found: Tensor = (target.exp() * (target - logits.float().log_softmax(-1))).sum(-1)
    return found.clamp(min=0)  # a distance; rounding may leave it just below


def said(metric: Metric) -> str | None:
    """The call that makes a metric of this file again; None for a user's own."""
    found: str | None = getattr(metric, "said", None)
    return found


def _named(metric: Metric, quantity: str, unit: str, call: str) -> Metric:
    metric.__dict__.update(quantity=quantity, unit=unit, said=call, reads_last=True)
    return metric


def _ids(model: LanguageModel, wanted: Token | Sequence[Token]) -> Tensor:
    """The ids of one token, or of one for each prompt, `[prompt]`."""
    several = [wanted] if isinstance(wanted, (str, int)) else wanted
    return torch.tensor([token_id(model, token) for token in several])


def _of(values: Tensor, tokens: Tensor) -> Tensor:
    """Each row's value of its own token, `[row]`: prompt after prompt, copy after copy."""
    copies, rest = divmod(len(values), len(tokens))
    if rest:
        raise MetricError(
            f"the metric has tokens for {len(tokens)} prompts, and was given {len(values)} rows.",
            "each prompt is measured by its own token.",
            "name one token for each prompt, or one for all.",
        )
    tokens = tokens.repeat(copies).to(values.device)
    return values.gather(1, tokens[:, None])[:, 0]
