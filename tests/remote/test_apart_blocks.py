"""Blocks on a model that computes in another process: bit for bit the values of one beside it."""

import copy

import pytest
import torch
from apart_runs import apart

from insitu import LanguageModel

PROMPT, OTHER = "The Eiffel Tower is in the city of", "The Colosseum is in the city of"


@pytest.fixture
def make(tiny_gpt2):
    model, tokenizer = tiny_gpt2
    return lambda: LanguageModel(copy.deepcopy(model), tokenizer=tokenizer)


def reads_an_output(model):
    with model.trace(PROMPT):
        h = model.transformer.h[2].output
    return h


def reads_many_outputs(model):
    with model.trace(PROMPT) as tracer:
        found = [model.transformer.h[n].mlp.output for n in range(4)]
        found += [model.transformer.h[3].output, model.transformer.ln_f.output]
        found += [model.lm_head.output, model.output.logits, tracer.result.logits]
    return found


def reads_inputs_at_either_side(model):
    with model.trace(PROMPT):
        before = model.transformer.h[1].input.clone()
        after = model.transformer.h[1].output
        again = model.transformer.h[1].input
        kwargs = model.transformer.h[2].inputs[1]["position_ids"]
        late = model.transformer.h[3].output, model.transformer.h[3].input
    return before, after, again, kwargs, late


def edits_in_place(model):
    with model.trace(PROMPT):
        model.transformer.h[1].output[:, -1] = 0
        model.transformer.h[2].attn.output[0][:, 0] *= 3
        out = model.lm_head.output
    return out


def edits_what_it_has_read_before(model):
    with model.trace(PROMPT):
        h = model.transformer.h[1].output
        model.transformer.h[2].ln_1.output
        h[:] = 0  # the residual stream still adds it
        out = model.lm_head.output
    return out


def replaces_outputs_and_inputs(model):
    with model.trace(PROMPT):
        h = model.transformer.h[0].output
        model.transformer.h[1].mlp.output = h * 2
        model.transformer.h[2].input = model.transformer.h[2].input + h
        model.transformer.h[3].inputs = model.transformer.h[3].inputs
        out = model.lm_head.output
    return out


def replaces_the_result(model):
    with model.trace(PROMPT) as tracer:
        model.output.logits[:] = 1
        out = tracer.result.logits
    return out


def skips_calls(model):
    with model.trace(PROMPT):
        model.transformer.h[1].skip(model.transformer.h[0].output)
        model.transformer.h[3].mlp.skip(torch.zeros_like(model.transformer.h[2].output))
        out = model.lm_head.output
    return out


def stops_early(model):
    with model.trace(PROMPT) as tracer:
        h = model.transformer.h[1].output
        tracer.stop()
    with model.trace(OTHER):
        out = model.lm_head.output
    return h, out


def calls_modules_itself(model):
    with model.trace(PROMPT):
        h = model.transformer.h[1].output
        early = model.lm_head(model.transformer.ln_f(h))
        again = model.transformer.h[2](h.clone())
        out = model.lm_head.output
    return early, again, out


def runs_without_a_block(model):
    return model.trace(PROMPT).logits, model(OTHER).logits


def reads_one_prompt_into_another(model):
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            h = model.transformer.h[1].output[:, -1]
            first = model.transformer.h[2].inputs[0][0]
        with tracer.invoke(OTHER):
            model.transformer.h[1].output[:, -1] = h
            out = model.lm_head.output
        with tracer.invoke():
            both = model.lm_head.output
            result = tracer.result.logits
    return first, out, both, result


def skips_one_of_two_prompts(model):
    with model.trace() as tracer:
        with tracer.invoke(PROMPT):
            model.transformer.h[1].skip(model.transformer.h[0].output)
            one = model.lm_head.output
        with tracer.invoke(OTHER):
            other = model.lm_head.output
    return one, other


def generates(model):
    with model.generate(PROMPT, max_new_tokens=6) as tracer:
        tokens = [token.clone() for token in tracer.stream()]
        ids = model.generator.output
    return tokens, ids


def edits_every_step(model):
    kept = []
    with model.generate(PROMPT, max_new_tokens=5) as tracer:
        for step in tracer.iter[:]:
            model.transformer.h[1].output[:, -1] *= 1 + step
            kept.append(model.lm_head.output[:, -1])
        ids = model.generator.output
    return kept, ids


def samples(model):
    torch.manual_seed(3)
    with model.generate(PROMPT, max_new_tokens=8, do_sample=True, temperature=2.0):
        ids = model.generator.output
    return ids


def searches_beams(model):
    with model.generate(PROMPT, max_new_tokens=4, num_beams=3):
        ids = model.generator.output
    return ids


def generates_for_two(model):
    with model.generate(max_new_tokens=3) as tracer:
        with tracer.invoke(PROMPT):
            for _ in tracer.iter[1:]:
                model.transformer.h[0].output[:] = 0
        with tracer.invoke(OTHER):
            ids = model.generator.output
        with tracer.invoke():
            every = model.generator.output
    return ids, every


def stops_at_operations(model):
    with model.trace(PROMPT):
        model.transformer.h[1].attn.source.attention_interface_0.output[0][:, 0] = 0
        inner = model.transformer.h[2].mlp.source.self_c_fc_0.output
        out = model.lm_head.output
    return inner, out


def edits_a_pattern(model):
    with model.trace(PROMPT):
        model.layers[1].attention.pattern[:, 2] = 0
        scores = model.layers[2].attention.scores
        out = model.unembed.output
    return scores, out


