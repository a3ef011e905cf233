"""Steps in every spelling: `with`, `all`, `next`, `stream`, and the calls of a plain module."""

from operator import attrgetter

import pytest
import torch
from reference import edited, outputs
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


class Loop(nn.Module):
    """Two modules in a loop, after an embedding that is called once, or before each round of it."""

    def __init__(self, leads_in=False):
        super().__init__()
        torch.manual_seed(0)
        self.late, self.early = nn.Linear(3, 3), nn.Linear(3, 3)
        self.embed, self.leads_in = nn.Linear(3, 3), leads_in

    def forward(self, x):
        x = self.embed(x)
        if self.leads_in:
            x = self.late(x)
        for _ in range(4):
            x = torch.tanh(self.early(x))
            x = self.late(x)
        return x


LOOPED = ["embed", "early", "late"]


def number_of(value, calls):
    """Which call gave a value."""
    (found,) = [i for i, one in enumerate(calls) if torch.equal(one, value)]
    return found


def read_then_loop(model, tracer):
    yield 0, model.early.output
    for step in tracer.iter[:3]:
        yield step, model.early.output


def read_then_loop_later(model, tracer):
    yield 0, model.early.output
    for step in tracer.iter[1:3]:
        yield step, model.early.output


def input_then_loop_later(model, tracer):
    model.early.input
    for step in tracer.iter[2:]:
        yield step, model.early.output


def another_then_loop_later(model, tracer):
    model.embed.output
    for step in tracer.iter[1:3]:
        yield step, model.early.output


def two_loops(model, tracer):
    for step in tracer.iter[:2]:
        yield step, model.early.output
    for step in tracer.iter[2:]:
        yield step, model.early.output


def two_loops_that_share_a_step(model, tracer):
    for step in tracer.iter[:2]:
        yield step, model.early.output
    for step in tracer.iter[1:3]:
        yield step, model.early.output


def two_loops_with_a_gap(model, tracer):
    for step in tracer.iter[:1]:
        yield step, model.early.output
    for step in tracer.iter[3:]:
        yield step, model.early.output


def loops_that_are_left(model, tracer):
    for step in tracer.iter[:]:
        yield step, model.early.output
        break
    for step in tracer.iter[:]:
        yield step, model.early.output
        if step == 2:
            break
    for step in tracer.iter[3:]:
        yield step, model.early.output


def calls_and_then_a_loop(model, tracer):
    yield 0, model.early.output
    yield 1, model.early.next().output
    for step in tracer.iter[1:]:
        yield step, model.early.output


def next_and_then_a_loop(model, tracer):
    model.early.next()
    for step in tracer.iter[:2]:
        yield step, model.early.output


READERS = [
    read_then_loop, read_then_loop_later, input_then_loop_later, another_then_loop_later,
    two_loops, two_loops_that_share_a_step, two_loops_with_a_gap, loops_that_are_left,
    calls_and_then_a_loop, next_and_then_a_loop,
]  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("warm", [False, True], ids=["first pass", "second pass"])
def test_a_step_of_a_plain_module_has_one_number_wherever_its_loop_begins(given, reader, warm):
    net = Loop()
    calls, model = outputs(net, LOOPED, given)["early"], NNsight(net)
    if warm:
        model.trace(given)
    with model.trace(given) as tracer:
        seen = [(step, number_of(value, calls)) for step, value in reader(model, tracer)]
        last = tracer.result
    assert len(seen) > 1
    assert [step for step, _ in seen] == [number for _, number in seen]
    assert torch.equal(last, net(given))


@pytest.mark.parametrize("warm", [False, True], ids=["first pass", "second pass"])
def test_loops_over_two_modules_count_on_with_the_one_that_leads(given, warm):
    net = Loop()
    calls, model = outputs(net, LOOPED, given), NNsight(net)
    if warm:
        model.trace(given)
    with model.trace(given) as tracer:
        seen = [(0, model.early.output, model.late.output)]
        for which in (slice(1, 2), slice(2, 4)):
            for step in tracer.iter[which]:
                seen.append((step, model.early.output, model.late.output))
    for step, early, late in seen:
        assert number_of(early, calls["early"]) == number_of(late, calls["late"]) == step
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]


@pytest.mark.parametrize("warm", [False, True], ids=["first pass", "second pass"])
def test_a_loop_over_what_was_not_read_yet_begins_with_its_next_call(given, warm):
    net = Loop()
    calls, model = outputs(net, LOOPED, given), NNsight(net)
    if warm:
        model.trace(given)
    with model.trace(given) as tracer:
        for _ in tracer.iter[:2]:
            model.late.output
        seen = [number_of(model.early.output, calls["early"]) for _ in tracer.iter[:]]
    assert seen == [2, 3]


@pytest.mark.parametrize("warm", [False, True], ids=["first pass", "second pass"])
def test_a_loop_writes_to_the_calls_its_numbers_say(given, warm):
    net = Loop()
    model = NNsight(net)
    if warm:
        model.trace(given)
    with model.trace(given) as tracer:
        model.early.output
        for step in tracer.iter[:2]:
            model.early.output = model.early.output * 0 + step
        for _ in tracer.iter[3:]:
            model.early.output[:] = 7
        got = tracer.result
    numbers = {0: 0, 1: 1, 3: 7}
    want = edited(
        net, {"early": lambda out, call: out * 0 + numbers[call] if call in numbers else None},
        given,
    )  # fmt: skip
    assert torch.equal(got, want)


