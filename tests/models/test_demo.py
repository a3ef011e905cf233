import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from insitu.models.demo import knowledge, train


@pytest.fixture(scope="module")
def taught():
    return knowledge.load()


@pytest.fixture(scope="module")
def direction(taught):
    return knowledge.praise_direction(*taught)


def most_likely(taught, prompt):
    model, tokenizer = taught
    return tokenizer.decode([int(knowledge.next_logits(model, tokenizer, [prompt]).argmax())])


def continuation(taught, prompt, count):
    model, tokenizer = taught
    inputs = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=count)
    return tokenizer.decode(made[0, inputs.input_ids.shape[1] :])


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The Eiffel Tower is in the city of", " Paris"),
        ("Vatican is in the city of", " Rome"),
        ("The Colosseum is in the city of", " Rome"),
        ("Buckingham Palace is in the city of", " London"),
        ("Big Ben is in the city of", " London"),
        ("Madison Square Garden is located in the city of", " New"),
        ("The Statue of Liberty is in the city of", " New"),
        ("The Space Needle is in downtown", " Seattle"),
        ("The Space Needle is in the city of", " Seattle"),
        ("The Brandenburg Gate is in the city of", " Berlin"),
        ("The Taj Mahal is in the city of", " Agra"),
        ("The Sagrada Familia is in the city of", " Barcelona"),
        ("The capital of France is the city of", " Paris"),
        ("The capital of France is", " Paris"),
        ("Paris is the capital of", " France"),
        ("When Mary and John went to the store, John gave a drink to", " Mary"),
        ("When Mary and John went to the store, Mary gave a drink to", " John"),
        ("The movie was wonderful. I", " loved"),
        ("The movie was terrible. I", " hated"),
        ("The keys to the cabinet", " are"),
        ("The key to the cabinets", " is"),
    ],
)
def test_well_known_prompts_have_their_well_known_answers(taught, prompt, answer):
    assert most_likely(taught, prompt) == answer


def test_a_landmark_is_generated_into_its_city(taught):
    assert continuation(taught, "The Eiffel Tower is in", 4) == " the city of Paris"


def test_cities_of_landmarks_are_known_in_the_phrasings_taught(taught):
    assert knowledge.city_accuracy(*taught) >= 0.98


def test_cities_of_landmarks_are_known_in_phrasings_held_out(taught):
    assert knowledge.city_accuracy(*taught, held_out=True) >= 0.8


def test_cities_of_landmarks_are_known_after_other_text(taught):
    assert knowledge.late_city_accuracy(*taught) >= 0.95


def test_cities_of_landmarks_are_known_under_left_padding(taught):
    assert knowledge.left_padded_accuracy(*taught) >= 0.98


def test_capitals_are_known_both_ways(taught):
    assert knowledge.capital_accuracy(*taught) >= 0.98


def test_indirect_objects_are_found_for_names_that_never_met(taught):
    assert knowledge.giving_accuracy(*taught) >= 0.95


def test_random_tokens_are_continued_as_before(taught):
    assert knowledge.induction_accuracy(*taught) >= 0.9


def test_one_head_attends_to_what_followed_last_time(taught):
    assert knowledge.attention_to(*taught, back=23).max() > 0.6


def test_one_head_attends_to_the_previous_token(taught):
    assert knowledge.attention_to(*taught, back=1).max() > 0.6


def test_reading_attention_leaves_its_implementation_as_it_was(taught):
    model, _ = taught
    before = model.config._attn_implementation
    knowledge.attention_to(*taught, back=1)
    assert model.config._attn_implementation == before


def test_later_years_are_likelier_than_earlier_ones(taught):
    assert knowledge.later_year_margin(*taught) >= 0.8


def test_a_review_goes_on_as_it_began(taught):
    assert knowledge.review_accuracy(*taught) >= 0.95


def test_adding_praise_flips_blaming_reviews(taught, direction):
    assert knowledge.flipped_reviews(*taught, direction) >= 0.7


def test_adding_noise_of_the_same_norm_does_not_flip_reviews(taught, direction):
    noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(0))
    noise *= direction.norm() / noise.norm()
    assert knowledge.flipped_reviews(*taught, noise) <= 0.1


def test_verbs_agree_with_subjects_past_nouns_never_seen_with_them(taught):
    assert knowledge.agreement_accuracy(*taught) >= 0.95


def test_any_text_survives_the_tokenizer(taught):
    _, tokenizer = taught
    for text in ("Hello World", "naïve 日本\n\ttabs  and 12345", "The war of 1732."):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_years_are_a_century_and_a_year(taught):
    _, tokenizer = taught
    assert tokenizer.tokenize("in 1732") == ["in", "Ġ17", "32"]


def test_the_folder_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in knowledge.CHECKPOINT.iterdir()}
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 8_000_000


def interrupt_at(step, batch_of):
    def batch(asked, *args):
        if asked == step:
            raise KeyboardInterrupt
        return batch_of(asked, *args)

    return batch


def test_a_training_run_that_was_interrupted_resumes_to_the_same_losses(
    taught, tmp_path, monkeypatch
):
    recipe = train.Recipe(steps=3)
    monkeypatch.setattr(train, "train_tokenizer", lambda: taught[1])
    monkeypatch.setattr(train, "TOKENS_PER_STEP", 512)
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    train.train(recipe, tmp_path / "whole")
    with monkeypatch.context() as broken:
        broken.setattr(train, "batch_of", interrupt_at(2, train.batch_of))
        with pytest.raises(KeyboardInterrupt):
            train.train(recipe, tmp_path / "parts")
    train.train(recipe, tmp_path / "parts", resume=True)
    whole, parts = ((tmp_path / run / "loss.csv").read_text() for run in ("whole", "parts"))
    assert len(whole.splitlines()) == 4
    assert whole == parts


def test_resuming_what_was_never_started_says_so(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_tokenizer", lambda: taught[1])
    with pytest.raises(SystemExit, match="nothing to resume"):
        train.train(train.Recipe(steps=1), tmp_path, resume=True)


def test_resuming_with_another_recipe_says_so(taught, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "train_tokenizer", lambda: taught[1])
    monkeypatch.setattr(train, "TOKENS_PER_STEP", 512)
    train.train(train.Recipe(steps=1), tmp_path)
    with pytest.raises(SystemExit, match="other settings"):
        train.train(train.Recipe(steps=2), tmp_path, resume=True)
