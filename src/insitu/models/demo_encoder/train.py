"""Train the demo encoder from scratch on generated text: a quarter of an hour on one free core.

    python -m insitu.models.demo_encoder.train --out demo-encoder
    python -m insitu.models.demo_encoder.train --out demo-encoder --resume   # after an interruption

`--out` receives `checkpoint/` (the model folder that is committed next to this file), `training.pt`
(optimizer state, for `--resume`), `loss.csv` and, where plotly is installed, `loss.html`.
"""

import argparse
import copy
import pathlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from insitu.models.demo.train import IGNORED, Recipe, tokenizer_of, waves
from insitu.models.demo_encoder.corpus import sentence
from insitu.models.demo_encoder.tokenizer import LONGEST, make_tokenizer
from insitu.models.training import (
    SAVE_EVERY,
    adamw,
    decayed,
    load_state,
    plot_losses,
    save_state,
    take_step,
    write_losses,
)

LENGTHS = (16, 24, 32, 48)
TOKENS_PER_STEP = 2048
STEPS = 5000
PEAK_RATE = 1.5e-3

ANSWERS_MASKED = 0.6
OTHERS_MASKED = 0.12
WHOLE = 0.9
"""The share of sentences that keep their full stop: users leave it off."""
SEEN = 0.08
"""The share of the other tokens that are to be predicted although they are seen, so that what the
model says of a whole sentence can be read."""


@dataclass(frozen=True)
class Batch:
    """Token ids, their mask, the targets (`IGNORED` where none) and the positions of one step."""

    ids: Tensor
    mask: Tensor
    targets: Tensor
    positions: Tensor


def new_model(tokenizer: BertTokenizer) -> BertForMaskedLM:
    """An untrained BERT of four layers, four heads of 32 and width 128."""
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=LONGEST,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: BertForMaskedLM = BertForMaskedLM(config)
    model.bert.embeddings.position_embeddings.weight.data = waves(LONGEST, config.hidden_size)
    return model


Row = tuple[list[int], list[int]]
"""Token ids, and what is to be predicted in their places."""


def sentence_row(rng: random.Random, tokenizer: BertTokenizer) -> Row:
    """A sentence with its answer masked, or not, and now and then another of its tokens."""
    question = sentence(rng)
    others = OTHERS_MASKED if question.answer else 2 * OTHERS_MASKED
    answer = float(rng.random() < ANSWERS_MASKED)
    ids: list[int] = []
    targets: list[int] = []
    end = question.end if rng.random() < WHOLE else question.end.removesuffix(".")
    parts = ((question.prompt, others), (question.answer, answer), (end, others))
    for text, share in parts:
        for token in tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids:
            hidden = rng.random() < share
            ids.append(tokenizer.mask_token_id if hidden else token)
            targets.append(token if hidden or rng.random() < SEEN else IGNORED)
    return ids, targets


def row_of(rng: random.Random, tokenizer: BertTokenizer, length: int) -> Row:
    """One or more whole sentences, up to a length."""
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids, targets = [start], [start if rng.random() < SEEN else IGNORED]
    while len(ids) == 1 or rng.random() < 0.85:
        more, asked = sentence_row(rng, tokenizer)
        if len(ids) + len(more) < length:
            ids, targets = ids + more, targets + asked
        elif len(ids) > 1:
            break
    return [*ids, end], [*targets, end if rng.random() < SEEN else IGNORED]


def batch_of(step: int, recipe: Recipe, tokenizer: BertTokenizer) -> Batch:
    """The batch of a step: it depends on the seed and the step alone, so a run can be resumed."""
    rng = random.Random(f"encoder-{recipe.seed}-{step}")
    length = LENGTHS[step % len(LENGTHS)]
    rows = [row_of(rng, tokenizer, length) for _ in range(TOKENS_PER_STEP // length)]
    # Some rows start further on: a longer text has its words there.
    shifts = [rng.randint(0, LONGEST - length) if rng.random() < 0.2 else 0 for _ in rows]
    ids = torch.tensor([_filled(ids, length, tokenizer.pad_token_id) for ids, _ in rows])
    return Batch(
        ids=ids,
        mask=(ids != tokenizer.pad_token_id).long(),
        targets=torch.tensor([_filled(targets, length, IGNORED) for _, targets in rows]),
        positions=torch.tensor(shifts)[:, None] + torch.arange(length),
    )


def _filled(row: list[int], length: int, filling: int) -> list[int]:
    return row + [filling] * (length - len(row))


def loss_nats(model: BertForMaskedLM, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch; logits are computed only where there is a target."""
    hidden = model.bert(
        batch.ids, attention_mask=batch.mask, position_ids=batch.positions
    ).last_hidden_state
    known = batch.targets != IGNORED
    return functional.cross_entropy(model.cls(hidden[known]), batch.targets[known])


def steps_of(
    model: BertForMaskedLM, optimizer: Any, tokenizer: BertTokenizer, recipe: Recipe, start: int
) -> Iterator[tuple[int, float]]:
    """Take the steps from `start` on, yielding each step's number and loss."""
    model.train()
    for step in range(start, recipe.steps):
        loss = loss_nats(model, batch_of(step, recipe, tokenizer))
        take_step(optimizer, loss, model.parameters(), recipe.rate(step))
        yield step, loss.item()


def train(recipe: Recipe, out: pathlib.Path, *, resume: bool = False) -> pathlib.Path:
    """Train, saving now and then, and return the folder of the finished model.

    folder = train(recipe_of(steps=1000), pathlib.Path("demo-encoder"))
    AutoModelForMaskedLM.from_pretrained(folder)
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    tokenizer = tokenizer_of(out) if resume else make_tokenizer()
    model = new_model(tokenizer)
    optimizer = adamw(decayed(model.parameters(), recipe.weight_decay), recipe.peak_rate)
    parts = {"model": model, "optimizer": optimizer}
    losses: list[float] = load_state(out / "training.pt", parts, recipe) if resume else []
    start = len(losses)
    steps = steps_of(model, optimizer, tokenizer, recipe, start)
    bar = tqdm(steps, total=recipe.steps, initial=start, unit="step", mininterval=2.0)
    for step, loss in bar:
        losses.append(loss)
        bar.set_postfix(loss_nats=f"{loss:.3f}", refresh=False)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == recipe.steps:
            save_state(out / "training.pt", parts, recipe, losses)
            export(model, tokenizer, out / "checkpoint")
            write_losses(out / "loss.csv", ("step", "loss_nats"), enumerate(losses))
    return out / "checkpoint"


def recipe_of(steps: int = STEPS, seed: int = 0) -> Recipe:
    """What a run is made of; two runs of one recipe give the same weights."""
    return Recipe(steps=steps, seed=seed, peak_rate=PEAK_RATE, repeated_rows=0.0)


def export(model: BertForMaskedLM, tokenizer: BertTokenizer, folder: pathlib.Path) -> None:
    """Write the model folder: float16 weights, configuration and tokenizer."""
    copy.deepcopy(model).half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the demo encoder.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo-encoder"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    folder = train(recipe_of(asked.steps, asked.seed), asked.out, resume=asked.resume)
    print(f"{folder} holds the model.")
    plot_losses(asked.out / "loss.csv", asked.out / "loss.html")


if __name__ == "__main__":
    main()
