"""Lasting changes: every later pass of the wrapper runs them."""

import pytest
import torch

import insitu
from insitu import NNsight, OutOfOrderError


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
