"""Invokes in generations that repeat each prompt's row: every prompt is what it is alone."""

import pytest
import reference
import torch

from insitu import LanguageModel

PROMPTS = [[[5, 6, 7]], [[9, 10, 11]]]
SETTINGS = [
    {"num_beams": 2, "do_sample": False},
    {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    {"num_beams": 2, "num_return_sequences": 2, "do_sample": False},
]


@pytest.fixture(scope="module")
def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=4, vocab_size=64, n_positions=64,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def alone(module, ids, path, write=None, **settings):
    """Every output of a module in a generation from one prompt, and the ids, by plain hooks."""
    seen = []

    def note(part, args, output):
        seen.append(output.clone())

    handles = []
    if write is not None:
        handles.append(module.get_submodule(write).register_forward_hook(zeros))
    handles.append(module.get_submodule(path).register_forward_hook(note))
    ids = torch.tensor(ids)
    with reference.hooks(handles), torch.no_grad():
        made = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, **settings
        )
    return seen, made


def zeros(module, args, output):
    return torch.zeros_like(output)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_each_prompt_has_its_beams_and_its_writes_change_no_other(request, family, settings):
    module = request.getfixturevalue(family)
    model = LanguageModel(module)
    written = "lm_head" if family == "t5" else "transformer.h.0.mlp"
    node = model.lm_head if family == "t5" else model.transformer.h[0].mlp
    seen, ids = [[], []], []
    with model.generate(max_new_tokens=3, **settings) as tracer:
        with tracer.invoke(torch.tensor(PROMPTS[0])):
            for _ in tracer.iter[:]:
                node.output = torch.zeros_like(node.output)
                seen[0].append(model.lm_head.output.clone())
            ids.append(model.generator.output)
        with tracer.invoke(torch.tensor(PROMPTS[1])):
            for _ in tracer.iter[:]:
                seen[1].append(model.lm_head.output.clone())
            ids.append(tracer.result)
    expected = [
        alone(module, PROMPTS[0], "lm_head", written, **settings),
        alone(module, PROMPTS[1], "lm_head", **settings),
    ]
    for got, ids_got, (want, ids_want) in zip(seen, ids, expected, strict=True):
        assert torch.equal(ids_got, ids_want)
        assert len(got) == len(want)
        for one, other in zip(got, want, strict=True):
            assert torch.allclose(one, other, atol=1e-4)


def test_several_sequences_that_are_drawn_are_each_prompts_own(gpt2):
    model = LanguageModel(gpt2)
    shapes = []
    with model.generate(num_return_sequences=3, do_sample=True, max_new_tokens=2) as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(torch.tensor(prompt)):
                for _ in tracer.iter[:]:
                    shapes.append(model.lm_head.output.shape[0])
                    tokens = model.generator.streamer.output
                ids = model.generator.output
                assert ids.shape == (3, 5)
                assert torch.equal(ids[:, :3], torch.tensor(prompt).expand(3, 3))
                assert torch.equal(tokens, ids[:, -1])
    assert shapes == [3] * 4


def test_beams_set_in_a_generation_config_count_too(gpt2):
    from transformers import GenerationConfig

    config = GenerationConfig(num_beams=2, do_sample=False, max_new_tokens=3, pad_token_id=0)
    model = LanguageModel(gpt2)
    with model.generate(generation_config=config) as tracer:
        for prompt in PROMPTS:
            with tracer.invoke(torch.tensor(prompt)):
                first = model.lm_head.output
                assert first.shape[0] == 2


@pytest.mark.parametrize("settings", [{"do_sample": False}, *SETTINGS])
def test_what_an_encoder_returns_is_each_prompts_own(t5, settings):
    model = LanguageModel(t5)
    prompts = [[[5, 6]], [[8, 9]]]  # of as many tokens as there are prompts, and heads
    seen = []
    with model.generate(max_new_tokens=2, **settings) as tracer:
        for prompt in prompts:
            with tracer.invoke(torch.tensor(prompt)):
                attended, bias, _ = model.encoder.block[0].layer[0].SelfAttention.output
                seen.append((attended, bias))
    for prompt, (attended, bias) in zip(prompts, seen, strict=True):
        with model.trace(torch.tensor(prompt)):
            one, other, _ = model.encoder.block[0].layer[0].SelfAttention.output
        assert torch.allclose(attended, one, atol=1e-5)
        assert torch.allclose(bias, other, atol=1e-5)


def test_attentions_that_a_later_trace_asks_for_are_told_apart(gpt2):
    gpt2.set_attn_implementation("eager")
    model, ids = LanguageModel(gpt2), torch.randint(1, 60, (4, 4))
    seen = []
    for settings in ({}, {"output_attentions": True, "output_hidden_states": True}):
        with model.trace(**settings) as tracer:
            for row in ids:
                with tracer.invoke(row[None]):
                    seen.append(model.output)
    for row, got in zip(ids, seen[4:], strict=True):
        with torch.no_grad():
            alone = gpt2(row[None], output_attentions=True, output_hidden_states=True)
        for name in ("attentions", "hidden_states"):
            for one, other in zip(got[name], alone[name], strict=True):
                assert torch.allclose(one, other, atol=1e-5)
