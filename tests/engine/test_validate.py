"""`validate=True`: a block is checked on fake tensors before its model runs."""

import sys
import warnings

import pytest
import torch
from reference import outputs
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from untouched import state

import insitu
from insitu import InsituWarning, NNsight, OutOfOrderError, UsageError, WriteError


def line_of(error, text):
    """The line of a statement in the test that raised."""
    frame = error.traceback[0].frame
    lines = str(frame.code.fullsource).split("\n")
    first = frame.code.firstlineno
    return next(
        n + 1 for n in range(first, len(lines)) if text in lines[n] and "line_of" not in lines[n]
    )


def last_user_line(error):
    """The line of this file that a traceback ends at, torch's and the model's frames aside."""
    return [entry.lineno + 1 for entry in error.traceback if str(entry.path) == __file__][-1]


def was_validated(error):
    return any("validate=True" in note for note in getattr(error.value, "__notes__", []))


@pytest.fixture
def calls(net):
    """How often the model really ran: with real tensors."""
    found = []
    handle = net.layer1.register_forward_hook(
        lambda m, args, out: found.append(out) if type(out) is torch.Tensor else None
    )
    yield found
    handle.remove()


# What is found --------------------------------------------------------------------------------


def test_a_wrong_shape_is_found_before_the_model_runs(net, x, calls):
    model = NNsight(net)
    with pytest.raises(RuntimeError) as error:
        with model.trace(x, validate=True):
            h = model.layer1.output
            model.layer2.output = h @ torch.rand(3, 3)
    assert calls == []
    assert was_validated(error)
    assert last_user_line(error) == line_of(error, "h @ torch.rand(3, 3)")
    assert str(error.traceback[-1].path) == __file__  # and nothing of torch's own below it


def test_a_value_that_does_not_fit_is_found_with_its_own_error(net, x, calls):
    model = NNsight(net)
    for word in ("validate", "scan"):
        with pytest.raises(
            WriteError, match=r"layer1.output does not fit: shape \(1, 3\)"
        ) as error:
            with model.trace(x, **{word: True}):
                model.layer1.output = torch.zeros(1, 3)
        assert was_validated(error)
        assert last_user_line(error) == line_of(error, "torch.zeros(1, 3)")
    assert calls == []


def test_a_wrong_order_is_found(net, x, calls):
    model = NNsight(net)
    with pytest.raises(OutOfOrderError, match=r"layer1\.output") as error:
        with model.trace(x, validate=True):
            model.layer2.output
            model.layer1.output
    assert calls == []
    assert was_validated(error)


def test_a_value_that_breaks_the_model_later_is_found_and_named(net, x, calls):
    model = NNsight(net)
    with pytest.raises(RuntimeError) as error:
        with model.trace(x, validate=True):
            model.layer1.output = insitu.force(torch.zeros(1, 7))
    assert calls == []
    assert was_validated(error)
    assert "replaced layer1.output (float32[1, 10] → float32[1, 7])" in error.value.__notes__[0]


@pytest.mark.parametrize("operation", [
    lambda h: h @ torch.rand(10, 3).double(),
    lambda h: h[0] @ torch.rand(10).double() if False else torch.rand(3, 10).double() @ h[0],
    lambda h: torch.nn.functional.linear(h, torch.rand(3, 10).double()),
    lambda h: torch.nn.functional.linear(h, torch.rand(3, 10).double(), torch.rand(3).double()),
    lambda h: torch.nn.functional.conv1d(h[None], torch.rand(3, 1, 2).double()),
    lambda h: h.__setitem__(torch.tensor([0]), torch.rand(1, 10).double()),
    lambda h: torch.nn.functional.embedding(torch.tensor([0.5]), h),
    lambda h: torch.bmm(h[None], torch.rand(1, 10, 2).half()),
])  # fmt: skip
def test_a_wrong_dtype_is_found(net, x, calls, operation):
    model = NNsight(net.requires_grad_(False))
    with pytest.raises((RuntimeError, IndexError)):
        operation(net.layer1(x))
    calls.clear()
    with pytest.raises((RuntimeError, IndexError)) as error:
        with model.trace(x, validate=True):
            operation(model.layer1.output)
    assert calls == []
    assert was_validated(error)


