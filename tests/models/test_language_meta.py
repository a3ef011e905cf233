"""A model whose weights are to come: named, scanned, edited; then loaded, and all of it stays."""

import pytest
import torch
from families import FAMILIES

import insitu
from insitu import LanguageModel, View

PROMPT = "The Eiffel Tower is in the city of"


@pytest.fixture
def plain(folder):
    return LanguageModel(folder)


@pytest.fixture
def later(folder):
    return LanguageModel(folder, dispatch=False)


def is_empty(model):
    return all(value.is_meta for value in model._module.parameters())


def test_an_empty_model_shows_its_modules_and_takes_no_memory(later, plain):
    assert is_empty(later)
    assert repr(later) == repr(plain)
    assert later.transformer.h[3].mlp.c_fc.weight.shape == (32, 128)
    assert [name for name, _ in later._module.named_modules()] == [
        name for name, _ in plain._module.named_modules()
    ]


def test_a_scan_needs_no_weights(later, plain):
    with plain.trace(PROMPT):
        wanted = plain.transformer.h[1].output.shape
    with later.scan(PROMPT):
        assert later.transformer.h[1].output.shape == wanted
    with later.scan() as tracer:
        with tracer.invoke(PROMPT):
            first = later.lm_head.output.shape
        with tracer.invoke("Once upon"):
            second = later.lm_head.output.shape
    assert first == second
    assert first[0] == 1
    assert is_empty(later)


def trace(model):
    with model.trace(PROMPT):
        return model.lm_head.output


def generate(model):
    with model.generate(PROMPT, max_new_tokens=2):
        return model.generator.output


def hold_open(model):
    run = model.open(PROMPT)
    run.until(model.transformer.h[1])
    return run.finish().logits


def call(model):
    return model(PROMPT).logits


def call_with_edits(model):
    with model.edit() as edited:
        model.transformer.h[1].output[:] = 0
    return edited(PROMPT).logits


def invoke(model):
    with model.trace() as tracer, tracer.invoke(PROMPT):
        out = model.lm_head.output
    return out


def validate(model):
    with model.trace(PROMPT, validate=True):
        out = model.lm_head.output
    return out


NEEDS = [trace, generate, hold_open, call, call_with_edits, invoke, validate]


@pytest.mark.parametrize("need", NEEDS)
def test_the_weights_come_with_the_first_need(later, plain, need):
    assert torch.equal(need(later), need(plain))
    assert not is_empty(later)
    assert later._weights is None


def test_dispatch_reads_them_at_once_and_once(later, monkeypatch):
    module = later._module
    later.dispatch()
    loaded = later._module
    assert loaded is not module
    later.dispatch()
    trace(later)
    assert later._module is loaded


def test_dispatch_on_a_loaded_model_does_nothing(llm):
    module = llm._module
    llm.dispatch()
    assert llm._module is module


@pytest.mark.parametrize("family", ["llama", "mixtral", "mamba", "bert", "t5", "opt", "bloom"])
def test_families_come_as_they_are_loaded_at_once(family, tmp_path, tiny_gpt2):
    FAMILIES[family].built().save_pretrained(tmp_path)
    settings = {"tokenizer": tiny_gpt2[1]}
    later = LanguageModel(tmp_path, dispatch=False, **settings)
    layer = later._at_path(FAMILIES[family].layer)
    with later.scan(PROMPT):
        shape = _first(layer.output).shape
    plain = LanguageModel(tmp_path, **settings)
    with later.trace(PROMPT):
        hidden = _first(layer.output)
    with plain.trace(PROMPT):
        wanted = _first(plain._at_path(FAMILIES[family].layer).output)
    assert torch.equal(hidden, wanted)
    assert hidden.shape == shape
    assert layer._module is later._module.get_submodule(FAMILIES[family].layer)


def _first(value):
    return value[0] if isinstance(value, tuple) else value


# What was done before -----------------------------------------------------------------------------


