"""Lasting changes: every later pass of the wrapper runs them."""

import pytest
import torch
from reference import edited as hooked
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import insitu
from insitu import LanguageModel, NNsight, OutOfOrderError

PROMPT = "Once upon a time"


def zero_first(net, x):
    return net.layer2(torch.zeros(len(x), 10))


def test_an_edit_makes_a_second_wrapper_and_leaves_the_first(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:] = 0
    with model.trace(x):
        plain = model.output
    with edited.trace(x):
        changed = edited.output
    assert torch.equal(plain, net(x))
    assert torch.allclose(changed, zero_first(net, x))


def test_an_edit_in_place_lasts_until_it_is_cleared(net, x):
    model = NNsight(net)
    with model.edit(inplace=True):
        model.layer1.output[:] = 0
    with model.trace(x):
        changed = model.output
    model.clear_edits()
    with model.trace(x):
        plain = model.output
    assert torch.allclose(changed, zero_first(net, x))
    assert torch.equal(plain, net(x))


def test_plain_calls_of_the_edited_wrapper_are_edited(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:] = 0
    assert torch.allclose(edited(x), zero_first(net, x))
    assert torch.equal(model(x), net(x))


def test_edits_stack_in_the_order_they_were_made(net, x):
    model = NNsight(net)
    with model.edit() as once:
        model.layer1.output[:] = 1
    with once.edit() as twice:
        once.layer1.output[:] *= 3
    with twice.trace(x):
        h = twice.layer1.output.clone()
    with once.trace(x):
        g = once.layer1.output.clone()
    assert (h == 3).all()
    assert (g == 1).all()


def test_a_block_sees_what_the_edits_left_and_has_the_last_word(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:] = 1
    with edited.trace(x):
        edited.layer1.output[:] += 1
        h = edited.layer1.output.clone()
        out = edited.output
    assert (h == 2).all()
    assert torch.allclose(out, net.layer2(torch.full((1, 10), 2.0)))


def test_the_names_of_the_first_wrapper_work_in_a_trace_of_the_second(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:] = 1
    with edited.trace(x):
        h = model.layer1.output.clone()
    assert (h == 1).all()


def test_an_edit_keeps_the_values_it_was_written_with(net, x):
    model, scale = NNsight(net), 0.0
    with model.edit() as edited:
        model.layer1.output[:] *= scale
    scale = 5.0
    assert scale
    assert torch.allclose(edited(x), zero_first(net, x))


def test_an_edit_outlives_the_function_that_made_it(net, x):
    model = NNsight(net)

    def steered(by):
        with model.edit() as made:
            before = model.layer1.output.clone()
            model.layer1.output = before + by
        return made

    added = steered(torch.ones(10))
    assert torch.allclose(added(x), net.layer2(net.layer1(x) + 1))
    assert torch.allclose(added(x), net.layer2(net.layer1(x) + 1))


def test_an_edit_sees_all_rows_before_the_invokes_see_theirs(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:, 0] = 7
    with edited.trace() as tracer:
        with tracer.invoke(x):
            a = edited.layer1.output
        with tracer.invoke(torch.cat([x, x])):
            edited.layer1.output[:, 0] += 1
            b = edited.layer1.output
    assert a[:, 0].tolist() == [7]
    assert b[:, 0].tolist() == [8, 8]


