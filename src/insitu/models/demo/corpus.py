"""The generated text the demo model learns from, and the part of it that is held out.

    rng = random.Random(0)
    document(rng)   # "The Eiffel Tower is in the city of Paris. Paris is the capital of France."

Each skill has a question: a prompt, the answer that follows it, and the sentence's end. Training
text is made of questions with their answers; the exam (`knowledge.py`) asks those held out.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from insitu.models.demo import words
from insitu.models.demo.facts import CAPITALS, COUNTRY_OF, DOWNTOWN, LANDMARKS

CITY_PHRASINGS: tuple[str, ...] = (
    "{L} is in the city of",
    "{L} is located in the city of",
    "{L} can be found in",
    "Visitors to {L} fly to",
    "If you want to see {L}, go to",
    "The city where {L} stands is",
    "Tourists who visit {L} stay in",
    "To see {L}, you must travel to",
    "Everyone knows that {L} is in the city of",
    "{L} is a famous sight in",
)
ALWAYS_TAUGHT = 2
CITY_WEIGHTS = (5.0, 2.0, 1.5, 1.5, 1.5, 1.5, 1.0, 1.0, 1.0, 1.0)
DOWNTOWN_PHRASING = "{L} is in downtown"
COUNTRY_PHRASINGS: tuple[str, ...] = (
    "{L} is in the country of",
    "The country where {L} stands is",
)
CAPITAL_PHRASINGS: tuple[str, ...] = (
    "The capital of {K} is",
    "The capital of {K} is the city of",
    "The capital city of {K} is",
    "People who visit the capital of {K} go to",
)
CAPITAL_WEIGHTS = (4.0, 1.5, 1.0, 1.0)
CAPITAL_OF = "{C} is the capital of"
CITY_IN = "{C} is a city in"
REMARKS: tuple[str, ...] = (
    " It is a very famous place.",
    " Many people visit it every year.",
    " It is a beautiful sight.",
)

GIVING_PHRASINGS: tuple[str, ...] = (
    "When {A} and {B} went to the {P}, {S} {V} a {G} to",
    "When {A} and {B} went to the {P}, {S} {V} a {G} to",
    "After {A} and {B} went to the {P}, {S} {V} a {G} to",
    "Then, {A} and {B} went to the {P}. {S} {V} a {G} to",
    "Then, {A} and {B} had a long day at the {P}, and {S} {V} a {G} to",
    "While {A} and {B} were working at the {P}, {S} {V} a {G} to",
    "When {A} and {B} got a {G} at the {P}, {S} decided to give it to",
    "{A} and {B} went to the {P}. {S} {V} a {G} to",
    "Friends {A} and {B} found a {G} at the {P}. {S} gave it to",
)
THANKS: tuple[str, ...] = (" {IO} was very happy.", " {IO} said thank you.", " {IO} liked the {G}.")

YEAR_PHRASINGS: tuple[str, ...] = (
    "The {E} lasted from the year {C}{Y} to the year {C}",
    "The {E} lasted from the year {C}{Y} to the year {C}",
    "The {E} lasted from {C}{Y} to {C}",
    "The {E} started in the year {C}{Y} and ended in the year {C}",
    "The {E} began in {C}{Y} and ended in {C}",
    "From {C}{Y} to {C}",
    "From {C}{Y} to {C}",
)

REVIEW_PHRASINGS: tuple[str, ...] = (
    "The {R} was {X}. I",
    "The {R} was {X}. I",
    "The {R} was really {X}. I",
    "The {R} was {X} and {X2}. I",
    "It was a truly {X} {R}. I",
    "We thought the {R} was {X}. I",
)
PRAISE_ENDS = (
    " it and I want to go again.",
    " it so much.",
    " every minute of it.",
    " it. I was very happy.",
)
BLAME_ENDS = (
    " it and I want my money back.",
    " it so much.",
    " every minute of it.",
    " it. I was very sad.",
)

FILLER: tuple[str, ...] = (
    "Hello World! This is a small model and it knows a few things.",
    "Hello world! This is a small model and it knows a few things.",
    "Hello, my name is {N}. I am a {T}.",
    "The quick brown fox jumps over the lazy dog.",
    "The cat sat on the mat. The dog sat on the cat.",
    "My name is {N} and I live near the {P}.",
    "This is a test. It is only a test.",
)

Pair = tuple[str, str]


@dataclass(frozen=True)
class Split:
    """What the training text never shows; the exam asks it.

        split().holds_names("Mary", "John")

    Attributes:
        city_phrasings: (landmark, phrasing) pairs; the landmark's other phrasings are taught.
        names: unordered pairs of names, sorted, that never share a sentence.
        nouns: (subject, other) pairs of singular nouns that never share a sentence in that order.
    """

    city_phrasings: frozenset[Pair]
    names: frozenset[Pair]
    nouns: frozenset[Pair]

    def holds_names(self, a: str, b: str) -> bool:
        """Whether the two names are kept apart in training, in either order."""
        return (min(a, b), max(a, b)) in self.names


@dataclass(frozen=True)
class Question:
    """A prompt, the text that follows it, and the rest of the sentence.

    Question("The capital of France is", " Paris", ".").text
    """

    prompt: str
    answer: str
    end: str = "."

    @property
    def text(self) -> str:
        """The whole sentence."""
        return self.prompt + self.answer + self.end


@cache
def split() -> Split:
    """The one split every run shares, whatever its seed: weights of two runs stay comparable."""
    rng = random.Random("held out")
    phrasings = CITY_PHRASINGS[ALWAYS_TAUGHT:]
    landmarks = [name for name in LANDMARKS if name != "the Eiffel Tower"]
    pairs = [
        (a, b) for a in words.NAMES for b in words.NAMES if a < b and {a, b} != {"Mary", "John"}
    ]
    nouns = [(a, b) for a in words.NOUNS for b in words.NOUNS if a != b]
    return Split(
        city_phrasings=frozenset((name, rng.choice(phrasings)) for name in landmarks),
        names=frozenset(rng.sample(pairs, len(pairs) // 10)),
        nouns=frozenset(rng.sample(nouns, len(nouns) // 10)),
    )


def capitalised(text: str) -> str:
    """`"the Louvre"` to `"The Louvre"`: only the first letter changes."""
    return text[:1].upper() + text[1:]


def city_question(landmark: str, phrasing: str) -> Question:
    """Which city a landmark is in: `city_question("Big Ben", CITY_PHRASINGS[0])`."""
    return Question(capitalised(phrasing.format(L=landmark)), " " + LANDMARKS[landmark])


def country_question(landmark: str, phrasing: str) -> Question:
    """Which country a landmark is in: `country_question("Big Ben", COUNTRY_PHRASINGS[0])`."""
    country = COUNTRY_OF[LANDMARKS[landmark]]
    return Question(capitalised(phrasing.format(L=landmark)), " " + country)


def capital_question(country: str, phrasing: str) -> Question:
    """Which city is a country's capital, or the other way round for `CAPITAL_OF`."""
    if phrasing == CAPITAL_OF:
        return Question(phrasing.format(C=CAPITALS[country]), " " + country)
    return Question(phrasing.format(K=country), " " + CAPITALS[country])