def test_a_name_or_an_index_that_is_wrong_is_found(net, x, calls):
    model = NNsight(net)
    with pytest.raises(NameError) as error:
        with model.trace(x, validate=True):
            model.layer1.output[:, 0] = no_such_name  # noqa: F821
    assert was_validated(error)
    with pytest.raises(IndexError) as error:
        with model.trace(x, validate=True):
            model.layer2.output[:, 99]
    assert calls == []
    assert was_validated(error)


def test_torch_prints_nothing_beside_the_error(net, x, capfd, caplog):
    model = NNsight(net)
    with pytest.raises(RuntimeError):
        with model.trace(x, validate=True):
            model.layer1.output @ torch.rand(3, 3)
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


# What runs ------------------------------------------------------------------------------------


def test_a_block_without_mistakes_runs_once_as_it_would(net, x, calls):
    model, seen = NNsight(net), []
    with model.trace(x, validate=True) as tracer:
        h = model.layer1.output
        seen.append(h.shape)
        model.layer1.output = h * 2
        out = model.output
    assert len(calls) == 1
    assert seen == [(1, 10)]
    assert type(h) is torch.Tensor
    assert torch.equal(h, net.layer1(x))
    assert torch.equal(out, net.layer2(net.layer1(x) * 2))
    assert tracer.result is out


def test_it_can_be_switched_off(net, x, calls):
    model = NNsight(net)
    for words in ({"validate": False}, {"scan": False}, {"validate": False, "scan": False}):
        with model.trace(x, **words):
            out = model.output
        assert torch.equal(out, net(x))
        assert torch.equal(model.trace(x, **words), net(x))
        with model.scan(x, **words):
            assert type(model.output) is FakeTensor
        run = model.open(x, **words)
        assert torch.equal(run.finish(), net(x))


def test_a_trace_without_a_block_has_nothing_to_check(net, x):
    assert torch.equal(NNsight(net).trace(x, validate=True), net(x))
    with NNsight(net).scan(x, validate=True) as tracer:
        assert type(tracer.result) is FakeTensor


def test_what_a_block_stores_and_changes_happens_once(net, x):
    model = NNsight(net)
    log, nested, named, unique = [], {"a": [1]}, {}, set()
    total, count, both = torch.zeros(10), 0, ([], [])
    with model.trace(x, validate=True):
        h = model.layer1.output
        log.append(h)
        nested["a"].append(h.shape[0])
        named["h"] = h
        unique.add(h.shape)
        both[0].append(1)
        total += h[0].detach()
        count += 1
    assert len(log) == 1
    assert nested == {"a": [1, 1]}
    assert list(named) == ["h"]
    assert len(unique) == 1
    assert count == 1
    assert both == ([1], [])
    assert type(named["h"]) is type(log[0]) is torch.Tensor
    assert torch.equal(total, net.layer1(x)[0])


def test_a_list_stays_the_one_it_is_under_two_names(net, x):
    model, first = NNsight(net), []
    second = {"it": first}
    with model.trace(x, validate=True):
        first.append(model.layer1.output)
        same = second["it"] is first and len(second["it"]) == 1
    assert same
    assert second["it"] is first
    assert len(first) == 1


def test_a_tensor_of_the_caller_is_not_tied_to_the_trial(net, x):
    model = NNsight(net)
    kept, grown = torch.zeros(2, 10), torch.ones(10, requires_grad=True) * 2
    with pytest.raises(ZeroDivisionError):
        with model.trace(x, validate=True):
            kept[0] = model.layer1.output[0]
            grown *= model.layer1.output[0]
            1 / 0
    assert not kept.requires_grad
    assert not kept.any()
    assert kept._version == 0
    assert grown.tolist() == [2] * 10
    assert type(grown.grad_fn).__name__ == "MulBackward0"
    assert grown._version == 0


