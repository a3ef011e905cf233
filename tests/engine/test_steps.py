"""Steps of a generation: each is one call of the model, and a loop ends when the run does."""

import pytest
import torch
from reference import edited, inputs, outputs

import insitu
from insitu import NNsight

PROMPT = "Once upon a time"


@pytest.fixture(params=[0, 1], ids=["first pass", "second pass"])
def llm(llm, request):
    for _ in range(request.param):
        with llm.generate(PROMPT, max_new_tokens=2):
            pass
    return llm


def generated(llm, count=5, **settings):
    """What transformers itself makes of the prompt."""
    encoded = llm.tokenizer(PROMPT, return_tensors="pt")
    return lambda: llm._module.generate(**encoded, max_new_tokens=count, **settings)


def last_logits(llm, count=5):
    seen = outputs(llm._module, ["lm_head"], call=generated(llm, count))["lm_head"]
    return [logits[:, -1] for logits in seen]


def test_every_step_is_met_in_turn(llm):
    expected, seen = last_logits(llm), []
    with llm.generate(PROMPT, max_new_tokens=5) as tracer:
        for step in tracer.iter[:]:
            assert step == len(seen)
            seen.append(llm.lm_head.output[:, -1])
        after = "ran"
    assert after == "ran"
    assert len(seen) == 5
    assert all(map(torch.equal, seen, expected))


@pytest.mark.parametrize(
    ("which", "steps"),
    [
        (slice(None), [0, 1, 2, 3, 4]),
        (2, [2]),
        (0, [0]),
        (4, [4]),
        (slice(1, 3), [1, 2]),
        (slice(None, 2), [0, 1]),
        (slice(3, None), [3, 4]),
        (slice(None, None, 2), [0, 2, 4]),
        (slice(1, None, 2), [1, 3]),
        ([0, 2, 4], [0, 2, 4]),
        ([4, 0], [0, 4]),
        ((1, 1), [1]),
        ([], []),
        (9, []),
        (slice(3, 99), [3, 4]),
        (slice(4, 2), []),
    ],
    ids=str,
)
def test_indexes_name_steps(llm, which, steps):
    expected, met = last_logits(llm), []
    with llm.generate(PROMPT, max_new_tokens=5) as tracer:
        for step in tracer.iter[which]:
            met.append(step)
            assert torch.equal(llm.lm_head.output[:, -1], expected[step])
        met.append("after")
    assert met == [*steps, "after"]


def test_all_and_iter_itself_are_every_step(llm):
    for loop in (lambda tracer: tracer.all(), lambda tracer: tracer.iter):
        with llm.generate(PROMPT, max_new_tokens=3) as tracer:
            assert list(loop(tracer)) == [0, 1, 2]


def test_next_goes_one_step_on(llm):
    expected, seen = last_logits(llm, 3), []
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        seen.append(llm.lm_head.output[:, -1])
        assert tracer.next() == 1
        seen.append(llm.lm_head.output[:, -1])
        assert tracer.next() == 2
        seen.append(llm.lm_head.output[:, -1])
    assert all(map(torch.equal, seen, expected))


def test_next_at_the_end_of_the_run_is_an_error(llm):
    with pytest.raises(insitu.StepError, match=r"(?s)no step 2: the run ended after 2 steps.*Next"):
        with llm.generate(PROMPT, max_new_tokens=2) as tracer:
            tracer.next()
            tracer.next()


@pytest.mark.parametrize(
    "which", [-1, slice(-2, None), slice(None, None, -1), [1, -1], True, [1.5], "2"]
)
def test_bad_indexes_say_what_can_be_asked(llm, which):
    with pytest.raises(insitu.StepError, match=r"(?s)names no steps.*Next: use iter\[:\]"):
        with llm.generate(PROMPT, max_new_tokens=2) as tracer:
            for _step in tracer.iter[which]:
                pass


def test_steps_that_have_passed_are_an_error(llm):
    with pytest.raises(insitu.StepError, match="step 0 was asked for, but the run is already in"):
        with llm.generate(PROMPT, max_new_tokens=4) as tracer:
            for _step in tracer.iter[2]:
                pass
            for _step in tracer.iter[0]:
                pass


def test_a_second_loop_goes_on_after_the_first(llm):
    met, expected = [], last_logits(llm)
    with llm.generate(PROMPT, max_new_tokens=5) as tracer:
        for step in tracer.iter[:]:
            if step == 2:
                break
        for step in tracer.iter[3:]:
            met.append(step)
            assert torch.equal(llm.lm_head.output[:, -1], expected[step])
    assert met == [3, 4]


