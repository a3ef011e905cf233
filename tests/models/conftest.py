"""Models in folders: a language model's of each test's own, and a pipeline's that stays whole."""

import shutil

import pytest

from insitu import DiffusionModel


@pytest.fixture(scope="session")
def tiny_gpt2_folder(tiny_gpt2, tmp_path_factory):
    place = tmp_path_factory.mktemp("models") / "tiny"
    for part in tiny_gpt2:
        part.save_pretrained(place)
    return place


@pytest.fixture
def folder(tiny_gpt2_folder, tmp_path):
    """The random GPT-2 and its tokenizer, as files."""
    return shutil.copytree(tiny_gpt2_folder, tmp_path / "tiny")


@pytest.fixture(scope="session")
def pipe_folder(tmp_path_factory):
    """The pipeline of `pipe` as files."""
    import tiny_diffusion

    place = tmp_path_factory.mktemp("pipelines") / "tiny"
    tiny_diffusion.stable_diffusion().save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def expected():
    """What it draws: `generate(CIRCLE, **DRAWN).images`."""
    import tiny_diffusion

    model = DiffusionModel(tiny_diffusion.stable_diffusion())
    return model.generate(tiny_diffusion.CIRCLE, **tiny_diffusion.DRAWN).images
