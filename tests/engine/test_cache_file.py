"""Caches on disk: what is written is read again, and nothing else is believed."""

import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import insitu
from insitu import NNsight

PROMPT = "The Eiffel Tower is in"


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype is other.dtype
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return all(same(one[key], other[key]) for key in one)
    return repr(one) == repr(other)


@pytest.fixture
def written(llm, tmp_path):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache(include_inputs=True)
    return cache, cache.save(tmp_path / "run.safetensors")


def test_what_was_saved_is_loaded(written):
    cache, path = written
    loaded = insitu.load_cache(path)
    assert list(loaded) == list(cache)
    assert repr(loaded) == repr(cache)
    for key, entry in cache.items():
        assert same(entry.output, loaded[key].output), key
        assert same(entry.inputs, loaded[key].inputs), key
    assert torch.equal(loaded.stack("transformer.h.*"), cache.stack("transformer.h.*"))
    assert torch.equal(loaded.model.transformer.h[1].output, cache.model.transformer.h[1].output)
    assert loaded["model"].output.logits.shape == cache["model"].output.logits.shape
    assert torch.equal(loaded["model"].output[0], cache["model"].output[0])
    assert loaded["model"].output[:1][0].shape == loaded["model"].output["logits"].shape
    with pytest.raises(AttributeError, match="there are logits"):
        loaded["model"].output.losses


def test_the_file_is_plain_safetensors_with_readable_names(written):
    cache, path = written
    tensors = load_file(path)
    assert torch.equal(
        tensors["transformer.h.1.attn.output.0"], cache["transformer.h.1.attn"].output[0]
    )
    assert (
        path.stat().st_size < cache.size_bytes + 100_000
    )  # what two modules returned is there once
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["insitu_cache"])["model"] == "GPT2LMHeadModel"
    assert [p.name for p in path.parent.iterdir()] == ["run.safetensors"]


def test_steps_and_lists_of_calls_come_back(llm, tmp_path):
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        cache = tracer.cache(["lm_head", "transformer.h.*"], steps=[0, 2], dtype=torch.float16)
    loaded = insitu.load_cache(cache.save(str(tmp_path / "x")), device="cpu")
    assert loaded.steps == [0, 2]
    assert same(loaded["lm_head"].output, cache["lm_head"].output)
    assert torch.equal(loaded.step(2).stack("**.h.*"), cache.step(2).stack("**.h.*"))


def test_values_of_every_kind_come_back(tmp_path, x):
    class Many(nn.Module):
        def forward(self, x):
            return {
                "a": [x, (x > 0, None), {3: x.to(torch.complex128), "b": x.to(torch.complex64)}],
                "n": 3, "f": float("inf"), "c": 1j, "s": "text", "t": True, "d": x.dtype,
                "dev": x.device, "shape": x.shape, "empty": torch.ones(0, 2), "self": self,
                "max": torch.return_types.max((x, x)), "bits": b"1", "bf": x.bfloat16(),
                "sparse": x.to_sparse(), "view": x.expand(4, 5)[:, ::2], "scalar": x.sum(),
            }  # fmt: skip

    with NNsight(nn.Sequential(Many())).trace(x) as tracer:
        cache = tracer.cache("0", clone=True)
    loaded = insitu.load_cache(cache.save(tmp_path / "all"))
    value, back = cache["0"].output, loaded["0"].output
    for key in value.keys() - {"sparse", "self", "bits", "shape"}:
        assert same(value[key], back[key]), key
    assert back["shape"] == tuple(x.shape)
    assert repr(back["self"]) == "<Many, not kept>"
    assert "not kept" in repr(back["sparse"])
    assert repr(back["bits"]) == "<bytes, not kept>"


def test_a_lost_value_is_lost_in_the_file_too(tmp_path, x):
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True))
    with pytest.warns(insitu.InsituWarning):
        with NNsight(net).trace(x) as tracer:
            cache = tracer.cache()
    loaded = insitu.load_cache(cache.save(tmp_path / "lost"))
    with pytest.raises(insitu.MissingActivation, match="lost"):
        loaded["0"].output
    assert torch.equal(loaded["1"].output, net(x))