def test_after_a_break_the_block_goes_on_in_that_step(llm):
    with llm.generate(PROMPT, max_new_tokens=5) as tracer:
        for step in tracer.iter[:]:
            if step == 1:
                break
        logits = llm.lm_head.output
        ids = llm.generator.output
    assert torch.equal(logits[:, -1], last_logits(llm)[1])
    assert torch.equal(ids, generated(llm)())


def test_a_loop_that_reads_nothing_ends_too(llm):
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        steps = sum(1 for _ in tracer.iter[:])
        ids = llm.generator.output
    assert steps == 4
    assert torch.equal(ids, generated(llm, 4)())


def test_a_loop_that_stops_reading_does_not_hang(llm):
    seen = []
    with llm.generate(PROMPT, max_new_tokens=5) as tracer:
        for step in tracer.iter[:]:
            if step < 2:
                seen.append(llm.lm_head.output)
    assert len(seen) == 2


def test_an_early_end_of_sequence_ends_the_loop(llm):
    third = int(generated(llm)()[0, -3])
    with llm.generate(PROMPT, max_new_tokens=5, eos_token_id=third) as tracer:
        steps = list(tracer.iter[:])
        ids = llm.generator.output
        after = "ran"
    expected = generated(llm, eos_token_id=third)()
    assert len(steps) == expected.shape[1] - generated(llm, 1)().shape[1] + 1
    assert torch.equal(ids, expected)
    assert after == "ran"


def test_generated_ids_and_each_new_token(llm):
    tokens = []
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        for _step in tracer.iter[:]:
            tokens.append(llm.generator.streamer.output)
        ids = llm.generator.output
        result = tracer.result
    expected = generated(llm, 4)()
    assert torch.equal(ids, expected)
    assert torch.equal(result, expected)
    assert [int(token) for token in tokens] == expected[0, -4:].tolist()


def test_without_a_loop_a_block_stands_in_the_first_step(llm):
    with llm.generate(PROMPT, max_new_tokens=3):
        logits = llm.lm_head.output
        ids = llm.generator.output
    assert torch.equal(logits[:, -1], last_logits(llm)[0])
    assert torch.equal(ids, generated(llm, 3)())


def test_the_model_is_called_as_transformers_calls_it(llm):
    expected = inputs(llm._module, ["model"], call=generated(llm, 3))["model"]
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        for step in tracer.iter[:]:
            _, kwargs = llm.inputs
            assert kwargs.keys() == expected[step][1].keys()


def test_the_logits_have_the_shape_that_transformers_makes(llm):
    expected = outputs(llm._module, ["lm_head"], call=generated(llm, 3))["lm_head"]
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        for step in tracer.iter[:]:
            assert torch.equal(llm.lm_head.output, expected[step])


@pytest.mark.parametrize("when", [0, 2, 4])
def test_an_edit_at_one_step_equals_hooks_that_count_calls(llm, when):
    direction = torch.full((32,), 3.0)

    def at_that_step(value, call):
        return value + direction if call == when else None

    path = "transformer.h.1.mlp"
    expected = edited(llm._module, {path: at_that_step}, call=generated(llm))
    with llm.generate(PROMPT, max_new_tokens=5) as tracer:
        for step in tracer.iter[:]:
            if step == when:
                llm[path].output += direction
        conditional = tracer.result
    with llm.generate(PROMPT, max_new_tokens=5) as tracer:
        for _step in tracer.iter[when]:
            llm[path].output = llm[path].output + direction
        indexed = tracer.result
    assert torch.equal(conditional, expected)
    assert torch.equal(indexed, expected)


def test_a_step_may_read_inputs_skip_and_write(llm):
    skip = {"transformer.h.1": lambda value, call: kept[call]}
    kept = outputs(llm._module, ["transformer.h.0"], call=generated(llm, 1))["transformer.h.0"]
    with llm.generate(PROMPT, max_new_tokens=1) as tracer:
        for _step in tracer.iter[:]:
            llm.transformer.h[1].skip(llm.transformer.h[0].output)
        ids = tracer.result
    assert torch.equal(ids, edited(llm._module, skip, call=generated(llm, 1)))


