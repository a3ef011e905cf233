"""A cache reads like the model: the same values as plain hooks, by path, by tree, by pattern."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import reference
import torch
from torch import nn

import insitu
from insitu import NNsight

PROMPT = "The Eiffel Tower is in"


@pytest.fixture
def cached(llm):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache(include_inputs=True)
    return cache


def ids(llm, prompt=PROMPT):
    return llm.tokenizer(prompt, return_tensors="pt")


def test_values_are_those_of_plain_hooks(llm, cached):
    paths = ["transformer.wte", "transformer.h.2", "transformer.h.1.mlp", "lm_head"]
    seen = reference.outputs(llm._module, paths, **ids(llm))
    for path in paths:
        assert torch.equal(cached[path].output, seen[path][0])
    took = reference.inputs(llm._module, ["transformer.h.1.mlp"], **ids(llm))
    args, kwargs = cached["transformer.h.1.mlp"].inputs
    assert torch.equal(args[0], took["transformer.h.1.mlp"][0][0][0])
    assert kwargs == {}
    assert torch.equal(cached["transformer.h.1.mlp"].input, args[0])


def test_every_module_that_runs_is_in_it_and_none_of_ours(llm, cached):
    with reference.counting(llm._module) as calls:
        llm._module(**ids(llm))
    ran = {"model" if path == "model" else f"model.{path}" for path in calls}
    assert set(cached) == set(cached.keys()) == ran
    assert len(cached) == len(ran)
    with llm.generate(PROMPT, max_new_tokens=1) as tracer:
        generated = tracer.cache([llm.generator, llm.lm_head])
    assert list(generated) == ["model.lm_head", "model.generator"]
    assert torch.equal(generated["generator"].output[:, : ids(llm)["input_ids"].shape[1]],
                       ids(llm)["input_ids"])  # fmt: skip


def test_a_path_with_and_without_the_roots_name_and_the_tree(llm, cached):
    entry = cached["model.transformer.h.0"]
    for other in (
        cached["transformer.h.0"], cached.model.transformer.h[0], cached.transformer.h[0],
        cached[llm.transformer.h[0]], cached.transformer.h[-4], cached.model.transformer.h[:1][0],
    ):  # fmt: skip
        assert other.output is entry.output
    assert cached.model.output is cached["model"].output is cached[""].output is cached[llm].output
    assert "model.transformer.h.0" in cached
    assert "transformer.h.0" in cached
    assert llm.transformer.h[0] in cached
    assert "transformer.h.*" in cached
    assert not any(key in cached for key in ("transformer.h.7", "h.0", "h.*", 3, "transformer.h"))
    assert {"transformer", "lm_head"} <= set(dir(cached.model))
    assert len(cached.model.transformer.h) == 4
    assert repr(cached.model.transformer.h) == "<model.transformer.h: 0, 1, 2, 3>"


def test_a_model_with_a_module_called_model():
    net = nn.Module()
    net.model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net.forward = lambda x: net.model(x)
    model, x = NNsight(net), torch.ones(1, 2)
    with model.trace(x) as tracer:
        cache = tracer.cache()
    wanted = cache["model.model.0"].output
    assert torch.equal(wanted, net.model[0](x))
    assert cache["model.0"].output is wanted
    assert cache.model.model[0].output is wanted
    assert cache.model[0].output is wanted
    with model.trace(x) as tracer:
        both = tracer.cache(["model.1", "model"])
        part = tracer.cache("model.*")
        below = tracer.cache("*.*")
    assert list(part) == ["model.model"]
    assert list(both) == ["model", "model.model.1"]
    assert list(below) == ["model.model.0", "model.model.1"]


def test_a_pattern_gives_a_smaller_cache(cached):
    mlps = cached["model.transformer.h.*.mlp"]
    assert list(mlps) == [f"model.transformer.h.{n}.mlp" for n in range(4)]
    assert isinstance(mlps, insitu.ActivationCache)
    assert list(cached["**.c_proj"]) == list(cached["transformer.h.*.*.c_proj"])
    assert list(cached["transformer.h.[1-2]"]) == ["model.transformer.h.1", "model.transformer.h.2"]
    assert mlps.size_bytes < cached.size_bytes
    assert mlps["transformer.h.*.mlp"].stack("**").shape[0] == 4
    with pytest.raises(insitu.MissingActivation):
        mlps["transformer.h.0"]


def test_stack_puts_layers_first(llm, cached):
    seen = reference.outputs(llm._module, [f"transformer.h.{n}" for n in range(4)], **ids(llm))
    wanted = torch.stack([calls[0] for calls in seen.values()])
    assert torch.equal(cached.stack("transformer.h.*"), wanted)
    assert cached.stack("transformer.h.*").shape[2:] == (ids(llm)["input_ids"].shape[1], 32)
    first = cached["transformer.h.0.attn"].output[0]
    assert torch.equal(cached.stack("transformer.h.*.attn")[0], first)
    assert cached.stack("transformer.h.*", "input").shape == wanted.shape
    assert cached.stack("lm_head").shape[0] == 1
    with pytest.raises(insitu.UsageError, match="different shapes"):
        cached.stack("**.mlp.*")
    with pytest.raises(insitu.UsageError, match="is no site"):
        cached.stack("lm_head", "result")


def test_a_cache_as_a_dict(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        cache = tracer.cache(include_inputs=True)
    hidden = net.layer1(x)
    outputs = cache.to_dict()
    assert list(outputs) == ["model", "model.layer1", "model.layer2"]
    assert torch.equal(outputs["model.layer1"], hidden)
    assert torch.equal(cache.to_dict("input")["model.layer2"], hidden)
    assert [path for path, entry in cache.items() if entry.output is outputs[path]] == list(outputs)
    assert next(iter(cache.values())).output is outputs["model"]


def test_modules_are_named_in_many_ways(llm):
    with llm.trace(PROMPT) as tracer:
        blocks = tracer.cache(llm.transformer.h)
        mixed = tracer.cache([llm.transformer.h[1:3], "lm_head", "transformer.h.*.mlp"])
        raw = tracer.cache(modules=[llm._module.lm_head, llm._module.transformer.h])
        one = tracer.cache("model.transformer.h.1.attn", include_output=True)
    assert list(blocks) == [f"model.transformer.h.{n}" for n in range(4)]
    assert list(mixed) == [
        "model.transformer.h.0.mlp", "model.transformer.h.1", "model.transformer.h.1.mlp",
        "model.transformer.h.2", "model.transformer.h.2.mlp", "model.transformer.h.3.mlp",
        "model.lm_head",
    ]  # fmt: skip
    assert list(raw) == [*blocks, "model.lm_head"]
    assert list(one) == ["model.transformer.h.1.attn"]


def test_a_module_in_two_places_has_one_record():
    shared = nn.Linear(3, 3)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.ones(1, 3)
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    assert len(cache["0"].output) == len(cache["2"].output) == 2
    assert cache["0"].output[1] is cache["2"].output[1]
    assert torch.equal(cache["0"][0].output, shared(x))


def test_several_calls_are_a_list_and_each_can_be_picked(llm):
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        cache = tracer.cache()
        text = llm.generator.output
    entry = cache["lm_head"]
    assert entry.steps == [0, 1, 2, 3]
    assert isinstance(entry.output, list)
    assert [value.argmax(-1)[0, -1] for value in entry.output] == text[0, -4:].tolist()
    assert len(entry) == 4
    assert [one.output.argmax(-1)[0, -1].item() for one in entry] == text[0, -4:].tolist()
    assert entry[-1].steps == [3]
    assert cache.steps == [0, 1, 2, 3]
    second = cache.step(1)
    assert second["lm_head"].output is entry.output[1]
    assert second.stack("transformer.h.*").shape == (4, 1, 1, 32)
    with pytest.raises(insitu.UsageError, match="4 values"):
        cache.stack("transformer.h.*")
    with pytest.raises(insitu.StepError, match="step 9"):
        cache.step(9)
    with pytest.raises(IndexError):
        entry[4]
    with pytest.raises(TypeError):
        entry["output"]


@pytest.mark.parametrize(
    ("steps", "kept"), [([0, 2], [0, 2]), (1, [1]), (slice(1, None), [1, 2, 3]), ([9], [])]
)
def test_steps_choose(llm, steps, kept):
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        cache = tracer.cache(llm.lm_head, steps=steps)
    assert cache.steps == kept
    if kept:
        assert cache["lm_head"].steps == kept


def test_a_cache_can_be_read_before_the_pass_has_ended(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        cache = tracer.cache()
        assert len(cache) == 0
        hidden = model.layer1.output
        model.layer2.input
        assert list(cache) == ["model.layer1"]
        assert torch.equal(cache["layer1"].output, hidden)
        assert "layer2" not in cache
        with pytest.raises(insitu.MissingActivation, match="has not called it"):
            cache["layer2"]
    assert "layer2" in cache


def test_outputs_of_every_form(x):
    @dataclass
    class Both:
        hidden: torch.Tensor
        name: str

    class Many(nn.Module):
        def forward(self, x):
            return {"list": [x, (x + 1, None)], "both": Both(x, "a"), "n": 3, "max": x.max(0),
                    "size": x.shape, "self": self, "empty": ()}  # fmt: skip

    net = nn.Sequential(Many())
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache(include_inputs=True)
    value = cache["0"].output
    assert torch.equal(value["list"][1][0], x + 1)
    assert value["list"][1][1] is None
    assert isinstance(value["both"], Both)
    assert torch.equal(value["both"].hidden, x)
    assert torch.equal(value["max"][0], x[0])
    assert (value["n"], value["size"], value["empty"]) == (3, x.shape, ())
    assert repr(value["self"]) == "<Many, not kept>"
    assert "Many" not in repr(cache["0"].inputs)


def test_the_models_output_object_stays_one_and_its_key_value_cache_is_left_out(llm, cached):
    out = cached["model"].output
    assert type(out).__name__ == "CausalLMOutputWithCrossAttentions"
    assert torch.equal(out.logits, cached["lm_head"].output)
    assert out["logits"] is out.logits
    assert repr(out.past_key_values) == "<DynamicCache, not kept>"


def test_a_cache_on_another_device_or_dtype(net, x):
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    half = cache.to(torch.bfloat16)
    assert half["layer1"].output.dtype is torch.bfloat16
    assert cache["layer1"].output.dtype is torch.float32
    there = cache.to("meta", torch.float64)["layer1"].output
    assert (there.device.type, there.dtype) == ("meta", torch.float64)
    assert cache.to("cpu")["layer1"].output.dtype is torch.float32
    with pytest.raises(insitu.UsageError, match="is no device"):
        cache.to("nowhere")


def test_the_table_is_short_and_says_what_is_there(llm, cached, net, x):
    lines = repr(cached).splitlines()
    assert len(lines) <= 20
    assert "ActivationCache of GPT2LMHeadModel: 55 modules" in lines[0]
    assert any("transformer.h.*.mlp " in line and "4 modules" in line for line in lines)
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        cache = tracer.cache("transformer.ln_f")
    assert "3 steps" in repr(cache)
    assert "3 calls" in repr(cache)
    assert "… float32[1, 1, 32]" in repr(cache["transformer.ln_f"])
    many = NNsight(nn.Sequential(*[nn.Linear(1, n + 1) for n in range(40)], nn.Flatten()))
    with pytest.raises(RuntimeError), many.trace(torch.ones(1, 1)) as tracer:
        cache = tracer.cache()
    assert len(repr(cache).splitlines()) <= 20
    assert repr(cache["0"]) == "<model.0: output float32[1, 1]>"


def test_size_counts_a_tensor_once(x):
    net = nn.Sequential(nn.Dropout(), nn.Linear(5, 5), nn.Dropout()).eval()
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    assert cache.size_bytes == 2 * x.nbytes  # the input, and what the linear layer made of it


def test_a_cache_is_copied_and_pickled_without_its_model(net, x):
    with NNsight(net).trace(x) as tracer:
        cache = tracer.cache()
    for other in (pickle.loads(pickle.dumps(cache)), copy.copy(cache), copy.deepcopy(cache)):
        assert torch.equal(other["layer1"].output, cache["layer1"].output)


# What is not there ------------------------------------------------------------------------------


def told(error):
    assert str(error) == f"{error.what}\nWhy: {error.why}\nNext: {error.next}"
    return str(error)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("transformer.h.9", r"no such module.*did you mean 'model.transformer.h"),
        ("h.0", r"did you mean 'model.transformer.h.0'"),
        ("transformer.h", r"never called itself.*did you mean cache\['transformer.h.\*'\]"),
        ("transformer.x.*", r"no such module"),
        ("lm_haed", r"did you mean 'model.lm_head'"),
    ],
)
def test_a_path_that_is_not_there(cached, key, said):
    with pytest.raises(insitu.MissingActivation, match=f"(?s)not in this cache.*{said}") as caught:
        cached[key]
    told(caught.value)
    assert isinstance(caught.value, KeyError)
    assert cached.get(key) is None


def test_a_module_that_was_not_asked_for(llm):
    with llm.trace(PROMPT) as tracer:
        cache = tracer.cache("transformer.h.*")
    with pytest.raises(insitu.MissingActivation, match="not among the modules to cache"):
        cache["lm_head"]
    with pytest.raises(AttributeError, match="not among the modules"):
        cache.model.lm_head
    assert not hasattr(cache, "lm_head")
    assert not hasattr(cache.model, "_repr_html_")
    with pytest.raises(insitu.MissingActivation):
        cache.model.transformer.h[7]


def test_a_side_that_was_not_asked_for(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        outputs = tracer.cache()
        inputs = tracer.cache(include_inputs=True, include_output=False)
    with pytest.raises(insitu.MissingActivation, match=r"(?s)include_inputs=True"):
        outputs["layer1"].input
    with pytest.raises(insitu.MissingActivation, match=r"(?s)include_output=True"):
        inputs["layer1"].output
    assert torch.equal(inputs.model.layer1.input, x)


def test_a_cache_without_a_tensor_to_stack():
    class Number(nn.Module):
        def forward(self, x):
            return 3

    with NNsight(nn.Sequential(Number())).trace(torch.ones(1)) as tracer:
        cache = tracer.cache()
    with pytest.raises(insitu.MissingActivation, match="holds no tensor"):
        cache.stack("0")


# Bad input --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"modules": "transformer.h.*.mpl"}, insitu.UnknownModuleError, r"did you mean .*\.mlp"),
        ({"modules": "mlp.*"}, insitu.UnknownModuleError, r"did you mean '\*\*.mlp.\*'"),
        ({"modules": "transfromer.h"}, insitu.UnknownModuleError, r"did you mean transformer"),
        ({"modules": ["model.transformer.h.4"]}, insitu.UnknownModuleError, r"has no module"),
        ({"modules": nn.Linear(1, 1)}, insitu.UnknownModuleError, "no part of this model"),
        ({"modules": 3}, insitu.UsageError, "names no modules"),
        ({"modules": []}, insitu.UsageError, "no modules were named"),
        ({"steps": [0.5]}, insitu.StepError, "names no steps"),
        ({"steps": "0"}, insitu.StepError, "names no steps"),
        ({"steps": [-1]}, insitu.StepError, "names no steps"),
        ({"steps": 1.5}, insitu.StepError, "names no steps"),
        ({"dtype": torch.int8}, insitu.UsageError, "no floating-point dtype"),
        ({"dtype": "bfloat16"}, insitu.UsageError, "no floating-point dtype"),
        ({"device": "cupboard"}, insitu.UsageError, "is no device"),
        ({"budget": "1GB"}, insitu.UsageError, "no number of bytes"),
        ({"budget": 0}, insitu.UsageError, "no number of bytes"),
        ({"include_output": False}, insitu.UsageError, "keep nothing"),
        ({"detach": False, "spill": "x"}, insitu.UsageError, "do not go together"),
        ({"include_input": True}, insitu.UsageError, "did you mean include_inputs"),
    ],
)
def test_bad_input_is_refused_before_the_model_runs(llm, options, error, said):
    ran = []
    handle = llm._module.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(error, match=f"(?s){said}") as caught:
        with llm.trace(PROMPT) as tracer:
            tracer.cache(**options)
    handle.remove()
    told(caught.value)
    assert not ran