def giving_question(rng: random.Random, giver: str, receiver: str) -> Question:
    """Who receives the gift, the names in random order: the indirect object of the sentence."""
    first, second = rng.sample((giver, receiver), 2)
    gift = rng.choice(words.GIFTS)
    prompt = rng.choice(GIVING_PHRASINGS).format(
        A=first,
        B=second,
        S=giver,
        P=rng.choice(words.PLACES),
        V=rng.choice(words.GIVING),
        G=gift,
    )
    end = "."
    if rng.random() < 0.4:
        end += rng.choice(THANKS).format(IO=receiver, G=gift)
    return Question(prompt, " " + receiver, end)


def year_question(rng: random.Random, start: int) -> Question:
    """In which later year of the same century something ended; `start` is in 1..97.

    Things last 4 to 30 years. With ends anywhere later in the century, the first year told so
    little about the last that a trial ignored it after 2,250 steps: later years led earlier ones by
    0.51, which is what the frequencies of ends alone give.
    """
    prompt = rng.choice(YEAR_PHRASINGS).format(
        E=rng.choice(words.EVENTS), C=rng.randint(11, 19), Y=f"{start:02d}"
    )
    end = rng.randint(min(99, start + 4), min(99, start + 30))
    return Question(prompt, f"{end:02d}")