def test_saving_again_writes_over_and_a_failure_leaves_what_was(written, tmp_path, monkeypatch):
    cache, path = written
    cache["transformer.h.*"].save(path)
    assert list(insitu.load_cache(path)) == list(cache["transformer.h.*"])
    loaded = insitu.load_cache(path)
    assert loaded.save(tmp_path / "again").stat().st_size == path.stat().st_size
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no space")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        cache.save(path)
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again", "run.safetensors"]


def test_a_loaded_cache_reads_a_tensor_when_it_is_looked_at(written):
    _, path = written
    loaded = insitu.load_cache(path)
    kinds, size = repr(loaded), loaded.size_bytes
    path.write_bytes(path.read_bytes()[:100])
    assert repr(loaded) == kinds
    assert loaded.size_bytes == size
    with pytest.raises(insitu.CacheFileError):
        loaded["lm_head"].output


def test_a_loaded_cache_is_pickled_by_its_place(written):
    cache, path = written
    again = pickle.loads(pickle.dumps(insitu.load_cache(path)))
    assert torch.equal(again["lm_head"].output, cache["lm_head"].output)


def test_a_scans_cache_holds_no_numbers_to_write(net, x, tmp_path):
    model = NNsight(net)
    with model.scan(x) as tracer:
        cache = tracer.cache()
    assert cache["layer1"].output.shape == (1, 10)
    with pytest.raises(insitu.CacheFileError, match="shapes and no numbers"):
        cache.save(tmp_path / "scan")
    with model.trace(x) as tracer:
        cache = tracer.cache(device="meta")
    with pytest.raises(insitu.CacheFileError, match="shapes and no numbers"):
        cache.save(tmp_path / "meta")
    assert not list(tmp_path.iterdir())


def broken(path, document):
    save_file({"a": torch.ones(1)}, path, {"insitu_cache": document})
    return path


@pytest.mark.parametrize(
    "document",
    [
        "{", "[]", '{"format": 1}', '{"format": 1, "model": "x", "order": [], "records": [3]}',
        '{"format": 1, "model": "x", "order": ["model.a"], "records": []}',
        '{"format": 1, "model": "x", "order": [], "records": [{"paths": ["m"], '
        '"calls": [[0, {"what": 1}, null]]}]}',
        '{"format": 1, "model": "x", "order": [], "records": [{"paths": ["m"], '
        '"calls": [[0, {"tensor": "a", "dtype": "floof", "shape": [1]}, null]]}]}',
    ],
)  # fmt: skip
def test_a_broken_file_is_refused(tmp_path, document):
    with pytest.raises(insitu.CacheFileError, match="could not be read as a cache") as caught:
        insitu.load_cache(broken(tmp_path / "x", document))
    assert isinstance(caught.value, OSError)


def test_other_files_are_refused(tmp_path):
    for said, path in {
        "there is no file": tmp_path / "none",
        "no finished cache": tmp_path,
        "format 2": broken(tmp_path / "new", '{"format": 2}'),
        "did not write": tmp_path / "plain",
        "could not be read": tmp_path / "text",
    }.items():
        save_file({"a": torch.ones(1)}, tmp_path / "plain")
        (tmp_path / "text").write_text("hello")
        with pytest.raises(insitu.CacheFileError, match=said) as caught:
            insitu.load_cache(path)
        assert str(caught.value).count("\n") == 2


def test_a_tensor_that_is_not_in_the_file_is_told(tmp_path):
    document = (
        '{"format": 1, "model": "x", "order": ["model.a"], "records": [{"paths": ["model.a"], '
        '"calls": [[0, {"tensor": "b", "dtype": "float32", "shape": [1]}, null]]}]}'
    )
    loaded = insitu.load_cache(broken(tmp_path / "x", document))
    with pytest.raises(insitu.CacheFileError, match="could not be read"):
        loaded["a"].output