def test_a_skip_in_every_step(llm):
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        for _step in tracer.iter[:]:
            llm.transformer.h[1].mlp.skip(torch.zeros_like(llm.transformer.h[1].mlp.input))
        ids = tracer.result
    zero = {"transformer.h.1.mlp": lambda value, call: torch.zeros_like(value)}
    assert torch.equal(ids, edited(llm._module, zero, call=generated(llm, 3)))


def test_a_trace_inside_a_step(llm):
    plain, inside = last_logits(llm, 3), []
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        for step in tracer.iter[:]:
            with llm.trace("The city"):
                inside.append(llm.transformer.h[0].output)
            assert torch.equal(llm.lm_head.output[:, -1], plain[step])
        ids = tracer.result
    assert len(inside) == 3
    assert torch.equal(inside[0], inside[2])
    assert torch.equal(ids, generated(llm, 3)())


def test_stop_inside_a_step_ends_the_generation(llm):
    calls = []
    handle = llm._module.register_forward_pre_hook(lambda *_: calls.append(1))
    with llm.generate(PROMPT, max_new_tokens=5) as tracer:
        for step in tracer.iter[:]:
            llm.transformer.h[0].output
            if step == 1:
                tracer.stop()
    handle.remove()
    assert len(calls) == 2


def test_a_batch_of_two_prompts(llm):
    prompts = [PROMPT, "The Eiffel Tower is in the city of"]
    encoded = llm.tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    expected = llm._module.generate(**encoded, max_new_tokens=3)
    shapes = []
    with llm.generate(prompts, max_new_tokens=3) as tracer:
        for _step in tracer.iter[:]:
            shapes.append(llm.transformer.h[0].output.shape[0])
        ids = tracer.result
    assert shapes == [2, 2, 2]
    assert torch.equal(ids, expected)


def test_sampling_draws_what_transformers_draws(llm):
    torch.manual_seed(7)
    expected = generated(llm, do_sample=True)()
    torch.manual_seed(7)
    with llm.generate(PROMPT, max_new_tokens=5, do_sample=True) as tracer:
        for _step in tracer.iter[:]:
            llm.lm_head.output
    assert torch.equal(tracer.result, expected)


def test_beam_search_runs_too(llm):
    with llm.generate(PROMPT, max_new_tokens=3, num_beams=2) as tracer:
        rows = [llm.transformer.h[0].output.shape[0] for _step in tracer.iter[:]]
        ids = llm.generator.output
    assert set(rows[1:]) == {2}
    assert torch.equal(ids, generated(llm, 3, num_beams=2)())


def test_a_plain_trace_has_one_step(llm, net, x):
    seen = []
    with llm.trace(PROMPT) as tracer:
        for step in tracer.iter[:]:
            seen.append((step, llm.lm_head.output.shape[0]))
    assert seen == [(0, 1)]
    model, steps = NNsight(net), []
    with model.trace(x) as tracer:
        for step in tracer.iter[:]:
            steps.append((step, model.layer1.output))
        out = tracer.result
    assert [step for step, _ in steps] == [0]
    assert torch.equal(out, net(x))


def test_a_loop_begins_with_the_step_in_which_something_was_read(llm):
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        first = llm.transformer.h[0].output[0]
        steps = []
        for step in tracer.iter[:]:
            steps.append((step, llm.lm_head.output[:, -1]))
    assert [step for step, _ in steps] == [0, 1, 2]
    assert all(map(torch.equal, [logits for _, logits in steps], last_logits(llm, 3)))
    assert first.shape[1] > 1


def test_a_loop_over_steps_after_the_end_is_empty(llm):
    with llm.generate(PROMPT, max_new_tokens=2) as tracer:
        steps = [step for step in tracer.iter[:]]  # noqa: C416
        late = [step for step in tracer.iter[5:]]  # noqa: C416
        out = tracer.result
        later = [step for step in tracer.iter[7:]]  # noqa: C416
    assert (steps, late, later) == ([0, 1], [], [])
    assert torch.equal(out, generated(llm, 2)())


def test_next_after_a_read_is_the_next_call_of_what_was_read(net, x):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(5, 5)

        def forward(self, x):
            return self.inner(self.inner(x))

    twice = Twice()
    model = NNsight(twice)
    with model.trace(x) as tracer:
        first = model.inner.output
        assert tracer.next() == 1
        second = model.inner.output
    assert torch.equal(first, twice.inner(x))
    assert torch.equal(second, twice(x))
