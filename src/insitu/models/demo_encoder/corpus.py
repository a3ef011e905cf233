"""What the demo encoder reads: the demo model's corpus, with the answer anywhere in the sentence.

    question = city_question("the Eiffel Tower", "{L} is in {C}.")
    question.prompt, question.answer, question.end     # "The Eiffel Tower is in", "Paris", "."
    masked(question, tokenizer)                        # "The Eiffel Tower is in [MASK]."

An encoder sees both sides of a blank, so beside the demo model's phrasings, which end with their
answer, there are some that begin with it.
"""

import random
from collections.abc import Callable
from functools import cache
from typing import Any

from insitu.models.demo import corpus, words
from insitu.models.demo.corpus import Pair, Question
from insitu.models.demo.facts import CAPITALS, LANDMARKS

CITY_PHRASINGS: tuple[str, ...] = (
    "{L} is in {C}.",
    *(f"{phrasing} {{C}}." for phrasing in corpus.CITY_PHRASINGS),
    "{C} is home to {L}.",
    "In {C} you can see {L}.",
    "We went to {C} to see {L}.",
    "They live in {C}, near {L}.",
)
CAPITAL_PHRASINGS: tuple[str, ...] = (
    "The capital of {K} is {C}.",
    *(f"{phrasing} {{C}}." for phrasing in corpus.CAPITAL_PHRASINGS[1:]),
    "{C} is the capital of {K}.",
    "{C} is the capital city of {K}.",
    "We went to {C}, the capital of {K}.",
)
ALWAYS_TAUGHT = 1


@cache
def held_out() -> frozenset[Pair]:
    """(landmark or country, phrasing) pairs that training never shows; its other phrasings are.

    One of the demo model's phrasings and one of the encoder's own for each landmark, one phrasing
    for each country.
    """
    rng = random.Random("held out of the encoder")
    shared = {(name, f"{phrasing} {{C}}.") for name, phrasing in corpus.split().city_phrasings}
    own = CITY_PHRASINGS[1 + len(corpus.CITY_PHRASINGS) :]
    landmarks = [name for name in LANDMARKS if name != "the Eiffel Tower"]
    return frozenset(
        shared
        | {(landmark, rng.choice(own)) for landmark in landmarks}
        | {(country, rng.choice(CAPITAL_PHRASINGS[ALWAYS_TAUGHT:])) for country in CAPITALS}
    )


def blank(phrasing: str, asked: str, **names: str) -> Question:
    """A phrasing with one of its names as the answer: `blank("{C} is big.", "C", C="Paris")`."""
    before, after = phrasing.split(f"{{{asked}}}")
    before = corpus.capitalised(before.format(**names)).strip()
    return Question(before, names[asked], after.format(**names))


def city_question(landmark: str, phrasing: str) -> Question:
    """Which city a landmark is in: `city_question("Big Ben", CITY_PHRASINGS[0])`."""
    return blank(phrasing, "C", L=landmark, C=LANDMARKS[landmark])


def capital_question(country: str, phrasing: str) -> Question:
    """Which city is a country's capital: `capital_question("France", CAPITAL_PHRASINGS[0])`."""
    return blank(phrasing, "C", K=country, C=CAPITALS[country])


def country_question(country: str, phrasing: str) -> Question:
    """Which country has that capital: `country_question("France", CAPITAL_PHRASINGS[0])`."""
    return blank(phrasing, "K", K=country, C=CAPITALS[country])


def text_of(question: Question) -> str:
    """The whole sentence of a question."""
    return f"{question.prompt} {question.answer.strip()}{question.end}".strip()


def masked(question: Question, tokenizer: Any) -> str:
    """The sentence with a mask for each token of its answer."""
    count = len(tokenizer.tokenize(question.answer))
    return f"{question.prompt} {' '.join([tokenizer.mask_token] * count)}{question.end}".strip()


def city_sentence(rng: random.Random) -> Question:
    """A landmark and its city, in a phrasing that may be taught."""
    return _taught(rng, tuple(LANDMARKS), CITY_PHRASINGS, city_question)


def capital_sentence(rng: random.Random) -> Question:
    """A country and its capital, in a phrasing that may be taught, asked for either of them."""
    ask = country_question if rng.random() < 0.3 else capital_question
    return _taught(rng, tuple(CAPITALS), CAPITAL_PHRASINGS, ask)


def _taught(
    rng: random.Random,
    names: tuple[str, ...],
    phrasings: tuple[str, ...],
    ask: Callable[[str, str], Question],
) -> Question:
    """A question about any name in any phrasing, the first one oftener, that is not held out."""
    name, phrasing = rng.choice(names), rng.choice((phrasings[0], *phrasings))
    while (name, phrasing) in held_out():
        phrasing = rng.choice(phrasings)
    return ask(name, phrasing)


def giving_sentence(rng: random.Random) -> Question:
    """Two names that may meet, one giving something to the other."""
    giver, receiver = rng.sample(words.NAMES, 2)
    while corpus.split().holds_names(giver, receiver):
        giver, receiver = rng.sample(words.NAMES, 2)
    return corpus.giving_question(rng, giver, receiver)


def agreement_sentence(rng: random.Random) -> Question:
    """A subject and its verb, with another noun between them that it may meet."""
    subject, other = rng.sample(tuple(words.NOUNS), 2)
    while (subject, other) in corpus.split().nouns:
        subject, other = rng.sample(tuple(words.NOUNS), 2)
    return corpus.agreement_question(rng, subject, other, plural=rng.random() < 0.5)


def review_sentence(rng: random.Random) -> Question:
    """A review, asked for what was felt, or for the adjective that made it so."""
    question = corpus.review_question(rng, praise=rng.random() < 0.5)
    if rng.random() < 0.5:
        return question
    adjective = next(
        word for word in question.prompt.replace(".", "").split()[::-1]
        if word in words.PRAISE or word in words.BLAME
    )  # fmt: skip
    before, _, after = question.prompt.rpartition(adjective)
    return Question(before.strip(), adjective, after + question.answer + question.end)


def other_sentence(rng: random.Random) -> Question:
    """A sentence of the demo model's corpus without a question: years, stories, series, filler."""
    skill = rng.choice((
        corpus.year_sentences, corpus.filler_sentences, corpus.story_sentences,
        corpus.series_sentences,
    ))  # fmt: skip
    return Question(rng.choice(skill(rng)), "", "")


SKILLS: dict[Callable[[random.Random], Question], float] = {
    city_sentence: 0.38,
    capital_sentence: 0.2,
    giving_sentence: 0.16,
    agreement_sentence: 0.1,
    review_sentence: 0.08,
    other_sentence: 0.08,
}


def sentence(rng: random.Random) -> Question:
    """Any sentence, of one of the skills."""
    return rng.choices(tuple(SKILLS), tuple(SKILLS.values()))[0](rng)