@pytest.mark.parametrize("site", ["embed.output", "early.output", "late.input", "late.output"])
@pytest.mark.parametrize("warm", [False, True], ids=["first pass", "second pass"])
def test_a_step_may_begin_with_a_skip_of_a_call_to_come(given, site, warm):
    net = Loop()
    model = NNsight(net)
    if warm:
        model.trace(given)
    with model.trace(given) as tracer:
        attrgetter(site)(model)
        for _ in tracer.iter[:2]:
            model.early.skip(torch.zeros(1, 3))
            model.late.input
        got = tracer.result
    skipped = (0, 2) if site == "embed.output" else (1, 2)
    want = edited(net, {"early": lambda out, call: out * 0 if call in skipped else None}, given)
    assert torch.equal(got, want)


@pytest.mark.parametrize("which", [slice(None), slice(1, 3), 2])
@pytest.mark.parametrize("warm", [False, True], ids=["first pass", "second pass"])
def test_what_comes_earlier_in_the_forward_has_passed_in_a_step(given, which, warm):
    net = Loop()
    model = NNsight(net)
    if warm:
        model.trace(given)
    with pytest.raises(OutOfOrderError, match=r"early\.output .* passed it in step") as error:
        with model.trace(given) as tracer:
            for _ in tracer.iter[which]:
                model.late.output
                model.early.output
    assert "model.early.output" in str(error.traceback[-1].statement)
    calls, seen = outputs(net, LOOPED, given), []
    with model.trace(given) as tracer:
        for step in tracer.iter[which]:
            values = model.early.output, model.late.output
            seen.append((step, *map(number_of, values, (calls["early"], calls["late"]))))
    assert seen == [(step, step, step) for step, _, _ in seen] != []


def test_what_follows_in_the_forward_may_be_a_later_call(given):
    class Fed(nn.Module):
        """Calls the second module once before the loop, and again at the end of each round."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.cell, self.feed = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = self.feed(x)
            for _ in range(3):
                x = self.feed(torch.tanh(self.cell(x)))
            return x

    net = Fed()
    calls, model, seen = outputs(net, ["feed"], given)["feed"], NNsight(net), []
    for _ in range(2):
        with model.trace(given) as tracer:
            for _step in tracer.iter[:]:
                model.cell.output
                seen.append(number_of(model.feed.output, calls))
    assert seen == [1, 2, 3] * 2


def test_modules_of_a_list_are_read_in_their_order_in_each_step(given):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.cells = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
            self.row = nn.Sequential(nn.Linear(3, 3), nn.Tanh())

        def forward(self, x):
            for _ in range(3):
                for cell in self.cells:
                    x = torch.tanh(cell(x))
                x = self.row(x)
            return x

    net, paths = Deep(), ["cells.0", "cells.2", "row.0", "row.1"]
    calls, model = outputs(net, paths, given), NNsight(net)
    for _ in range(2):
        with model.trace(given) as tracer:
            for step in tracer.iter[1:]:
                cells, row = model.cells, model.row
                values = cells[0].output, cells[2].output, row[0].output, row[1].output
                for path, value in zip(paths, values, strict=True):
                    assert number_of(value, calls[path]) == step


@pytest.mark.parametrize("warm", [False, True], ids=["first pass", "second pass"])
def test_a_step_that_has_passed_is_said_to_have(given, warm):
    model = NNsight(Loop())
    if warm:
        model.trace(given)
    with pytest.raises(OutOfOrderError, match="call 0 is over") as error:
        with model.trace(given) as tracer:
            for _ in tracer.iter[:2]:
                model.early.output
            for _ in tracer.iter[:]:
                model.early.output
    assert "2 calls" in str(error.value)
    assert "tracer.iter[2:]" in str(error.value)


def test_a_loop_left_before_it_read_anything_changes_nothing(given):
    net = Loop()
    model = NNsight(net)
    with model.trace(given) as tracer:
        first = model.early.output
        for _ in tracer.iter[:]:
            break
        model.early.output[:] = 1
        got = model.output
    assert torch.equal(
        got, edited(net, {"early": lambda out, call: out * 0 + 1 if call == 0 else None}, given)
    )
    assert (first == 1).all()


@pytest.mark.parametrize("warm", [False, True], ids=["first pass", "second pass"])
def test_a_site_that_a_loop_has_left_before_it_read_anything_is_not_there_any_more(given, warm):
    model = NNsight(Loop())
    if warm:
        model.trace(given)
    with pytest.raises(OutOfOrderError, match="call 0 is over"):
        with model.trace(given) as tracer:
            model.early.output
            for _ in tracer.iter[:]:
                model.late.next()
                model.early.output
    with pytest.raises(OutOfOrderError, match="call 0 is over"):
        with model.trace() as tracer:
            with tracer.invoke(given):
                model.late.output
                later = model.early.output
            with tracer.invoke(given):
                model.early.output
                for _ in tracer.iter[:]:
                    later.sum()  # waits for the other body
                    model.early.output
    with pytest.raises(OutOfOrderError, match=r"early\.skip was asked for"):
        with model.trace(given) as tracer:
            model.early.input
            for _ in tracer.iter[:]:
                tracer.result
                model.early.skip(torch.zeros(1, 3))


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
