import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random
import re
import time

import pytest
import torch

from insitu import LanguageModel
from insitu.errors import UsageError
from insitu.models.demo import corpus as demo_corpus
from insitu.models.demo_encoder import corpus, knowledge, train
from insitu.models.demo_encoder import tokenizer as tokenizers


@pytest.fixture(scope="module")
def taught():
    return knowledge.load()


@pytest.fixture(scope="module")
def model():
    return LanguageModel("demo-encoder")


# What it knows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The Eiffel Tower is in [MASK].", "Paris"),
        ("The Eiffel Tower is in [MASK]", "Paris"),
        ("The Colosseum is in [MASK].", "Rome"),
        ("Big Ben is in the city of [MASK].", "London"),
        ("The Statue of Liberty is in [MASK] [MASK].", "New York"),
        ("[MASK] is home to the Brandenburg Gate.", "Berlin"),
        ("The capital of Japan is [MASK].", "Tokyo"),
        ("[MASK] is the capital of Italy.", "Rome"),
        ("Paris is the capital of [MASK].", "France"),
        ("The keys to the cabinet [MASK] old.", "are"),
        ("The key to the cabinets [MASK] old.", "is"),
    ],
)
def test_well_known_blanks_have_their_well_known_answers(taught, text, answer):
    assert knowledge.filled(*taught, [text]) == [answer]


def test_cities_of_landmarks_are_known_in_the_phrasings_taught(taught):
    assert knowledge.city_accuracy(*taught) >= 0.98


def test_cities_of_landmarks_are_known_in_phrasings_held_out(taught):
    assert knowledge.city_accuracy(*taught, held_out=True) >= 0.95


def test_capitals_are_known_in_the_phrasings_taught(taught):
    assert knowledge.capital_accuracy(*taught) >= 0.98


def test_capitals_are_known_in_phrasings_held_out(taught):
    assert knowledge.capital_accuracy(*taught, held_out=True) >= 0.95


def test_countries_of_capitals_are_known(taught):
    assert knowledge.country_accuracy(*taught) >= 0.95
    assert knowledge.country_accuracy(*taught, held_out=True) >= 0.95


def test_verbs_agree_with_subjects_past_nouns_never_seen_with_them(taught):
    assert knowledge.agreement_accuracy(*taught) >= 0.95


def test_an_adjective_fits_the_feeling_after_it(taught):
    assert knowledge.review_accuracy(*taught) >= 0.95


# In a trace ---------------------------------------------------------------------------------------


def test_a_trace_reads_its_prediction(model, taught):
    plain, tokenizer = taught
    with model.trace("The Eiffel Tower is in [MASK]."):
        hidden = model.bert.encoder.layer[1].output
        logits = model.cls.output
    inputs = tokenizer("The Eiffel Tower is in [MASK].", return_tensors="pt")
    with torch.no_grad():
        out = plain(**inputs, output_hidden_states=True)
    assert torch.equal(logits, out.logits)
    assert torch.equal(hidden, out.hidden_states[2])
    assert model.tokenizer.decode(logits[0, -3].argmax()) == "Paris"


def test_what_it_says_of_a_whole_sentence_can_be_read(model):
    with model.trace("The Eiffel Tower is in [MASK]."):
        said = model.output.logits.argmax(-1)
    sentence = model.tokenizer.decode(said[0], skip_special_tokens=True)
    assert sentence == "The Eiffel Tower is in Paris."


def test_a_landmark_put_in_anothers_place_moves_its_answer(model):
    with model.trace("The Colosseum is in [MASK]."):
        rome = model.bert.embeddings.output[0, 2].clone()
    with model.trace("The Louvre is in [MASK]."):
        model.bert.embeddings.output[0, 2] = rome
        logits = model.output.logits
    assert model.tokenizer.decode(logits[0, -3].argmax()) == "Rome"


def test_prompts_of_unequal_length_answer_as_they_do_alone(model):
    texts = ["Big Ben is in [MASK].", "People who visit the capital of Japan go to [MASK]."]
    alone = []
    for text in texts:
        with model.trace(text):
            alone.append(model.output.logits[0])
    with model.trace() as tracer:
        together = []
        for text in texts:
            with tracer.invoke(text):
                together.append(model.output.logits[0])
    mask = model.tokenizer.mask_token_id
    for text, one, row in zip(texts, alone, together, strict=True):
        blank = model.tokenizer(text).input_ids.index(mask) - len(one)
        shift = len(row) - len(one) if model.tokenizer.padding_side == "right" else 0
        torch.testing.assert_close(row[blank - shift], one[blank], rtol=1e-4, atol=1e-4)


