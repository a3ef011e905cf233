"""What the recipes of the models that ship share: learning rates, steps, and what a run leaves.

for step in range(steps):
    loss = loss_nats(model, batch_of(step))
    take_step(optimizer, loss, model.parameters(), warmed_cosine(3e-3, step, steps, 200))
save_state(out / "training.pt", {"model": model, "optimizer": optimizer}, recipe, losses)
"""

import csv
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

SAVE_EVERY = 250
"""Steps between two savings of a run that can be resumed."""


def warmed_cosine(peak: float, step: int, steps: int, warmup: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine down to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return _fallen(peak, (step - warmup) / max(1, steps - warmup))


def warmed_plateau(peak: float, step: int, steps: int, warmup: int) -> float:
    """Learning rate of a step: linear warm-up, constant, and a cosine down over the last third."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return _fallen(peak, max(0.0, (step - steps * 2 / 3) / (steps / 3)))


def _fallen(peak: float, done: float) -> float:
    """A cosine from the peak down to 2 % of it, where a share of the way is done."""
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def decayed(weights: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups for an optimizer, with weight decay on matrices only."""
    weights = list(weights)
    return [
        {"params": [p for p in weights if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.dim() <= 1], "weight_decay": 0.0},
    ]


def adamw(groups: list[dict[str, Any]], rate: float) -> torch.optim.AdamW:
    """The optimizer of the models that read text."""
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def take_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, weights: Iterable[Tensor], rate: float
) -> None:
    """Go down a loss's gradient, clipped to length 1; a group may have a `share` of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("share", 1.0)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()


def save_state(path: pathlib.Path, parts: dict[str, Any], recipe: Any, losses: Any) -> None:
    """Write what `--resume` needs, replacing the old file only when the new one is whole.

    Args:
        path: the file.
        parts: modules and optimizers, by name.
        recipe: a dataclass of what can be saved.
        losses: of the steps taken.
    """
    states = {name: part.state_dict() for name, part in parts.items()}
    partial = path.with_suffix(".partial")
    torch.save({"recipe": vars(recipe), "losses": losses, **states}, partial)
    partial.replace(path)


def load_state(path: pathlib.Path, parts: dict[str, Any], recipe: Any) -> Any:
    """Restore a run that was interrupted; returns the losses of the steps already taken.

    Raises:
        SystemExit: there is no such run, or it was made by another recipe.
    """
    require_run(path)
    state = torch.load(path, weights_only=True)
    if state["recipe"] != vars(recipe):
        raise SystemExit(
            f"{path} belongs to a run with other settings.\n"
            f"Why: it was made with {state['recipe']}, now asked for {vars(recipe)}.\n"
            "Next: give the same --steps and --seed, or another --out."
        )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["losses"]


def require_run(path: pathlib.Path) -> None:
    """Refuse to resume what is not there.

    Raises:
        SystemExit: it is not.
    """
    if not path.exists():
        raise SystemExit(
            f"{path} was not found, so there is nothing to resume.\n"
            f"Why: a run is saved there every {SAVE_EVERY} steps; none has been saved.\n"
            "Next: start without --resume, or name the run's folder with --out."
        )


def write_losses(
    path: pathlib.Path, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]], digits: int = 5
) -> None:
    """Write a line for each row as it comes; its last value is the loss."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows((*row[:-1], f"{row[-1]:.{digits}f}") for row in rows)


def plot_losses(csv_path: pathlib.Path, html_path: pathlib.Path) -> None:
    """Draw the loss of every step as a page of its own.

        plot_losses(out / "loss.csv", out / "loss.html")

    Raises:
        SystemExit: plotly is not installed.
    """
    try:
        from plotly import graph_objects
    except ImportError:
        raise SystemExit(
            "The loss plot needs plotly, which is not installed.\n"
            f"Why: the plot is optional; the numbers are in {csv_path}.\n"
            "Next: pip install plotly"
        ) from None
    with csv_path.open() as file:
        lines = list(csv.DictReader(file))
    figure = graph_objects.Figure(
        graph_objects.Scatter(
            x=[int(line["step"]) for line in lines], y=[float(line["loss_nats"]) for line in lines]
        )
    )
    figure.update_layout(xaxis_title="step", yaxis_title="loss (nats per token)")
    figure.write_html(html_path, include_plotlyjs="cdn")
