"""Steps in every spelling: `with`, `all`, `next`, `stream`, and the calls of a plain module."""

import pytest
import torch
from reference import outputs
from torch import nn

import insitu
from insitu import NNsight, OutOfOrderError, StepError, UsageError

PROMPT = "Once upon a time"


@pytest.fixture
def tokens(llm):
    with torch.no_grad():
        given = llm.tokenizer(PROMPT, return_tensors="pt")
        return llm._module.generate(**given, max_new_tokens=4, do_sample=False)[0, -4:].tolist()


def chosen(llm):
    return int(llm.lm_head.output[0, -1].argmax())


def test_a_with_block_runs_once_in_each_step(llm, tokens):
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        seen = []
        with tracer.iter[1:3] as step:
            token = int(llm.lm_head.output[0, -1].argmax())
            seen.append((step, token))
        after = len(seen)
    assert seen == [(1, tokens[1]), (2, tokens[2])]
    assert after == 2
    assert step == 2
    assert token == tokens[2]


def test_a_with_block_changes_the_names_of_its_function(llm):
    count = 0
    with llm.generate(PROMPT, max_new_tokens=3) as tracer:
        with tracer.iter[:]:
            count += 1
            llm.lm_head.output
    assert count == 3


def test_every_step_by_all(llm, tokens):
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        looped = [chosen(llm) for _ in tracer.all()]
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        nested = []
        with tracer.all():
            nested.append(chosen(llm))
    with llm.generate(PROMPT, max_new_tokens=4):
        older = [chosen(llm) for _ in llm.iter[:]]
    assert looped == nested == older == tokens


def test_all_as_a_statement_runs_the_rest_of_the_block_in_every_step(llm, tokens):
    with llm.generate(PROMPT, max_new_tokens=4):
        seen = []
        llm.all()
        token = chosen(llm)
        seen.append(token)
    assert seen == tokens
    assert token == tokens[-1]


def test_all_as_a_statement_in_another_with_is_refused(llm):
    with pytest.raises(insitu.CaptureError, match="does not stand directly"):
        with llm.generate(PROMPT, max_new_tokens=2):
            with torch.no_grad():
                llm.all()
                llm.lm_head.output


def test_next_goes_to_the_next_step(llm, tokens):
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        first = chosen(llm)
        tracer.next()
        second = chosen(llm)
        third = int(llm.lm_head.next().output[0, -1].argmax())
        llm.next()
        fourth = chosen(llm)
        with pytest.raises(StepError, match="no step 4"):
            tracer.next()
    assert [first, second, third, fourth] == tokens


def test_tokens_stream_while_they_are_generated(llm, tokens):
    with llm.generate(PROMPT, max_new_tokens=4) as tracer:
        streamed = [int(token) for token in tracer.stream()]
        ids = llm.generator.output
    assert streamed == tokens == ids[0, -4:].tolist()


def test_streaming_in_each_invoke(llm, tokens):
    with llm.generate(max_new_tokens=4) as tracer:
        with tracer.invoke(PROMPT):
            mine = [int(token) for token in tracer.stream()]
        with tracer.invoke("The"):
            other = [token.shape for token in tracer.stream()]
    assert mine == tokens
    assert other == [(1,)] * 4


def test_nothing_streams_where_nothing_is_generated(llm):
    with pytest.raises(UsageError, match="nothing is generated"):
        with llm.trace(PROMPT) as tracer:
            list(tracer.stream())


# A plain module that is called several times ------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        for _ in range(4):
            x = torch.tanh(self.cell(x))
        return self.out(x)


@pytest.fixture
def recurrent():
    return Recurrent()


@pytest.fixture
def given():
    return torch.rand(1, 3)


