import pytest
import torch
from random_llama import tiny_llama

from insitu import LanguageModel, UsageError
from insitu.methods.sites import SITES, patterns, site_of

LABELS = ("The", " Lou", "vre")


@pytest.fixture(scope="module")
def llama():
    return tiny_llama()[0]


def test_every_site_is_read_and_written_in_every_layer(llama):
    ids = torch.tensor([[1, 2, 3, 4]])
    for site in SITES.values():
        with torch.no_grad(), llama.trace(ids):
            value = site.read(llama.layers[1])
            assert value.shape[:2] == (1, 4)
            assert value.dim() == 2 + len(site.axes)
            site.write(llama.layers[1], torch.zeros_like(value))
            changed = llama.output.logits
        assert not torch.allclose(changed, llama.trace(ids).logits)


def test_z_is_another_name_for_heads():
    assert site_of("z") is site_of("heads")
    with pytest.raises(UsageError, match="did you mean of='resid_pre'"):
        site_of("resid_per")


def test_positions_are_patched_each_together_or_some(llama):
    masks, axes = patterns(llama, site_of("mlp"), None, LABELS)
    assert torch.equal(masks, torch.eye(3, dtype=torch.bool))
    assert [(axis.name, axis.labels) for axis in axes] == [("pos", LABELS)]
    masks, axes = patterns(llama, site_of("mlp"), "all", LABELS)
    assert masks.tolist() == [[True, True, True]]
    assert axes == []
    masks, axes = patterns(llama, site_of("mlp"), [-1, 0], LABELS)
    assert masks.tolist() == [[False, False, True], [True, False, False]]
    assert axes[0].labels == ("vre", "The")


def test_heads_are_patched_one_by_one(llama):
    masks, axes = patterns(llama, site_of("q"), None, LABELS)
    assert masks.shape == (4, 3, 4)
    assert masks[2].nonzero()[:, 1].tolist() == [2, 2, 2]
    assert [axis.name for axis in axes] == ["head"]
    masks, axes = patterns(llama, site_of("k"), "each", LABELS)
    assert masks.shape == (3 * 2, 3, 2)  # key-value heads
    assert masks.flatten(1).sum(1).tolist() == [1] * 6
    assert [axis.name for axis in axes] == ["pos", "head"]


def test_the_demo_model_has_every_site():
    demo = LanguageModel("demo")
    with torch.no_grad(), demo.trace("The Louvre"):
        shapes = {name: tuple(site.read(demo.layers[0]).shape[2:]) for name, site in
                  sorted(SITES.items(), key=lambda item: ORDER.index(item[0]))}  # fmt: skip
    assert shapes["mlp"] == shapes["resid_post"] == shapes["attention"] == (128,)
    assert shapes["heads"] == shapes["q"] == (4, 32)


ORDER = ["resid_pre", "q", "k", "v", "heads", "attention", "resid_mid", "mlp", "resid_post"]
