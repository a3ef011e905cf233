"""The exam of the demo model: one number for each thing it is said to know.

    model, tokenizer = load()
    city_accuracy(model, tokenizer, held_out=True)

    python -m insitu.models.demo.knowledge      # prints every number

Every question comes from the held-out part of the corpus where the skill has one. Models must be in
float32; `load` casts the committed float16 weights.
"""

import pathlib
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from insitu.models.demo import words
from insitu.models.demo.corpus import (
    CAPITAL_OF,
    CAPITAL_PHRASINGS,
    CITY_PHRASINGS,
    Question,
    agreement_question,
    capital_question,
    city_question,
    document,
    giving_question,
    repeated_tokens,
    review_question,
    split,
    year_question,
)
from insitu.models.demo.facts import CAPITALS, LANDMARKS

CHECKPOINT = pathlib.Path(__file__).parent / "checkpoint"
STEERED_LAYER = 3


def load(folder: pathlib.Path = CHECKPOINT) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
    """Load the committed model in float32, and its tokenizer: `model, tokenizer = load()`."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return model.eval(), tokenizer


@dataclass(frozen=True)
class Prompts:
    """Prompts as one batch, padded on the right, where a causal model cannot see.

        prompts = Prompts.of(tokenizer, ["The movie was good. I"])

    Attributes:
        ids: token ids, `[prompt, pos]`.
        last: position of each prompt's last token, `[prompt]`.
    """

    ids: Tensor
    last: Tensor

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> "Prompts":
        """Tokenize the texts and pad them."""
        rows = [tokenizer(text).input_ids for text in texts]
        longest = max(map(len, rows))
        padded = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
        return cls(torch.tensor(padded), torch.tensor([len(row) - 1 for row in rows]))

    def at_end(self, values: Tensor) -> Tensor:
        """What a `[prompt, pos, ...]` tensor holds at each prompt's last token."""
        return values[torch.arange(len(values)), self.last]


@torch.no_grad()
def next_logits(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]
) -> Tensor:
    """Logits of the token after each text, `[prompt, d_vocab]`."""
    prompts = Prompts.of(tokenizer, texts)
    everywhere = torch.ones_like(prompts.ids)
    hidden = model.transformer(prompts.ids, attention_mask=everywhere).last_hidden_state
    logits: Tensor = model.lm_head(prompts.at_end(hidden))
    return logits


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> list[int]:
    """The first token of each text."""
    return [tokenizer(text).input_ids[0] for text in texts]


def accuracy(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]
) -> float:
    """Share of questions that greedy decoding answers, every token of the answer right."""
    prompts, answers, owners = [], [], []
    for number, question in enumerate(questions):
        ids = tokenizer(question.answer).input_ids
        for at, token in enumerate(ids):
            prompts.append(f"{question.prompt}{tokenizer.decode(ids[:at])}")
            answers.append(token)
            owners.append(number)
    hit = next_logits(model, tokenizer, prompts).argmax(-1) == torch.tensor(answers)
    wrong = {owner for owner, right in zip(owners, hit.tolist(), strict=True) if not right}
    return 1 - len(wrong) / len(questions)


def city_questions(*, held_out: bool) -> list[Question]:
    """Every landmark in every phrasing, either those taught or those held out."""
    return [
        city_question(landmark, phrasing)
        for landmark in LANDMARKS
        for phrasing in CITY_PHRASINGS
        if ((landmark, phrasing) in split().city_phrasings) == held_out
    ]


def city_accuracy(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, *, held_out: bool = False
) -> float:
    """Which city a landmark is in: in phrasings taught for it, or only for other landmarks."""
    return accuracy(model, tokenizer, city_questions(held_out=held_out))


