"""What kind of head each is: scored on random tokens that are said twice.

scores = induction_scores(model)
scores.plot()                                   # a map of layers and heads for each kind
scores.sel(kind="induction").top(3)
"""

import torch
from torch import Tensor

from insitu.errors import UsageError
from insitu.methods.axes import Axis
from insitu.methods.prompts import random_tokens
from insitu.methods.result import Result
from insitu.models.language import LanguageModel

KINDS = ("induction", "previous token", "duplicate token")
SOURCE = (
    'Olsson et al., "In-context Learning and Induction Heads" (2022); duplicate-token heads: '
    'Wang et al., "Interpretability in the Wild" (2022)'
)


@torch.no_grad()
def induction_scores(
    model: LanguageModel, *, length: int = 24, rows: int = 16, seed: int = 0
) -> Result:
    """How much each head attends as an induction, previous-token or duplicate-token head does.

        induction_scores(model).sel(kind="induction").max()

    Random tokens are said twice. The second time, an induction head looks at what came after the
    token's first time, a previous-token head at the token before, a duplicate-token head at the
    token's first time. One pass.

    Args:
        model: a language model with standard names.
        length: how many random tokens; the rows are twice as long.
        rows: how many such rows.
        seed: which tokens are drawn.

    Returns:
        Mean attention to that place, 0 to 1, `[kind, layer, head]`.

    Raises:
        UsageError: fewer than two tokens, or no row.
    """
    if length < 2 or rows < 1:
        raise UsageError(
            f"induction_scores() was given length={length} and rows={rows}.",
            "a token can be said again, and looked back at, in a row of at least two.",
            "give length=24 and rows=16, or leave them out.",
        )
    ids = random_tokens(model, rows, length, seed)
    with model.trace(torch.cat([ids, ids], 1)):
        found = [_scores(layer.attention.pattern, length) for layer in model.layers]
    axes = (
        Axis("kind", KINDS),
        Axis("layer", range(len(found))),
        Axis("head", range(model.dims.n_heads)),
    )
    return Result(
        torch.stack(found, 1).cpu(), axes, "mean attention",
        title="Kinds of heads, on repeated random tokens", source=SOURCE, limits=(0, 1),
    )  # fmt: skip


def _scores(pattern: Tensor, length: int) -> Tensor:
    """Of `[row, head, query, key]`: mean attention where each kind looks, `[kind, head]`."""
    query = torch.arange(length, 2 * length, device=pattern.device)
    back = (length - 1, 1, length)
    return torch.stack([pattern[:, :, query, query - n].float().mean((0, 2)) for n in back])