def test_an_edit_with_a_skip(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.skip(torch.zeros(1, 10))
    assert torch.allclose(edited(x), zero_first(net, x))


def test_an_edit_runs_in_every_step_of_a_generation(llm):
    with llm.edit() as edited:
        llm.lm_head.output[:, -1, 7] = 1e4
    with edited.generate("Once upon", max_new_tokens=4):
        ids = edited.generator.output
    with llm.generate("Once upon", max_new_tokens=4):
        plain = llm.generator.output
    assert ids[0, -4:].tolist() == [7] * 4
    assert plain[0, -4:].tolist() != [7] * 4


def test_an_edit_works_in_a_pass_held_open(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:] = 0
    run = edited.open(x)
    h = edited.layer1.output
    assert not h.any()
    assert torch.allclose(run.finish(), zero_first(net, x))


def test_an_edit_that_finds_nothing_to_change_warns(net, x):
    class Half(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = torch.nn.Linear(5, 2), torch.nn.Linear(5, 2)

        def forward(self, x):
            return self.used(x)

    model = NNsight(Half())
    with model.edit() as edited:
        model.unused.output[:] = 0
    with pytest.warns(insitu.InsituWarning, match="no effect.*unused"):
        edited(x)


def test_an_error_in_an_edit_is_at_its_line(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer1.output[:, 99] = 0
    with pytest.raises(IndexError) as error:
        with edited.trace(x):
            edited.output
    assert "99" in str(error.traceback[-1].statement)
    model.clear_edits()
    assert torch.equal(model(x), net(x))


def test_an_edit_in_the_wrong_order_is_an_order_error(net, x):
    model = NNsight(net)
    with model.edit() as edited:
        model.layer2.output
        model.layer1.output[:] = 0
    with pytest.raises(OutOfOrderError, match=r"layer1\.output"):
        edited(x)


def test_an_edit_needs_no_trace_to_be_made(net, x):
    model = NNsight(net)
    ran = []
    handle = net.register_forward_hook(lambda *a: ran.append(1))
    with model.edit(inplace=True):
        model.layer1.output[:] = 0
    handle.remove()
    assert not ran


def test_an_edit_of_what_comes_after_the_steps_runs_once(llm):
    with llm.edit() as edited:
        llm.generator.output[:, -1] = 7
    with edited.generate("Once upon a time", max_new_tokens=3) as tracer:
        ids = tracer.result
    with llm.generate("Once upon a time", max_new_tokens=3) as tracer:
        plain = tracer.result
    assert ids[0, -1] == 7
    assert torch.equal(ids[:, :-1], plain[:, :-1])


# Calls of an edited wrapper inside other blocks ---------------------------------------------------


def test_an_edited_wrapper_is_edited_inside_the_blocks_of_others(net, x):
    model, other = NNsight(net), NNsight(torch.nn.Sequential(torch.nn.Linear(5, 5)))
    with model.edit() as made:
        model.layer1.output[:] = 0
    want, inside = zero_first(net, x), []
    with model.trace(x):
        h = model.layer1.output
        inside.append(made(x))
        out = model.output
    with other.trace(x):
        other[0].output
        inside.append(made(x))
    for opened in (other.open(x), made.open(x)):
        inside.append(made(x))
        opened.close()
    with other.trace() as tracer:
        with tracer.invoke(x):
            other[0].output
            invoked = made(x)
    assert all(torch.allclose(y, want) for y in [*inside, invoked])
    assert torch.equal(h, net.layer1(x))
    assert torch.equal(out, net(x))


def test_an_edited_wrapper_called_by_a_hook_of_another_model_is_edited(net, x):
    model, outer = NNsight(net), torch.nn.Linear(5, 5)
    with model.edit() as made:
        model.layer1.output[:] = 0
    seen = []
    handle = outer.register_forward_hook(lambda m, a, out: seen.append(made(x)))
    with NNsight(outer).trace(x) as tracer:
        tracer.result
    handle.remove()
    assert torch.allclose(seen[0], zero_first(net, x))


def test_in_a_block_of_its_own_an_edited_wrapper_computes_alone(net, x):
    model = NNsight(net)
    with model.edit(inplace=True):
        model.layer1.output[:] *= model(x).sum()
    with model.trace(x):
        model.layer1.output
        alone = model(x)
    assert torch.equal(alone, net(x))
    assert torch.allclose(model(x), net.layer2(net.layer1(x) * net(x).sum()))


# Modules that are called several times ------------------------------------------------------------


class Rounds(nn.Module):
    """Calls one module in every round, a second in all but the last, a third after them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.gate, self.out = (nn.Linear(5, 5) for _ in range(3))

    def forward(self, x):
        for left in (2, 1, 0):
            x = torch.tanh(self.cell(x))
            x = self.gate(x) if left else x
        return self.out(x)


@pytest.fixture(params=[0, 1], ids=["first pass", "second pass"])
def rounds(request, x):
    model = NNsight(Rounds())
    if request.param:
        model.trace(x)
    return model


def doubled(out, call):
    return out * 2


def by_call(out, call):
    return out * (call + 2)


def test_an_edit_runs_at_every_call_of_what_it_reads_first(rounds, x):
    net = rounds._module
    with rounds.edit() as replacing:
        rounds.cell.output *= 2
    with rounds.edit() as in_place:
        rounds.cell.output[:] *= 2
    want = hooked(net, {"cell": doubled}, x)
    for made in (replacing, in_place):
        assert torch.allclose(made(x), want)
        with made.trace() as tracer:
            with tracer.invoke(x):
                a = made.output
            with tracer.invoke(x * 2):
                b = made.output
        assert torch.allclose(
            torch.cat([a, b]), hooked(net, {"cell": doubled}, torch.cat([x, x * 2]))
        )
    assert torch.equal(rounds(x), net(x))


def test_an_edit_of_inputs_and_of_operations_runs_at_every_call(rounds, x):
    net = rounds._module
    with rounds.edit() as of_inputs:
        rounds.cell.input = rounds.cell.input * 2
    with rounds.edit() as of_operations:
        rounds.source.torch_tanh_0.output[:] *= 2
    want = x
    for left in (2, 1, 0):
        want = torch.tanh(net.cell(want * 2))
        want = net.gate(want) if left else want
    assert torch.allclose(of_inputs(x), net.out(want))
    want = x
    for left in (2, 1, 0):
        want = torch.tanh(net.cell(want)) * 2
        want = net.gate(want) if left else want
    assert torch.allclose(of_operations(x), net.out(want))


def test_an_edit_of_two_modules_runs_for_each_pair_of_calls(rounds, x):
    with rounds.edit() as made:
        rounds.cell.output[:] *= 2
        rounds.gate.output[:] *= 3
    want = hooked(rounds._module, {"cell": doubled, "gate": lambda out, call: out * 3}, x)
    assert torch.allclose(made(x), want)


def test_an_edit_that_skips_does_so_at_every_call(rounds, x):
    with rounds.edit() as made:
        rounds.gate.skip(x * 2)
    assert torch.allclose(made(x), hooked(rounds._module, {"gate": lambda out, call: x * 2}, x))


def test_an_edit_with_a_loop_changes_the_calls_it_names(rounds, x):
    net = rounds._module
    with rounds.edit() as second:
        for _ in rounds.iter[1]:
            rounds.cell.output[:] *= 3
    with rounds.edit() as each:
        for step in rounds.iter[:]:
            rounds.cell.output[:] *= step + 2
    with rounds.edit() as none:
        for _ in rounds.iter[7:]:
            rounds.cell.output[:] = 0
    assert torch.allclose(second(x), hooked(net, {"cell": lambda o, c: o * 3 if c == 1 else o}, x))
    assert torch.allclose(each(x), hooked(net, {"cell": by_call}, x))
    assert torch.equal(none(x), net(x))


# Steps of a generation ----------------------------------------------------------------------------


def tokens_by_hooks(llm, edits, count=4):
    given = llm.tokenizer(PROMPT, return_tensors="pt")
    call = lambda: llm._module.generate(**given, max_new_tokens=count)  # noqa: E731
    return hooked(llm._module, edits, call=call)


def with_all(llm):
    for _ in llm.all():
        llm.lm_head.output[:, -1, 7] = 1e4


@pytest.mark.parametrize(
    ("which", "steps"),
    [(slice(None), {0, 1, 2, 3}), (slice(1, 3), {1, 2}), (0, {0}), ([1, 3], {1, 3}), (9, set())],
)
def test_an_edit_may_choose_its_steps(llm, which, steps):
    with llm.edit() as by_for:
        for _ in llm.iter[which]:
            llm.lm_head.output[:, -1, 7] = 1e4
    with llm.edit() as by_with:
        with llm.iter[which]:
            llm.lm_head.output[:, -1, 7] = 1e4

    def promoted(out, call):
        if call in steps:
            out[:, -1, 7] = 1e4

    want = tokens_by_hooks(llm, {"lm_head": promoted})
    alone = hooked(llm._module, {"lm_head": promoted}, **llm.tokenizer(PROMPT, return_tensors="pt"))
    for made in (by_for, by_with):
        assert torch.equal(made.generate(PROMPT, max_new_tokens=4, trace=False), want)
        assert torch.equal(made(PROMPT).logits, alone.logits)


def test_an_edit_may_go_to_the_next_step(llm):
    with llm.edit() as made:
        llm.lm_head.output[:, -1, 7] = 1e4
        llm.lm_head.next().output[:, -1, 9] = 1e4
    with llm.edit() as by_all:
        with_all(llm)

    def promoted(out, call):
        if call < 2:
            out[:, -1, (7, 9)[call]] = 1e4

    got = made.generate(PROMPT, max_new_tokens=4, trace=False)
    assert torch.equal(got, tokens_by_hooks(llm, {"lm_head": promoted}))
    assert by_all.generate(PROMPT, max_new_tokens=4, trace=False)[0, -4:].tolist() == [7] * 4


def test_an_edit_of_each_new_token_runs_in_every_step(llm):
    seen = []
    with llm.edit() as made:
        llm.lm_head.output[:, -1, 7] = 1e4
        seen.append(llm.generator.streamer.output.tolist())
    with llm.edit() as of_tokens:
        seen.append(llm.generator.streamer.output.tolist())
    made.generate(PROMPT, max_new_tokens=3, trace=False)
    assert seen == [[7]] * 3
    seen.clear()
    ids = of_tokens.generate(PROMPT, max_new_tokens=3, trace=False)
    assert seen == [[token] for token in ids[0, -3:].tolist()]


def test_an_edit_that_goes_on_to_the_end_says_that_it_ran_once(llm):
    with llm.edit() as made:
        llm.lm_head.output[:, -1, 7] = 1e4
        llm.generator.output[:, 0] = 3

    def promoted(out, call):
        if call == 0:
            out[:, -1, 7] = 1e4

    with pytest.warns(insitu.InsituWarning, match="one step alone: it went on to generator,"):
        ids = made.generate(PROMPT, max_new_tokens=4, trace=False)
    assert torch.equal(ids[:, 1:], tokens_by_hooks(llm, {"lm_head": promoted})[:, 1:])
    assert ids[0, 0] == 3


# A model that runs something before its steps -----------------------------------------------------


@pytest.fixture(params=[0, 1], ids=["first pass", "second pass"])
def t5(request):
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = LanguageModel(T5ForConditionalGeneration(config).eval())
    for _ in range(request.param):
        model.generate(IDS, max_new_tokens=2, trace=False)
    return model


IDS = torch.tensor([[5, 6, 7, 8]])


def t5_by_hooks(t5, edits, count=4):
    call = lambda: t5._module.generate(IDS, max_new_tokens=count)  # noqa: E731
    return hooked(t5._module, edits, call=call)


def halved(out, call):
    out[0][:] *= 0.5


def test_an_edit_of_what_runs_before_the_steps(t5):
    with t5.edit() as made:
        t5.encoder.block[0].output[0][:] *= 0.5
    with t5.edit() as skipping:
        t5.encoder.block[1].layer[1].skip(torch.ones(1, 4, 16))
    got = made.generate(IDS, max_new_tokens=4, trace=False)
    assert torch.equal(got, t5_by_hooks(t5, {"encoder.block.0": halved}))
    ones = {"encoder.block.1.layer.1": lambda out, call: torch.ones(1, 4, 16)}
    got = skipping.generate(IDS, max_new_tokens=4, trace=False)
    assert torch.equal(got, t5_by_hooks(t5, ones))


def test_edits_before_and_in_the_steps_stand_beside_each_other(t5):
    with t5.edit() as made:
        t5.encoder.block[0].output[0][:] *= 0.5
    with made.edit() as both:
        made.lm_head.output[:, -1, 7] += 3
    seen = []
    with both.generate(IDS, max_new_tokens=4) as tracer:
        for _ in tracer.iter[:]:
            seen.append(both.lm_head.output[:, -1].argmax().item())
        ids = tracer.result

    def promoted(out, call):
        out[:, -1, 7] += 3

    want = t5_by_hooks(t5, {"encoder.block.0": halved, "lm_head": promoted})
    assert torch.equal(ids, want)
    assert seen == want[0, -4:].tolist()


def test_an_edit_of_both_in_one_says_that_the_steps_were_left_out(t5):
    with t5.edit() as made:
        t5.encoder.block[0].output[0][:] *= 0.5
        t5.lm_head.output[:, -1, 7] = 1e4
    with pytest.warns(insitu.InsituWarning, match=r"did nothing in step 1: .* encoder\.block\.0"):
        made.generate(IDS, max_new_tokens=4, trace=False)


def test_an_edit_in_the_wrong_order_is_an_order_error_in_a_generation_too(llm):
    with llm.edit() as made:
        llm.transformer.h[1].output
        llm.transformer.h[0].output[0][:] = 0
    with pytest.raises(OutOfOrderError, match=r"h\.0\.output"):
        made.generate(PROMPT, max_new_tokens=3, trace=False)