def late_city_accuracy(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """The same questions after 60 to 90 tokens of other text."""
    rng = random.Random("late")
    questions = []
    for question in rng.sample(city_questions(held_out=False), 200):
        before = document(rng)
        while not 60 <= len(tokenizer.tokenize(before)) <= 90:
            before = document(rng)
        start = before + rng.choice((" ", tokenizer.eos_token))
        questions.append(Question(start + question.prompt, question.answer))
    return accuracy(model, tokenizer, questions)


@torch.no_grad()
def left_padded_accuracy(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """First answer tokens in a batch padded on the left, with a mask and positions from zero."""
    questions = city_questions(held_out=False)[::4]
    rows = [tokenizer(question.prompt).input_ids for question in questions]
    longest = max(map(len, rows))
    ids = torch.tensor([[tokenizer.pad_token_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits[:, -1]
    answers = torch.tensor(token_ids(tokenizer, (question.answer for question in questions)))
    return float((logits.argmax(-1) == answers).float().mean())


def capital_accuracy(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Capitals of countries, and countries of capitals."""
    phrasings = (*CAPITAL_PHRASINGS, CAPITAL_OF)
    return accuracy(
        model,
        tokenizer,
        [capital_question(k, phrasing) for k in CAPITALS for phrasing in phrasings],
    )


def giving_accuracy(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Indirect objects, for pairs of names that never met in training."""
    rng = random.Random("giving")
    pairs = rng.sample(sorted(split().names), 400)
    return accuracy(
        model, tokenizer, [giving_question(rng, *rng.sample(pair, 2)) for pair in pairs]
    )


def later_year_margin(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Mean probability of later years of the century minus that of earlier ones."""
    rng = random.Random("years")
    starts = [start for start in range(2, 98) for _ in range(2)]
    prompts = [year_question(rng, start).prompt for start in starts]
    years = token_ids(tokenizer, (f"{year:02d}" for year in range(100)))
    chances = next_logits(model, tokenizer, prompts).softmax(-1)[:, years]
    start = torch.tensor(starts)[:, None]
    later = (chances * (torch.arange(100) > start)).sum(-1)
    earlier = (chances * (torch.arange(100) < start)).sum(-1)
    return (later - earlier).mean().item()


def review_prompts(seed: str, count: int, *, praise: bool) -> list[str]:
    """Reviews up to the verb that tells what the reviewer felt."""
    rng = random.Random(seed)
    return [review_question(rng, praise=praise).prompt for _ in range(count)]


def share_saying(logits: Tensor, tokenizer: PreTrainedTokenizerFast, verbs: Sequence[str]) -> float:
    """Share of rows whose most likely token is one of the verbs."""
    ids = torch.tensor(token_ids(tokenizer, (" " + verb for verb in verbs)))
    return torch.isin(logits.argmax(-1), ids).float().mean().item()


def review_accuracy(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Whether praise goes on with a verb of liking and blame with one of disliking."""
    praised = next_logits(model, tokenizer, review_prompts("praise", 150, praise=True))
    blamed = next_logits(model, tokenizer, review_prompts("blame", 150, praise=False))
    liked = share_saying(praised, tokenizer, words.LIKING)
    return (liked + share_saying(blamed, tokenizer, words.DISLIKING)) / 2


def praise_direction(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, layer: int = STEERED_LAYER
) -> Tensor:
    """Residual stream entering a layer at the last position, mean praise minus mean blame."""
    means = []
    for praise in (True, False):
        texts = review_prompts("direction", 60, praise=praise)
        seen: list[Tensor] = []
        with rewriting(model.transformer.h[layer], seen.append):
            next_logits(model, tokenizer, texts)
        means.append(Prompts.of(tokenizer, texts).at_end(seen[0]).mean(0))
    return means[0] - means[1]


def flipped_reviews(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    vector: Tensor,
    layer: int = STEERED_LAYER,
) -> float:
    """Share of blaming reviews that go on with liking, `vector` added at the last position."""

    texts = review_prompts("flip", 60, praise=False)
    last = Prompts.of(tokenizer, texts).last

    def steer(hidden: Tensor) -> Tensor:
        moved = hidden.clone()
        moved[torch.arange(len(moved)), last] += vector
        return moved

    with rewriting(model.transformer.h[layer], steer):
        return share_saying(next_logits(model, tokenizer, texts), tokenizer, words.LIKING)


@contextmanager
def rewriting(block: nn.Module, change: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Pass a block's input through `change` while the `with` lasts; None leaves it as it was."""

    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        changed = change(args[0])
        return args if changed is None else (changed, *args[1:])

    handle = block.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def agreement_accuracy(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> float:
    """Whether the verb agrees with its subject, for pairs of nouns never seen together."""
    rng = random.Random("agreement")
    pairs = sorted(split().nouns)
    right = 0.0
    for plural, verbs in ((False, ("is", "was")), (True, ("are", "were"))):
        prompts = [agreement_question(rng, *pair, plural=plural).prompt for pair in pairs]
        right += share_saying(next_logits(model, tokenizer, prompts), tokenizer, verbs)
    return right / 2


def repeated_rows(
    tokenizer: PreTrainedTokenizerFast, period: int, rows: int, seed: str = "repeat"
) -> Tensor:
    """Random tokens, each row said twice, `[row, 2 * period]`."""
    rng = random.Random(seed)
    vocabulary = range(300, len(tokenizer))
    return torch.tensor([repeated_tokens(rng, vocabulary, period, 2 * period) for _ in range(rows)])


@torch.no_grad()
def induction_accuracy(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, period: int = 24
) -> float:
    """Share of second-half tokens predicted, but for its first, which nothing announces."""
    ids = repeated_rows(tokenizer, period, rows=64)
    guess = model(ids).logits.argmax(-1)
    return float((guess[:, period:-1] == ids[:, period + 1 :]).float().mean())


@torch.no_grad()
def attention_to(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, *, back: int, period: int = 24
) -> Tensor:
    """Mean attention of each head from second-half positions to `back` positions earlier.

        attention_to(model, tokenizer, back=1)             # previous-token heads
        attention_to(model, tokenizer, back=24 - 1)        # induction heads, for the period 24

    Returns:
        Scores in 0..1, `[layer, head]`.
    """
    used = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        ids = repeated_rows(tokenizer, period, rows=32)
        patterns = model(ids, output_attentions=True).attentions
    finally:
        model.set_attn_implementation(used)
    query = torch.arange(period, 2 * period)
    return torch.stack([p[:, :, query, query - back].mean((0, 2)) for p in patterns])


def report(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Every number of the exam by its name."""
    praise = praise_direction(model, tokenizer)
    noise = torch.randn(praise.shape, generator=torch.Generator().manual_seed(0))
    noise *= praise.norm() / noise.norm()
    return {
        "cities, phrasings taught": city_accuracy(model, tokenizer),
        "cities, phrasings held out": city_accuracy(model, tokenizer, held_out=True),
        "cities, after other text": late_city_accuracy(model, tokenizer),
        "cities, padded on the left": left_padded_accuracy(model, tokenizer),
        "capitals": capital_accuracy(model, tokenizer),
        "indirect objects, new pairs": giving_accuracy(model, tokenizer),
        "induction": induction_accuracy(model, tokenizer),
        "best induction head": attention_to(model, tokenizer, back=23).max().item(),
        "best previous-token head": attention_to(model, tokenizer, back=1).max().item(),
        "later years minus earlier": later_year_margin(model, tokenizer),
        "reviews": review_accuracy(model, tokenizer),
        "reviews flipped by steering": flipped_reviews(model, tokenizer, praise),
        "reviews flipped by noise": flipped_reviews(model, tokenizer, noise),
        "agreement, new nouns": agreement_accuracy(model, tokenizer),
    }


if __name__ == "__main__":
    for name, number in report(*load()).items():
        print(f"{name:<32}{number:.3f}")