def test_names_are_left_alone_when_the_check_fails(net, x):
    model, h = NNsight(net), "before"
    with pytest.raises(ZeroDivisionError):
        with model.trace(x, validate=True) as tracer:
            h = model.layer1.output
            fresh = 1
            1 / 0
    assert h == "before"
    with pytest.raises(UnboundLocalError):
        fresh
    with pytest.raises(UnboundLocalError):
        tracer


def test_globals_are_left_alone(net, x):
    names = {"net": net, "x": x, "NNsight": NNsight, "log": [], "n": 0}
    program = """
model = NNsight(net)
def count():
    global n
    n += 1
with model.trace(x, validate=True):
    n += 10
    log.append(model.layer1.output)
    def seen():
        global n
        n += 100
    seen()
"""
    import linecache

    linecache.cache["<program>"] = (len(program), None, program.splitlines(True), "<program>")
    try:
        exec(compile(program, "<program>", "exec"), names)
    finally:
        del linecache.cache["<program>"]
    assert names["n"] == 110
    assert len(names["log"]) == 1


def test_it_prints_once(net, x, capsys):
    model = NNsight(net)
    with model.trace(x, validate=True) as tracer:
        print("from the block")
        tracer.log("from the tracer")
        [print("nested") for _ in range(1)]
        model.layer1.output
    assert capsys.readouterr().out == "from the block\nfrom the tracer\nnested\n"


def test_calls_of_an_imported_module_over_several_lines(net, x):
    model = NNsight(net)
    with model.trace(x, validate=True):
        h = torch.nn.functional.linear(
            model.layer1.output,
            torch.ones(
                3,
                10,
                dtype=torch.float32,
            ),
            bias=None,
        )
    assert torch.allclose(h, net.layer1(x).sum().expand(1, 3))


def test_stopping_early_is_no_mistake(net, x):
    model = NNsight(net)
    with model.trace(x, validate=True) as tracer:
        h = model.layer1.output
        tracer.stop()
    assert torch.equal(h, net.layer1(x))


def test_the_random_numbers_of_the_real_run_are_the_same(net, x):
    model = NNsight(net)
    torch.manual_seed(3)
    with model.trace(x):
        plain = model.layer1.output + torch.randn(10)
    torch.manual_seed(3)
    with model.trace(x, validate=True):
        checked = model.layer1.output + torch.randn(10)
    assert torch.equal(plain, checked)


def test_a_language_model_is_checked_too(llm):
    ids = llm.tokenizer("Once upon", return_tensors="pt")["input_ids"]
    want = outputs(llm._module, ["transformer.h.1"], ids)["transformer.h.1"][0]
    with llm.trace("Once upon", validate=True):
        h = llm.transformer.h[1].output
    assert torch.equal(h, want)
    with pytest.raises(WriteError) as error:
        with llm.trace("Once upon", validate=True):
            llm.transformer.h[1].output = torch.zeros(1, 2, 3)
    assert was_validated(error)


# Bodies inside the block ----------------------------------------------------------------------


def test_invokes_are_checked_with_the_block(net, x, calls):
    model = NNsight(net)
    with pytest.raises(WriteError) as error:
        with model.trace(validate=True) as tracer:
            with tracer.invoke(x):
                h = model.layer1.output
            with tracer.invoke(torch.cat([x, x])):
                model.layer1.output = h[:, :3]
    assert calls == []
    assert was_validated(error)
    assert last_user_line(error) == line_of(error, "h[:, :3]")


def test_invokes_without_mistakes_run_as_they_would(net, x, calls):
    model, log = NNsight(net), []
    with model.trace(validate=True) as tracer:
        for scale in (1, 2):
            with tracer.invoke(x * scale):
                log.append(model.layer1.output)
        with tracer.invoke(x):
            model.layer1.output = model.layer1.output * 0 + log[0] * 0
            out = model.output
    assert len(log) == 2
    assert len(calls) == 1
    assert torch.allclose(log[1], net.layer1(x * 2))
    assert torch.allclose(out, net.layer2.bias)


