"""PEFT adapters come and go in place: every path stays, and a failure changes nothing."""

import shutil
import subprocess
import sys

import pytest
import torch
from families import FAMILIES

import insitu
from insitu import LanguageModel

peft = pytest.importorskip("peft")

PROMPT = "The Eiffel Tower is in the city of"
TARGETS = {
    "gpt2": ["c_attn", "c_proj"], "llama": ["q_proj", "down_proj"], "mixtral": ["q_proj"],
    "mamba": ["in_proj"], "bert": ["query"], "t5": ["q", "v"], "gpt_neox": ["query_key_value"],
}  # fmt: skip


def lora(targets, seed=0, **further):
    further = {"r": 4, "init_lora_weights": False, "fan_in_fan_out": "c_attn" in targets, **further}
    torch.manual_seed(seed + 1)
    return peft.LoraConfig(target_modules=list(targets), **further)


def saved(net, folder, targets, seed=0, **further):
    """An adapter in a folder, as peft writes it, and peft's own model with it."""
    theirs = peft.get_peft_model(net, lora(targets, seed, **further)).eval()
    theirs.save_pretrained(folder)
    return theirs


def state(net):
    """All that a model is: its modules by path, their attributes, and which weights train."""
    modules = [(name, id(m), m.training, sorted(m.__dict__)) for name, m in net.named_modules()]
    weights = [(n, id(p), p.requires_grad, p._version) for n, p in net.named_parameters()]
    return modules, weights, sorted(net.__dict__)


@pytest.fixture
def net():
    return FAMILIES["gpt2"].build()


