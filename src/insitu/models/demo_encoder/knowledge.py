"""The exam of the demo encoder: one number for each thing it is said to know.

    model, tokenizer = load()
    city_accuracy(model, tokenizer, held_out=True)
    filled(model, tokenizer, ["The Eiffel Tower is in [MASK]."])      # ["Paris"]

    python -m insitu.models.demo_encoder.knowledge      # prints every number

A question counts when every token of its answer is the model's first choice, all masked at once.
"""

import pathlib
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM, BertTokenizer

from insitu.models.demo import corpus, words
from insitu.models.demo.corpus import Question
from insitu.models.demo.facts import CAPITALS, LANDMARKS
from insitu.models.demo_encoder.corpus import (
    CAPITAL_PHRASINGS,
    CITY_PHRASINGS,
    capital_question,
    city_question,
    country_question,
    held_out,
    masked,
)

CHECKPOINT = pathlib.Path(__file__).parent / "checkpoint"


def load(folder: pathlib.Path = CHECKPOINT) -> tuple[BertForMaskedLM, BertTokenizer]:
    """Load the committed model in float32, and its tokenizer: `model, tokenizer = load()`."""
    model: Any = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return model.eval(), tokenizer


@torch.no_grad()
def filled(model: BertForMaskedLM, tokenizer: BertTokenizer, texts: Sequence[str]) -> list[str]:
    """What the model puts in the masks of each text, most likely token by token."""
    inputs = tokenizer(list(texts), return_tensors="pt", padding=True)
    best = model(**inputs).logits.argmax(-1)
    blanks = inputs.input_ids == tokenizer.mask_token_id
    return [tokenizer.decode(row[at]) for row, at in zip(best, blanks, strict=True)]


def accuracy(
    model: BertForMaskedLM, tokenizer: BertTokenizer, questions: Iterable[Question]
) -> float:
    """Share of questions whose answers are filled in, every token right."""
    asked = list(questions)
    given = filled(model, tokenizer, [masked(question, tokenizer) for question in asked])
    right = sum(a == q.answer.strip() for a, q in zip(given, asked, strict=True))
    return right / len(asked)


def _in_all_phrasings(
    names: Iterable[str],
    phrasings: Sequence[str],
    ask: Callable[[str, str], Question],
    apart: bool,
) -> list[Question]:
    return [
        ask(name, phrasing)
        for name in names
        for phrasing in phrasings
        if ((name, phrasing) in held_out()) == apart
    ]


def city_accuracy(
    model: BertForMaskedLM, tokenizer: BertTokenizer, *, held_out: bool = False
) -> float:
    """Which city a landmark is in: in phrasings taught for it, or only for other landmarks."""
    questions = _in_all_phrasings(LANDMARKS, CITY_PHRASINGS, city_question, held_out)
    return accuracy(model, tokenizer, questions)


def capital_accuracy(
    model: BertForMaskedLM, tokenizer: BertTokenizer, *, held_out: bool = False
) -> float:
    """Which city is a country's capital, in phrasings taught for it, or only for others."""
    questions = _in_all_phrasings(CAPITALS, CAPITAL_PHRASINGS, capital_question, held_out)
    return accuracy(model, tokenizer, questions)


def country_accuracy(
    model: BertForMaskedLM, tokenizer: BertTokenizer, *, held_out: bool = False
) -> float:
    """Which country has that capital, in phrasings taught for it, or only for others."""
    questions = _in_all_phrasings(CAPITALS, CAPITAL_PHRASINGS, country_question, held_out)
    return accuracy(model, tokenizer, questions)


def agreement_accuracy(model: BertForMaskedLM, tokenizer: BertTokenizer) -> float:
    """Whether the verb agrees with its subject, for pairs of nouns never seen together."""
    rng = random.Random("agreement")
    pairs = sorted(corpus.split().nouns)
    right = 0
    for plural, verbs in ((False, ("is", "was")), (True, ("are", "were"))):
        questions = [corpus.agreement_question(rng, *pair, plural=plural) for pair in pairs]
        given = filled(model, tokenizer, [masked(question, tokenizer) for question in questions])
        right += sum(verb in verbs for verb in given)
    return right / (2 * len(pairs))


def giving_accuracy(model: BertForMaskedLM, tokenizer: BertTokenizer) -> float:
    """Indirect objects, for pairs of names that never met: 0.35, so not a thing it knows.

    Copying began only in the last fifth of the steps: 0.02 after 3,900 of them.
    """
    rng = random.Random("giving")
    pairs = rng.sample(sorted(corpus.split().names), 400)
    questions = [corpus.giving_question(rng, *rng.sample(pair, 2)) for pair in pairs]
    bare = [Question(question.prompt, question.answer) for question in questions]
    return accuracy(model, tokenizer, bare)


def review_accuracy(model: BertForMaskedLM, tokenizer: BertTokenizer) -> float:
    """Whether an adjective is filled in that fits the verb after it."""
    texts, fitting = [], []
    for adjectives, verbs in ((words.PRAISE, words.LIKING), (words.BLAME, words.DISLIKING)):
        for thing in sorted(set(words.REVIEWED)):
            for verb in sorted(set(verbs)):
                texts.append(f"The {thing} was [MASK]. I {verb} it so much.")
                fitting.append(adjectives)
    given = filled(model, tokenizer, texts)
    return sum(a in right for a, right in zip(given, fitting, strict=True)) / len(texts)


def report(model: BertForMaskedLM, tokenizer: BertTokenizer) -> dict[str, float]:
    """Every number of the exam by its name."""
    return {
        "cities, phrasings taught": city_accuracy(model, tokenizer),
        "cities, phrasings held out": city_accuracy(model, tokenizer, held_out=True),
        "capitals, phrasings taught": capital_accuracy(model, tokenizer),
        "capitals, phrasings held out": capital_accuracy(model, tokenizer, held_out=True),
        "countries, phrasings taught": country_accuracy(model, tokenizer),
        "countries, phrasings held out": country_accuracy(model, tokenizer, held_out=True),
        "agreement, new nouns": agreement_accuracy(model, tokenizer),
        "indirect objects, new pairs": giving_accuracy(model, tokenizer),
        "reviews": review_accuracy(model, tokenizer),
    }


if __name__ == "__main__":
    for name, number in report(*load()).items():
        print(f"{name:<32}{number:.3f}")