def test_prompts_of_unequal_length_are_joined_as_they_are(llm):
    def hidden(**words):
        with llm.trace(**words) as tracer:
            with tracer.invoke("Once upon a time"):
                a = llm.transformer.h[1].output
            with tracer.invoke("The"):
                b = llm.transformer.h[1].output[:, -1]
        return a, b

    for plain, checked in zip(hidden(), hidden(validate=True), strict=True):
        assert torch.equal(plain, checked)


def test_rows_that_must_be_told_apart_by_a_scan_are_the_same_afterwards():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows, self.a = nn.Parameter(torch.rand(2, 3)), nn.Linear(3, 3)
            self.table = nn.Identity()

        def forward(self, x):
            return self.a(x) + self.table(self.rows).sum()

    model = NNsight(Table())
    with model.trace(validate=True) as tracer:
        with tracer.invoke(torch.rand(1, 3)):
            table = model.table.output
        with tracer.invoke(torch.rand(1, 3)):
            own = model.a.output
    assert table.shape == (2, 3)
    assert own.shape == (1, 3)


def test_edits_are_checked_and_change_nothing_of_the_callers(net, x):
    model, log = NNsight(net), []
    with model.edit() as edited:
        model.layer1.output[:] = 0
        log.append(1)
        print("an edit")
    with edited.trace(x, validate=True):
        out = edited.output
    assert log == [1]
    assert torch.allclose(out, net.layer2.bias)
    with model.edit() as broken:
        model.layer1.output = torch.zeros(1, 3)
    with pytest.raises(WriteError) as error:
        with broken.trace(x, validate=True):
            broken.output
    assert was_validated(error)


def test_a_step_loop_is_checked(x):
    class Loops(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 5)

        def forward(self, x):
            for _ in range(3):
                x = self.a(x)
            return x

    model, shapes = NNsight(Loops()), []
    with model.trace(x, validate=True) as tracer:
        for _ in tracer.iter[:]:
            shapes.append(model.a.output.shape)
    assert len(shapes) == 3


# Gradients ------------------------------------------------------------------------------------


def test_a_backward_in_the_block_leaves_the_real_gradients_alone(net, x):
    model, steer = NNsight(net), torch.zeros(10, requires_grad=True)
    probe = nn.Linear(2, 1)
    with model.trace(x, validate=True):
        model.layer1.output = model.layer1.output + steer
        loss = probe(model.output).sum()
        loss.backward()
    got = [p.grad.clone() for p in (*net.parameters(), *probe.parameters(), steer)]
    for tensor in (*net.parameters(), *probe.parameters(), steer):
        assert type(tensor.grad) is torch.Tensor
        tensor.grad = None
    probe(net.layer2(net.layer1(x) + steer)).sum().backward()
    want = [p.grad for p in (*net.parameters(), *probe.parameters(), steer)]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_backward_block_is_checked(net, x):
    model = NNsight(net)
    with model.trace(x, validate=True):
        h = model.layer1.output
        with model.output.sum().backward():
            g = h.grad
    assert torch.allclose(g, net.layer2.weight.sum(0)[None])
    assert type(g) is torch.Tensor


# What cannot be checked -----------------------------------------------------------------------


@pytest.mark.parametrize("needs", [
    lambda h: h.sum().item(),
    lambda h: h.detach().numpy(),
    lambda h: f"{h.sum():.3f}",
    lambda h: h[h > 0],
    lambda h: [1, 2][int(h.sum() > 1e9)],
    lambda h: h.tolist(),
])  # fmt: skip
def test_a_block_that_needs_values_warns_and_runs(net, x, calls, needs):
    model = NNsight(net.requires_grad_(False))
    with pytest.warns(InsituWarning, match="could not be validated") as caught:
        with model.trace(x, validate=True):
            got = needs(model.layer1.output)
    assert len(calls) == 1
    assert got is not None
    assert caught[0].filename == __file__


