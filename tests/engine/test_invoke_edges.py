"""Invokes at their edges: what they ask for late, twice, while they are closed, or not at all."""

import pytest
import torch
from reference import outputs
from torch import nn

import insitu
from insitu import NNsight

PROMPTS = ["The Eiffel Tower is in", "Once upon a time"]


@pytest.fixture
def rows():
    torch.manual_seed(2)
    return [torch.rand(1, 5), torch.rand(2, 5)]


# What a body is given -----------------------------------------------------------------------------


def test_the_name_after_as_is_the_invoke(net, rows):
    with NNsight(net).trace() as tracer:
        with tracer.invoke(rows[0]) as first:
            pass
        with tracer.invoke(rows[1]) as second:
            pass
    assert type(first).__name__ == type(second).__name__ == "Invoke"
    assert first is not second


def test_the_result_can_be_asked_for_twice_and_in_a_promptless_invoke_is_all(net, rows):
    with NNsight(net).trace() as tracer:
        with tracer.invoke(rows[0]):
            once, again = tracer.result, tracer.result
        with tracer.invoke(rows[1]):
            pass
        with tracer.invoke():
            every = tracer.result
    assert torch.equal(once, again)
    assert torch.allclose(once, net(rows[0]))
    assert torch.allclose(every, net(torch.cat(rows)))


@pytest.mark.parametrize("inputs", [False, True])
def test_a_cache_in_an_invoke_has_its_rows(net, rows, inputs):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            pass
        with tracer.invoke(rows[1]):
            mine = tracer.cache(include_inputs=inputs)
        with tracer.invoke():
            model.layer1.output[:, 0] = 0
            every = tracer.cache("layer1", include_inputs=inputs)
    hidden = net.layer1(torch.cat(rows))
    hidden[:, 0] = 0
    assert torch.allclose(every["layer1"].output, hidden)
    assert torch.allclose(mine["layer1"].output, hidden[1:])
    assert torch.allclose(mine["model"].output, net.layer2(hidden[1:]))
    if inputs:
        assert torch.equal(mine["layer1"].input, rows[1])
        assert torch.allclose(mine["layer2"].input, hidden[1:])
        assert torch.equal(every["layer1"].input, torch.cat(rows))


def test_a_promptless_invoke_may_begin_while_the_pass_runs(net, x):
    model = NNsight(net)
    for _ in range(2):
        with model.trace(x) as tracer:
            hidden = model.layer1.output
            with tracer.invoke():
                model.layer2.output = model.layer2.output * 3
            out = model.output
        assert torch.equal(hidden, net.layer1(x))
        assert torch.equal(out, net(x) * 3)


