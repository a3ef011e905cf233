"""Several prompts in one pass: each body sees its rows, in the order they were written."""

import warnings

import pytest
import reference
import torch
from torch import nn

import insitu
from insitu import InputError, NeverRanError, NNsight, OutOfOrderError, TraceError, WriteError


@pytest.fixture
def rows():
    torch.manual_seed(2)
    return [torch.rand(1, 5), torch.rand(2, 5), torch.rand(1, 5)]


def test_invokes_share_one_pass_and_see_their_rows(net, rows):
    model = NNsight(net)
    with reference.counting(net) as calls:
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                a = model.layer1.output
            with tracer.invoke(rows[1]):
                b = model.layer1.output
                out = model.output
    assert calls["layer1"] == 1
    assert torch.allclose(a, net.layer1(rows[0]))
    assert torch.allclose(b, net.layer1(rows[1]))
    assert torch.allclose(out, net(rows[1]))


def test_a_promptless_invoke_sees_every_row(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            pass
        with tracer.invoke(rows[1]):
            pass
        with tracer.invoke():
            model.layer1.output[:, 0] = 0
            every = model.layer1.output
    assert every.shape == (3, 10)
    assert not every[:, 0].any()
    assert torch.allclose(every[:, 1:], net.layer1(torch.cat(rows[:2]))[:, 1:])


def test_writes_change_their_rows_alone(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            model.layer1.output[:] = 0
        with tracer.invoke(rows[1]):
            model.layer1.output = model.layer1.output * 2
        with tracer.invoke(rows[2]):
            pass
        with tracer.invoke():
            out = model.output
    hidden = torch.cat([net.layer1(r) for r in rows])
    hidden[:1], hidden[1:3] = 0, hidden[1:3] * 2
    assert torch.allclose(out, net.layer2(hidden))


def test_inputs_are_read_and_written_by_rows(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            mine = model.layer2.input
        with tracer.invoke(rows[1]):
            model.layer2.input = torch.zeros(2, 10)
            given = model.layer2.inputs
            out = model.output
    assert torch.allclose(mine, net.layer1(rows[0]))
    assert given[0][0].shape == (2, 10)
    assert torch.allclose(out, net.layer2(torch.zeros(2, 10)))


def test_the_input_is_readable_at_the_output_in_rows(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            model.layer2.output
            x = model.layer2.input
        with tracer.invoke(rows[1]):
            model.layer2.output
            y = model.layer2.input
    assert torch.allclose(x, net.layer1(rows[0]))
    assert torch.allclose(y, net.layer1(rows[1]))


def test_a_write_that_does_not_fit_the_rows_is_refused(net, rows):
    model = NNsight(net)
    with pytest.raises(WriteError, match=r"shape \(3, 10\), not \(2, 10\)"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                pass
            with tracer.invoke(rows[1]):
                model.layer1.output = torch.zeros(3, 10)


# Names across invokes -----------------------------------------------------------------------------


def test_a_name_of_one_invoke_is_readable_in_the_next(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            h = model.layer1.output.clone()
        with tracer.invoke(rows[2]):
            model.layer1.output = h  # the name is awaited: no barrier is needed
            out = model.output
    assert torch.allclose(out, net(rows[0]))


def test_a_stale_value_of_that_name_is_not_taken(net, rows):
    h = torch.full((1, 10), 99.0)
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            h = model.layer1.output.clone()
        with tracer.invoke(rows[2]):
            model.layer1.output = h
            out = model.output
    assert torch.allclose(out, net(rows[0]))
    assert torch.allclose(h, net.layer1(rows[0]))


def test_each_invoke_keeps_its_own_value_of_a_name(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            h = model.layer1.output
            model.layer2.output
            first = h
        with tracer.invoke(rows[2]):
            h = model.layer1.output
            model.layer2.output
            second = h
    assert torch.allclose(first, net.layer1(rows[0]))
    assert torch.allclose(second, net.layer1(rows[2]))
    assert h is second


def test_a_value_of_a_later_site_cannot_be_used_earlier(net, rows):
    model = NNsight(net)
    with pytest.raises(OutOfOrderError, match=r"layer1\.output was asked for"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                late = model.layer2.output
            with tracer.invoke(rows[2]):
                model.layer1.output[:, :2] = late


def test_a_name_that_is_never_assigned_is_a_name_error(net, rows):
    model = NNsight(net)
    with pytest.raises(NameError, match="never"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                if rows is None:
                    never = model.layer1.output
            with tracer.invoke(rows[2]):
                model.layer1.output = never


def test_a_barrier_lines_invokes_up(net, rows):
    model, order = NNsight(net), []
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(rows[0]):
            model.layer1.output
            order.append("first")
            barrier()
            order.append("first goes on")
        with tracer.invoke(rows[2]):
            order.append("second")
            barrier()
            order.append("second goes on")
            model.layer1.output
    assert order == ["second", "first", "first goes on", "second goes on"]


def test_a_barrier_opens_again_and_again(net, rows):
    model, seen = NNsight(net), []
    with model.trace() as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(rows[0]):
            for turn in range(3):
                barrier()
                seen.append(("a", turn))
        with tracer.invoke(rows[2]):
            for turn in range(3):
                barrier()
                seen.append(("b", turn))
    assert seen == [(who, turn) for turn in range(3) for who in "ab"]


def test_a_barrier_that_never_opens_says_so(net, rows):
    model = NNsight(net)
    with pytest.raises(TraceError, match="a barrier of 2 never opened"):
        with model.trace() as tracer:
            barrier = tracer.barrier(2)
            with tracer.invoke(rows[0]):
                barrier()


# Loops, nesting, functions ------------------------------------------------------------------------


def test_invokes_in_a_loop_keep_the_loops_values(net, rows):
    model, seen = NNsight(net), []
    with model.trace() as tracer:
        for number, x in enumerate(rows):
            with tracer.invoke(x):
                seen.append((number, x, model.output))
    assert [number for number, *_ in seen] == [0, 1, 2]
    for _, x, out in seen:
        assert torch.allclose(out, net(x))


def test_an_invoke_within_an_invoke_joins_the_batch(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            with tracer.invoke(rows[1]):
                inner = model.output
            outer = model.output
    assert torch.allclose(outer, net(rows[0]))
    assert torch.allclose(inner, net(rows[1]))


def test_an_invoke_in_a_function_uses_the_functions_names(net, rows):
    model = NNsight(net)

    def add(tracer, x, seen):
        scale = 3
        with tracer.invoke(x):
            seen.append(model.output * scale)

    seen = []
    with model.trace() as tracer:
        for x in rows:
            add(tracer, x, seen)
    for x, out in zip(rows, seen, strict=True):
        assert torch.allclose(out, net(x) * 3)


def test_invokes_in_one_with_statement(net, rows):
    model = NNsight(net)
    with model.trace() as tracer, tracer.invoke(rows[0]):
        out = model.output
    assert torch.allclose(out, net(rows[0]))


def test_a_trace_within_an_invoke(net, rows):
    model, other = NNsight(net), NNsight(nn.Linear(10, 3))
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            h = model.layer1.output
            with other.trace(h):
                inner = other.output
            out = model.output
        with tracer.invoke(rows[2]):
            pass
    assert torch.allclose(inner, other._module(net.layer1(rows[0])))
    assert torch.allclose(out, net(rows[0]))


def test_calling_a_module_in_an_invoke_meets_no_site(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            early = model.layer2(torch.ones(1, 10))
            out = model.layer2.output
        with tracer.invoke(rows[2]):
            pass
    assert torch.allclose(early, net.layer2(torch.ones(1, 10)))
    assert torch.allclose(out, net(rows[0]))


def test_a_promptless_invoke_beside_the_traces_own_block(net, x):
    model = NNsight(net)
    with model.trace(x) as tracer:
        with tracer.invoke():
            model.layer1.output[:] = 1
        out = model.output
    assert torch.allclose(out, net.layer2(torch.ones(1, 10)))


def test_what_stands_in_a_joined_trace_itself_sees_all_rows(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            a = model.layer1.output
        with tracer.invoke(rows[1]):
            model.layer1.output[:] = 0
        h = model.layer1.output
        result = tracer.result
    assert h.shape == (3, 10)
    assert not h[1:].any()
    assert torch.equal(a, h[:1])
    assert torch.allclose(result, net.layer2(h))


def test_the_result_is_each_invokes_own(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            a = tracer.result
        with tracer.invoke(rows[1]):
            b = tracer.result().save()
    assert torch.allclose(a, net(rows[0]))
    assert torch.allclose(b, net(rows[1]))


# Skips and stops ----------------------------------------------------------------------------------


def test_rows_of_a_module_can_be_skipped(net, rows):
    model = NNsight(net)
    with reference.counting(net) as calls:
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                model.layer1.skip(torch.zeros(1, 10))
                a = model.output
            with tracer.invoke(rows[1]):
                b = model.output
    assert calls["layer1"] == 1  # the other rows need it
    assert torch.allclose(a, net.layer2(torch.zeros(1, 10)))
    assert torch.allclose(b, net(rows[1]))


def test_a_module_that_all_rows_skip_does_not_run(net, rows):
    model = NNsight(net)
    with model.trace() as tracer:  # which finds out, on fake tensors, what holds the batch
        for x in rows:
            with tracer.invoke(x):
                pass
    ran = []
    handle = net.layer1.register_forward_pre_hook(lambda m, a: None)
    own, net.layer1.forward = net.layer1.forward, lambda x: ran.append(1) or own(x)
    try:
        with model.trace() as tracer:
            for number, x in enumerate(rows):
                with tracer.invoke(x):
                    model.layer1.skip(torch.full((len(x), 10), float(number)))
                    h = model.layer1.output
            with tracer.invoke():
                every = model.layer1.output
    finally:
        handle.remove()
        del net.layer1.forward
    assert not ran
    assert every[:, 0].tolist() == [0, 1, 1, 2]
    assert h[0, 0] == 2


def test_a_skip_that_is_never_used_is_an_error(net, rows):
    model = NNsight(net)
    with pytest.raises((NeverRanError, OutOfOrderError), match=r"layer1.skip"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                model.layer2.output
                model.layer1.skip(torch.zeros(1, 10))
            with tracer.invoke(rows[1]):
                pass


def test_stopping_in_an_invoke_stops_the_pass(net, rows):
    model = NNsight(net)
    with reference.counting(net) as calls:
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                h = model.layer1.output
                tracer.stop()
            with tracer.invoke(rows[1]):
                pass
    assert torch.allclose(h, net.layer1(rows[0]))
    assert calls["layer2"] == 0


# Rows that look like something else ---------------------------------------------------------------


class WithTable(nn.Module):
    """Returns a table of four positions beside what it computes."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.rand(4, 3))
        self.out = nn.Linear(3, 3)

    def positions(self):
        return self.table * 2

    def forward(self, x):
        return self.out(x), self.table * 2


class Holds(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = WithTable()

    def forward(self, x):
        h, table = self.part(x)
        return h + table.sum()


@pytest.mark.parametrize("first", [True, False])
def test_another_dimension_that_equals_the_batch_is_not_sliced(first):
    net = Holds()
    model = NNsight(net)
    xs = [torch.rand(1, 3), torch.rand(3, 3)]
    if not first:
        with model.trace(xs[0]):
            pass
    with model.trace() as tracer:
        with tracer.invoke(xs[0]):
            h, table = model.part.output
        with tracer.invoke(xs[1]):
            g, same = model.part.output
            model.part.output[0][:] = 0
            out = model.output
    assert h.shape == (1, 3)
    assert g.shape == (3, 3)
    assert torch.equal(table, net.part.table * 2)
    assert torch.equal(same, net.part.table * 2)
    assert torch.allclose(out, (net.part.table * 2).sum().expand(3, 3))


def test_a_model_that_fake_tensors_cannot_run_is_told(recwarn):
    class Decides(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    model = NNsight(Decides())
    xs = [torch.ones(1, 2), torch.ones(1, 2)]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with model.trace() as tracer:
            with tracer.invoke(xs[0]):
                a = model.output
            with tracer.invoke(xs[1]):
                pass
    assert a.shape == (1, 2)
    assert any("cannot run on fake tensors" in str(w.message) for w in told)


# Errors -------------------------------------------------------------------------------------------


def test_an_error_in_the_second_invoke_is_the_users_own(net, rows):
    model = NNsight(net)
    with pytest.raises(ZeroDivisionError) as error:
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                a = model.layer1.output
            with tracer.invoke(rows[1]):
                model.layer1.output
                1 / 0
    last = error.traceback[-1]
    assert last.path.name == "test_invoke.py"
    assert "1 / 0" in str(last.statement)
    ours = [entry for entry in error.traceback if "insitu/engine" in str(entry.path)]
    assert [entry.name for entry in ours] == ["__exit__"]
    with model.trace(rows[0]):
        assert torch.equal(model.output, net(rows[0]))
    assert torch.allclose(a, net.layer1(rows[0]))  # what it had assigned stays


def test_an_order_error_in_an_invoke_is_at_its_line(net, rows):
    model = NNsight(net)
    for _ in range(2):  # the first pass is observed, the second knows
        with pytest.raises(OutOfOrderError, match=r"layer1\.output.*already passed") as error:
            with model.trace() as tracer:
                with tracer.invoke(rows[0]):
                    model.layer2.output
                    model.layer1.output
                with tracer.invoke(rows[1]):
                    pass
        assert "model.layer1.output" in str(error.traceback[-1].statement)


def test_an_error_in_the_model_comes_through(rows):
    class Breaks(nn.Module):
        def forward(self, x):
            raise ValueError("inside")

    model = NNsight(Breaks())
    with pytest.raises(ValueError, match="inside"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                model.output
            with tracer.invoke(rows[1]):
                model.output


def test_no_invoke_and_no_input_is_told(net):
    model = NNsight(net)
    with pytest.raises(InputError, match="no input"):
        with model.trace():
            pass
    with pytest.raises(InputError, match="no input"):
        with model.trace():
            model.layer1.output


def test_an_input_for_both_the_trace_and_an_invoke_is_refused(net, x, rows):
    model = NNsight(net)
    with pytest.raises(InputError, match="so was the trace around it"):
        with model.trace(x) as tracer:
            with tracer.invoke(rows[0]):
                pass


def test_an_invoke_after_the_pass_began_is_refused(net, rows):
    model = NNsight(net)
    with pytest.raises(InputError, match="after the pass had begun"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                pass
            model.layer1.output
            with tracer.invoke(rows[1]):
                pass


def test_inputs_that_do_not_fit_together_are_told(net, rows):
    model = NNsight(net)
    with pytest.raises(InputError, match="invoke 2 does not fit"):
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                pass
            with tracer.invoke(torch.rand(1, 4)):
                pass


def test_a_return_in_an_invoke_is_refused(net, rows):
    model = NNsight(net)

    def early():
        with model.trace() as tracer:
            with tracer.invoke(rows[0]):
                return model.output

    with pytest.raises(insitu.CaptureError, match="return"):
        early()


# Language models ----------------------------------------------------------------------------------


PROMPTS = ["The Eiffel Tower", "Once upon a time a model", "Rome"]


def test_padded_invokes_equal_single_runs(llm):
    with torch.no_grad():
        want = [llm._module(**llm.tokenizer(p, return_tensors="pt")).logits[0, -1] for p in PROMPTS]
    with llm.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            a = llm.lm_head.output[:, -1]
        with tracer.invoke(PROMPTS[1:]):
            b = llm.lm_head.output[:, -1]
        with tracer.invoke():
            every = llm.lm_head.output[:, -1]
    assert torch.equal(torch.cat([a, b]), every)
    assert torch.allclose(every, torch.stack(want), atol=1e-4)


def test_padded_invokes_equal_single_runs_whatever_the_form(llm):
    ids = [llm.tokenizer(p)["input_ids"] for p in PROMPTS]
    forms = [PROMPTS[0], ids[1], {"input_ids": torch.tensor([ids[2]])}]
    with llm.trace() as tracer:
        rows = []
        for form in forms:
            with tracer.invoke(form):
                rows.append(llm.lm_head.output[0, -1])
    with torch.no_grad():
        for prompt, row in zip(PROMPTS, rows, strict=True):
            want = llm._module(**llm.tokenizer(prompt, return_tensors="pt")).logits[0, -1]
            assert torch.allclose(row, want, atol=1e-4)


def test_invokes_in_generation_step_by_step(llm):
    with torch.no_grad():
        want = [
            llm._module.generate(**llm.tokenizer(p, return_tensors="pt"), max_new_tokens=3)[0, -3:]
            for p in PROMPTS[:2]
        ]
    with llm.generate(max_new_tokens=3) as tracer:
        with tracer.invoke(PROMPTS[0]):
            a = []
            for _ in tracer.iter[:]:
                a.append(int(llm.lm_head.output[0, -1].argmax()))
            ids = llm.generator.output
        with tracer.invoke(PROMPTS[1]):
            b = []
            for step in tracer.iter[:]:
                if step != 1:
                    b.append(int(llm.lm_head.output[0, -1].argmax()))
    assert a == want[0].tolist()
    assert b == [want[1][0], want[1][2]]
    assert ids[0, -3:].tolist() == a


def test_an_edit_of_one_invoke_in_one_step(llm):
    with llm.generate(max_new_tokens=3) as tracer:
        with tracer.invoke(PROMPTS[0]):
            for _ in tracer.iter[1]:
                llm.lm_head.output[:, -1, 7] = 1e4
        with tracer.invoke(PROMPTS[0]):
            plain = llm.generator.output
        with tracer.invoke():
            every = llm.generator.output
    assert every[0, -2] == 7
    assert every[1, -2] != 7
    assert torch.equal(plain, every[1:])


def test_a_step_missed_in_an_invoke_is_told(llm):
    with pytest.raises(OutOfOrderError, match=r"transformer\.h\.0\.output"):
        with llm.generate(max_new_tokens=3) as tracer:
            with tracer.invoke(PROMPTS[0]):
                llm.lm_head.output
                llm.transformer.h[0].output  # in step 1 it would be another step's value
            with tracer.invoke(PROMPTS[1]):
                pass


def test_patching_from_one_prompt_into_another(llm):
    with llm.trace(PROMPTS[0]):
        want = llm.lm_head.output[0, -1]
    with llm.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            h = llm.transformer.h[3].output
        with tracer.invoke(PROMPTS[2]):
            llm.transformer.h[3].output[:, -1] = h[:, -1]
            got = llm.lm_head.output[0, -1]
    assert torch.allclose(got, want, atol=1e-4)


def test_gradients_of_rows_where_no_parameter_has_any(net, rows):
    net.requires_grad_(False)
    model = NNsight(net)
    with model.trace() as tracer:
        with tracer.invoke(rows[0]):
            h = model.layer1.output
            h.requires_grad_(True)
            with model.output.sum().backward():
                grad = h.grad.clone()
        with tracer.invoke(rows[1]):
            out = model.output
    assert torch.allclose(grad, net.layer2.weight.sum(0).expand(1, 10))
    assert torch.allclose(out, net(rows[1]))