class Doubled(View):
    @property
    def doubled(self):
        return self.output * 2


def test_names_views_and_attached_modules_stay(later, plain):
    later.rename({"transformer.h": "blocks", "mlp": "feed_forward"})
    later.add_views({type(plain.transformer.h[0].mlp._module): Doubled})
    probe = torch.nn.Linear(32, 2)
    later.transformer.h[1].probe = probe
    held = later.blocks[1].feed_forward
    later.dispatch()
    with plain.trace(PROMPT):
        wanted = plain.transformer.h[1].mlp.output
    with later.trace(PROMPT):
        doubled = held.doubled
        read = later.transformer.h[1].probe(later.transformer.h[1].output)
    assert torch.equal(doubled, wanted * 2)
    assert read.shape[-1] == 2
    assert later.transformer.h[1].probe._module is probe
    assert later.blocks[1].feed_forward is held


def test_standard_names_are_there_before_the_weights_and_after(later, plain):
    assert later.dims == plain.dims
    layer = later.layers[1]
    with later.scan(PROMPT):
        shape = layer.attention.q.shape
    with plain.trace(PROMPT):
        wanted = plain.layers[1].attention.q
    with later.trace(PROMPT):
        queries = layer.attention.q
    assert torch.equal(queries, wanted)
    assert shape == wanted.shape


def test_edits_and_their_wrappers_stay(later, plain):
    models = []
    for model in (later, plain):
        with model.edit() as edited:
            model.transformer.h[1].output[:, -1] *= 2
        with edited.edit() as twice:
            model.transformer.h[2].output[:] *= 2
        with model.edit(inplace=True):
            model.transformer.h[0].mlp.output[:] = 0
        models.append((model, edited, twice))
    for one, other in zip(*models, strict=True):
        assert torch.equal(trace(one), trace(other))
    mine = models[0]
    assert {id(model._module) for model in mine} == {id(later._module)}
    assert not mine[2].lm_head.weight.is_meta


def test_everything_wrapped_before_leads_to_the_loaded_module(later):
    nodes = list(later._nodes())
    later.dispatch()
    for node in nodes:
        path = "" if node._parent is None else node._path
        if path.startswith("generator"):
            continue
        assert node._module is later._module.get_submodule(path)
        assert node._whole is later._module
        assert node._path == path or node is later
    assert list(later._nodes()) == nodes


def test_an_edits_file_can_be_loaded_before_the_weights(later, plain, tmp_path):
    with plain.edit() as edited:
        plain.transformer.h[1].output[:] = 0
    edited.save_edits(tmp_path / "edits.safetensors")
    assert torch.equal(trace(later.load_edits(tmp_path / "edits.safetensors")), trace(edited))


# When it fails ------------------------------------------------------------------------------------


def test_a_failure_leaves_everything_as_before(folder, later, plain):
    weights = folder / "model.safetensors"
    kept = weights.read_bytes()
    weights.unlink()
    module = later._module
    with later.edit() as edited:
        later.transformer.h[1].output[:] = 0
    for need in (trace, generate, call):
        with pytest.raises(insitu.ModelNotFoundError, match="could not be opened"):
            need(later)
    assert later._module is edited._module is module
    assert is_empty(later)
    with later.scan(PROMPT):
        assert later.lm_head.output.shape[-1] == 330
    weights.write_bytes(kept)
    assert torch.equal(trace(later), trace(plain))


def test_weights_do_not_come_in_the_middle_of_a_scan(later):
    with pytest.raises(insitu.UsageError, match=r"dispatch\(\) was called while a pass"):
        with later.scan(PROMPT):
            _ = later.transformer.h[0].output
            later.dispatch()
    assert is_empty(later)
    later.dispatch()


def test_the_weights_of_one_model_come_inside_the_trace_of_another(later, plain):
    with plain.trace(PROMPT):
        hidden = plain.transformer.h[0].output
        with later.trace(PROMPT):
            other = later.transformer.h[0].output
    assert torch.equal(hidden, other)