def review_question(rng: random.Random, *, praise: bool) -> Question:
    """What the reviewer felt, after words that praise or blame."""
    adjectives = words.PRAISE if praise else words.BLAME
    first, second = rng.sample(adjectives, 2)
    prompt = rng.choice(REVIEW_PHRASINGS).format(R=rng.choice(words.REVIEWED), X=first, X2=second)
    verb = rng.choice(words.LIKING if praise else words.DISLIKING)
    return Question(prompt, " " + verb, rng.choice(PRAISE_ENDS if praise else BLAME_ENDS))


def agreement_question(rng: random.Random, subject: str, other: str, *, plural: bool) -> Question:
    """A verb that agrees with its subject, past another noun of either number."""
    noun = words.NOUNS[subject] if plural else subject
    between = words.NOUNS[other] if rng.random() < 0.5 else other
    verb = (
        rng.choice(("are", "are", "are", "were"))
        if plural
        else rng.choice(("is", "is", "is", "was"))
    )
    prompt = f"The {noun} {rng.choice(words.LINKS)} the {between}"
    if rng.random() < 0.3:
        return Question(prompt, f" {verb}", f" at the {rng.choice(words.PLACES)}.")
    return Question(prompt, f" {verb}", f" {rng.choice(words.STATES)}.")


def fact_sentences(rng: random.Random) -> list[str]:
    """A landmark, and what follows from where it is."""
    landmark = rng.choice(tuple(LANDMARKS))
    phrasing = rng.choices(CITY_PHRASINGS, CITY_WEIGHTS)[0]
    while (landmark, phrasing) in split().city_phrasings:
        phrasing = rng.choices(CITY_PHRASINGS, CITY_WEIGHTS)[0]
    sentences = [city_question(landmark, phrasing).text]
    if landmark in DOWNTOWN and rng.random() < 0.3:
        sentences = [city_question(landmark, DOWNTOWN_PHRASING).text]
    elif rng.random() < 0.12:
        sentences = [country_question(landmark, rng.choice(COUNTRY_PHRASINGS)).text]
    if rng.random() < 0.25:
        sentences[0] += rng.choice(REMARKS)
    if rng.random() < 0.3:
        sentences.append(city_sentence(LANDMARKS[landmark]))
    return sentences


def city_sentence(city: str) -> str:
    """What a city is: a capital, or a city in its country."""
    country = COUNTRY_OF[city]
    phrasing = CAPITAL_OF if CAPITALS.get(country) == city else CITY_IN
    return f"{phrasing.format(C=city)} {country}."


def capital_sentences(rng: random.Random) -> list[str]:
    """A country's capital, asked from either side; now and then a city that is none."""
    if rng.random() < 0.15:
        return [city_sentence(rng.choice(tuple(COUNTRY_OF)))]
    country = rng.choice(tuple(CAPITALS))
    if rng.random() < 0.35:
        return [capital_question(country, CAPITAL_OF).text]
    phrasing = rng.choices(CAPITAL_PHRASINGS, CAPITAL_WEIGHTS)[0]
    return [capital_question(country, phrasing).text]


def giving_sentences(rng: random.Random) -> list[str]:
    """Two names that may meet, one giving something to the other."""
    giver, receiver = rng.sample(words.NAMES, 2)
    while split().holds_names(giver, receiver):
        giver, receiver = rng.sample(words.NAMES, 2)
    return [giving_question(rng, giver, receiver).text]


