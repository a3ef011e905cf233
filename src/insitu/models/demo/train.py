"""Train the demo model from scratch on generated text: about an hour on one core.

    python -m insitu.models.demo.train --out demo-model
    python -m insitu.models.demo.train --out demo-model --resume    # after an interruption

`--out` receives `checkpoint/` (the model folder that is committed next to this file), `training.pt`
(optimizer state, for `--resume`), `loss.csv` and, where plotly is installed, `loss.html`.
"""

import argparse
import copy
import math
import pathlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from insitu.models.demo.corpus import document, repeated_tokens
from insitu.models.demo.tokenizer import train_tokenizer
from insitu.models.training import (
    SAVE_EVERY,
    adamw,
    decayed,
    load_state,
    plot_losses,
    require_run,
    save_state,
    take_step,
    warmed_cosine,
    write_losses,
)

IGNORED = -100
CONTEXT = 128
TOKENS_PER_STEP = 3072


@dataclass(frozen=True)
class Recipe:
    """What a run is made of; two runs of one recipe give the same weights.

    train(Recipe(steps=1000), pathlib.Path("demo-model"))
    """

    steps: int = 4000
    seed: int = 0
    peak_rate: float = 3e-3
    warmup_steps: int = 200
    weight_decay: float = 0.02
    repeated_rows: float = 0.2

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear warm-up, then a cosine down to 2 % of the peak."""
        return warmed_cosine(self.peak_rate, step, self.steps, self.warmup_steps)


@dataclass(frozen=True)
class Batch:
    """Token ids, the targets (`IGNORED` where none) and the positions of one step."""

    ids: Tensor
    targets: Tensor
    positions: Tensor


def new_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """An untrained GPT-2 of six layers, four heads of 32 and width 128.

    Heads are 32 wide because vLLM's attention on CPU refuses 16.
    """
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=128,
        n_layer=6,
        n_head=4,
        initializer_range=0.05,
        # The same function as GPT-2's gelu_new, in one kernel; saved under GPT-2's name.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
    )
    model: GPT2LMHeadModel = GPT2LMHeadModel(config)
    model.transformer.wpe.weight.data = waves(CONTEXT, config.n_embd)
    return model


def waves(positions: int, width: int) -> Tensor:
    """Sine waves for the position embeddings to start from, `[pos, d_model]`.

    Heads that attend to the previous token form early from these, and induction is built on them.
    In short trials (which differed in learning rate too) the best head put 0.20 of its attention on
    the previous token after 200 steps, 0.09 from waves a quarter as high; from GPT-2's usual noise
    0.05 after 1,500 steps, and induction had not begun.

    Source: Vaswani et al., "Attention Is All You Need" (2017), section 3.5.
    """
    frequency = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    angle = torch.arange(positions)[:, None] * frequency
    return 0.2 * torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


def text_rows(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, rows: int, length: int
) -> list[list[int]]:
    """Rows of documents, each row starting with the beginning of one.

    Most rows open without an end-of-text token, as the prompts of a trace do.
    """
    end = tokenizer.eos_token_id
    made: list[list[int]] = []
    for _ in range(rows):
        row: list[int] = [end] if rng.random() < 0.2 else []
        while len(row) <= length:
            row += [*tokenizer.backend_tokenizer.encode(document(rng)).ids, end]
        made.append(row[: length + 1])
    return made


def repeated_row(rng: random.Random, vocabulary: range, length: int) -> tuple[list[int], list[int]]:
    """A row of repeated random tokens, and its targets: the first period cannot be known.

    Short periods are the likelier: they repeat more often, so induction is learned from them first.
    """
    period = 4 + int((length // 2 - 3) * rng.random() ** 2)
    row = repeated_tokens(rng, vocabulary, period, length + 1)
    return row[:-1], [IGNORED] * period + row[period + 1 :]


def batch_of(step: int, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Batch:
    """The batch of a step: it depends on the seed and the step alone, so a run can be resumed."""
    rng = random.Random(f"{recipe.seed}-{step}")
    length = CONTEXT if step % 3 == 0 else CONTEXT // 2
    rows = TOKENS_PER_STEP // length
    repeated = round(rows * recipe.repeated_rows)
    texts = text_rows(rng, tokenizer, rows - repeated, length)
    pairs = [(row[:-1], row[1:]) for row in texts]
    vocabulary = range(300, len(tokenizer))
    pairs += [repeated_row(rng, vocabulary, length) for _ in range(repeated)]
    # Some rows start further on: under left padding a prompt does.
    shifts = [rng.randint(0, CONTEXT - length) if rng.random() < 0.2 else 0 for _ in pairs]
    return Batch(
        ids=torch.tensor([ids for ids, _ in pairs]),
        targets=torch.tensor([targets for _, targets in pairs]),
        positions=torch.tensor(shifts)[:, None] + torch.arange(length),
    )


def loss_nats(model: GPT2LMHeadModel, batch: Batch) -> Tensor:
    """Mean cross-entropy of a batch; logits are computed only where there is a target."""
    hidden = model.transformer(batch.ids, position_ids=batch.positions).last_hidden_state
    known = batch.targets != IGNORED
    return functional.cross_entropy(model.lm_head(hidden[known]), batch.targets[known])


def steps_of(
    model: GPT2LMHeadModel,
    optimizer: torch.optim.AdamW,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    start: int,
) -> Iterator[tuple[int, float]]:
    """Take the steps from `start` on, yielding each step's number and loss."""
    model.train()
    for step in range(start, recipe.steps):
        loss = loss_nats(model, batch_of(step, recipe, tokenizer))
        take_step(optimizer, loss, model.parameters(), recipe.rate(step))
        yield step, loss.item()


def train(recipe: Recipe, out: pathlib.Path, *, resume: bool = False) -> pathlib.Path:
    """Train, saving now and then, and return the folder of the finished model.

    folder = train(Recipe(steps=1000), pathlib.Path("demo-model"))
    AutoModelForCausalLM.from_pretrained(folder)
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(recipe.seed)
    tokenizer = tokenizer_of(out) if resume else train_tokenizer()
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


def tokenizer_of(out: pathlib.Path) -> PreTrainedTokenizerFast:
    """The tokenizer a run began with, which stays its own even if the corpus has changed since."""
    folder = out / "checkpoint"
    require_run(folder)
    return cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(folder))


def export(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: pathlib.Path
) -> None:
    """Write the model folder: float16 weights, configuration and tokenizer."""
    end = tokenizer.eos_token_id
    halved = copy.deepcopy(model)
    halved.config.activation_function = "gelu_new"
    halved.config.pad_token_id = end
    halved.generation_config = GenerationConfig(
        do_sample=False, bos_token_id=end, eos_token_id=end, pad_token_id=end
    )
    halved.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("demo-model"))
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    folder = train(Recipe(steps=asked.steps, seed=asked.seed), asked.out, resume=asked.resume)
    print(f"{folder} holds the model.")
    plot_losses(asked.out / "loss.csv", asked.out / "loss.html")


if __name__ == "__main__":
    main()