def stops_at_operations_in_steps(model):
    kept = []
    with model.generate(PROMPT, max_new_tokens=3) as tracer:
        for _ in tracer.iter[:]:
            kept.append(model.transformer.h[1].attn.source.attention_interface_0.output[0])
        ids = model.generator.output
    return kept, ids


def caches(model):
    with model.trace(PROMPT) as tracer:
        cache = tracer.cache(include_inputs=True)
        model.transformer.h[1].output[:] *= 2
    paths = (
        "transformer.wte",
        "transformer.h.0",
        "transformer.h.1",
        "transformer.h.3.mlp",
        "lm_head",
    )
    return [cache[path].output for path in paths], cache["transformer.h.2"].inputs[0]


def keeps_edits(model):
    with model.edit(inplace=True):
        model.transformer.h[1].output[:] *= 0.5
    with model.trace(PROMPT):
        out = model.lm_head.output
    with model.generate(PROMPT, max_new_tokens=3):
        ids = model.generator.output
    return out, ids


def traces_inside_a_trace(model):
    with model.trace(PROMPT):
        model.transformer.h[0].output
        with model.trace(OTHER):
            inner = model.transformer.h[2].output
        model.transformer.h[1].output[:, -1] = inner[:, -1]
        out = model.lm_head.output
    return inner, out


def uses_weights(model):
    with model.trace(PROMPT):
        h = model.transformer.h[2].output
        out = h @ model.lm_head.weight.T
    return out


def changes_weights(model):
    with model.trace(PROMPT):
        with torch.no_grad():
            model.transformer.h[2].mlp.c_fc.weight[:, 3] = 0
        model.transformer.h[1].mlp.c_fc.weight.data *= 2
        out = model.lm_head.output
    with model.trace(PROMPT):
        model.transformer.h[0].output
        model.lm_head.weight.data[5] = 1
        late = model.lm_head.output
    return out, late


def trains(model):
    """What dropout leaves is another thing every time; after it, the model is what it was."""
    model._module.train()
    with model.trace(PROMPT):
        noisy = model.lm_head.output
    model._module.eval()
    right = model.trace(PROMPT).logits
    return right, torch.tensor(torch.equal(noisy, right))


def attaches_a_module(model):
    torch.manual_seed(0)
    probe = model.attach("probe", torch.nn.Linear(32, 4), at="transformer.h.1")
    with model.trace(PROMPT):
        seen = probe(model.transformer.h[1].output)
    return seen


def hooks_a_module(model):
    seen = []
    inner = model.transformer.h[1].mlp._module
    handle = inner.register_forward_hook(lambda module, args, output: seen.append(output * 2))
    with model.trace(PROMPT):
        h = model.transformer.h[1].mlp.output
    handle.remove()
    return h, seen


def passes_tensors_of_every_kind(model):
    ids = model.tokenizer([PROMPT], return_tensors="pt")["input_ids"]
    with model.trace(inputs_embeds=model.transformer.wte.weight[ids], use_cache=False):
        model.transformer.h[0].output = (
            model.transformer.h[0].output.transpose(1, 2).transpose(1, 2)
        )
        out = model.lm_head.output
    return out


def asks_for_hidden_states(model):
    with model.trace(PROMPT, output_hidden_states=True) as tracer:
        found = tracer.result.hidden_states
    return found


def groups_traces(model):
    with model.session():
        with model.trace(PROMPT):
            h = model.transformer.h[1].output
        with model.trace(OTHER):
            model.transformer.h[1].output[:, -1] = h[:, -1]
            out = model.lm_head.output
    return out


def scans(model):
    with model.scan(PROMPT):
        shape = model.transformer.h[2].output.shape
    with model.trace(PROMPT, validate=True):
        out = model.lm_head.output
    return torch.tensor(shape), out


BLOCKS = [
    reads_an_output, reads_many_outputs, reads_inputs_at_either_side, edits_in_place,
    edits_what_it_has_read_before, replaces_outputs_and_inputs, replaces_the_result, skips_calls,
    stops_early, calls_modules_itself, runs_without_a_block, reads_one_prompt_into_another,
    skips_one_of_two_prompts, generates, edits_every_step, samples, searches_beams,
    generates_for_two, stops_at_operations, edits_a_pattern, stops_at_operations_in_steps, caches,
    keeps_edits, traces_inside_a_trace, uses_weights, trains, changes_weights, attaches_a_module,
    hooks_a_module, passes_tensors_of_every_kind, asks_for_hidden_states, groups_traces, scans,
]  # fmt: skip


def flat(value):
    """The tensors in a value, in their order."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return (
        []
        if not isinstance(value, (tuple, list, dict))
        else [tensor for part in parts for tensor in flat(part)]
    )


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_a_block_finds_the_same_there_as_here(make, block):
    here = flat(block(make()))
    with apart(make) as model:
        there = flat(block(model))
        again = flat(block(model)) if block not in (keeps_edits, changes_weights) else there
    assert len(here) == len(there) > 0
    for one, other, third in zip(here, there, again, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert torch.equal(one, other)
        assert torch.equal(one, third)
        assert other.device.type == "cpu"


def test_a_model_that_had_hooks_before_is_told_of_too(make):
    def hooked():
        model = make()
        model._module.transformer.h[2].register_forward_hook(lambda module, args, output: None)
        return model

    here = reads_an_output(hooked())
    with apart(hooked) as model:
        for _ in range(2):  # the second pass knows the order, and listens where it reads alone
            assert torch.equal(reads_an_output(model), here)