def test_a_model_that_needs_values_warns_and_runs(x):
    class Decides(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum().item() > 0 else x

    model = NNsight(Decides())
    with pytest.warns(InsituWarning, match=r"could not be validated: the scan .* real values"):
        with model.trace(x, validate=True):
            out = model.output
    assert torch.equal(out, x * 2)


def test_a_block_that_cannot_be_taken_out_warns_and_runs(net, x):
    model = NNsight(net)

    def returned():
        with model.trace(x, validate=True):
            return model.layer1.output

    with pytest.warns(InsituWarning, match=r"could not be validated: .* has a `return`"):
        got = returned()
    assert torch.equal(got, net.layer1(x))


def test_a_warning_is_given_once(net, x):
    model = NNsight(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with model.trace(x, validate=True):
            model.layer1.output
            warnings.warn("of the block", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["of the block"]


def test_a_generation_cannot_be_checked(llm):
    for word in ("validate", "scan"):
        with pytest.raises(UsageError, match=r"generate\(\) was given validate=True") as error:
            with llm.generate("Once", max_new_tokens=2, **{word: True}):
                pass
        assert str(error.value).count("\n") == 2
    with pytest.raises(UsageError, match=r"open\(\)"):
        llm.open("Once", validate=True)
    with llm.generate("Once", max_new_tokens=2, validate=False, scan=False):
        ids = llm.generator.output
    assert ids.shape[1] == len(llm.tokenizer("Once")["input_ids"]) + 2


# Nothing is left ------------------------------------------------------------------------------


def test_a_check_leaves_nothing_behind(x):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
            self.seen = []

        def forward(self, x):
            self.seen.append(x.shape)
            self.last = x
            return self.norm(self.a(x))

    net = Counts().train()
    model, x = NNsight(net), torch.rand(4, 5)
    log = sys.modules["logging"].getLogger("torch._subclasses.fake_tensor")
    before, buffers, filters = state(net), [b.clone() for b in net.buffers()], list(log.filters)
    with pytest.raises(WriteError):
        with model.trace(x, validate=True):
            model.a.output
            model.norm.output = torch.zeros(1)
    assert state(net) == before
    assert net.seen == []
    assert not hasattr(net, "last")
    assert all(torch.equal(a, b) for a, b in zip(buffers, net.buffers(), strict=True))
    assert log.filters == filters
    assert model._orders == {}
    assert model._batched == {}
    with model.trace(x, validate=True):
        out = model.output
    assert len(net.seen) == 1
    assert type(net.last) is type(out) is torch.Tensor
    assert model._orders.keys() == {"trace", "scan"}


def test_an_attached_module_keeps_no_fake(net, x):
    class Remembers(nn.Module):
        def forward(self, h):
            self.last = h
            return h

    model = NNsight(net)
    model.layer1.memory = memory = Remembers()
    with pytest.raises(ZeroDivisionError):
        with model.trace(x, validate=True):
            model.layer1.memory(model.layer1.output)
            1 / 0
    assert not hasattr(memory, "last")


def test_a_trace_inside_a_checked_one(net, x):
    model, other = NNsight(net), NNsight(nn.Linear(10, 3))
    with model.trace(x, validate=True):
        h = model.layer1.output
        with other.trace(h, validate=True):
            inner = other.output
    assert torch.equal(inner, other._module(net.layer1(x)))


def test_a_pass_held_open_is_not_taken_for_the_trial(net, x):
    model = NNsight(net)
    run = model.open(x)
    run.step()
    with model.trace(x * 2, validate=True):
        h = model.layer1.output
    assert torch.equal(h, net.layer1(x * 2))
    assert run.where == "layer1.output"
    run.close()


def test_a_model_on_meta_is_checked_before_its_weights_come():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model = NNsight(net)
    with pytest.raises(WriteError) as error:
        with model.trace(torch.rand(5, 3, device="meta"), validate=True):
            model[0].output = torch.zeros(1, device="meta")
    assert was_validated(error)