def test_a_promptless_invoke_reads_the_input_at_the_output_too(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            pass
        with tracer.invoke(rows[1]):
            pass
        with tracer.invoke():
            hidden, given = model.layer1.output, model.layer1.input
    assert torch.equal(given, torch.cat(rows))
    assert torch.equal(hidden, net.layer1(given))


# What comes too late ------------------------------------------------------------------------------


def test_after_the_result_an_invoke_finds_every_site_passed(net, rows):
    model = NNsight(net)
    for _ in range(2):
        with pytest.raises(insitu.OutOfOrderError, match=r"layer2\.output was asked for"):
            with model.trace() as tracer:
                with tracer.invoke(rows[0]):
                    tracer.result
                    model.layer2.output


def test_the_input_of_a_module_that_has_run_cannot_be_written_in_an_invoke(net, rows):
    model = NNsight(net)
    with pytest.raises(insitu.OutOfOrderError, match=r"layer1\.input cannot be written any more"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                pass
            with tracer.invoke(rows[1]):
                model.layer1.output
                model.layer1.input = rows[1]


def test_an_input_asked_for_in_an_invoke_after_the_last_call_is_too_late(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            pass
    with pytest.raises(insitu.OutOfOrderError, match=r"layer1\.input was asked for"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                model.output
                model.layer1.input


def test_a_name_that_is_missing_at_the_end_of_the_run_is_a_name_error(net, rows):
    wanted = False
    with pytest.raises(NameError, match="hidden"):
        with NNsight(net).trace() as tracer:
            with tracer.invoke(rows[0]):
                if wanted:
                    hidden = 1
            with tracer.invoke(rows[1]):
                tracer.result
                hidden


def test_a_skip_of_an_invoke_that_no_call_takes_names_its_line(net, rows):
    net.spare = nn.Identity()
    net.forward = lambda x: net.layer2(net.layer1(x))
    model = NNsight(net)
    with pytest.raises(insitu.NeverRanError, match=r"spare\.skip on line \d+ was never used"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                pass
            with tracer.invoke(rows[1]):
                model.spare.skip(torch.zeros(2, 2))


# Barriers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1])
def test_a_barrier_of_no_invokes_is_refused(net, count):
    with pytest.raises(insitu.UsageError, match=f"a barrier of {count} was asked for"):
        with NNsight(net).trace() as tracer:
            tracer.barrier(count)


def test_a_barrier_belongs_into_the_invokes_of_its_trace(net, x, rows):
    model = NNsight(net)
    refused = pytest.raises(insitu.UsageError, match="outside the invokes of its trace")
    with refused, model.trace(x) as tracer:
        tracer.barrier(1)()
    with refused, model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(rows[0]):
            with model.trace() as inner:
                with inner.invoke(rows[1]):
                    barrier()


def test_a_barrier_reached_after_the_run_never_opens(net, rows):
    with pytest.raises(insitu.TraceError, match="a barrier of 2 never opened"):
        with NNsight(net).trace() as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(rows[0]):
                tracer.result
                barrier()
            with tracer.invoke(rows[1]):
                pass


# While the pass is being closed -------------------------------------------------------------------


ASKS = {
    "a site": lambda model, tracer, barrier: model.layer2.output,
    "the result": lambda model, tracer, barrier: tracer.result,
    "a barrier": lambda model, tracer, barrier: barrier(),
    "a step": lambda model, tracer, barrier: tracer.next(),
}


@pytest.mark.parametrize("asks", ASKS)
def test_a_body_that_asks_for_more_as_it_is_closed_hides_no_error(net, rows, asks):
    model, seen = NNsight(net), []

    def run(fail):
        with model.trace() as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(rows[0]):
                try:
                    model.layer2.output
                finally:
                    if fail:
                        ASKS[asks](model, tracer, barrier)
                        seen.append(asks)
            with tracer.invoke(rows[1]):
                model.layer1.output
                if fail:
                    raise KeyError("mine")
                out = model.output
        return out

    for _ in range(3):
        with pytest.raises(KeyError, match="mine"):
            run(True)
        assert torch.allclose(run(False), net(rows[1]))
    assert seen == []  # none of them was answered


# Steps in an invoke -------------------------------------------------------------------------------


def test_a_loop_in_an_invoke_begins_with_the_step_it_stands_in(llm):
    with llm.generate(max_new_tokens=3) as tracer:
        with tracer.invoke(PROMPTS[0]):
            first = llm.transformer.h[0].output[0]
            met = []
            for step in tracer.iter[:]:
                met.append((step, llm.lm_head.output[:, -1].argmax(-1)))
        with tracer.invoke(PROMPTS[1]):
            pass
    assert [step for step, _ in met] == [0, 1, 2]
    own = llm.generate(PROMPTS[0], max_new_tokens=3)
    assert torch.equal(torch.stack([token for _, token in met], 1), own[:, -3:])
    assert first.shape[-1] == 32


def test_a_step_that_has_passed_cannot_be_asked_for_in_an_invoke(llm):
    with pytest.raises(insitu.StepError, match="step 0 was asked for, but the run is already in"):
        with llm.generate(max_new_tokens=3) as tracer:
            with tracer.invoke(PROMPTS[0]):
                for _ in tracer.iter[1:2]:
                    llm.lm_head.output
                for _ in tracer.iter[0]:
                    llm.lm_head.output


def test_a_loop_over_steps_after_the_last_is_empty_in_an_invoke(llm):
    with llm.generate(max_new_tokens=2) as tracer:
        with tracer.invoke(PROMPTS[0]):
            met = [step for step in tracer.iter[:]]  # noqa: C416
            more = [step for step in tracer.iter[5:]]  # noqa: C416
        with tracer.invoke(PROMPTS[1]):
            result = tracer.result
            late = [step for step in tracer.iter[5:]]  # noqa: C416
    assert (met, more, late) == ([0, 1], [], [])
    alone = llm.generate(PROMPTS[1], max_new_tokens=2)
    assert torch.equal(result[:, -2:], alone[:, -2:])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.outer = nn.Sequential(self.inner, nn.Tanh())

    def forward(self, x):
        return self.inner(self.outer(x))


def test_a_loop_over_calls_in_an_invoke_ends_with_the_run(rows):
    net = Twice()
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            pass
        with tracer.invoke(rows[1]):
            seen = []
            for step in tracer.iter[:]:
                seen.append(model.inner.output)
                if step == 1:
                    out = tracer.result
    wanted = outputs(net, ["inner"], rows[1])["inner"]
    assert len(seen) == 2
    assert all(map(torch.allclose, seen, wanted))
    assert torch.allclose(out, net(rows[1]))


def test_next_where_nothing_was_read_and_no_step_follows_is_told(net, x):
    model = NNsight(net)
    for _ in range(2):
        with pytest.raises(insitu.StepError, match="there is no step 1"):
            with model.trace(x) as tracer:
                tracer.next()
        with pytest.raises(insitu.StepError, match="there is no step 1"):
            with model.trace(x) as tracer:
                model.layer1.output
                with tracer.invoke():
                    tracer.next()


# Skips of some rows -------------------------------------------------------------------------------


def test_a_skip_inside_a_call_that_the_same_rows_skip_waits_for_the_next_one(rows):
    net = Twice()
    model = NNsight(net)
    first, second = torch.full((1, 5), 0.5), torch.full((1, 5), 0.25)
    for _ in range(2):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                model.outer.skip(first)
                model.inner.skip(second)  # inside outer there is none in these rows
                mine = tracer.result
            with tracer.invoke(rows[1]):
                model.inner.skip(torch.ones(2, 5))
                theirs = tracer.result
        assert torch.equal(mine, second)
        assert torch.allclose(theirs, net.inner(torch.ones(2, 5).tanh()))
