import random

import pytest

from insitu.models.demo import words
from insitu.models.demo.corpus import (
    CITY_PHRASINGS,
    agreement_question,
    capital_question,
    city_question,
    country_question,
    document,
    giving_question,
    repeated_tokens,
    split,
    year_question,
)
from insitu.models.demo.facts import CAPITALS, COUNTRY_OF, DOWNTOWN, LANDMARKS


def test_the_tables_hold_what_the_design_asks_for():
    assert len(LANDMARKS) >= 60
    assert len(CAPITALS) >= 60
    assert len(set(words.NAMES)) == len(words.NAMES) >= 60


def test_every_city_of_a_landmark_has_a_country():
    assert set(LANDMARKS.values()) <= set(COUNTRY_OF)
    assert set(DOWNTOWN) <= set(LANDMARKS)


def test_no_name_is_also_a_city_or_a_month():
    months = {word for series in words.SERIES for word in series}
    assert not set(words.NAMES) & (set(COUNTRY_OF) | months)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        (
            city_question("the Eiffel Tower", CITY_PHRASINGS[0]),
            "The Eiffel Tower is in the city of Paris.",
        ),
        (city_question("Vatican", CITY_PHRASINGS[0]), "Vatican is in the city of Rome."),
        (
            country_question("Big Ben", "The country where {L} stands is"),
            "The country where Big Ben stands is the United Kingdom.",
        ),
        (capital_question("Japan", "The capital of {K} is"), "The capital of Japan is Tokyo."),
        (capital_question("Japan", "{C} is the capital of"), "Tokyo is the capital of Japan."),
    ],
)
def test_a_question_reads_as_a_sentence(question, text):
    assert question.text == text


def test_the_same_seed_makes_the_same_documents():
    first, second = random.Random(7), random.Random(7)
    assert [document(first) for _ in range(50)] == [document(second) for _ in range(50)]


def test_held_out_phrasings_and_names_never_appear_in_documents():
    rng = random.Random(1)
    text = "\n".join(document(rng) for _ in range(20_000))
    for landmark, phrasing in split().city_phrasings:
        assert city_question(landmark, phrasing).text not in text
    lines = text.replace(".", "\n").splitlines()
    joined = {tuple(sorted(pair)) for line in lines for pair in names_joined(line)}
    assert len(joined) > 2000
    assert not joined & split().names


def names_joined(line):
    tokens = line.replace(",", "").split()
    return [
        (left, right)
        for left, word, right in zip(tokens, tokens[1:], tokens[2:], strict=False)
        if word == "and" and left in words.NAMES and right in words.NAMES
    ]


def test_held_out_nouns_never_meet_in_documents():
    rng = random.Random(2)
    text = "\n".join(document(rng) for _ in range(20_000))
    for subject, other in split().nouns:
        assert f"The {subject} near the {other} " not in text
        assert f"The {words.NOUNS[subject]} to the {other} " not in text


def test_every_landmark_keeps_its_first_phrasings_in_training():
    held = split().city_phrasings
    assert not any(phrasing in CITY_PHRASINGS[:2] for _, phrasing in held)
    assert "the Eiffel Tower" not in {landmark for landmark, _ in held}
    assert len(held) >= 60


def test_a_receiver_is_named_before_and_the_giver_twice():
    rng = random.Random(3)
    for _ in range(50):
        question = giving_question(rng, "John", "Mary")
        assert question.answer == " Mary"
        assert question.prompt.count("John") == 2
        assert question.prompt.count("Mary") == 1


def test_years_end_later_in_the_same_century():
    rng = random.Random(4)
    for start in range(1, 98):
        question = year_question(rng, start)
        assert int(question.answer) > start


def test_the_verb_follows_the_subject_and_not_the_noun_between():
    rng = random.Random(5)
    for _ in range(50):
        assert agreement_question(rng, "key", "cabinet", plural=True).answer in {" are", " were"}
        assert agreement_question(rng, "key", "cabinet", plural=False).answer in {" is", " was"}


def test_repeated_tokens_repeat():
    ids = repeated_tokens(random.Random(6), range(300, 400), 5, 12)
    assert len(ids) == 12
    assert ids[5:10] == ids[:5]
    assert ids[10:] == ids[:2]