@pytest.fixture
def model(net, tiny_gpt2):
    return LanguageModel(net, tokenizer=tiny_gpt2[1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two adapters of the tiny GPT-2."""
    place = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate(("french-lora", "rude-lora")):
        saved(FAMILIES["gpt2"].build(), place / name, ["c_attn"], seed)
    return place


@pytest.mark.parametrize("family", TARGETS)
def test_an_adapter_gives_pefts_own_numbers_and_goes_again(family, tmp_path, tiny_gpt2):
    theirs = saved(FAMILIES[family].build(), tmp_path / "own", TARGETS[family])
    net = FAMILIES[family].build()
    model = LanguageModel(net, tokenizer=tiny_gpt2[1])
    before, plain = state(net), model(PROMPT)[0]
    wanted = LanguageModel(theirs, tokenizer=tiny_gpt2[1])(PROMPT)[0]

    assert model.add_adapter(tmp_path / "own") == "own"
    assert model.adapters == model.active_adapters == ("own",)
    torch.testing.assert_close(model(PROMPT)[0], wanted)
    assert not torch.allclose(wanted, plain)
    model.set_adapter(None)
    assert model.active_adapters == ()
    assert torch.equal(model(PROMPT)[0], plain)
    model.set_adapter("own")
    torch.testing.assert_close(model(PROMPT)[0], wanted)

    model.remove_adapter("own")
    assert model.adapters == ()
    assert state(net) == before
    assert torch.equal(model(PROMPT)[0], plain)


def test_paths_and_what_is_wrapped_stay_and_the_adapters_modules_are_traced(model, folders):
    attention = model.transformer.h[0].attn
    projection = attention.c_attn
    inner = projection._module
    name = model.add_adapter(str(folders / "french-lora"))
    assert model.transformer.h[0].attn.c_attn is projection
    assert projection.base_layer._module is inner
    given = {}
    low = projection._module.lora_A[name].register_forward_hook(
        lambda m, args, out: given.update(low=out)
    )
    whole = projection._module.register_forward_hook(lambda m, args, out: given.update(whole=out))
    model._module(**model.tokenizer(PROMPT, return_tensors="pt"))
    low.remove()
    whole.remove()
    with model.trace(PROMPT):
        base = projection.base_layer.output
        rank = projection.lora_A[name].output
        out = projection.output
        logits = model.lm_head.output
    assert torch.equal(rank, given["low"])
    assert torch.equal(out, given["whole"])
    assert rank.shape[-1] == 4
    with model.trace(PROMPT):
        projection.lora_B[name].output[:] = 0
        assert torch.equal(projection.output, base)
        assert not torch.equal(model.lm_head.output, logits)
    model.remove_adapter(name)
    assert projection._module is inner
    with model.trace(PROMPT):
        assert projection.output.shape == out.shape


def test_adapters_are_swapped(model, folders):
    first = model.add_adapter(folders / "french-lora")
    one = model(PROMPT).logits
    second = model.add_adapter(folders / "rude-lora", name="rude")
    two = model(PROMPT).logits
    assert model.adapters == (first, second) == ("french-lora", "rude")
    assert model.active_adapters == ("rude",)
    assert not torch.equal(one, two)
    model.set_adapter(first)
    assert torch.equal(model(PROMPT).logits, one)
    model.remove_adapter(first)
    assert model.adapters == ("rude",)
    assert model.active_adapters == ()  # the active one is gone, and no other takes its place
    model.set_adapter("rude")
    assert torch.equal(model(PROMPT).logits, two)
    model.remove_adapter("rude")


def test_removing_another_leaves_the_active_one(model, folders):
    model.add_adapter(folders / "french-lora")
    model.add_adapter(folders / "rude-lora")
    both = model(PROMPT).logits
    model.remove_adapter("french-lora")
    assert model.active_adapters == ("rude-lora",)
    assert torch.equal(model(PROMPT).logits, both)


def test_edits_and_second_wrappers_go_on(model, folders):
    with model.edit() as edited:
        model.transformer.h[1].attn.c_attn.output[:, -1] = 0
    plain = edited(PROMPT).logits
    model.add_adapter(folders / "french-lora")
    changed = edited(PROMPT).logits
    with edited.trace(PROMPT):
        out = edited.transformer.h[1].attn.c_attn.output
    assert (out[:, -1] == 0).all()
    assert not torch.equal(changed, plain)
    assert edited.adapters == ("french-lora",)
    edited.remove_adapter("french-lora")
    assert model.adapters == ()
    assert torch.equal(edited(PROMPT).logits, plain)


def test_a_generation_runs_with_it(model, folders):
    model.add_adapter(folders / "french-lora")
    wanted = model._module.generate(
        **model.tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=3, do_sample=False
    )
    with model.generate(PROMPT, max_new_tokens=3, do_sample=False) as tracer:
        norms = []
        for _ in tracer.iter[:]:
            norms.append(model.transformer.h[0].attn.c_attn.lora_B["french-lora"].output.norm())
        ids = model.generator.output
    assert torch.equal(ids, wanted)
    assert len(norms) == 3


def test_a_fresh_adapter_is_trained(model):
    name = model.add_adapter(lora(["c_attn"]), name="fresh")
    assert name == "fresh"
    trained = [n for n, p in model._module.named_parameters() if p.requires_grad]
    assert trained
    assert all(".fresh." in n for n in trained)
    with model.trace(PROMPT) as tracer:
        loss = tracer.result.logits[0, -1].logsumexp(-1)
    loss.backward()
    assert model.transformer.h[0].attn.c_attn.lora_A["fresh"].weight.grad.abs().sum() > 0


def test_the_base_model_trains_again_when_a_fresh_adapter_is_gone(model, net):
    net.requires_grad_(True)
    before = state(net)
    model.add_adapter(lora(["c_attn"]), name="fresh")
    model.remove_adapter("fresh")
    assert state(net) == before


def test_standard_names_stay_with_an_adapter(model, folders):
    queries = []
    for name in (None, model.add_adapter(folders / "french-lora")):
        model.set_adapter(name)
        with model.trace(PROMPT):
            queries.append((model.layers[1].attention.q, model.layers[1].resid_post))
    model.remove_adapter("french-lora")
    with model.trace(PROMPT):
        after = model.layers[1].attention.q
    assert torch.equal(after, queries[0][0])
    assert not torch.equal(after, queries[1][0])


def test_gradients_come_through_a_loaded_one(model, folders):
    model._module.requires_grad_(True)
    model.add_adapter(folders / "french-lora")
    with model.trace(PROMPT):
        hidden = model.transformer.h[1].output
        loss = model.lm_head.output[0, -1].sum()
        with loss.backward():
            grad = hidden.grad
    assert grad.abs().sum() > 0
    model._module.zero_grad()


def test_weights_to_come_come_first(folders, tmp_path, tiny_gpt2):
    FAMILIES["gpt2"].build().save_pretrained(tmp_path)
    models = [
        LanguageModel(tmp_path, tokenizer=tiny_gpt2[1], dispatch=dispatch)
        for dispatch in (True, False)
    ]
    for model in models:
        model.add_adapter(folders / "french-lora")
    assert torch.equal(models[0](PROMPT).logits, models[1](PROMPT).logits)


def test_an_adapter_in_the_cache_is_opened_by_name(model, folders, tmp_path, monkeypatch):
    import huggingface_hub.constants

    place = tmp_path / "models--someone--french"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folders / "french-lora", place / "snapshots" / ("0" * 40))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert model.add_adapter("someone/french") == "french"


# When it fails -----------------------------------------------------------------------------------


def unfit(tmp_path, **changed):
    config = {**FAMILIES["gpt2"].sizes, **changed}
    return FAMILIES["gpt2"].build(**{k: v for k, v in config.items() if k in changed})


FAILURES = {
    "another width": (lambda p: saved(unfit(p, n_embd=64), p, ["c_attn"]), r"is \[.* there and \["),
    "more layers": (lambda p: saved(unfit(p, n_layer=4), p, ["c_attn"]), "has no place here"),
    "fewer layers": (lambda p: saved(unfit(p, n_layer=1), p, ["c_attn"]), "is not in it"),
    "another family": (
        lambda p: saved(FAMILIES["llama"].build(), p, ["q_proj"]), "q_proj.*not found"
    ),
    "no config": (lambda p: p.mkdir(), ""),
    "no weights": (
        lambda p: (saved(FAMILIES["gpt2"].build(), p, ["c_attn"]),
                   (p / "adapter_model.safetensors").unlink()), ""
    ),
    "broken weights": (
        lambda p: (saved(FAMILIES["gpt2"].build(), p, ["c_attn"]),
                   (p / "adapter_model.safetensors").write_bytes(b"\0" * 99)), ""
    ),
}  # fmt: skip


@pytest.mark.parametrize("why", FAILURES)
@pytest.mark.parametrize("beside", [False, True])
def test_an_adapter_that_does_not_fit_changes_nothing(model, net, folders, tmp_path, why, beside):
    make, said = FAILURES[why]
    make(tmp_path / "bad")
    if beside:
        model.add_adapter(folders / "french-lora")
    before, logits, active = state(net), model(PROMPT).logits, model.active_adapters
    with pytest.raises(insitu.AdapterError, match=f"(?s){said}") as caught:
        model.add_adapter(tmp_path / "bad")
    assert str(caught.value).count("\n") == 2
    assert state(net) == before
    assert model.active_adapters == active
    assert torch.equal(model(PROMPT).logits, logits)
    other = model.add_adapter(folders / "rude-lora")
    model.remove_adapter(other)


def test_a_fresh_one_without_a_target_changes_nothing(model, net):
    before = state(net)
    with pytest.raises(insitu.AdapterError, match=r"(?s)LoraConfig does not fit.*nothing_such"):
        model.add_adapter(lora(["nothing_such"]), name="x")
    assert state(net) == before


def test_names_that_none_has_or_two_would_have(model, folders):
    with pytest.raises(insitu.AdapterError, match=r"(?s)no adapter 'other'.*has none"):
        model.set_adapter("other")
    with pytest.raises(insitu.AdapterError, match="no adapter 'other'"):
        model.remove_adapter("other")
    model.set_adapter(None)
    model.add_adapter(folders / "french-lora")
    with pytest.raises(insitu.AdapterError, match=r"(?s)already.*remove_adapter\('french-lora'\)"):
        model.add_adapter(folders / "french-lora")
    with pytest.raises(insitu.AdapterError, match=r"(?s)no adapter 'other'.*'french-lora'"):
        model.set_adapter("other")
    with pytest.raises(insitu.AdapterError, match=r"(?s)'a\.b' cannot be the name"):
        model.add_adapter(folders / "rude-lora", name="a.b")
    with pytest.raises(insitu.AdapterError, match=r"(?s)could not be opened.*no such folder"):
        model.add_adapter("./nowhere")


def test_not_while_a_pass_is_open(model, folders):
    run = model.open(PROMPT)
    with pytest.raises(insitu.UsageError, match=r"(?s)add_adapter\(\) was called while a pass"):
        model.add_adapter(folders / "french-lora")
    run.finish()
    model.add_adapter(folders / "french-lora")
    for method in (lambda: model.set_adapter(None), lambda: model.remove_adapter("french-lora")):
        with pytest.raises(insitu.UsageError, match="while a pass"), model.trace(PROMPT):
            method()


def test_without_peft_it_says_so(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(insitu.MissingPackageError, match="pip install peft"):
        model.add_adapter("somewhere")
    assert model.adapters == model.active_adapters == ()


@pytest.mark.slow
def test_importing_insitu_imports_no_peft():
    program = "import insitu, sys; print('peft' in sys.modules or 'transformers' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stdout.strip() == "False"