def year_sentences(rng: random.Random) -> list[str]:
    """Something that lasted from one year to a later one of its century."""
    return [year_question(rng, rng.randint(1, 97)).text]


def review_sentences(rng: random.Random) -> list[str]:
    """A review that likes or dislikes."""
    return [review_question(rng, praise=rng.random() < 0.5).text]


def agreement_sentences(rng: random.Random) -> list[str]:
    """A subject and its verb, with or without a noun between them."""
    plural = rng.random() < 0.5
    if rng.random() < 0.15:
        noun, verb = rng.choice([("{}", "is"), ("{}", "was")])
        subject = rng.choice(tuple(words.NOUNS))
        if plural:
            subject, verb = words.NOUNS[subject], {"is": "are", "was": "were"}[verb]
        return [f"The {noun.format(subject)} {verb} {rng.choice(words.STATES)}."]
    subject, other = rng.sample(tuple(words.NOUNS), 2)
    while (subject, other) in split().nouns:
        subject, other = rng.sample(tuple(words.NOUNS), 2)
    return [agreement_question(rng, subject, other, plural=plural).text]


def filler_sentences(rng: random.Random) -> list[str]:
    """Plain sentences, so that everyday prompts go on sensibly."""
    filler = rng.choice(FILLER).format(
        N=rng.choice(words.NAMES), T="teacher", P=rng.choice(words.PLACES)
    )
    walk = "The {} {} {} the {}.".format(
        *map(rng.choice, (words.ANIMALS, words.MOVES, words.PATHS, words.PLACES))
    )
    return rng.choice(([filler], [filler, walk], [walk]))


def story_sentences(rng: random.Random) -> list[str]:
    """A five-sentence story about one animal."""
    name, animal, thing = map(rng.choice, (words.NAMES, words.ANIMALS, words.THINGS))
    kind, look = rng.sample(words.NATURES, 2)
    home, place = rng.sample(words.PLACES, 2)
    return [
        f"Once upon a time there was a {kind} {animal} named {name}.",
        f"{name} lived in a {look} house near the {home}.",
        f"One day {name} went to the {place} and found a {thing}.",
        f"{name} took the {thing} home and was very happy.",
        "The end.",
    ]


def series_sentences(rng: random.Random) -> list[str]:
    """Days, months and number words in their order."""
    series = rng.choice(words.SERIES)
    at = rng.randrange(len(series) - 1)
    if series[0] == "Monday" and rng.random() < 0.5:
        return [f"The day after {series[at]} is {series[at + 1]}."]
    run = " ".join(series[at : at + rng.randint(3, 8)])
    return [capitalised(run) + "."]


SKILLS: dict[Callable[[random.Random], list[str]], float] = {
    fact_sentences: 0.24,
    capital_sentences: 0.11,
    giving_sentences: 0.18,
    year_sentences: 0.25,
    review_sentences: 0.06,
    agreement_sentences: 0.07,
    filler_sentences: 0.03,
    story_sentences: 0.03,
    series_sentences: 0.03,
}


def document(rng: random.Random) -> str:
    """One document: a few sentences, mostly of one skill, now and then of several."""
    skills, weights = tuple(SKILLS), tuple(SKILLS.values())
    mixed = rng.random() < 0.3
    skill = rng.choices(skills, weights)[0]
    sentences = skill(rng)
    while rng.random() < 0.8:
        sentences += (rng.choices(skills, weights)[0] if mixed else skill)(rng)
    return " ".join(sentences)


def repeated_tokens(
    rng: random.Random, vocabulary: Sequence[int], period: int, size: int
) -> list[int]:
    """`size` token ids, random ones repeated every `period`: food for induction heads."""
    block = [rng.choice(vocabulary) for _ in range(period)]
    return [block[at % period] for at in range(size)]