@pytest.mark.parametrize(
    ("which", "steps"),
    [
        (slice(None), [0, 1, 2, 3]),
        (2, [2]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        ([0, 3], [0, 3]),
        (slice(2, 99), [2, 3]),
    ],
)
@pytest.mark.parametrize("warm", [False, True])
def test_a_step_of_a_plain_module_is_its_next_call(recurrent, given, which, steps, warm):
    model = NNsight(recurrent)
    want = outputs(recurrent, ["cell"], given)["cell"]
    if warm:
        model(given)
        with model.trace(given):
            pass
    with model.trace(given) as tracer:
        seen, numbers = [], []
        for step in tracer.iter[which]:
            seen.append(model.cell.output)
            numbers.append(step)
        last = tracer.result
    assert numbers == steps
    assert all(torch.equal(a, want[s]) for a, s in zip(seen, steps, strict=True))
    assert torch.equal(last, recurrent(given))


def test_an_edit_in_each_call_and_code_after_the_loop(recurrent, given):
    model = NNsight(recurrent)
    with model.trace(given) as tracer:
        for step in tracer.iter[:3]:
            model.cell.output[:] = step
        out = model.output
    want = recurrent.out(torch.tanh(recurrent.cell(torch.tanh(torch.full((1, 3), 2.0)))))
    assert torch.allclose(out, want)


def test_calls_of_a_plain_module_in_an_invoke(recurrent, given):
    model = NNsight(recurrent)
    with model.trace() as tracer:
        with tracer.invoke(given):
            mine = []
            for _ in tracer.iter[:]:
                mine.append(model.cell.output)
        with tracer.invoke(given * 2):
            third = [model.cell.output for _ in tracer.iter[2]]
    assert torch.allclose(
        torch.cat(mine), torch.cat(outputs(recurrent, ["cell"], given)["cell"]), atol=1e-6
    )
    assert torch.allclose(third[0], outputs(recurrent, ["cell"], given * 2)["cell"][2], atol=1e-6)


def test_the_next_call_of_a_plain_module(recurrent, given):
    model = NNsight(recurrent)
    want = outputs(recurrent, ["cell"], given)["cell"]
    with model.trace(given):
        first = model.cell.output
        second = model.cell.next().output
        third = model.cell.next().output
    assert [torch.equal(a, b) for a, b in zip((first, second, third), want, strict=False)] == [
        True
    ] * 3
    with pytest.raises(StepError, match="cell is not called again"):
        with model.trace(given):
            for _ in range(5):
                model.cell.next()


def test_a_loop_that_reads_nothing_at_first_says_so(recurrent, given):
    model = NNsight(recurrent)
    with pytest.raises(StepError, match="read nothing in step 0"):
        with model.trace(given) as tracer:
            for step in tracer.iter[:]:
                if step == 2:
                    model.cell.output


def test_an_order_error_inside_a_step_of_a_plain_module(recurrent, given):
    model = NNsight(recurrent)
    with pytest.raises(OutOfOrderError, match=r"cell\.output"):
        with model.trace(given):
            model.out.output
            model.cell.output


# A trace without a `with` -------------------------------------------------------------------------


def test_a_trace_without_a_with_runs_and_gives_the_output(net, x):
    model = NNsight(net)
    out = model.trace(x)
    assert torch.equal(out, net(x))
    assert model.trace(x).shape == (1, 2)
    assert torch.equal(model.trace(x, trace=False), net(x))


def test_generate_without_a_with_gives_the_ids(llm, tokens):
    ids = llm.generate(PROMPT, max_new_tokens=4)
    assert ids[0, -4:].tolist() == tokens
    assert llm.trace(PROMPT).logits.shape[0] == 1


def test_a_tracer_may_be_made_first_and_entered_later(net, x):
    model = NNsight(net)
    tracer = model.trace(x)
    with tracer:
        h = model.layer1.output
    assert torch.equal(h, net.layer1(x))

    def traced():
        return model.trace(x)

    with traced():
        g = model.layer1.output
    assert torch.equal(g, h)


def test_a_tracer_that_is_never_entered_warns(net, x):
    model = NNsight(net)
    with pytest.warns(insitu.InsituWarning, match="never entered"):
        [model.trace(x)]


def test_without_a_with_edits_apply(net, x):
    model = NNsight(net)
    with model.edit(inplace=True):
        model.layer1.output[:] = 0
    assert torch.allclose(model.trace(x), net.layer2(torch.zeros(1, 10)))
