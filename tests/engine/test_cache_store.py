"""A cache's budget, and the folder it goes to when it outgrows it."""

import gc
import time
import weakref

import pytest
import reference
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import insitu
from insitu import NNsight

PROMPT = "The Eiffel Tower is in"


def ids(llm):
    return llm.tokenizer(PROMPT, return_tensors="pt")


class Router(nn.Module):
    """Runs its layer as often as a number says, which no scan can know."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x):
        for _ in range(int(x.abs().sum().clamp(max=3)) + 3):
            x = self.layer(x)
        return x


def test_a_budget_is_refused_before_the_model_runs(llm):
    ran = []

    class Seen(type(llm._module.lm_head)):
        def forward(self, x):
            ran.append(isinstance(x, torch.Tensor) and not hasattr(x, "fake_mode"))
            return super().forward(x)

    before = type(llm._module.lm_head)
    llm._module.lm_head.__class__ = Seen
    try:
        with pytest.raises(insitu.CacheBudgetError) as caught:
            with llm.trace(PROMPT) as tracer:
                tracer.cache(budget=10_000)
    finally:
        llm._module.lm_head.__class__ = before
    assert not any(ran)
    error = caught.value
    assert isinstance(error, MemoryError)
    assert "over its budget of 10 kB" in error.what
    assert "transformer.h.*.mlp.c_fc" in error.why
    for remedy in ("modules=", "dtype=torch.bfloat16", "steps=", "spill="):
        assert remedy in error.next


def test_the_forecast_is_what_the_cache_then_takes(llm):
    options = [
        {}, {"dtype": torch.bfloat16}, {"clone": True}, {"steps": [1]},
        {"modules": "**.mlp", "include_inputs": True, "include_output": False},
    ]  # fmt: skip
    for chosen in options:
        with llm.trace(PROMPT) as tracer:
            cache = tracer.cache(budget=10**9, **chosen)
        assert cache.forecast.size_bytes == cache.size_bytes
        assert list(cache.forecast.modules) == list(cache)
        assert repr(cache.forecast).splitlines()[1:] == repr(cache).splitlines()[1:]


def test_a_forecast_is_never_too_low(llm):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache(budget=10**9, include_inputs=True)
    over = cache.forecast.size_bytes - cache.size_bytes
    assert 0 <= over <= 64  # a mask that transformers makes unless it can see that it masks nothing


def test_without_a_budget_nothing_is_forecast(net, x):
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    assert cache.forecast is None


def test_where_no_forecast_is_possible_bytes_are_counted(x):
    net = Router()
    model = NNsight(net)
    with pytest.raises(insitu.CacheBudgetError) as caught:
        with model.trace(x) as tracer:
            cache = tracer.cache("layer", budget=50)
    assert "passed its budget of 50 B at layer" in caught.value.what
    assert "cannot be forecast" in caught.value.why
    assert len(cache["layer"].output) == 2
    with model.trace(x) as tracer:
        cache = tracer.cache("layer", budget=10_000)
    assert all(
        map(torch.equal, cache["layer"].output, reference.outputs(net, ["layer"], x)["layer"])
    )


def test_a_generation_is_counted_while_it_runs(llm):
    with pytest.raises(insitu.CacheBudgetError, match=r"(?s)at lm_head.*a generation cannot be"):
        with llm.generate(PROMPT, max_new_tokens=8) as tracer:
            tracer.cache("lm_head", budget=7_000)
    with llm.generate(PROMPT, max_new_tokens=8) as tracer:
        cache = tracer.cache("lm_head", steps=[1, 2], budget=7_000)
    assert cache.steps == [1, 2]


def test_hooks_of_the_users_are_not_run_twice(net, x):
    seen = []
    handle = net.layer1.register_forward_hook(lambda m, a, out: seen.append(type(out)))
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache(budget=10_000)
    handle.remove()
    assert seen == [torch.Tensor]
    assert cache.forecast is None


def test_a_spilled_cache_reads_like_another(llm, tmp_path):
    folder = tmp_path / "a" / "b"
    with llm.trace(PROMPT) as tracer:
        plain = tracer.cache(include_inputs=True)
        cache = tracer.cache(include_inputs=True, spill=folder)
        llm.transformer.h[1].output[:] = 0
    for key, entry in plain.items():
        one, other = entry.output, cache[key].output
        one, other = (v[0] if isinstance(v, tuple) else v for v in (one, other))
        if isinstance(one, torch.Tensor):
            assert torch.equal(one, other), key
    assert cache["transformer.h.1"].output.eq(0).all()
    assert sorted(p.name for p in folder.iterdir()) == ["cache.json", "shard-00000.safetensors"]
    again = insitu.load_cache(folder)
    assert repr(again) == repr(cache)
    assert torch.equal(again.stack("transformer.h.*"), plain.stack("transformer.h.*"))
    assert torch.equal(again["model"].output.logits, plain["lm_head"].output)
    one_file = insitu.load_cache(cache.save(tmp_path / "one"))
    assert torch.equal(one_file.stack("transformer.h.*"), plain.stack("transformer.h.*"))


def test_values_in_place_operations_change_later_are_safe_on_disk(tmp_path, x):
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(inplace=True))
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache(spill=tmp_path / "s")
    assert torch.equal(cache["0"].output, net[0](x))


def test_a_cache_that_fits_stays_in_memory(llm, tmp_path):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache(budget=10**9, spill=tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert cache["lm_head"].output.shape[-1] == llm.lm_head.out_features


def test_a_forecast_over_the_budget_goes_to_disk_from_the_beginning(llm, tmp_path):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache(budget=10_000, spill=tmp_path / "s", dtype=torch.float16)
    seen = reference.outputs(llm._module, ["transformer.h.3"], **ids(llm))["transformer.h.3"][0]
    assert torch.equal(cache["transformer.h.3"].output, seen.half())
    assert len(list((tmp_path / "s").iterdir())) > 2


def test_a_cache_that_outgrows_its_budget_moves_to_disk(tmp_path, x):
    net = Router()
    model = NNsight(net)
    with model.trace(x) as tracer:
        cache = tracer.cache(["layer", "model"], budget=50, spill=str(tmp_path))
        assert not list(tmp_path.iterdir())
    seen = reference.outputs(net, ["layer"], x)["layer"]
    assert all(map(torch.equal, cache["layer"].output, seen))
    assert torch.equal(cache["model"].output, seen[-1])
    assert (tmp_path / "cache.json").exists()


def test_what_was_changed_before_it_moved_is_lost(tmp_path, x):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 5), Router()

        def forward(self, x):
            return self.b(self.a(x).mul_(0).add_(1))

    with pytest.warns(insitu.InsituWarning, match="values of a "):
        with NNsight(Late()).trace(x) as tracer:
            cache = tracer.cache(["a", "b.layer"], budget=70, spill=tmp_path / "s")
    with pytest.raises(insitu.MissingActivation, match="lost"):
        cache["a"].output
    assert len(cache["b.layer"].output) > 3


def test_a_spilled_cache_can_be_read_while_it_grows(llm, tmp_path):
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        cache = tracer.cache("lm_head", spill=tmp_path / "s", device="cpu")
        seen = []
        for step in tracer.iter[:]:
            seen.append(llm.lm_head.output.clone())
            if step:
                assert torch.equal(cache["lm_head"][step - 1].output, seen[step - 1])
    assert cache.steps == [0, 1, 2]


def test_memory_is_given_back_while_it_grows(tmp_path, monkeypatch, x):
    monkeypatch.setattr("insitu.engine.cache.start.SHARD_BYTES", 100)
    alive, most = [], []

    class Counts(nn.Module):
        def forward(self, x):
            out = x + 1
            alive.append(weakref.ref(out))
            most.append(sum(value() is not None for value in alive))
            return out

    net = nn.Sequential(*[Counts() for _ in range(20)])
    with torch.no_grad(), NNsight(net).trace(x) as tracer:
        cache = tracer.cache(spill=tmp_path / "s")
    assert len(list((tmp_path / "s").glob("shard-*"))) >= 4
    assert torch.allclose(cache["19"].output, x + 20)
    assert torch.equal(cache["3"].output, x + 1 + 1 + 1 + 1)
    assert max(most) <= 4


@pytest.mark.parametrize("where", ["block", "model"])
def test_a_failed_pass_takes_its_files_with_it(tmp_path, monkeypatch, net, x, where):
    monkeypatch.setattr("insitu.engine.cache.start.SHARD_BYTES", 8)
    model = NNsight(net)

    def fail(*_):
        raise KeyError("mine")

    handle = net.layer2.register_forward_pre_hook(fail) if where == "model" else None
    with pytest.raises(KeyError, match="mine"):
        with model.trace(x) as tracer:
            cache = tracer.cache(spill=tmp_path / "s")
            model.layer1.output
            if where == "block":
                model.layer2.output
                assert list((tmp_path / "s").iterdir())
                fail()
    if handle:
        handle.remove()
    assert not (tmp_path / "s").exists()
    assert len(cache) == 0
    with model.trace(x) as tracer:
        cache = tracer.cache(spill=tmp_path / "s")
    assert torch.equal(cache["layer1"].output, net.layer1(x))


def test_files_that_were_there_before_stay(tmp_path, net, x):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KeyError):
        with NNsight(net).trace(x) as tracer:
            tracer.cache(spill=tmp_path)
            raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch, net, x):
    monkeypatch.setattr("insitu.engine.cache.start.SHARD_BYTES", 8)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        with NNsight(net).trace(x) as tracer:
            tracer.cache(spill=tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_a_stopped_pass_keeps_what_it_wrote(tmp_path, net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        cache = tracer.cache(spill=tmp_path / "s")
        model.layer2.input
        tracer.stop()
    assert torch.equal(cache["layer1"].output, net.layer1(x))
    assert list(insitu.load_cache(tmp_path / "s")) == ["model.layer1"]


def test_files_of_a_pass_that_was_dropped_go_away(tmp_path):
    from insitu.engine.cache.store import Spill

    spill = Spill(tmp_path / "s", 1, "Net")
    spill.take("model.a", (0, torch.ones(3), None, []))
    assert list((tmp_path / "s").iterdir())
    del spill
    gc.collect()
    assert not (tmp_path / "s").exists()


def test_a_folder_that_is_taken_is_refused(tmp_path, net, x):
    model = NNsight(net)
    (tmp_path / "file").write_text("")
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "shard-00000.safetensors").write_text("")
    with model.trace(x) as tracer:
        tracer.cache(spill=tmp_path / "s")
    for name, said in {
        "s": "already holds a cache",
        "file": "is a file",
        "part": "a part of",
    }.items():
        with pytest.raises(insitu.CacheFileError, match=said) as caught:
            with model.trace(x) as tracer:
                tracer.cache(spill=tmp_path / name)
        assert str(caught.value).count("\n") == 2
    assert list(insitu.load_cache(tmp_path / "s")) == ["model", "model.layer1", "model.layer2"]


@pytest.mark.slow
def test_caching_every_module_costs_little_more_than_hooks_that_do_the_same():
    config = GPT2Config(n_layer=12, n_embd=256, n_head=8, vocab_size=1000, bos_token_id=0,
                        eos_token_id=0)  # fmt: skip
    net = GPT2LMHeadModel(config).eval().requires_grad_(False)
    model, x = NNsight(net), torch.ones(1, 32, dtype=torch.long)

    def detached(value):
        if isinstance(value, torch.Tensor):
            return value.detach()
        return tuple(map(detached, value)) if isinstance(value, tuple) else value

    def hooked():
        seen = {name: [] for name, _ in net.named_modules()}
        handles = [
            module.register_forward_hook(lambda m, a, out, s=seen[name]: s.append(detached(out)))
            for name, module in net.named_modules()
        ]
        net(x)
        for handle in handles:
            handle.remove()
        return seen

    def cached():
        with model.trace(x) as tracer:
            cache = tracer.cache()
        return cache

    took_s = {hooked: [], cached: []}
    for _ in range(30):
        for way, times in took_s.items():
            began = time.thread_time()
            way()
            times.append(time.thread_time() - began)
    assert min(took_s[cached]) < 1.2 * min(took_s[hooked])