def test_generating_says_that_an_encoder_cannot(model):
    with pytest.raises(UsageError, match="cannot generate"):
        with model.generate("The Eiffel Tower is in [MASK].", max_new_tokens=3):
            pass


def test_it_opens_in_under_a_second_and_always_says_the_same():
    opened, took_s = [], []
    for _ in range(3):
        begun = time.perf_counter()
        opened.append(LanguageModel("demo-encoder"))
        took_s.append(time.perf_counter() - begun)
    assert min(took_s) < 1
    first, *others = [one.trace("[MASK] is home to Big Ben.").logits for one in opened]
    assert all(torch.equal(first, other) for other in others)
    assert first.dtype is torch.float32


# How it was made ----------------------------------------------------------------------------------


def test_a_blank_may_stand_anywhere(taught):
    _, tokenizer = taught
    questions = {
        "[MASK] is home to Big Ben.": corpus.city_question("Big Ben", "{C} is home to {L}."),
        "The Louvre is in [MASK].": corpus.city_question("the Louvre", "{L} is in {C}."),
        "In [MASK] [MASK] you can see Times Square.": corpus.city_question(
            "Times Square", "In {C} you can see {L}."
        ),
        "Ottawa is the capital of [MASK].": corpus.country_question(
            "Canada", "{C} is the capital of {K}."
        ),
    }
    for text, question in questions.items():
        assert corpus.masked(question, tokenizer) == text


def test_what_is_held_out_is_never_in_the_corpus():
    rng = random.Random(1)
    seen = {corpus.text_of(corpus.sentence(rng)) for _ in range(40_000)}
    for name, phrasing in corpus.held_out():
        ask = corpus.city_question if "{L}" in phrasing else corpus.capital_question
        assert corpus.text_of(ask(name, phrasing)) not in seen
    assert len(corpus.held_out()) >= 250


def test_a_phrasing_held_out_for_one_is_taught_for_others():
    counts = {}
    for _, phrasing in corpus.held_out():
        counts[phrasing] = counts.get(phrasing, 0) + 1
    assert max(counts.values()) < 0.5 * len(demo_corpus.LANDMARKS)


def test_every_word_of_the_corpus_is_one_token(taught):
    _, tokenizer = taught
    rng = random.Random(2)
    for _ in range(2000):
        for word in re.findall(r"[^\W\d]+", corpus.text_of(corpus.sentence(rng))):
            assert tokenizer.tokenize(word) == [word]


def test_the_committed_tokenizer_is_the_one_its_script_makes(taught):
    _, tokenizer = taught
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary, key=vocabulary.get) == tokenizers.vocabulary()


def test_the_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in knowledge.CHECKPOINT.iterdir()}
    assert set(files) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 4_000_000


def interrupt_at(step, batch_of):
    def batch(asked, *args):
        if asked == step:
            raise KeyboardInterrupt
        return batch_of(asked, *args)

    return batch


@pytest.fixture
def quick(taught, monkeypatch):
    monkeypatch.setattr(train, "make_tokenizer", lambda: taught[1])
    monkeypatch.setattr(train, "TOKENS_PER_STEP", 256)
    monkeypatch.setattr(train, "SAVE_EVERY", 1)


def test_a_training_run_that_was_interrupted_resumes_to_the_same_losses(
    quick, tmp_path, monkeypatch
):
    recipe = train.recipe_of(steps=3)
    train.train(recipe, tmp_path / "whole")
    with monkeypatch.context() as broken:
        broken.setattr(train, "batch_of", interrupt_at(2, train.batch_of))
        with pytest.raises(KeyboardInterrupt):
            train.train(recipe, tmp_path / "parts")
    train.train(recipe, tmp_path / "parts", resume=True)
    whole, parts = ((tmp_path / run / "loss.csv").read_text() for run in ("whole", "parts"))
    assert len(whole.splitlines()) == 4
    assert whole == parts


def test_resuming_with_another_recipe_says_so(quick, tmp_path):
    train.train(train.recipe_of(steps=1), tmp_path)
    with pytest.raises(SystemExit, match="other settings"):
        train.train(train.recipe_of(steps=2), tmp_path, resume=True)
